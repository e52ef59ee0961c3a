"""Error curves: what least squares on the rows themselves leaves, at each rate."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.moments import MomentStats
from onnxdrp.pruning_curves import error_curve, fit_to_own, interpolated, spread_rows


def case(seed, groups=1, outputs=6, columns=8, rows=400):
    """A matrix, rows that depend on each other and have means, and their moments."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows, columns)) @ rng.standard_normal(
        (groups, columns, columns)
    )
    x += rng.standard_normal((groups, 1, columns))
    matrix = rng.standard_normal((groups, outputs, columns))
    nothing = np.zeros((groups, outputs))
    moments = MomentStats(
        rows, x.sum(1), nothing, x.swapaxes(1, 2) @ x, np.zeros((groups, columns, outputs)), nothing
    )
    return matrix, x, moments


def masks(matrix, rate):
    """The smallest weights of each row go."""
    gone = round(rate * matrix.shape[-1])
    return np.argsort(np.argsort(np.abs(matrix), axis=-1), axis=-1) >= gone


def left_over(matrix, keep, x, bias):
    """The errors of the best kept weights by lstsq on the rows, [g, m]."""
    errors = np.zeros(matrix.shape[:2])
    for g, m in np.ndindex(errors.shape):
        a = x[g][:, keep[g, m]]
        a = np.column_stack([a, np.ones(len(a))]) if bias else a
        wanted = x[g] @ matrix[g, m]
        errors[g, m] = np.square(wanted - a @ np.linalg.lstsq(a, wanted, rcond=None)[0]).sum()
    return errors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_curve_is_what_least_squares_on_the_rows_leaves(groups, bias):
    matrix, x, moments = case(1, groups)
    stats = moments.centred() if bias else moments
    rows = np.tile(np.arange(6), (groups, 1))
    rates = [0.25, 0.5, 0.75]
    found = error_curve(matrix, partial(masks, matrix), stats, rates, rows)
    wanted = [left_over(matrix, masks(matrix, r), x, bias).sum() for r in rates]
    assert wanted[0] > 1
    np.testing.assert_allclose(found, wanted, rtol=1e-2)  # a ridge of a thousandth
    fitted, errors = fit_to_own(matrix, masks(matrix, 0.5), stats)
    np.testing.assert_allclose(errors, left_over(matrix, masks(matrix, 0.5), x, bias), rtol=2e-2)
    assert not fitted[~masks(matrix, 0.5)].any()


def test_rows_that_are_chosen_are_the_ones_that_are_summed():
    matrix, x, moments = case(2)
    rows = np.array([[4, 1]])
    found = error_curve(matrix, partial(masks, matrix), moments.centred(), [0.5], rows)
    every = left_over(matrix, masks(matrix, 0.5), x, bias=True)[0]
    assert found == pytest.approx([every[[4, 1]].sum()], rel=1e-2)
    assert not np.isclose(every[[4, 1]].sum(), every[:2].sum(), rtol=0.1)


def test_pruning_everything_leaves_the_variance_and_nothing_leaves_nothing():
    matrix, x, moments = case(3)
    rows = np.arange(6)[None]
    found = error_curve(
        matrix, lambda rate: np.full(matrix.shape, rate < 0.5), moments.centred(), [0.0, 0.9], rows
    )
    outputs = x[0] @ matrix[0].T
    variance = np.square(outputs - outputs.mean(0)).sum()
    np.testing.assert_allclose(found, [0, variance], rtol=1e-9, atol=1e-9 * variance)


def test_errors_never_fall_with_the_rate():
    matrix, _, moments = case(4)
    masks_of = {0.2: 0.75, 0.5: 0.25, 0.8: 0.5}  # a pattern whose masks get better in between
    found = error_curve(
        matrix,
        lambda rate: masks(matrix, masks_of[rate]),
        moments.centred(),
        [0.2, 0.5, 0.8],
        np.arange(6)[None],
    )
    assert found[0] == found[1] == found[2] > 0


@given(st.integers(1, 8), st.integers(1, 500), st.integers(1, 5000))
def test_rows_are_spread_over_those_that_err_least_to_most(groups, outputs, columns):
    errors = np.random.default_rng(outputs).permuted(
        np.tile(np.arange(outputs), (groups, 1)), axis=1
    )
    rows = spread_rows(errors.astype(np.float64), columns)
    ranks = np.take_along_axis(errors, rows, axis=1)
    count = rows.shape[1]
    assert rows.shape[0] == groups
    assert min(outputs, -(-8 // groups)) <= count <= min(outputs, -(-64 // groups))
    assert (np.diff(ranks, axis=1) >= 1).all()
    spacing = np.diff(ranks, axis=1, prepend=-1, append=outputs)
    assert spacing.max(initial=0) <= outputs / count + 1


def test_wide_layers_have_fewer_rows_fitted():
    errors = np.ones((1, 256))
    counts = [spread_rows(errors, columns).shape[1] for columns in (288, 1152, 1728, 4608)]
    assert counts == [64, 32, 9, 8]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_a_curve_goes_through_what_was_measured_and_never_falls(steps):
    errors = np.concatenate([[0.0], np.cumsum(steps)])
    rates = np.linspace(0, 0.9, len(errors))
    np.testing.assert_allclose(interpolated(rates, rates, errors), errors, rtol=1e-9, atol=1e-9)
    between = interpolated(np.linspace(0, 0.9, 400), rates, errors)
    assert (np.diff(between) >= 0).all()
    assert between[0] >= 0
    assert between[-1] <= errors[-1] * (1 + 1e-9)
