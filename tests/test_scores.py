"""Scores: costs are what a re-fit loses, white inputs rank by magnitude, rounds see twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.errors import DataError
from onnxdrp.patterns import PATTERNS, parse_pattern
from onnxdrp.scores import (
    activation,
    affordable,
    damped,
    lifted,
    second_order,
    second_order_mask,
)

BLOCK = 4


def covariance(x):
    """Of rows [g, n, k], with so much on the diagonal that all of it can be inverted."""
    h = x.swapaxes(1, 2) @ x / x.shape[1]
    mean = np.einsum("gii->g", h) / x.shape[2]
    return h + 0.01 * mean[:, None, None] * np.eye(x.shape[2])


def layer(seed, groups=2, outputs=5, columns=12, mixed=1.0):
    """A matrix and the covariance of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((groups, outputs, columns))
    x = rng.standard_normal((groups, 40, columns))
    x = x @ (np.eye(columns) + mixed * rng.standard_normal((groups, columns, columns)))
    return matrix, covariance(x)


def refitted(row, h, support):
    """The weights on a support that give what `row` gives best, and the mean square that is left.

    Least squares on a square root of H, not on H: another way than that of the scores.
    """
    root = np.linalg.cholesky(h).T
    found = np.zeros(len(row))
    found[support] = np.linalg.lstsq(root[:, support], root @ row, rcond=None)[0]
    return found, float(np.square(root @ (row - found)).sum())


def left(matrix, h, keep):
    """Mean square error of all rows, each re-fitted to what it keeps."""
    places = np.ndindex(matrix.shape[:2])
    return sum(refitted(matrix[g, m], h[g], np.flatnonzero(keep[g, m]))[1] for g, m in places)


def chooser(pattern):
    """A pattern as it takes and gives matrices."""

    def choose(scores, rate):
        return pattern.mask(scores.reshape(*scores.shape[:2], -1, BLOCK), rate).reshape(
            scores.shape
        )

    return choose


def unit_of(name):
    return BLOCK if name == "block" else 1


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("full", [True, False])
def test_costs_are_what_the_best_refit_loses(unit, full):
    matrix, h = layer(0)
    kept = np.random.default_rng(1).random((2, 5, 3, 4)) < 0.7
    if unit > 1:
        kept[...] = kept[..., :1]
    kept = kept.reshape(matrix.shape)
    kept[0, 3] = False
    assert 0.2 < kept.mean() < 0.9
    support = np.ones_like(kept) if full else kept
    scores = second_order(matrix, h, None if full else kept, unit)
    assert not scores[~support].any()
    costs = np.square(scores).reshape(2, 5, -1, unit).sum(-1)
    for g, m, part in np.ndindex(costs.shape):
        at = np.flatnonzero(support[g, m])
        lost = np.arange(part * unit, (part + 1) * unit)
        if not support[g, m, lost].any():
            continue
        before = refitted(matrix[g, m], h[g], at)[1]
        after = refitted(matrix[g, m], h[g], np.setdiff1d(at, lost))[1]
        assert costs[g, m, part] == pytest.approx(after - before, rel=1e-7)
    shares = scores.reshape(2, 5, -1, unit)
    assert (shares == shares[..., :1]).all()
    assert costs.std() > 0.1


def test_units_of_which_a_part_is_left_count_as_whole():
    matrix, h = layer(2)
    kept = np.zeros(matrix.shape, bool)
    kept[..., [0, 5]] = True
    whole = np.zeros(matrix.shape, bool)
    whole[..., :8] = True
    np.testing.assert_array_equal(
        second_order(matrix, h, kept, 4), second_order(matrix, h, whole, 4)
    )


def test_activation_is_magnitude_times_deviation():
    matrix = np.array([[[1.0, -2, 3]], [[4, 5, 0]]])
    variances = np.array([[4.0, 1, 9], [1, 16, 25]])
    np.testing.assert_array_equal(activation(matrix, variances), [[[2, 2, 9]], [[4, 20, 0]]])


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 4)])
def test_damping_adds_a_share_of_the_mean_variance(shape):
    power = np.zeros(shape)
    variances = np.einsum("gii->gi", power) if len(shape) == 3 else power
    variances[0] = [1, 2, 5, -1e-9]
    if len(shape) == 3:
        power[0, 0, 1] = power[0, 1, 0] = 0.5
    before = power.copy()
    found = damped(power)
    np.testing.assert_array_equal(power, before)
    got = np.einsum("gii->gi", found) if len(shape) == 3 else found
    np.testing.assert_allclose(got, [[1.2, 2.2, 5.2, 0.2], [1, 1, 1, 1]], rtol=1e-12)
    if len(shape) == 3:
        assert found[0, 0, 1] == 0.5


