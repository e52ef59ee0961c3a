from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.noise_budget import Item, NoiseModel, largest_budget


def noise_of(model, names):
    """By the definition: own noise of each, and of every tensor that one of them touches, once."""
    items = [item for item in model.items if item.name in names]
    tensors = {t for item in items for t in item.tensors}
    return sum(item.own for item in items) + sum(model.noise[t] for t in tensors)


@st.composite
def chains(draw):
    """Units one after the other, some reading an earlier tensor too."""
    power = st.floats(1e-6, 1)
    many = draw(st.integers(2, 9))
    items = []
    for i in range(many):
        other = draw(st.integers(0, i))
        tensors = tuple(dict.fromkeys((f"t{i}", f"t{other}", f"t{i + 1}")))
        items.append(Item(f"u{i}", draw(st.floats(1, 1e6)), draw(power), tensors))
    return NoiseModel(items, {f"t{i}": draw(power) for i in range(many + 1)})


@given(chains(), st.floats(0, 1))
def test_the_noise_of_the_chosen_is_within_the_budget_and_no_other_fits(model, share):
    budget = share * model.total
    chosen = model.quantized_within(budget)
    assert sum(chosen.values()) == pytest.approx(noise_of(model, chosen), rel=1e-9, abs=1e-12)
    assert sum(chosen.values()) <= budget * (1 + 1e-9)
    for item in model.items:
        if item.name not in chosen:
            assert noise_of(model, {*chosen, item.name}) > budget * (1 - 1e-9)


@given(chains())
def test_the_whole_budget_quantizes_everything_and_none_of_it_nothing(model):
    assert len(model.quantized_within(model.total * 1.0001)) == len(model.items)
    assert not model.quantized_within(0)
    assert model.total == pytest.approx(noise_of(model, {item.name for item in model.items}))


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=9), st.floats(0.05, 1))
def test_of_equal_independent_units_as_many_are_quantized_as_any_subset_allows(powers, share):
    items = [Item(f"u{i}", 5, power, ()) for i, power in enumerate(powers)]
    budget = share * sum(powers)
    subsets = (s for n in range(len(powers) + 1) for s in combinations(powers, n))
    best = max(len(s) for s in subsets if sum(s) <= budget * (1 - 1e-9))
    assert len(NoiseModel(items, {}).quantized_within(budget)) >= best


def test_a_bad_tensor_is_spared_by_leaving_all_that_touch_it_float():
    items = [Item(f"u{i}", 100, 1e-4, (f"t{i}", f"t{i + 1}")) for i in range(6)]
    model = NoiseModel(items, {f"t{i}": 1e-4 for i in range(7)} | {"t3": 1.0})
    assert model.quantized_within(0.01).keys() == {"u0", "u1", "u4", "u5"}  # u2 gives it, u3 reads


def test_a_unit_beyond_the_budget_is_passed_over_though_it_saves_most():
    items = [Item("dear", 1e9, 0.5, ()), Item("a", 1, 0.01, ()), Item("b", 1, 0.01, ())]
    assert NoiseModel(items, {}).quantized_within(0.1).keys() == {"a", "b"}


def test_given_back_first_is_what_saves_most_for_its_noise():
    items = [Item("a", 10, 0.1, ("x", "y")), Item("b", 10, 0.1, ("y", "z")), Item("c", 1, 0.1, ())]
    model = NoiseModel(items, {"x": 0.3, "y": 0.1, "z": 0.0})
    assert model.dearest({"a", "b", "c"}) == ["b", "a", "c"]
    assert model.dearest({"b", "c"}) == ["b", "c"]


@given(st.floats(1e-6, 0.999), st.floats(1e-6, 10))
def test_the_largest_budget_that_reaches_is_found_from_any_start(limit, start):
    tried = []

    def reaches(budget):
        tried.append(budget)
        return budget <= limit

    largest_budget(reaches, start, 1.0)
    assert all(0 < budget < 1 for budget in tried)
    assert max(b for b in tried if b <= limit) >= 0.94 * limit or limit > 0.9
    assert len(tried) < 30
