"""Allocation: the best choice there is within the budget, spent to the last unit."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.allocation import Curve, allocate
from onnxdrp.errors import OptionError


def whole_curve(errors, cost):
    """A layer of which any number of units but all may be pruned."""
    return Curve(len(errors), cost, np.arange(len(errors)), np.asarray(errors, np.float64))


def total_cost(curves, pruned):
    return sum(float(c.kept_cost(p)) for c, p in zip(curves, pruned, strict=True))


def total_error(curves, pruned):
    return sum(c.error(p) for c, p in zip(curves, pruned, strict=True))


def brute_force(curves, budget):
    """The least error of all choices within a budget; None if there is none."""
    choices = itertools.product(*(c.pruned.tolist() for c in curves))
    fitting = [total_error(curves, p) for p in choices if total_cost(curves, p) <= budget + 1e-9]
    return min(fitting, default=None)


def rising(least, most):
    """Errors that rise with the units pruned, in steps of any size: seldom convex."""
    steps = st.lists(st.floats(0.001, 10), min_size=least, max_size=most)
    return steps.map(lambda s: np.concatenate([[0.0], np.cumsum(s)]))


layers_of_whole_costs = st.lists(
    st.builds(whole_curve, rising(1, 5), st.integers(1, 5).map(float)), min_size=1, max_size=3
)


@given(layers_of_whole_costs, st.floats(0, 1))
def test_the_choice_is_the_best_of_all_choices(curves, share):
    least = total_cost(curves, [c.pruned[-1] for c in curves])
    whole = total_cost(curves, [0] * len(curves))
    budget = least + share * (whole - least)
    pruned = allocate(curves, budget)
    assert total_cost(curves, pruned) <= budget + 1e-9
    assert total_error(curves, pruned) == pytest.approx(brute_force(curves, budget), rel=1e-9)


@given(layers_of_whole_costs, st.floats(0, 1), st.integers(3, 30))
def test_coarse_buckets_lose_no_more_than_a_bucket_a_layer(curves, share, buckets):
    least = total_cost(curves, [c.pruned[-1] for c in curves])
    whole = total_cost(curves, [0] * len(curves))
    budget = least + share * (whole - least)
    pruned = allocate(curves, budget, buckets)
    lost = len(curves) * (budget - least) / buckets
    bound = brute_force(curves, budget - lost)
    assert total_cost(curves, pruned) <= budget + 1e-9
    assert bound is None or total_error(curves, pruned) <= bound + 1e-9


@given(
    st.lists(
        st.tuples(
            st.integers(2, 400), st.floats(0.1, 50), st.integers(1, 12), st.integers(0, 10**6)
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 1),
)
def test_less_than_a_unit_of_the_budget_is_left(layers, share):
    curves = []
    for units, cost, options, seed in layers:
        rng = np.random.default_rng(seed)
        pruned = np.unique(np.linspace(0, units - 1, options + 1).astype(np.int64))
        errors = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 1, len(pruned) - 1))])
        curves.append(Curve(units, cost, pruned, errors))
    least = total_cost(curves, [c.pruned[-1] for c in curves])
    whole = total_cost(curves, [0] * len(curves))
    budget = least + share * (whole - least)
    pruned = allocate(curves, budget, 500)
    left = budget - total_cost(curves, pruned)
    assert all(0 <= p <= c.pruned[-1] for c, p in zip(curves, pruned, strict=True))
    assert left >= -1e-6 * budget
    assert all(left < c.cost * (1 + 1e-6) for c, p in zip(curves, pruned, strict=True) if p)


@given(rising(2, 12), st.floats(1.01, 100), st.integers(0, 24))
def test_a_layer_that_errs_more_at_every_rate_is_never_pruned_more(errors, times, pruned):
    mild, bad = whole_curve(errors, 1.0), whole_curve(errors * times, 1.0)
    units = mild.units
    budget = 2 * units - min(pruned, 2 * (units - 1))
    for curves, worse in ([mild, bad], 1), ([bad, mild], 0):
        found = allocate(curves, budget)
        assert sum(found) == 2 * units - budget
        assert found[worse] <= found[1 - worse]


def test_a_step_that_pays_only_as_a_whole_is_found():
    steep = whole_curve([0, 8, 8, 8, 8], 1.0)  # four are pruned for the price of one
    even = whole_curve([0, 3, 6, 9, 12], 1.0)
    assert allocate([steep, even], 6) == [4, 0]
    assert allocate([steep, even], 8) == [0, 2]


def test_a_layer_that_costs_more_is_pruned_more_at_equal_errors():
    cheap, dear = whole_curve(np.arange(10) ** 2, 1.0), whole_curve(np.arange(10) ** 2, 4.0)
    few, many = allocate([cheap, dear], 30)
    assert many > 2 * few


def test_the_whole_budget_keeps_everything_and_the_least_prunes_all_that_may_be():
    curves = [whole_curve(np.arange(5), 2.0), whole_curve(np.arange(9), 3.0)]
    assert allocate(curves, 5 * 2 + 9 * 3) == [0, 0]
    assert allocate(curves, 1000) == [0, 0]
    assert allocate(curves, 2 + 3) == [4, 8]


def test_no_layers_are_no_work():
    assert allocate([], 0.0) == []


def test_a_budget_that_cannot_be_met_is_an_error():
    with pytest.raises(OptionError, match="more than the budget of 4; ask for less"):
        allocate([whole_curve(np.arange(5), 2.0), whole_curve(np.arange(9), 3.0)], 4)


def test_a_hundred_layers_of_a_hundred_rates_are_spent_well():
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(100):
        units = int(rng.integers(100, 5000))
        pruned = np.linspace(0, 0.95 * units, 97).round().astype(np.int64)
        rise = rng.lognormal(0, 2) * (pruned / units) ** rng.uniform(1.5, 4)
        curves.append(Curve(units, float(rng.integers(1, 9)), pruned, rise))
    budget = sum(c.kept_cost(round(0.7 * c.units)) for c in curves)
    pruned = allocate(curves, budget)
    errors = total_error(curves, pruned)
    assert total_cost(curves, pruned) <= budget

    def bound(price):
        """No choice within the budget errs less: that of Lagrange, for any price of a cost."""
        each = (np.min(c.errors + price * c.kept_cost(c.pruned)) for c in curves)
        return sum(each) - price * budget

    best = max(bound(price) for price in np.geomspace(1e-7, 1e-1, 400))
    assert best <= errors <= 1.02 * best
    assert errors < 0.6 * total_error(curves, [round(0.7 * c.units) for c in curves])
