"""Masked ridge regression on moments, against the rows themselves and dense solvers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.errors import DataError
from onnxdrp.held_back import HeldBack, is_held_back
from onnxdrp.least_squares import RIDGES, Descent, best_ridge, fit, joined
from onnxdrp.moments import Moments, MomentStats
from onnxdrp.unfold import Unfolding, WeightGeometry


def stats_of(x, t):
    """The moments of rows [g, n, k] and targets [g, n, m]."""
    turned = x.swapaxes(1, 2)
    sums = x.sum(axis=1), t.sum(axis=1), turned @ x, turned @ t, (t**2).sum(axis=1)
    return MomentStats(x.shape[1], *sums)


def problem(seed, groups=2, outputs=5, columns=12, rows=60, noise=0.3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows, columns)) @ rng.standard_normal((columns, columns))
    x += rng.standard_normal(columns)
    matrix = rng.standard_normal((groups, outputs, columns))
    t = x @ matrix.swapaxes(1, 2) + 2 + noise * rng.standard_normal((groups, rows, outputs))
    keep = rng.random(matrix.shape) < 0.6
    start = np.where(keep, matrix + 0.1 * rng.standard_normal(matrix.shape), 0)
    return start, keep, x, t


def errors(matrix, x, t):
    """Of each row with its best bias."""
    rest = t - x @ np.asarray(matrix).swapaxes(1, 2)
    return ((rest - rest.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.1, 1.0]))
def test_the_fit_is_the_solution_of_the_ridge_regression_of_each_row(seed, ridge):
    start, keep, x, t = problem(seed)
    found = fit(start, keep, stats_of(x, t).centred(), ridge).matrix
    for g in range(len(start)):
        centred, wanted = x[g] - x[g].mean(axis=0), t[g] - t[g].mean(axis=0)
        weight = np.sqrt(ridge * (centred**2).sum(axis=0).mean())
        for row in range(start.shape[1]):
            at = np.flatnonzero(keep[g, row])
            tall = np.vstack([centred[:, at], weight * np.eye(len(at))])
            goal = np.concatenate([wanted[:, row], weight * start[g, row, at]])
            best = np.linalg.lstsq(tall, goal)[0]
            np.testing.assert_allclose(found[g, row, at], best, rtol=1e-6, atol=1e-8)
    assert not found[~keep].any()
    assert keep.any()
    assert not keep.all()


@given(st.integers(0, 10**6))
def test_no_row_errs_more_than_before_and_most_err_less(seed):
    start, keep, x, t = problem(seed)
    found = fit(start, keep, stats_of(x, t).centred(), 0.01).matrix
    before, after = errors(start, x, t), errors(found, x, t)
    assert (after <= before * (1 + 1e-9)).all()
    assert (after < 0.9 * before).mean() > 0.5


def test_rows_that_share_their_zeros_are_fitted_as_if_alone():
    start, keep, x, t = problem(3)
    keep[:, 1:] = keep[:, :1]
    start = np.where(keep, start + 1, 0)
    stats = stats_of(x, t).centred()
    together = fit(start, keep, stats, 0.01).matrix
    for row in range(start.shape[1]):
        only = np.array([row])
        alone = fit(start[:, only], keep[:, only], stats.of(only), 0.01).matrix
        np.testing.assert_allclose(together[:, only], alone, rtol=1e-9)


def test_fewer_rows_of_data_than_weights_leave_a_row_as_it_was():
    start, keep, x, t = problem(4, rows=8)
    keep[0, 0], keep[0, 1] = True, False
    keep[0, 1, :3] = True
    start = np.where(keep, start + 1, 0)
    result = fit(start, keep, stats_of(x, t).centred(), 0.01)
    assert result.open[0, 0]
    assert not result.open[0, 1]
    np.testing.assert_array_equal(result.matrix[0, 0], start[0, 0])
    assert (result.matrix[0, 1] != start[0, 1]).any()


def test_inputs_that_never_vary_change_nothing():
    start, keep, x, t = problem(5)
    x[...] = x[:, :1]
    result = fit(start, keep, stats_of(x, t).centred(), 0.01)
    np.testing.assert_allclose(result.matrix, start, atol=1e-6)
    assert np.isfinite(result.matrix).all()


@given(st.integers(0, 10**6), st.sampled_from(["duplicate", "dead", "huge"]))
def test_singular_and_badly_scaled_moments_give_finite_weights(seed, kind):
    start, keep, x, t = problem(seed)
    if kind == "huge":
        x *= 1e12
    else:
        x[..., 3:6] = x[..., :3] if kind == "duplicate" else 0
    stats = stats_of(x, t).centred()
    result = fit(start, keep, stats, 1e-3)
    assert np.isfinite(result.matrix).all()
    assert (stats.error(result.matrix) <= stats.error(start)).all()


def test_moments_that_are_not_finite_are_refused():
    start, keep, x, t = problem(6)
    x[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit(start, keep, stats_of(x, t), 0.01)


def test_the_dtype_of_the_weights_stays():
    start, keep, x, t = problem(7)
    for dtype in (np.float32, np.float16):
        assert fit(start.astype(dtype), keep, stats_of(x, t), 0.01).matrix.dtype == dtype


def test_the_ridge_suits_the_data():
    start, keep, x, t = problem(8, groups=1, columns=40, rows=4000, noise=0.01)
    keep[:] = True
    many = stats_of(x[:, :2000], t[:, :2000]), stats_of(x[:, 2000:], t[:, 2000:])
    assert best_ridge(start, keep, *(m.centred() for m in many)) == RIDGES[0]
    few, other = stats_of(x[:, :44], t[:, :44]), stats_of(x[:, 2000:], t[:, 2000:])
    noisy = np.random.default_rng(0).standard_normal(t.shape) * 300
    few = stats_of(x[:, :44], (t + noisy)[:, :44])
    assert best_ridge(start, keep, few.centred(), other.centred()) == RIDGES[-1]


def test_a_step_behind_a_relu_lessens_what_the_relu_passes_on():
    start, keep, x, t = problem(9, groups=1, rows=400)
    keep[:] = np.random.default_rng(1).random(keep.shape) < 0.4
    t -= np.median(t, axis=1, keepdims=True)
    first = fit(np.where(keep, start, 0), keep, stats_of(x, t).centred(), 1e-3).matrix
    matrix = first.copy()
    bias = (t - x @ matrix.swapaxes(1, 2)).mean(axis=1, keepdims=True)
    history = []
    for _ in range(6):
        y = x @ matrix.swapaxes(1, 2) + bias
        gap = np.maximum(t, 0) - np.maximum(y, 0)
        history.append((gap**2).sum())
        stats = stats_of(x, gap)
        move = Descent(keep, stats.centred().xx, 1e-3)(stats.centred().xt)
        matrix = matrix + move
        bias = bias + (gap - x @ move.swapaxes(1, 2)).mean(axis=1, keepdims=True)
    assert history[-1] < 0.9 * history[0]
    assert all(b < a for a, b in pairwise(history))
    assert not matrix[~keep].any()


def test_moments_of_two_places_are_those_of_all_their_rows():
    _, _, x, t = problem(10)
    both = joined([stats_of(x[:, :20], t[:, :20]), stats_of(x[:, 20:], t[:, 20:])])
    whole = stats_of(x, t)
    for name in ("count", "x", "t", "xx", "xt", "tt"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), rtol=1e-12)


def test_a_fifth_of_the_samples_is_held_back_and_the_number_decides():
    held = [is_held_back(i) for i in range(10_000)]
    assert 0.18 < np.mean(held) < 0.22
    for n in (2, 4, 5, 10):
        assert 0.15 < np.mean(held[::n]) < 0.25
    unfolding = Unfolding(WeightGeometry.gemm((4, 3), trans_b=True, block=1))
    parts = HeldBack(Moments(unfolding), Moments(unfolding))
    rng = np.random.default_rng(0)
    rows = [(rng.standard_normal((1, 3)), rng.standard_normal((1, 4))) for _ in range(50)]
    for i, row in enumerate(rows):
        parts.sample = i
        parts.update(*row)
    most, few = parts.result()
    assert few.count == sum(held[:50])
    chosen = [t[0] for (_, t), h in zip(rows, held, strict=False) if h]
    np.testing.assert_allclose(few.t[0], np.sum(chosen, axis=0))
    assert most.count + few.count == 50


def test_factors_that_are_not_kept_are_made_again():
    _, keep, x, t = problem(11)
    stats = stats_of(x, t).centred()
    kept, made = (Descent(keep, stats.xx, 0.01, limit) for limit in (1 << 20, 0))
    for slope in (stats.xt, 2 * stats.xt):
        np.testing.assert_array_equal(kept(slope), made(slope))
    np.testing.assert_allclose(kept(2 * stats.xt), 2 * kept(stats.xt), rtol=1e-12)
    assert kept(stats.xt)[keep].all()
