"""Masks of rising rates lie one in the other, and each has the pattern and the rate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.errors import ModelError
from onnxdrp.geometry import WeightGeometry, to_slabs
from onnxdrp.patterns import make_mask, parse_pattern
from onnxdrp.training.held import next_mask

GEOMETRIES = [
    WeightGeometry.conv((24, 64, 3, 3)),
    WeightGeometry.conv((24, 64, 1, 1), groups=2),
    WeightGeometry.gemm((40, 96), trans_b=True),
    WeightGeometry.gemm((96, 40), trans_b=False),
    WeightGeometry.depthwise_conv((64, 1, 3, 3)),
]
PATTERNS = ["block", "flex-nm", "nm", "row", "unstructured"]


def values(geometry, seed):
    return np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(GEOMETRIES),
    st.sampled_from(PATTERNS),
    st.lists(st.floats(0, 0.95), min_size=1, max_size=4).map(sorted),
    st.integers(0, 99),
)
def test_masks_of_rising_rates_are_nested_and_valid(geometry, name, rates, seed):
    pattern, rng = parse_pattern(name), np.random.default_rng(seed)
    keep = np.ones(geometry.shape, np.bool_)
    for rate in rates:
        weight = rng.normal(size=geometry.shape).astype(np.float32)  # trained meanwhile
        later = next_mask(weight, keep, geometry, pattern, rate)
        assert not np.any(later & ~keep)
        assert pattern.valid(to_slabs(later, geometry))
        wanted = make_mask(weight, geometry, pattern, rate)  # as many as of a fresh weight
        assert later.sum() == wanted.count
        keep = later


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: str(g.shape))
def test_the_first_mask_is_that_of_pruning_an_onnx_model(geometry, name):
    weight, pattern = values(geometry, 1), parse_pattern(name)
    keep = np.ones(geometry.shape, np.bool_)
    found = next_mask(weight, keep, geometry, pattern, 0.7)
    assert np.array_equal(found, make_mask(weight, geometry, pattern, 0.7).keep)
    assert found.sum() < found.size / 2


@pytest.mark.parametrize("name", PATTERNS)
def test_a_lower_rate_brings_nothing_back(name):
    geometry, pattern = GEOMETRIES[0], parse_pattern(name)
    keep = make_mask(values(geometry, 2), geometry, pattern, 0.6).keep
    for rate in (0.0, 0.3, 0.6):
        assert np.array_equal(next_mask(values(geometry, 3), keep, geometry, pattern, rate), keep)


def test_what_is_alive_and_zero_stays_before_what_is_pruned():
    geometry, pattern = GEOMETRIES[2], parse_pattern("flex-nm")
    keep = make_mask(values(geometry, 4), geometry, pattern, 0.5).keep
    weight = values(geometry, 5)
    weight[weight > 0] = 0
    assert np.array_equal(next_mask(weight, keep, geometry, pattern, 0.5), keep)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_floating_point_type_is_ranked(dtype):
    geometry, pattern = GEOMETRIES[2], parse_pattern("block")
    weight = values(geometry, 6).astype(dtype)
    weight[:20] *= dtype(1e-3)
    keep = next_mask(weight, np.ones(geometry.shape, np.bool_), geometry, pattern, 0.5)
    assert not keep[:20].any()
    assert keep[20:].all()


def test_nan_is_refused_where_it_counts_and_only_there():
    geometry, pattern = GEOMETRIES[2], parse_pattern("row")
    weight, keep = values(geometry, 7), np.ones(geometry.shape, np.bool_)
    weight[3, 5] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        next_mask(weight, keep, geometry, pattern, 0.5)
    weight[3] = 0
    weight[3, 5] = np.inf
    keep[:, ::2] = True
    keep[:, 5] = False
    assert not next_mask(weight, keep, geometry, pattern, 0.5)[:, 5].any()
