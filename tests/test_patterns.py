"""Patterns: exact counts, geometry and its inverse, optimal retained magnitude, modelled cycles."""

import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from builders import deep_net
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxdrp
from onnxdrp.conformance import departures
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.layers import by_weight, layers
from onnxdrp.model import Model
from onnxdrp.patterns import (
    NM,
    PATTERNS,
    Block,
    FlexNM,
    Row,
    Unstructured,
    WeightGeometry,
    cycles_a,
    cycles_b,
    cycles_c,
    exact_rate,
    from_slabs,
    largest,
    magnitude,
    make_mask,
    parse_pattern,
    prune_count,
    to_slabs,
)
from onnxdrp.targets import load_target

RATES = st.decimals(0, Decimal("0.999"), places=3)


def rounded(rate, units):
    """The rule of the design, in integers: rate is a Decimal of three places."""
    return min((2 * int(rate * 1000) * units + 1000) // 2000, units - 1)


@st.composite
def scores(draw, block=4):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 5)), block)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ties = draw(st.sampled_from([1, 2, 5, 10**6]))  # 1: all scores are equal
    return rng.integers(0, ties, shape).astype(draw(st.sampled_from([np.float32, np.float64])))


# --- rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "units", "count"),
    [
        (0.7, 512, 358),
        (0.7, 32, 22),
        (0.29, 50, 15),  # 14.5; the binary product is 14.499999999999998
        (0.145, 100, 15),
        (0.15, 10, 2),
        (0.35, 10, 4),
        (0.07, 50, 4),  # 3.5; the binary product is 3.5000000000000004
        ("0.7", 512, 358),
        (Decimal("0.29"), 50, 15),
        (Fraction(1, 3), 3, 1),
        (np.float32(0.29), 50, 15),
        (np.float64(0.29), 50, 15),
        (0, 10, 0),
        (0.999, 10, 9),
        (0.999, 1, 0),
        (0.04, 10, 0),
        (1e-30, 10, 0),
    ],
)
def test_prune_count(rate, units, count):
    assert prune_count(rate, units) == count


@given(RATES, st.integers(1, 10**7))
def test_prune_count_is_half_up_in_decimals(rate, units):
    assert prune_count(float(rate), units) == prune_count(str(rate), units) == rounded(rate, units)


@pytest.mark.parametrize(
    "rate", [1, 1.0, -0.1, 2, "x", "", float("nan"), float("inf"), None, "70%", True]
)
def test_bad_rates(rate):
    with pytest.raises(OptionError, match=r"\[0, 1\)"):
        exact_rate(rate)


# --- geometry ----------------------------------------------------------------------------------

