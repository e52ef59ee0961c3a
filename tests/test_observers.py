"""Observers: monoids with exact counts, numpy's percentiles within a bin, errors by formula."""

import copy
import itertools
import math
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxdrp import counting
from onnxdrp.errors import DataError, OptionError
from onnxdrp.observers import Error, ErrorStats, Histogram, MeanMinMax, MinMax, TopAgreement
from onnxdrp.quantization import Range

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Values whose sizes differ by all that a float32 can tell, subnormals and both zeros among them.
WILD = hnp.arrays(np.float32, st.integers(0, 60), elements=FLOAT32)
TAME = st.builds(
    lambda seed, size, scale, shift: (
        np.random.default_rng(seed).standard_normal(size) * scale + shift
    ).astype(np.float32),
    st.integers(0, 2**32 - 1),
    st.integers(1, 5000),
    st.sampled_from([1e-6, 1.0, 300.0]),
    st.sampled_from([0.0, 1.0, -1e4]),
)


@pytest.fixture(scope="module", autouse=True, params=["numpy", "compiled"])
def _way(request):
    """Each test counts by numpy, then by compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_counted", counting._PAY)
        if request.param == "numpy":
            patch.setattr(counting, "compiled_count", lambda: None)
        elif counting.compiled_count() is None:
            pytest.skip("there is no compiled code here")
        yield


def seen(kind, *parts):
    observer = kind()
    for part in parts:
        observer.update(part)
    return observer


# --- minima and maxima -------------------------------------------------------------------------


@given(WILD)
def test_extremes_are_exact(values):
    observer = seen(MinMax, values)
    assert (observer.count, observer.nonfinite) == (values.size, 0)
    if values.size:
        assert observer.result() == Range(float(values.min()), float(values.max()))


def test_extremes_of_long_and_strided_tensors():
    values = np.random.default_rng(0).standard_normal((7, 11, 2000)).astype(np.float32)
    values[3, 5, 1999], values[6, 10, 1] = -50, 60
    for view in (values, values.transpose(2, 0, 1), values[::3, 5:, ::-1], values[..., 1::2]):
        observer = seen(MinMax, view)
        assert observer.result() == Range(float(view.min()), float(view.max()))
        assert observer.count == view.size


def test_nothing_seen():
    for observer in (MinMax(), seen(MinMax, np.zeros((0, 3), np.float32))):
        assert observer.result() == Range(0, 0)
        assert observer.count == 0
    histogram = seen(Histogram, np.zeros((0, 3), np.float32))
    assert histogram.result().percentile() == Range(0, 0)
    assert histogram == Histogram()


@pytest.mark.parametrize("kind", [MinMax, Histogram])
def test_nan_and_infinity_are_counted_and_left_out(kind):
    values = np.linspace(-3, 5, 70000, dtype=np.float32)
    bad = values.copy()
    bad[[3, 40000, 50000]] = np.nan
    bad[[7, 69000]] = np.inf, -np.inf
    observer, clean = seen(kind, bad), seen(kind, values[np.isfinite(bad)])
    extremes = observer if kind is MinMax else observer.extremes
    assert extremes.nonfinite == 5
    extremes.nonfinite = 0
    assert observer == clean
    assert seen(kind, np.array([np.nan, np.inf])).nonfinite == 2


def test_the_sign_of_zero_leaves_no_trace():
    for kind in (MinMax, Histogram):
        one = seen(kind, np.array([0.0, -0.0, 0.0, -0.0], np.float32))
        two = seen(kind, np.float32(-0.0), np.zeros(3, np.float32))
        assert pickle.dumps(one) == pickle.dumps(two)
        extremes = one if kind is MinMax else one.extremes
        assert [math.copysign(1, x) for x in (extremes.low, extremes.high)] == [1, 1]


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?", ml_dtypes.bfloat16]
)
def test_every_number_type_is_read(dtype):
    values = np.array([[0, 1, 100], [1, 0, 100]]).astype(dtype)
    high = float(values.max())
    assert seen(MinMax, values).result() == Range(0, high)
    histogram = seen(Histogram, values)
    assert histogram.counts.sum() == 6
    assert histogram.percentile(100) == Range(0, high)


def test_what_is_no_number_is_refused():
    for values in (np.array(["a"]), np.array([1j]), np.array([{}], object)):
        for kind in (MinMax, Histogram):
            with pytest.raises(DataError, match="no range"):
                seen(kind, values)


def test_scalars_and_python_numbers():
    assert seen(MinMax, np.float32(3)).result() == Range(3, 3)
    assert seen(Histogram, np.array(-3.0)).percentile() == Range(-3, -3)


# --- mean extremes -----------------------------------------------------------------------------


def test_mean_extremes_are_the_mean_of_each_samples():
    samples = np.random.default_rng(0).standard_normal((40, 3, 500)).astype(np.float32)
    samples *= np.linspace(0.1, 7, 40, dtype=np.float32)[:, None, None]
    wide = samples.reshape(40, -1).astype(np.float64)
    whole = seen(MeanMinMax, *samples)
    assert whole.samples == 40
    assert whole.result().low == pytest.approx(wide.min(1).mean(), rel=1e-14)
    assert whole.result().high == pytest.approx(wide.max(1).mean(), rel=1e-14)
    assert whole.result().high < 0.7 * seen(MinMax, samples).high
    assert seen(MeanMinMax, samples).result() == seen(MinMax, samples).result()  # one sample
    shards = [seen(MeanMinMax, *samples[start : start + 8]) for start in range(0, 40, 8)]
    for shard in shards[1:]:
        shards[0].merge(shard)
    assert shards[0].samples == 40
    assert shards[0].lows == pytest.approx(whole.lows, rel=1e-13)
    assert shards[0].highs == pytest.approx(whole.highs, rel=1e-13)


def test_mean_extremes_leave_out_samples_without_values():
    nan = np.full(3, np.nan, np.float32)
    observer = seen(MeanMinMax, np.array([1, np.inf, 3]), nan, np.zeros(0), np.array([-5.0, 5.0]))
    assert observer == MeanMinMax(lows=-4, highs=8, samples=2, nonfinite=4)
    assert observer.result() == Range(-2, 4)
    assert MeanMinMax().result() == Range(0, 0)


def test_only_mean_extremes_ask_for_each_sample():
    kinds = (MinMax, MeanMinMax, Histogram, Error, TopAgreement)
    assert [getattr(kind(), "each_sample", False) for kind in kinds] == [0, 1, 0, 0, 0]


# --- the monoid --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MinMax, Histogram, lambda: Histogram(16)])
@given(st.lists(st.one_of(WILD, TAME), min_size=1, max_size=4), st.randoms())
@settings(max_examples=60)
def test_any_cut_and_order_gives_the_same_bits(kind, parts, random):
    whole = seen(kind, np.concatenate(parts))
    one_by_one = seen(kind, *random.sample(parts, len(parts)))
    assert one_by_one == whole
    shards = [seen(kind, part) for part in random.sample(parts, len(parts))]
    tree = kind()
    for shard in shards:
        before = copy.deepcopy(shard)
        tree.merge(shard)
        assert shard == before  # merging leaves the other alone
    assert tree == whole
    right = kind()
    for shard in shards:
        shard.merge(right)
        right = shard
    assert right == whole


def test_states_pickle_and_copies_go_their_own_way():
    values = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    for kind, arrays in ((MinMax, values[:1]), (MeanMinMax, values[:1]), (Histogram, values[:1]),
                         (Error, values), (TopAgreement, values)):  # fmt: skip
        observer = kind()
        observer.update(*arrays)
        back = pickle.loads(pickle.dumps(observer))
        assert back == observer
        twin = copy.deepcopy(observer)
        twin.update(*(array * 1e3 for array in arrays))
        assert back == observer
        assert twin != observer


def test_float64_values_beyond_float32():
    values = np.array([1e300, -1e-300, 5.0, -7e299, 0.0])
    parts = [values[:1], values[1:3], values[3:], np.array([2, -3], np.float32)]
    wholes = [seen(Histogram, *order) for order in itertools.permutations(parts)]
    assert all(whole == wholes[0] for whole in wholes)
    assert wholes[0].counts.sum() == 7
    assert wholes[0].percentile(100) == Range(-7e299, 1e300)


# --- histogram ---------------------------------------------------------------------------------


@given(WILD, st.sampled_from([4, 64, 2048]))
def test_every_value_is_counted_in_its_bin(values, bins):
    histogram = Histogram(bins)
    histogram.update(values)
    exact = [float(value) / histogram.width for value in values]  # powers of two divide exactly
    places = [bins + int(x) - (v < 0) for x, v in zip(exact, values, strict=True)]
    want = np.bincount(np.array(places, np.intp), minlength=2 * bins)
    np.testing.assert_array_equal(histogram.counts, want)
    assert histogram.edges.size == 2 * bins + 1
    peak = float(np.abs(values).max(initial=0))
    assert peak < bins * histogram.width
    assert peak >= bins / 2 * histogram.width or histogram.exponent == -120


def test_mirrored_values_give_the_mirror_image():
    values = np.random.default_rng(0).standard_normal(9000).astype(np.float32) + 0.3
    one, two = seen(Histogram, values), seen(Histogram, -values)
    np.testing.assert_array_equal(one.counts, two.counts[::-1])
    assert one.counts.max() > 3


@given(WILD, st.integers(0, 20))
def test_zeros_of_either_sign_are_counted(values, extra):
    values = np.concatenate([values, np.zeros(extra, np.float32), -np.zeros(extra, np.float32)])
    histogram = seen(Histogram, values)
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.counts[histogram.bins] >= histogram.zeros
    twice = copy.deepcopy(histogram)
    twice.merge(histogram)
    assert twice.zeros == 2 * histogram.zeros


def test_histograms_are_equal_by_all_they_hold():
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    histogram = seen(Histogram, values)
    assert histogram == seen(Histogram, values[::-1])
    assert histogram != seen(Histogram, values[1:])
    assert Histogram() == Histogram() != Histogram(64)
    assert histogram != "a histogram"
    for change in ({"zeros": 1}, {"exponent": 3}, {"extremes": MinMax()}):
        twin = copy.deepcopy(histogram)
        vars(twin).update(change)
        assert twin != histogram


def test_a_new_histogram_takes_no_memory():
    tracemalloc.start()
    many = [Histogram() for _ in range(100)]
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert many[0].counts.shape == (8192,)
    assert not many[0].counts.any()
    many[0].merge(many[1])
    many[0].merge(seen(Histogram, np.ones(3)))
    assert many[0].counts.sum() == 3
    assert not many[1].counts.any()


def test_memory_is_bounded():
    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    for kind in (MinMax, Histogram, Error):
        observer = kind()
        arrays = (values, values[::-1]) if kind is Error else (values.reshape(2, -1).T,)
        tracemalloc.start()
        observer.update(*arrays)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # the values are 16,000,000
        tracemalloc.stop()
        assert len(pickle.dumps(observer)) < 70_000  # 2 * 4096 counters of 8 bytes


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -7.25, 1e-30, 1e-45, 3e38])
def test_constant_tensors(value):
    value = float(np.float32(value))
    histogram = seen(Histogram, np.full(1000, value, np.float32))
    assert histogram.percentile(99.9) == Range(value, value)
    assert histogram.percentile(99.9, "abs") == Range(-abs(value), abs(value))
    assert histogram.counts.max() == 1000


def reference(values, p):
    return float(np.percentile(values.astype(np.float64), p, method="inverted_cdf"))


@given(st.one_of(TAME, WILD), st.sampled_from([50, 75, 90, 99, 99.9, 99.99, 99.999, 100]))
@settings(max_examples=300)
def test_percentiles_are_numpys_within_a_bin(values, p):
    if not values.size:
        return
    histogram = seen(Histogram, values)
    width = histogram.width
    for tails, tail in (("two", (100 - p) / 2), ("one", 100 - p)):
        low, high = reference(values, tail), reference(values, 100 - tail)
        got = histogram.percentile(p, tails)
        assert low - width <= got.low <= low
        assert high <= got.high <= high + width
    peak = reference(np.abs(values), p)
    got = histogram.percentile(p, "abs")
    assert -got.low == got.high
    assert peak <= got.high <= peak + width


def test_percentiles_leave_outliers_out():
    values = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    values[:10], values[10:15] = 100, -50
    histogram = seen(Histogram, values)
    assert histogram.percentile(100) == Range(-50, 100)
    assert histogram.percentile(100, "abs") == Range(-100, 100)
    trimmed = histogram.percentile(99.9)
    assert -1.1 < trimmed.low < -0.9
    assert 0.9 < trimmed.high < 1.1
    assert histogram.percentile(99.996, "one").low == -50  # 4 may go, 5 are there
    assert histogram.percentile(99.994, "one").low > -1.1
    assert histogram.percentile(99.994, "two").low == -50
    assert histogram.percentile(99.99, "abs").high > 49


def test_bad_options():
    for bins in (0, 1, 1000, -2):
        with pytest.raises(OptionError, match="power of two"):
            Histogram(bins)
    for p in (0, 49, 100.1, math.nan):
        with pytest.raises(OptionError, match=r"outside \[50, 100\]"):
            Histogram().percentile(p)
    with pytest.raises(OptionError, match="two, one, abs"):
        Histogram().percentile(99, "both")
    with pytest.raises(ValueError, match="do not merge"):
        Histogram(64).merge(Histogram(128))


# --- errors ------------------------------------------------------------------------------------


@given(TAME, st.sampled_from([0.0, 1e-3, 1.0, 50.0]), st.integers(1, 5))
def test_error_by_the_formula(values, size, cuts):
    noise = np.random.default_rng(1).standard_normal(values.size).astype(np.float32)
    actual = values + np.float32(size) * noise
    observer = Error()
    for shard in zip(np.array_split(values, cuts), np.array_split(actual, cuts), strict=True):
        part = Error()
        part.update(*shard)
        observer.merge(part)
    a, b = values.astype(np.float64), actual.astype(np.float64)
    got = observer.result()
    assert got.max_abs_error == np.abs(b - a).max()
    assert (got.count, got.nonfinite) == (values.size, 0)
    if not (a != b).any():
        assert (got.sqnr_db, got.cosine) == (math.inf, 1)
        return
    assert got.sqnr_db == pytest.approx(10 * math.log10((a @ a) / ((b - a) @ (b - a))), abs=1e-8)
    assert got.cosine == pytest.approx(
        a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-10, abs=1e-10
    )


def stats(a, b):
    observer = Error()
    observer.update(np.array(a, np.float32), np.array(b, np.float32))
    return observer.result()


def test_error_of_special_tensors():
    inf, nan = math.inf, math.nan
    assert stats([1, 2], [1, 2]) == ErrorStats(inf, 1, 0, 2)
    assert stats([0, 0], [0, 0]) == ErrorStats(inf, 1, 0, 2)
    assert stats([0, 0], [3, 0]) == ErrorStats(-inf, 0, 3, 2)
    assert stats([3, 0], [0, 0]) == ErrorStats(0, 0, 3, 2)
    assert stats([], []) == ErrorStats(inf, 1, 0)
    assert stats([1, 1], [-1, -1]).cosine == pytest.approx(-1, rel=1e-15)
    assert stats([1, 0], [0, 1]).cosine == 0
    assert stats([1, -inf, inf], [1, -inf, inf]) == ErrorStats(inf, 1, 0, 1, 0)
    assert stats([1, nan, 2, inf], [1, nan, nan, -inf]) == ErrorStats(inf, 1, 0, 1, 3)
    big = stats([1e38, 1e38], [1e38, -1e38])
    assert big.cosine == 0
    assert big.sqnr_db == pytest.approx(10 * math.log10(0.5))
    assert Error().result() == ErrorStats(inf, 1, 0)


def test_error_of_views_in_different_layouts():
    a = np.random.default_rng(0).standard_normal((20, 30, 40)).astype(np.float32)
    b = a + np.arange(40, dtype=np.float32)
    one, two = Error(), Error()
    one.update(a, b)
    two.update(a.transpose(2, 0, 1), np.asfortranarray(b).transpose(2, 0, 1))
    assert two.result().sqnr_db == pytest.approx(one.result().sqnr_db, rel=1e-12)
    assert two.result().max_abs_error == one.result().max_abs_error > 38


def test_tensors_of_other_shapes_do_not_compare():
    for kind in (Error, TopAgreement):
        with pytest.raises(DataError, match="do not compare"):
            kind().update(np.ones((2, 3)), np.ones((1, 3)))


# --- agreement ---------------------------------------------------------------------------------


def test_agreement():
    a = np.array([[1, 2, 3], [9, 2, 3], [1, 5, 3], [0, 0, 1]], np.float32)
    b = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 0], [np.nan, 0, 1]], np.float32)
    whole, parts = TopAgreement(), TopAgreement()
    whole.update(a, b)
    assert (whole.result(), whole.count) == (0.5, 4)
    for rows in itertools.pairwise([0, 1, 3, 4]):
        part = TopAgreement()
        part.update(a[slice(*rows)], b[slice(*rows)])
        parts.merge(part)
    assert parts == whole
    assert math.isnan(TopAgreement().result())


def test_agreement_along_another_axis():
    a = np.zeros((2, 3, 4, 4), np.float32)
    a[:, 1] = 1
    b = a.copy()
    b[0, 2, 0, 0] = 2
    along = TopAgreement(axis=1)
    along.update(a, b)
    assert (along.agreeing, along.count) == (31, 32)
    one = TopAgreement()
    one.update(a[0, :, 0, 0], b[0, :, 0, 0])
    assert one.result() == 0
    for empty in (np.ones(()), np.ones((3, 0))):
        with pytest.raises(DataError, match="no classes"):
            TopAgreement().update(empty, empty)


def test_more_values_than_an_int32_counts(monkeypatch):
    parts = [np.random.default_rng(i).standard_normal(700).astype(np.float32) for i in range(4)]
    small = seen(Histogram, *parts)
    assert small.counts.dtype == np.int32
    monkeypatch.setattr("onnxdrp.observers._MANY", 1500)
    large = seen(Histogram, *parts)
    assert large.counts.dtype == np.int64
    assert large == small
    merged = Histogram()
    for part in parts:
        other = seen(Histogram, part)
        assert other.counts.dtype == np.int32
        merged.merge(other)
    assert merged.counts.dtype == np.int64
    assert merged == small
    assert merged.percentile(99) == small.percentile(99)