@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 99).map(lambda n: n / 100),
    st.sampled_from([1, 3]),
)
def test_white_inputs_rank_as_magnitude_does(name, seed, groups, outputs, slabs, rate, rounds):
    matrix = np.random.default_rng(seed).standard_normal((groups, outputs, slabs * BLOCK))
    choose, columns = chooser(parse_pattern(name, BLOCK)), slabs * BLOCK
    h = damped(np.broadcast_to(3 * np.eye(columns), (groups, columns, columns)))
    want = choose(np.abs(matrix), rate)
    by_activation = choose(activation(matrix, np.einsum("gii->gi", h)), rate)
    np.testing.assert_array_equal(by_activation, want)
    found = second_order_mask(matrix, h, choose, rate, unit=unit_of(name), rounds=rounds)
    if name != "flex-nm" or rounds == 1:  # whose slabs need not lose what is smallest in turn
        np.testing.assert_array_equal(found, want)


def test_of_twins_one_is_lost_and_never_both():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 12))
    x[:, 7] = x[:, 2]
    matrix = 1 + rng.random((1, 6, 12))
    matrix[..., [2, 7]] += 2  # by magnitude these two would stay
    h = covariance(x[None])
    choose = chooser(parse_pattern("row", BLOCK))
    variances = np.einsum("gii->gi", h)
    for scores in (np.abs(matrix), activation(matrix, variances)):
        assert choose(scores, 0.25)[..., [2, 7]].all()
    at_once = second_order_mask(matrix, h, choose, 0.25, rounds=1)
    assert not at_once[..., [2, 7]].any()  # each alone costs nothing
    found = second_order_mask(matrix, h, choose, 0.25, rounds=4)
    assert (found[..., [2, 7]].sum(axis=-1) == 1).all()
    assert set(found.sum(axis=-1).ravel()) == {9}
    assert left(matrix, h, found) < 0.5 * left(matrix, h, at_once)


@pytest.mark.parametrize("rate", [0.5, 0.7])
@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_refits_lose_less_than_with_masks_of_other_scores(name, rate):
    choose = chooser(parse_pattern(name, BLOCK))
    lost = np.zeros(4)
    for seed in range(4):
        matrix, h = layer(seed, groups=1, outputs=10, columns=32, mixed=0.3)
        masks = [
            choose(np.abs(matrix), rate),
            choose(activation(matrix, np.einsum("gii->gi", h)), rate),
            second_order_mask(matrix, h, choose, rate, unit=unit_of(name), rounds=1),
            second_order_mask(matrix, h, choose, rate, unit=unit_of(name)),
        ]
        lost += [left(matrix, h, keep) for keep in masks]
    *others, in_rounds = lost
    assert 0 < in_rounds < 0.9 * min(others)


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(0, 1000),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 3),
    st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_masks_are_valid_exact_and_nested(name, seed, groups, outputs, slabs, rates, rounds, zeros):
    rng = np.random.default_rng(seed)
    matrix, h = layer(seed, groups, outputs, slabs * BLOCK)
    matrix[rng.random(matrix.shape) < zeros] = 0  # whose scores are all alike
    pattern = parse_pattern(name, BLOCK)
    choose, unit = chooser(pattern), unit_of(name)
    kept = None
    for rate in (rates[0] / 100, rates[1] / 100):
        found = second_order_mask(matrix, h, choose, rate, kept=kept, unit=unit, rounds=rounds)
        view = (groups, outputs, slabs, BLOCK)
        assert pattern.valid(found.reshape(view))
        noise = rng.random(view)
        assert found.sum() == pattern.mask(noise, rate).sum()
        if kept is not None:
            assert not (found & ~kept).any()
        kept = found


def test_what_was_lost_ranks_last_and_padding_below():
    kept = np.array([True, True, False, False, False])
    scores = np.array([0.0, 3.0, 2.0, 0.0, -1.0], np.float32)
    found = lifted(scores, kept)
    assert found[1] == 3
    assert 0 < found[0] < 1e-20
    assert found[0] ** 2 > 0  # patterns square them
    np.testing.assert_array_equal(found[2:], [0, 0, -1])
    assert lifted(scores, None) is scores
    assert lifted(np.zeros(2), np.array([True, False]))[0] > 0


def test_moments_that_are_no_covariance_are_refused():
    h = np.array([[[1.0, 2.0], [2.0, 1.0]]])
    with pytest.raises(DataError, match="not positive definite"):
        second_order(np.ones((1, 1, 2)), h)


def test_matrices_that_would_take_hours_are_not_affordable():
    assert affordable(1, 64, 576)
    assert affordable(1000, 1, 9)
    assert not affordable(1, 512, 4608)