GEOMETRIES = [
    WeightGeometry.conv((6, 8, 3, 2), block=4),
    WeightGeometry.conv((6, 8), block=4),
    WeightGeometry.conv((6, 8, 5), groups=3, block=4),
    WeightGeometry.conv((4, 8, 2, 3, 2), groups=2, block=4),
    WeightGeometry.conv((6, 7, 3, 3), block=4),
    WeightGeometry.conv((6, 3, 3, 3)),
    WeightGeometry.depthwise_conv((8, 1, 3, 3), block=4),
    WeightGeometry.depthwise_conv((10, 1, 3), block=4),
    WeightGeometry.gemm((8, 6), trans_b=False, block=4),
    WeightGeometry.gemm((6, 8), trans_b=True, block=4),
    WeightGeometry.matmul((8, 6), "right", block=4),
    WeightGeometry.matmul((6, 8), "left", block=4),
    WeightGeometry.matmul((9, 6), "right", block=4),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_views_turn_back(geometry):
    weight = np.arange(1.0, np.prod(geometry.shape) + 1, dtype=np.float32).reshape(geometry.shape)
    slabs = to_slabs(weight, geometry, fill=-5)
    assert slabs.shape == geometry.view_shape
    assert np.count_nonzero(slabs == -5) == slabs.size - weight.size
    assert geometry.aligned == (slabs.size == weight.size)
    assert set(slabs.ravel()) - {-5} == set(weight.ravel())
    np.testing.assert_array_equal(from_slabs(slabs, geometry), weight)
    np.testing.assert_array_equal(from_slabs(slabs > 7, geometry), weight > 7)


def test_a_slab_is_32_input_channels_at_one_kernel_position():
    weight = np.random.default_rng(0).standard_normal((6, 64, 3, 2)).astype(np.float32)
    slabs = to_slabs(weight, WeightGeometry.conv(weight.shape, groups=2))
    assert slabs.shape == (2, 3, 12, 32)
    for group, output, y, x, block in [(0, 0, 0, 0, 0), (1, 2, 2, 1, 1), (0, 1, 1, 0, 1)]:
        np.testing.assert_array_equal(
            slabs[group, output, (y * 2 + x) * 2 + block],
            weight[group * 3 + output, 32 * block : 32 * block + 32, y, x],
        )


def test_linear_layers_turned_both_ways_look_alike():
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    views = [
        to_slabs(weight, WeightGeometry.gemm((6, 64), trans_b=True)),
        to_slabs(weight, WeightGeometry.matmul((6, 64), "left")),
        to_slabs(weight, WeightGeometry.conv((6, 64))),
        to_slabs(weight.T, WeightGeometry.gemm((64, 6), trans_b=False)),
        to_slabs(weight.T, WeightGeometry.matmul((64, 6), "right")),
    ]
    for view in views:
        np.testing.assert_array_equal(view, weight.reshape(1, 6, 2, 32))


def test_a_depthwise_slab_is_32_channels_at_one_kernel_position():
    weight = np.random.default_rng(0).standard_normal((64, 1, 3, 3)).astype(np.float32)
    geometry = WeightGeometry.depthwise_conv(weight.shape)
    slabs = to_slabs(weight, geometry)
    assert slabs.shape == (1, 9, 2, 32)
    np.testing.assert_array_equal(slabs[0, 5, 1], weight[32:, 0, 1, 2])
    keep = make_mask(weight, geometry, Block(), 0.7).keep
    assert keep.sum() == 64 * 3  # 6 of the 9 kernel positions go, whole 32 channels at a time
    assert all(keep[:32, 0].reshape(32, 9).all(0) == keep[:32, 0].reshape(32, 9).any(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightGeometry.conv((6, 4, 3, 3), groups=4),
        lambda: WeightGeometry.conv((6,)),
        lambda: WeightGeometry.conv((6, 0)),
        lambda: WeightGeometry.conv((6, 4), block=0),
        lambda: WeightGeometry.depthwise_conv((6, 2, 3, 3)),
        lambda: WeightGeometry((6, 4), 0, 0),
        lambda: to_slabs(np.zeros((2, 3)), WeightGeometry.conv((3, 2))),
        lambda: from_slabs(np.zeros((1, 3, 1, 4)), WeightGeometry.conv((3, 2))),
    ],
)
def test_impossible_geometries_are_refused(make):
    with pytest.raises(ModelError):
        make()


def test_half_precision_is_widened():
    weight = np.full((2, 32), 60000, np.float16)
    weight[1, 0] = -65504
    score = magnitude(weight, WeightGeometry.conv(weight.shape))
    assert score.dtype == np.float32
    assert score.max() == 65504
    keep = make_mask(weight, WeightGeometry.conv(weight.shape), Block(), 0.5).keep
    np.testing.assert_array_equal(keep.all(1), [False, True])  # its squares overflow a half


# --- counts, ties, shapes ----------------------------------------------------------------------


@given(scores(), RATES)
def test_block_counts(score, rate):
    pattern = Block(4)
    keep = pattern.mask(score, rate)
    outputs = score.shape[1]
    assert pattern.valid(keep)
    vectors = keep.any(-1)
    assert (keep == vectors[..., None]).all()
    assert (vectors.sum(1) == outputs - rounded(rate, outputs)).all()
    norms = (score.astype(np.float64) ** 2).sum(-1)
    order = np.argsort(-norms, axis=1, kind="stable")[:, : outputs - rounded(rate, outputs)]
    want = np.zeros_like(vectors)
    np.put_along_axis(want, order, True, axis=1)
    np.testing.assert_array_equal(vectors, want)


@given(scores(), RATES)
def test_flex_nm_counts(score, rate):
    pattern = FlexNM(4)
    keep = pattern.mask(score, rate)
    length = score.shape[2] * 4
    assert pattern.valid(keep)
    assert (keep.sum((2, 3)) == length - rounded(rate, length)).all()
    assert Row(4).valid(keep)
    # Inside a slab, an output keeps its largest.
    assert (np.where(keep, score, np.inf).min(-1) >= np.where(keep, -1, score).max(-1)).all()


@given(scores(), RATES)
def test_row_counts(score, rate):
    pattern = Row(4)
    keep = pattern.mask(score, rate)
    rows = score.reshape(*score.shape[:2], -1)
    kept = rows.shape[-1] - rounded(rate, rows.shape[-1])
    assert pattern.valid(keep)
    want = np.zeros(rows.shape, bool)
    order = np.argsort(-rows, axis=-1, kind="stable")[..., :kept]
    np.put_along_axis(want, order, True, axis=-1)
    np.testing.assert_array_equal(keep, want.reshape(score.shape))


@given(scores(), RATES)
def test_nm_counts(score, rate):
    pattern = NM(block=4)
    keep = pattern.mask(score, rate)
    assert pattern.valid(keep)
    assert (keep.sum(-1) == 4 - rounded(rate, 4)).all()
    order = np.argsort(-score, axis=-1, kind="stable")[..., : 4 - rounded(rate, 4)]
    assert np.take_along_axis(keep, order, -1).all()


@given(scores(), RATES, st.integers(0, 3))
def test_unstructured_counts_without_padding(score, rate, padded):
    score = score.copy()
    score[..., 4 - padded :] = -1
    keep = Unstructured(4).mask(score, rate)
    real = score.size * (4 - padded) // 4
    kept = real - rounded(rate, real)
    assert Unstructured(4).valid(keep)
    assert not keep[score < 0].any()
    want = np.zeros(score.size, bool)
    want[np.argsort(-score.ravel(), kind="stable")[:kept]] = True
    np.testing.assert_array_equal(keep.ravel(), want)


@pytest.mark.parametrize("name", PATTERNS)
@given(score=scores(), rates=st.tuples(RATES, RATES))
@settings(max_examples=30)
def test_a_higher_rate_keeps_less_of_the_same(name, score, rates):
    pattern = parse_pattern(name, 4)
    low, high = (pattern.mask(score, rate) for rate in sorted(rates))
    assert (low | ~high).all()
    assert score[low].sum() >= score[high].sum()
    np.testing.assert_array_equal(pattern.mask(score.copy(), min(rates)), low)
    assert pattern.mask(score, 0).all()


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 10**6]), st.integers(0, 11), st.integers(1, 3)
)
@settings(max_examples=60)
def test_flex_nm_retains_the_most_that_the_pattern_allows(seed, ties, prune, outputs):
    score = np.random.default_rng(seed).integers(0, ties, (1, outputs, 3, 4)).astype(np.float64)
    keep = FlexNM(4).mask(score, Fraction(prune, 12))
    ranked = np.sort(score, axis=-1)[..., ::-1]
    best = max(
        sum(ranked[0, :, slab, :n].sum() for slab, n in enumerate(counts))
        for counts in itertools.product(range(5), repeat=3)
        if sum(counts) == 12 - prune
    )
    assert score[keep].sum() == best


