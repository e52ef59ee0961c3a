"""The radius of trust: rounds computed by hand, and what holds of all."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.channels.trust_region import TrustRegion, chosen_rate, loss_thresholds
from onnxdrp.errors import OptionError

ERRORS = {"a": {0.2: 5.0, 0.1: 2.0}, "b": {0.2: 4.0, 0.1: 1.0}, "c": {0.2: 0.8, 0.1: 0.4}}
THRESHOLDS = {"a": 3.0, "b": 4.0, "c": 0.1}


def begun(original=False, thresholds=THRESHOLDS, errors=ERRORS, factor=2.0):
    region = TrustRegion(factor, original)
    region.begin(thresholds, errors)
    return region


def test_thresholds_are_the_margin_left_times_the_sensitivity_of_a_weight():
    found = loss_thresholds(2.0, 2.5, 0.5, {"a": 8.0, "b": 3.0}, {"a": 4, "b": 1})
    assert found == {"a": 0.5 * 8 / 4, "b": 1.5}
    assert loss_thresholds(2.0, 3.5, 0.5, {"a": 8.0}) == {"a": -4.0}


def test_the_highest_rate_within_the_threshold_is_chosen_and_its_distances_told():
    errors = {0.3: 9.0, 0.2: 5.0, 0.1: 2.0}
    found = chosen_rate(errors, 3.0)
    assert (found.rate, found.error, found.d_inc, found.d_dec) == (0.1, 2.0, 2.0, 1.0)
    found = chosen_rate(errors, 9.5)
    assert (found.rate, found.d_inc, found.d_dec) == (0.3, math.inf, 0.5)
    assert chosen_rate(errors, 9.0).d_dec == math.inf  # CAC's 1e6: nothing lies below
    found = chosen_rate(errors, 1.5)
    assert (found.rate, found.error, found.d_inc, found.d_dec) == (0.0, 0.0, 0.5, math.inf)
    found = chosen_rate(errors, 1.5, original=True)
    assert (found.rate, found.d_inc, found.d_dec) == (0.0, 0.0, 0.0)
    assert chosen_rate({}, 1.0).rate == 0


def test_the_limit_is_of_the_largest_threshold_or_error_and_in_cac_of_the_last_name():
    assert begun().limit == pytest.approx(math.sqrt(3) * 5)
    small = {"a": {0.2: 0.5}, "b": {0.2: 0.6, 0.1: 0.1}, "c": {0.1: 9.0}}  # c has no 0.2
    assert begun(errors=small).limit == pytest.approx(math.sqrt(3) * 4)
    assert begun(True, errors=small).limit == pytest.approx(math.sqrt(3) * 0.6)
    assert begun(True, {"a": 3.0, "b": 0.1, "c": 7.0}, small).limit == pytest.approx(
        math.sqrt(3) * 7
    )


def test_a_round_of_cac_by_hand():
    region = begun(original=True)
    assert region.upper_bound == region.limit == pytest.approx(math.sqrt(3) * 5)  # 8.66
    first = region.propose(THRESHOLDS, ERRORS)
    assert first.thresholds == THRESHOLDS  # the norm, 5.001, is below the bound
    assert first.rates == {"a": 0.1, "b": 0.2}
    region.reject(first)  # c has rate 0, so the factor is exactly 1 / 2
    assert region.upper_bound == pytest.approx(math.sqrt(3) * 5 / 2)  # 4.33
    second = region.propose(THRESHOLDS, ERRORS)
    scale = region.upper_bound / math.sqrt(9 + 16 + 0.01)
    assert second.thresholds == pytest.approx({k: v * scale for k, v in THRESHOLDS.items()})
    assert second.rates == {"a": 0.1, "b": 0.1}  # th of a is 2.597, of b 3.463
    region.accept(second)  # and exactly 2
    assert region.upper_bound == pytest.approx(math.sqrt(3) * 5)  # at the limit


def test_where_every_layer_is_pruned_cac_adapts_the_factor():
    thresholds, errors = (
        {"a": 10.0, "b": 8.0},
        {"a": {0.2: 60.0, 0.1: 1.0}, "b": {0.2: 48.0, 0.1: 2.0}},
    )
    region = begun(True, thresholds, errors)
    bound = region.upper_bound
    assert bound == pytest.approx(math.sqrt(2) * 60)
    found = region.propose(thresholds, errors)
    region.reject(found)
    assert region.upper_bound == pytest.approx(bound * 2 / 8)  # max(1/10, 2/8) < 1/2
    region.upper_bound = 6.4
    found = region.propose(thresholds, errors)  # half of it
    assert found.rates == {"a": 0.1, "b": 0.1}
    region.accept(found)
    assert region.upper_bound == pytest.approx(6.4 * 48 / found.thresholds["b"])


def test_a_layer_that_keeps_all_does_not_force_the_factors():
    errors = {"a": {0.1: 1.0}, "b": {0.2: 30.0}}
    thresholds = {"a": 4.0, "b": 3.0}
    region = begun(thresholds=thresholds, errors=errors)
    found = region.propose(thresholds, errors)
    assert found.rates == {"a": 0.1}
    region.reject(found)  # to just below where a, at 1 of 4, is left whole; norm 5, not the bound
    assert region.upper_bound == pytest.approx(5 / 4, rel=1e-5)
    assert region.upper_bound < 5 / 4
    assert not region.propose(thresholds, errors).rates
    assert region.stopped == "all rates are 0"
    region = begun(thresholds=thresholds, errors=errors)
    region.upper_bound = 2.5
    found = region.propose(thresholds, errors)
    region.accept(found)  # b needs 20 times its threshold of 1.5, a has nothing more to lose
    assert region.upper_bound == pytest.approx(min(2.5 * 20, region.limit))


def test_a_step_down_leaves_the_cheaper_half_rather_than_nothing():
    thresholds = dict.fromkeys("abcd", 1.0)
    errors = {"a": {0.1: 0.9}, "b": {0.1: 0.6}, "c": {0.1: 0.7}, "d": {0.1: 0.8}}
    region = begun(thresholds=thresholds, errors=errors)
    tried = []
    while not (found := region.propose(thresholds, errors)) or not region.stopped:
        tried.append("".join(sorted(found.rates)))
        region.reject(found)
    assert tried == ["abcd", "bc", "b"]
    region = begun(True, thresholds, errors)
    region.reject(region.propose(thresholds, errors))
    assert not region.propose(thresholds, errors).rates
    same = begun(thresholds=thresholds, errors={name: {0.1: 0.9} for name in "abcd"})
    same.reject(same.propose(thresholds, {name: {0.1: 0.9} for name in "abcd"}))
    assert not same.propose(thresholds, {name: {0.1: 0.9} for name in "abcd"}).rates


def test_the_bound_grows_to_the_limit_and_no_further():
    region = begun()
    for _ in range(3):
        region.accept(region.propose(THRESHOLDS, ERRORS))
        assert region.upper_bound == region.limit


def test_thresholds_below_zero_allow_nothing():
    region = begun(thresholds={"a": -1.0, "b": -2.0}, errors={"a": {0.1: 0.0}, "b": {0.1: 1.0}})
    assert not region.propose({"a": -1.0, "b": -2.0}, {"a": {0.1: 0.0}, "b": {0.1: 1.0}}).rates
    assert region.stopped == "all rates are 0"


def test_an_infinite_threshold_becomes_the_bound_and_leaves_the_others_theirs():
    thresholds = {"a": math.inf, "b": 3.0, "c": 4.0}
    region = begun(thresholds=thresholds)
    region.upper_bound = 2.5
    assert region.propose(thresholds, ERRORS).thresholds == {"a": 2.5, "b": 1.5, "c": 2.0}
    region.original = True
    assert region.propose(thresholds, ERRORS).thresholds == {"a": 2.5, "b": 7.5, "c": 10.0}


def test_what_costs_nothing_and_fails_ends_the_search():
    errors = {"a": {0.1: 0.0}, "b": {0.1: 5.0}}
    for original in (False, True):
        region = begun(original, {"a": 1.0, "b": 1.0}, errors)
        region.upper_bound = 2.0
        region.reject(region.propose({"a": 1.0, "b": 1.0}, errors))
        assert "costs nothing alone" in region.stopped


def test_a_factor_that_does_not_scale_is_refused():
    for factor in (1.0, 0.5, math.inf, math.nan):
        with pytest.raises(OptionError, match="scaling_factor"):
            TrustRegion(factor)


shares = st.just(0.0) | st.floats(1e-9, 1)  # no subnormal numbers: nothing lies just below those
layers = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), shares),
    min_size=1,
)


@settings(max_examples=200, deadline=None)
@given(layers, st.floats(1.1, 8))
def test_every_rejection_changes_the_candidate_until_none_is_left(figures, factor):
    thresholds = {name: th for name, (th, _, _) in figures.items()}
    errors = {name: {0.2: high, 0.1: high * share} for name, (_, high, share) in figures.items()}
    region, seen = begun(thresholds=thresholds, errors=errors, factor=factor), []
    left = region.rejections_left(thresholds, errors)
    assert not region.stopped  # only looked ahead
    for _ in range(2 * len(figures) + 1):
        found = region.propose(thresholds, errors)
        assert all(found.choices[n].error <= found.thresholds[n] for n in found.rates)
        assert math.hypot(*found.thresholds.values()) <= region.upper_bound * (1 + 1e-9)
        if region.stopped:
            break
        assert found.rates not in seen
        seen.append(found.rates)
        region.reject(found)
    assert region.stopped
    assert left == len(seen)


@settings(max_examples=200, deadline=None)
@given(layers, st.floats(1.1, 8), st.floats(0.01, 1), st.booleans())
def test_growing_and_shrinking_are_at_least_by_the_factor(figures, factor, start, original):
    thresholds = {name: th for name, (th, _, _) in figures.items()}
    errors = {name: {0.2: high, 0.1: high * share} for name, (_, high, share) in figures.items()}
    region = begun(original, thresholds, errors, factor)
    region.upper_bound = before = start * region.limit
    found = region.propose(thresholds, errors)
    region.accept(found)
    assert min(before * factor, region.limit) * (1 - 1e-9) <= region.upper_bound <= region.limit
    region.upper_bound = before
    region.reject(found)
    assert region.stopped or region.upper_bound < before
    halved = region.upper_bound <= before / factor * (1 + 1e-9)
    assert region.stopped or halved or len(region.propose(thresholds, errors).rates) > 0
