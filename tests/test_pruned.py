"""Figures of a mask: shares kept, dead outputs, cycles, exact counts, and their warnings."""

from fractions import Fraction

import numpy as np
import pytest
from builders import normal
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.geometry import WeightGeometry, magnitude
from onnxdrp.patterns import parse_pattern
from onnxdrp.pruned import PrunedWeight, expected_count, warnings_of

PATTERNS = ["block", "flex-nm", "nm", "row", "unstructured"]


def choose(weight, pattern="block", rate=0.5, geometry=None):
    geometry = geometry or WeightGeometry.gemm(weight.shape, trans_b=True)
    return PrunedWeight.choose(magnitude(weight, geometry), geometry, parse_pattern(pattern), rate)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shares_kept_are_those_of_the_masked_weight(pattern):
    weight = normal((48, 3 * 64), 0)
    pruned = choose(weight, pattern, 0.6)
    kept = weight * pruned.mask.keep
    assert pruned.kept_l1 == pytest.approx(np.abs(kept).sum() / np.abs(weight).sum(), rel=1e-5)
    l2 = np.linalg.norm(kept) / np.linalg.norm(weight)
    assert pruned.kept_l2 == pytest.approx(l2, rel=1e-5)
    assert 0.4 < pruned.kept_l1 < pruned.kept_l2 < 1


def test_unstructured_scores_of_padding_do_not_count():
    weight = normal((8, 40), 0)
    pruned = choose(weight, "unstructured", 0.0)
    assert (pruned.kept_l1, pruned.kept_l2) == (1.0, 1.0)
    assert pruned.mask.count == 320


def test_a_weight_of_zeros_keeps_all_it_has():
    pruned = choose(np.zeros((8, 64), np.float32))
    assert (pruned.kept_l1, pruned.kept_l2) == (1.0, 1.0)


def test_dead_outputs_are_counted_along_the_axis_of_outputs():
    weight = np.ones((64, 10), np.float32)  # [Cin, Cout]
    weight[:, :4] = 1e-3
    pruned = choose(weight, "block", 0.4, WeightGeometry.gemm((64, 10), trans_b=False))
    assert (pruned.dead_outputs, pruned.outputs) == (4, 10)


@given(
    st.sampled_from(PATTERNS),
    st.integers(0, 999).map(lambda n: Fraction(n, 1000)),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_expected_counts_are_those_of_the_masks(pattern, rate, groups, outputs, blocks, kernel):
    shape = (groups * outputs, 32 * blocks, kernel)
    geometry = WeightGeometry.conv(shape, groups)
    weight = normal(shape, 1).round(1)  # with ties
    rate = float(rate)
    pruned = choose(weight, pattern, rate, geometry)
    assert pruned.mask.count == expected_count(geometry, parse_pattern(pattern), rate)


def test_of_a_pattern_not_known_no_count_is_expected():
    geometry = WeightGeometry.gemm((64, 64), trans_b=True)
    assert expected_count(geometry, object(), 0.5) is None  # type: ignore[arg-type]


def test_warnings_name_what_is_dead_and_what_gains_nothing():
    weight = normal((64, 64), 0)
    weight[:20] *= 1e-3
    pruned = {"a": choose(weight, "block", 0.5), "b": choose(normal((64, 512), 1), "block", 0.5)}
    assert pruned["a"].dead_outputs >= 20
    dead, idle = warnings_of(pruned, parse_pattern("block"))
    assert f"'a': {pruned['a'].dead_outputs} of 64" in dead
    assert "of 1 layers" in dead
    assert "gains nothing in 2 of 2 layers" in idle
    assert "reading C" in idle
    assert "model, not a measurement" in idle


def test_no_warning_where_nothing_is_asked():
    pruned = {"a": choose(normal((64, 64), 0), "block", 0.0)}
    assert warnings_of(pruned, parse_pattern("block")) == []