@given(scores(block=32), st.integers(0, 31))
def test_flex_nm_retains_at_least_as_much_as_uniform_nm(score, prune):
    rate = Fraction(prune, 32)
    flex, uniform = FlexNM().mask(score, rate), NM().mask(score, rate)
    assert flex.sum() == uniform.sum()
    assert score[flex].sum() >= score[uniform].sum()


def test_flex_nm_spends_where_the_magnitude_is():
    score = np.random.default_rng(0).random((1, 8, 2, 32)).astype(np.float32)
    score[:, :, 0] *= 100
    keep = FlexNM().mask(score, 0.7)
    assert (keep.sum(-1)[0] == [19, 0]).all()


def test_huge_float32_scores_do_not_overflow():
    score = np.full((1, 4, 1, 32), 1e38, np.float32)
    score[0, 2] = 2e38
    assert Block().mask(score, 0.75)[0, :, 0].all(1).tolist() == [False, False, True, False]
    assert FlexNM().mask(score, 0.5).sum() == 64


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_cannot_be_ranked_are_refused(name, bad):
    score = np.ones((1, 4, 2, 32), np.float32)
    score[0, 1, 1, 3] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        parse_pattern(name).mask(score, 0.5)


@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"unstructured"}))
def test_padding_is_refused_but_by_unstructured(name):
    weight = np.ones((4, 33), np.float32)
    with pytest.raises(ModelError, match="not a multiple of 32"):
        make_mask(weight, WeightGeometry.conv(weight.shape), parse_pattern(name), 0.5)


def test_scores_of_another_view_are_refused():
    with pytest.raises(ModelError, match="slabs, 32"):
        Block().mask(np.ones((1, 4, 2, 16)), 0.5)


def test_half_precision_scores_are_ranked_wide():
    score = np.full((1, 3, 1, 32), 60000, np.float16)
    score[0, 1] = 60032
    assert Block().mask(score, 0.67)[0, :, 0].any(1).tolist() == [False, True, False]


