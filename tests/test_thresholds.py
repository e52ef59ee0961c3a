"""Ranges from histograms: a plain KL search, the least true error by brute force, and what holds
for all: inside the extremes, the same for any cut, order and power of two."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxdrp.errors import OptionError
from onnxdrp.observers import Histogram
from onnxdrp.quantization import Range, activation_params, fake_quantize
from onnxdrp.thresholds import entropy, mse, sigma

GRIDS = [("uint8", False), ("int8", False), ("int8", True), ("uint8", True)]
SEARCHES = [
    pytest.param(lambda h, f=f, d=d, s=s: f(h, d, symmetric=s), id=f"{f.__name__}-{d}-{s}")
    for f in (entropy, mse)
    for d, s in GRIDS
]
ALL = [*SEARCHES, pytest.param(sigma, id="sigma"), pytest.param(lambda h: sigma(h, 1.5), id="1.5")]


def made(number=20000):
    """{name: values}: what layers give, and what is hard."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=number)
    background = np.where(rng.random(number) < 0.6, rng.choice(normal[:40], number), normal)
    values = {
        "normal": normal,
        "shifted": normal + 1.5,
        "laplace": rng.laplace(size=number),
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(3 * normal, 0, 6),
        "silu": 2 * normal / (1 + np.exp(-2 * normal)),
        "uniform": rng.uniform(-1, 2, number),
        "student-t": rng.standard_t(3, number),
        "bimodal": np.append(normal[::2] * 0.3 - 2, normal[1::2] * 0.3 + 7),
        "mostly zeros": normal * (rng.random(number) < 0.1),
        "outliers": np.append(normal, [40, -25, 39]),
        "exponential": rng.exponential(size=number),
        "negative": -rng.exponential(size=number),
        "far from zero": normal + 50,
        "background": np.maximum(background, 0),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


MADE = made()


def histogram(values, bins=4096):
    found = Histogram(bins)
    found.update(np.asarray(values, np.float32))
    return found


def extremes(values):
    return Range(float(values.min()), float(values.max()))


# --- entropy -----------------------------------------------------------------------------------


def plain_entropy(found, dtype, symmetric):
    """The search of `entropy`, bin by bin."""
    bins, low, high = found.bins, found.extremes.low, found.extremes.high
    steps = {("int8", True): 254}.get((dtype, symmetric), 255)
    counts = {k: int(found.counts[bins + k]) for k in range(-bins, bins)}
    counts[0] -= found.zeros
    first = -(math.floor(-low / found.width) + 1) if low < 0 else 0
    last = math.floor(high / found.width) + 1 if high > 0 else 0
    if symmetric:
        counts = {k: counts[k] + counts[-1 - k] for k in range(bins)}
        first, last, steps = 0, max(-first, last), steps / 2
    levels = math.floor(steps) + 1
    counts = {k: counts[k] for k in range(first, last)}
    everything = sum(counts.values())

    full = [k for k in counts if counts[k]]
    capped = dict(counts)
    for i, k in enumerate(full):
        around = []
        for j in range(i - 16, i + 17):
            turn = 2 * (len(full) - 1)
            j = j % turn if turn else 0
            around.append(counts[full[min(j, turn - j)]])
        capped[k] = min(counts[k], sorted(around)[16])

    tried = {}
    whole = max(-first, last)
    for share in range(1, 513):
        t = math.ceil(whole * share / 512)
        a, b = max(first, -t), min(last, t)
        left = sum(counts[k] for k in range(first, a))
        right = sum(counts[k] for k in range(b, last))
        if t < whole and (left + right > 0.001 * everything or b - a < steps):
            continue
        p = {k: capped[k] for k in range(a, b)}
        p[a] += left
        p[b - 1] += right
        step = (b - a) / steps
        zero = round(-a / step)
        inner = [round((k - zero - 0.5) * step) for k in range(1, levels)]
        bounds = [a, *(min(max(bound, a + 1), b - 1) for bound in inner), b]
        q = dict.fromkeys(p, 0.0)
        for start, end in itertools.pairwise(bounds):
            group = range(start, end)
            filled = [k for k in group if p[k]]
            own = sum(capped[i] for i in group) or 0.5  # filled by clipping alone
            for k in filled:
                q[k] = own / len(filled)
        sum_p, sum_q = sum(p.values()), sum(q.values())
        divergence = 0.0
        for k in p:
            if p[k]:
                divergence += p[k] / sum_p * math.log((p[k] / sum_p) / (q[k] / sum_q))
        tried[t] = divergence
    least = min(tried.values())
    best = max(t for t, divergence in tried.items() if divergence <= least + 1e-9)
    return Range(max(-best * found.width, low), min(best * found.width, high))


@pytest.mark.parametrize(("dtype", "symmetric"), [*GRIDS[:1], *GRIDS[2:]])
@pytest.mark.parametrize("name", MADE)
def test_entropy_is_the_plain_search(name, dtype, symmetric):
    bins = 512 if symmetric else 1024
    found = histogram(MADE[name], bins)
    assert entropy(found, dtype, symmetric=symmetric) == plain_entropy(found, dtype, symmetric)


@pytest.mark.parametrize("name", ["laplace", "silu", "exponential", "background"])
def test_entropy_is_the_plain_search_with_all_bins(name):
    found = histogram(MADE[name])
    assert entropy(found, "uint8") == plain_entropy(found, "uint8", False)


def test_entropy_clips_tails_and_keeps_what_has_none():
    cut = {name: entropy(histogram(v), "int8", symmetric=True) for name, v in MADE.items()}
    share = {name: max(-r.low, r.high) / np.abs(MADE[name]).max() for name, r in cut.items()}
    assert 0.05 < share["outliers"] < 0.9
    assert sum(part < 0.95 for part in share.values()) >= 5
    assert share["relu6"] == share["uniform"] == 1


@pytest.mark.parametrize("search", SEARCHES)
def test_exact_zeros_change_nothing(search):
    for values in (MADE["laplace"], np.append(MADE["exponential"], np.float32(0))):
        more = np.append(values, np.zeros(100000, np.float32))
        assert search(histogram(more)) == search(histogram(values))
        assert search(histogram(more)) != extremes(values)


@pytest.mark.parametrize(("dtype", "symmetric"), GRIDS)
def test_values_that_repeat_hardly_move_the_threshold_of_entropy(dtype, symmetric):
    values = MADE["exponential"]
    repeated = np.append(values, np.full(20000, 0.7, np.float32))
    clean = entropy(histogram(values), dtype, symmetric=symmetric)
    found = entropy(histogram(repeated), dtype, symmetric=symmetric)
    assert clean.high < extremes(values).high
    assert found.high == pytest.approx(clean.high, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.floats(1.2, 8), st.sampled_from(GRIDS))
@settings(max_examples=40)
def test_entropy_clips_at_most_a_thousandth_of_what_is_not_zero(seed, tail, grid):
    rng = np.random.default_rng(seed)
    values = (rng.standard_t(tail, 4000) * (rng.random(4000) < 0.8)).astype(np.float32)
    found = entropy(histogram(values), grid[0], symmetric=grid[1])
    if grid[1]:
        found = Range(min(found.low, -found.high), max(found.high, -found.low))
    beyond = np.count_nonzero((values < found.low) | (values > found.high))
    assert beyond <= 0.001 * np.count_nonzero(values)


def test_entropy_of_too_few_bins_is_the_extremes():
    assert entropy(histogram(MADE["laplace"], 64)) == extremes(MADE["laplace"])


# --- mse ---------------------------------------------------------------------------------------


def true_error(values, found, dtype, symmetric):
    params = activation_params(found, dtype, symmetric=symmetric)
    error = (fake_quantize(values, params) - values).astype(np.float64)
    return float(error @ error)


def least_error(values, dtype, symmetric):
    """The least over ranges within the extremes: a grid from 1/8 on, then finer about the best."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        low, high = 0.0, max(-low, high)

    def search(lows, highs):
        return min(
            (true_error(values, Range(low * a, high * b), dtype, symmetric), a, b)
            for a in (lows if low else [1.0])
            for b in (highs if high else [1.0])
        )

    sparse = np.geomspace(1, 1 / 8, 10 if low and high else 60)
    best = search(sparse, sparse)
    for reach in (0.12, 0.03) if low and high else (0.04, 0.004):
        around = np.linspace(1 - reach, 1 + reach, 9)
        lows, highs = (np.unique(np.minimum(end * around, 1)) for end in best[1:])
        best = min(best, search(lows, highs))
    return best[0]


@pytest.mark.parametrize(("dtype", "symmetric"), [*GRIDS[:1], *GRIDS[2:]])
@pytest.mark.parametrize("name", MADE)
def test_true_error_of_mse_is_within_a_percent_of_the_least(name, dtype, symmetric):
    values = MADE[name]
    found = mse(histogram(values), dtype, symmetric=symmetric)
    least = least_error(values, dtype, symmetric)
    assert least > 0
    assert true_error(values, found, dtype, symmetric) <= 1.01 * least


def test_mse_beats_the_extremes_where_there_are_tails():
    for name in ("laplace", "student-t", "outliers", "exponential"):
        values = MADE[name]
        for dtype, symmetric in GRIDS:
            found = mse(histogram(values), dtype, symmetric=symmetric)
            at_extremes = true_error(values, extremes(values), dtype, symmetric)
            assert true_error(values, found, dtype, symmetric) < 0.98 * at_extremes


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 1), st.floats(1.5, 6))
@settings(max_examples=40)
def test_mse_expects_the_error_that_its_range_has(seed, share, tail):
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_t(tail, 4000)) * np.where(rng.random(4000) < share, -share, 1)
    values = values.astype(np.float32)
    error = true_error(values, mse(histogram(values), "uint8"), "uint8", False)
    assert error <= 1.02 * true_error(values, extremes(values), "uint8", False)


def test_mse_sees_the_grid_that_values_lie_on():
    pixels = np.arange(256, dtype=np.float32) / 255
    assert mse(histogram(pixels), "uint8") == Range(0, 1)
    assert mse(histogram(-pixels), "uint8") == Range(-1, 0)


def test_mse_goes_far_below_outliers_where_the_rest_outweighs_them():
    rng = np.random.default_rng(0)
    found = histogram(np.append(rng.normal(size=1000), 300))
    found.counts[found.counts > 1] *= 1_000_000  # a billion values
    assert mse(found, "int8", symmetric=True).high < 60


# --- sigma -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("k", [0.5, 2.0, 6.0])
def test_sigma_is_that_of_the_values_within_its_bounds(name, k):
    values = MADE[name]
    found, wide = histogram(values), values.astype(np.float64)
    low, high = wide.mean() - k * wide.std(), wide.mean() + k * wide.std()
    off = (0.5 + k) * found.width
    got = sigma(found, k)
    assert got.low == pytest.approx(max(low, wide.min()), abs=off, rel=0)
    assert got.high == pytest.approx(min(high, wide.max()), abs=off, rel=0)


def test_sigma_counts_zeros_as_zeros():
    values = np.append(np.zeros(10**6), [1.0, 1.9]).astype(np.float32)
    got = sigma(histogram(values, 2), 100)
    assert got.low == 0
    assert got.high == pytest.approx(100 * 1.5e-3 * math.sqrt(2), rel=0.1)


# --- what holds for all ------------------------------------------------------------------------

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
WILD = hnp.arrays(np.float32, st.integers(0, 60), elements=FLOAT32)
TAME = st.builds(
    lambda seed, size, shift, zeros: (
        lambda rng: (rng.laplace(size=size) + shift) * (rng.random(size) >= zeros)
    )(np.random.default_rng(seed)).astype(np.float32),
    st.integers(0, 2**32 - 1),
    st.integers(1, 5000),
    st.sampled_from([0.0, 1.0, -8.0, 100.0]),
    st.sampled_from([0.0, 0.5, 0.99]),
)


@pytest.mark.parametrize("search", ALL)
@given(st.one_of(WILD, TAME), st.sampled_from([2, 64, 4096]))
@settings(max_examples=20)
def test_any_range_lies_inside_the_extremes_and_is_of_use(search, values, bins):
    found = histogram(values, bins)
    got = search(found)
    assert found.extremes.result().contains(got)
    assert got.low <= got.high
    activation_params(got, "uint8")
    assert search(found) == got


@pytest.mark.parametrize("search", ALL)
def test_nothing_zeros_and_constants_give_the_extremes(search):
    assert search(Histogram()) == Range(0, 0)
    for value in (0.0, -0.0, 3.7, -1e-3, 1e-45, 3.4e38, -3.4e38):
        constant = np.full(1000, value, np.float32)
        assert search(histogram(constant)) == extremes(constant)


@pytest.mark.parametrize("search", SEARCHES)
def test_two_values_on_one_side_are_kept(search):
    for values in ([0, 5], [-5, 0], [1, 1 + 2**-23], [1e-45, 3.4e38], [-3.4e38, -1e-45]):
        values = np.array(values, np.float32)
        assert search(histogram(values)) == extremes(values)


@pytest.mark.parametrize("search", ALL)
@pytest.mark.parametrize("name", ["laplace", "silu", "student-t", "negative"])
def test_powers_of_two_scale_the_range_bit_for_bit(search, name):
    values = MADE[name]
    base = search(histogram(values))
    assert base != extremes(values) or name == "silu"
    for factor in (2.0**-100, 0.5, 1024.0, 2.0**100):
        assert search(histogram(values * np.float32(factor))) == Range(
            base.low * factor, base.high * factor
        )


@pytest.mark.parametrize("search", [SEARCHES[2], SEARCHES[3], SEARCHES[6], SEARCHES[7]])
@given(TAME)
@settings(max_examples=20)
def test_on_a_symmetric_grid_the_mirror_image_has_the_mirrored_range(search, values):
    got, mirrored = search(histogram(values)), search(histogram(-values))
    assert (mirrored.low, mirrored.high) == (-got.high, -got.low)


@pytest.mark.parametrize("search", ALL)
def test_merged_parts_in_any_order_have_the_range_of_the_whole(search):
    values = MADE["outliers"]
    parts = np.array_split(values[::-1], 5)
    merged = histogram(parts[3])
    for i in (0, 4, 1, 2):
        merged.merge(histogram(parts[i]))
    got = search(histogram(values))
    assert search(merged) == got
    assert got != extremes(values)


@pytest.mark.parametrize("search", [entropy, mse])
def test_with_a_zero_point_uint8_and_int8_are_the_same(search):
    for values in MADE.values():
        assert search(histogram(values), "uint8") == search(histogram(values), "int8")


def test_what_cannot_be_is_refused():
    found = histogram([1.0, 2.0])
    for search in (entropy, mse):
        with pytest.raises(OptionError, match="int32"):
            search(found, "int32")
    for k in (0, -1, math.nan):
        with pytest.raises(OptionError, match="above 0"):
            sigma(found, k)
