"""What channels cost: the closed form against least squares, alone, together and in rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.channels.scoring import Part, cumulated
from onnxdrp.errors import DataError


def covariance(columns, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4 * columns, columns)) @ rng.standard_normal((columns, columns))
    return rows.T @ rows / len(rows) + 0.01 * np.eye(columns)


def part_of(weights, h, units):
    return Part(weights, np.linalg.inv(h), np.asarray(units))


def least(weights, h, gone):
    """The least mean square of W x - V x over all V that are zero at `gone`."""
    root = np.linalg.cholesky(h).T
    fitted = np.linalg.lstsq(root[:, ~gone], root @ weights.T, rcond=None)[0]
    return np.square(root @ weights.T - root[:, ~gone] @ fitted).sum()


UNITS = st.lists(st.integers(0, 4), min_size=3, max_size=14).map(np.array)


@settings(max_examples=20)
@given(UNITS, st.integers(1, 5), st.integers(0, 99))
def test_a_unit_costs_what_least_squares_without_its_columns_leaves(units, outputs, seed):
    weights = np.random.default_rng(seed).standard_normal((outputs, len(units)))
    h = covariance(len(units), seed)
    costs = part_of(weights, h, units).costs(6)
    wanted = [least(weights, h, units == unit) for unit in range(6)]
    np.testing.assert_allclose(costs, wanted, rtol=1e-7, atol=1e-9)
    assert costs[5] == 0
    assert costs.max() > 1e-2


@settings(max_examples=20)
@given(UNITS, st.integers(0, 99))
def test_costs_of_units_that_go_one_after_another_add_up(units, seed):
    weights = np.random.default_rng(seed).standard_normal((3, len(units)))
    h = covariance(len(units), seed)
    part, lost = part_of(weights, h, units), 0.0
    for count in range(5):
        part, cost = part.without(np.array([count]))
        lost += cost
        np.testing.assert_allclose(lost, least(weights, h, units <= count), rtol=1e-7, atol=1e-9)
        assert not np.isin(part.units, np.arange(count + 1)).any()


def test_every_start_of_the_order_is_lost_together():
    """Parts of different layers, and a layer of which only variances are known."""
    rng = np.random.default_rng(1)
    first, second = np.repeat(np.arange(12), 3), np.arange(4, 12)
    matrices = rng.standard_normal((2, len(first))), rng.standard_normal((5, len(second)))
    hs = covariance(len(first), 2), covariance(len(second), 3)
    fixed = rng.uniform(0, 20, 12)
    parts = [part_of(m, h, u) for m, h, u in zip(matrices, hs, (first, second), strict=True)]
    found = cumulated(parts, fixed, [np.arange(12)])
    order = np.argsort(found)
    for count in range(1, 13):
        gone = order[:count]
        wanted = fixed[gone].sum() + sum(
            least(m, h, np.isin(u, gone))
            for m, h, u in zip(matrices, hs, (first, second), strict=True)
        )
        np.testing.assert_allclose(found[gone].max(), wanted, rtol=1e-9)
    best = min(sum(p.costs(12)[i] for p in parts) + fixed[i] for i in range(12))
    np.testing.assert_allclose(found.min(), best, rtol=1e-9)


def test_rounds_of_several_units_lose_what_the_units_lose_together():
    rng = np.random.default_rng(4)
    units = np.repeat(np.arange(70), 2)
    weights, h = rng.standard_normal((6, 140)), covariance(140, 5)
    found = cumulated([part_of(weights, h, units)], np.zeros(70), [np.arange(70)])
    np.testing.assert_allclose(found.max(), np.trace(weights @ h @ weights.T), rtol=1e-8)
    order = np.argsort(found)
    assert len(np.unique(found)) == 70
    for count in (4, 8, 11):  # ends of rounds
        gone = np.isin(units, order[:count])
        np.testing.assert_allclose(found[order[count - 1]], least(weights, h, gone), rtol=1e-8)


def test_of_two_units_that_are_alike_one_goes_first_and_the_other_late():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((500, 8))
    x[:, 5] = 3 * x[:, 2] + 1e-3 * rng.standard_normal(500)
    weights = rng.uniform(1, 2, (4, 8))
    h = np.cov(x.T)
    part = part_of(weights, h, np.arange(8))
    assert set(np.argsort(part.costs(8))[:2]) == {2, 5}  # alone, each is next to free
    order = np.argsort(cumulated([part], np.zeros(8), [np.arange(8)])).tolist()
    assert {order[0], order[-1]} == {2, 5}


def test_each_block_loses_the_same_share_in_each_round():
    rng = np.random.default_rng(7)
    fixed = np.concatenate([rng.uniform(0, 1, 8), rng.uniform(5, 6, 24)])
    blocks = [np.arange(8), np.arange(8, 32)]
    found = cumulated([], fixed, blocks)
    for share in (4, 2):
        gone = np.argsort(found)[: 32 // share]
        assert abs(np.count_nonzero(gone < 8) - 8 // share) <= 1
    for block in blocks:
        np.testing.assert_array_equal(np.argsort(found[block]), np.argsort(fixed[block]))


def test_moments_that_are_not_positive_definite_are_refused():
    from onnxdrp.channels.scoring import _inverse

    with pytest.raises(DataError, match="not positive definite"):
        _inverse(np.array([[1.0, 2.0], [2.0, 1.0]]))
    h = covariance(9, 8)
    inverse = _inverse(h.copy())
    np.testing.assert_allclose(inverse @ h, np.eye(9), atol=1e-9)
    np.testing.assert_array_equal(inverse, inverse.T)