# --- validity ----------------------------------------------------------------------------------


def test_what_is_not_the_pattern_is_not_valid():
    rng = np.random.default_rng(0)
    keep = rng.random((2, 8, 3, 32)) < 0.5
    for pattern in (Block(), FlexNM(), NM(), Row(), NM(block=32, n=8)):
        assert not pattern.valid(keep)
        assert pattern.valid(pattern.mask(rng.random(keep.shape), pattern.fixed_rate or 0.6))
    lone = Block().mask(rng.random((1, 8, 2, 32)), 0.5)
    lone[0, np.argmax(lone[0, :, 0, 0]), 0] = False  # one slab keeps one vector less
    assert not Block().valid(lone)
    assert NM(block=32, n=20).valid(NM(block=32).mask(rng.random((1, 8, 2, 32)), 0.5))


# --- the published figure ----------------------------------------------------------------------


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("name", ["block", "flex-nm", "row"])
def test_figure_3_11(name, trans_b):
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    geometry = WeightGeometry.gemm(weight.shape, trans_b=trans_b)
    mask = make_mask(weight, geometry, parse_pattern(name), 0.7)
    assert mask.count == 78_848
    assert f"{mask.sparsity:.3f}" == "0.699"
    assert parse_pattern(name).valid(to_slabs(mask.keep, geometry))


def test_turned_weights_get_turned_masks():
    weight = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    for name in PATTERNS:
        pattern = parse_pattern(name)
        one = make_mask(weight, WeightGeometry.gemm((96, 64), trans_b=True), pattern, 0.7)
        two = make_mask(
            np.ascontiguousarray(weight.T), WeightGeometry.matmul((64, 96), "right"), pattern, 0.7
        )
        np.testing.assert_array_equal(one.keep, two.keep.T)


def test_groups_are_pruned_apart():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)
    weight[32:] *= 100  # group 1 would win everything if they competed
    for name in ("block", "flex-nm", "row"):
        keep = make_mask(
            weight, WeightGeometry.conv(weight.shape, groups=2), parse_pattern(name), 0.5
        ).keep
        assert keep[:32].sum() == keep[32:].sum() == 32 * 32 * 9 // 2
    first = make_mask(weight[:32], WeightGeometry.conv((32, 32, 3, 3)), FlexNM(), 0.5)
    np.testing.assert_array_equal(
        make_mask(weight, WeightGeometry.conv(weight.shape, groups=2), FlexNM(), 0.5).keep[:32],
        first.keep,
    )


# --- cycles ------------------------------------------------------------------------------------


def test_dense_cycles_are_the_macs():
    keep = np.ones((2, 8, 3, 32), bool)
    assert cycles_a(keep) == cycles_b(keep) == cycles_c(keep) == keep.size


def test_cycles_by_hand():
    keep = np.zeros((1, 2, 2, 4), bool)
    keep[0, 0, 0, :3] = True  # output 0: three weights of slab 0
    keep[0, 1, 0, 0] = True  # output 1: one of slab 0, two of slab 1
    keep[0, 1, 1, :2] = True
    assert cycles_a(keep) == 3 * 2
    assert cycles_b(keep) == 3 * 4
    assert cycles_c(keep) == (3 + 2) * 2


@pytest.mark.parametrize(
    ("name", "own", "gains"),
    [("block", cycles_b, "b"), ("flex-nm", cycles_c, "ac"), ("nm", cycles_c, "ac"),
     ("row", cycles_a, "a"), ("unstructured", cycles_c, "")],
)  # fmt: skip
def test_each_pattern_gains_under_its_own_reading(name, own, gains):
    score = np.random.default_rng(0).random((1, 512, 8, 32)).astype(np.float32)
    pattern = parse_pattern(name)
    keep = pattern.mask(score, 0.7)
    assert pattern.cycles(keep) == own(keep)
    for letter, cycles in (("a", cycles_a), ("b", cycles_b), ("c", cycles_c)):
        if letter in gains:
            assert cycles(keep) == keep.sum()
        else:
            assert cycles(keep) > 1.1 * keep.sum()


def test_a_speed_up_of_more_than_16_is_not_modelled():
    keep = FlexNM().mask(np.random.default_rng(0).random((1, 64, 8, 32)), 0.98)
    assert keep.sum() < keep.size / 16
    assert cycles_a(keep) == cycles_c(keep) == keep.size // 16
    assert cycles_b(np.zeros_like(keep)) == keep.size // 16


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PATTERNS, "nm:2:4", "nm:1:16"])
def test_names_turn_back(name):
    pattern = parse_pattern(name)
    assert pattern.name == name
    assert parse_pattern(pattern.name) == pattern
    assert hash(pattern) == hash(parse_pattern(name))


def test_nm_names_its_numbers():
    pattern = parse_pattern("nm:2:4")
    assert pattern == NM(block=4, n=2)
    assert pattern.fixed_rate == Fraction(1, 2)
    assert parse_pattern("nm:1:3", block=32).fixed_rate == Fraction(2, 3)
    assert parse_pattern("nm:4:32").fixed_rate == Fraction(7, 8)
    assert all(parse_pattern(name).fixed_rate is None for name in PATTERNS)
    score = np.random.default_rng(0).random((1, 3, 5, 4))
    keep = pattern.mask(score, 0.5)
    assert (keep.sum(-1) == 2).all()
    np.testing.assert_array_equal(keep, pattern.mask(score))
    assert (parse_pattern("nm:1:3").mask(np.ones((1, 2, 2, 3)), 2 / 3).sum(-1) == 1).all()
    with pytest.raises(OptionError, match=r"a rate of 0\.5; 0\.7 conflicts|rate of 0\.7 conflicts"):
        pattern.mask(score, 0.7)
    with pytest.raises(OptionError, match="needs a rate"):
        NM().mask(np.ones((1, 2, 2, 32)))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("blok", "did you mean block"),
        ("flexnm", "did you mean flex-nm"),
        ("rows", "did you mean row"),
        ("nm:2", "did you mean nm"),
        ("xyzzy", "there are block"),
        ("", "there are block"),
        ("nm:0:4", "1 to M"),
        ("nm:5:4", "1 to M"),
    ],
)
def test_bad_names(text, hint):
    with pytest.raises(OptionError, match=hint):
        parse_pattern(text)


class Quads:
    """Four neighbouring inputs of an output live or die; each output keeps as many fours."""

    name = "test_patterns:Quads"
    block = 4
    fixed_rate = None

    def mask(self, scores, rate):
        power = (scores**2).sum(axis=-1)
        kept = largest(power, power.shape[-1] - prune_count(rate, power.shape[-1]))
        return np.repeat(kept[..., None], self.block, axis=-1)

    def valid(self, keep):
        fours = keep.any(axis=-1)
        counts = fours.sum(axis=-1)
        return bool((keep == fours[..., None]).all() and (counts == counts.flat[0]).all())

    def cycles(self, keep):
        return cycles_b(keep)


QUADS = Quads()


@pytest.mark.parametrize("name", ["test_patterns:Quads", "test_patterns:QUADS"])
def test_a_pattern_of_ones_own_is_pruned_by_wherever_a_name_is_taken(name):
    assert isinstance(parse_pattern(name), Quads)
    calib = {"x": np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)}
    model = Model.from_proto(deep_net())
    report = onnxdrp.prune(model, sparsity=0.5, pattern=name, calib=calib)
    assert len(report.masks) == 3
    for weight, mask in report.masks.items():
        slabs = to_slabs(mask.keep, by_weight(layers(model, 4))[weight][0].geometry)
        assert QUADS.valid(slabs)
        assert 0 < mask.sparsity < 1
    assert sum(m.count for m in report.masks.values()) == pytest.approx(
        3 * 32 * 32 * 9 / 2, rel=0.02
    )
    again = onnxdrp.run(Model.from_proto(deep_net()), report.recipe, calib)
    assert again.model.fingerprint() == report.model.fingerprint()
    (line,) = departures(model, load_target("drp-ai3"), masks=report.masks)
    assert "not with other masks" in line


def test_what_is_no_pattern_is_refused_by_name():
    for name, words in {
        "no_such_module:Quads": "cannot be imported",
        "test_patterns:NoQuads": "cannot be imported",
        "test_patterns:": "cannot be imported",
        "test_patterns:pytest": "lacks name, block, fixed_rate, mask, valid, cycles",
        "onnxdrp.patterns:WeightGeometry": "without arguments",
    }.items():
        with pytest.raises(OptionError, match=words):
            parse_pattern(name)


def test_bad_blocks():
    with pytest.raises(OptionError, match="block of 0"):
        parse_pattern("block", 0)
    with pytest.raises(OptionError, match="conflicts"):
        parse_pattern("nm:2:4", 16)
    assert parse_pattern("row", 16) == Row(16)
