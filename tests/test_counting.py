"""Counting: each value in its bin, told one by one; numba and numpy give the same bits."""

import copy
import os
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxdrp import counting
from onnxdrp.counting import BLOCK, count, count_by_numpy, extremes
from onnxdrp.observers import Histogram, MinMax

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38,
           np.nan, -np.nan, np.inf, -np.inf, 0.99999994, -0.99999994]  # fmt: skip
FLOATS = st.one_of(
    st.sampled_from(SPECIAL).map(np.float32).map(float),
    st.floats(width=32),
    st.floats(-4, 4, width=32),
)
VALUES = hnp.arrays(np.float32, st.integers(1, 80), elements=FLOATS)


@pytest.fixture
def compiled(monkeypatch):
    """The compiled loops, used from the first value on."""
    pytest.importorskip("numba")
    loops = counting.load()
    assert loops is not None
    return loops


def both(values, limit, bins, start=0):
    """What both ways have found and counted."""
    scale = bins / limit
    results = []
    for way in (count, count_by_numpy):
        counts = np.arange(2 * bins)  # not zeros: counting adds
        found = way(values, start, limit, scale, counts)
        results.append((tuple(found), (counts - np.arange(2 * bins)).tolist()))
    return results


# --- the two ways ------------------------------------------------------------------------------


@given(
    st.one_of(VALUES, hnp.arrays(np.float32, 80, elements=st.floats(-4, 4, width=32))),
    st.sampled_from([2.0**-100, 1.0, 8.0, 2.0**40, 2.0**128]),
    st.sampled_from([2, 64, 4096]),
)
@example(np.array(SPECIAL[:9], np.float32), 2.0**128, 4096)
@example(np.array(SPECIAL[-2:], np.float32), 1.0, 4096)
@settings(deadline=None)  # the first one loads numba
def test_both_ways_count_each_value_in_its_bin(values, limit, bins):
    pytest.importorskip("numba")
    counting.load()
    one, two = both(values, limit, bins)
    assert one == two
    (stop, low, high, zeros), counts = one
    if not (np.abs(values.astype(np.float64)) < limit).all():
        assert (stop, low, high, zeros, sum(counts)) == (0, np.inf, -np.inf, 0, 0)
        return
    want = [0] * (2 * bins)
    for value in values.tolist():
        want[bins + int(Fraction(value) * bins / Fraction(limit)) - (value < 0)] += 1
    assert counts == want
    assert (stop, low, high) == (values.size, values.min(), values.max())
    assert zeros == np.count_nonzero(values == 0)


@given(VALUES)
@example(np.array([0.0, -0.0], np.float32))
@example(np.array([-np.nan], np.float32))
@settings(deadline=None)
def test_both_ways_find_the_same_extremes(values):
    pytest.importorskip("numba")
    loops = counting.compiled_loops()
    compiled, plain = loops.extremes(values), extremes(values)
    assert np.isfinite(compiled).all() == np.isfinite(plain).all() == np.isfinite(values).all()
    if not np.isnan(values).any():
        assert compiled == plain == (values.min(), values.max())


@pytest.mark.parametrize("size", [4095, 4096, 4097, 4099, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_long_arrays(compiled, size):
    rng = np.random.default_rng(size)
    for values in (
        rng.standard_normal(size),
        np.maximum(rng.standard_normal(size), 0),
        np.ones(size),
    ):
        one, two = both(values.astype(np.float32), 8.0, 4096)
        assert one == two
        assert (one[0][0], sum(one[1])) == (size, size)
        again = both(values.astype(np.float32), 8.0, 4096)  # nothing is left over in the table
        assert again[0] == one


def test_counting_stops_before_the_block_that_does_not_fit(compiled):
    values = np.random.default_rng(0).uniform(-1, 1, 4 * BLOCK).astype(np.float32)
    for bad in (1.0, -1.0, np.nan, np.inf, -np.inf):
        values[2 * BLOCK + 700] = bad
        for start in (0, 300):
            one, two = both(values, 1.0, 64, start)
            assert one == two
            # Blocks are counted from where it starts.
            assert (one[0][0], sum(one[1])) == (2 * BLOCK + start, 2 * BLOCK)
            assert max(one[0][2], -one[0][1]) < 1


def test_arrays_that_cannot_be_written(compiled):
    values = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    writable, _ = both(values, 8.0, 64)
    values.flags.writeable = False
    assert both(values, 8.0, 64) == [writable, writable]
    assert compiled.extremes(values) == extremes(values)


def test_the_longest_arrays_are_left_to_numpy(compiled):
    assert counting._loops((1 << 31) - 1) is compiled
    assert counting._loops(1 << 31) is None


def test_numba_is_loaded_when_it_pays(monkeypatch):
    loaded = []
    monkeypatch.setattr(counting, "_loading", None)
    monkeypatch.setattr(counting, "_counted", 0)
    monkeypatch.setattr(counting, "_PAY", 5000)
    monkeypatch.setattr(counting, "compiled_loops", lambda: loaded.append(1))
    values = np.ones(2500, np.float32)
    histogram = Histogram()
    histogram.update(values.astype(np.float64))  # numpy's in any case
    histogram.update(values[:2000])
    counting.expect(5000)
    assert counting._loading is None
    histogram.update(values, values)
    counting._loading.join(10)
    assert loaded == [1]
    counting.load()
    counting.expect(1 << 40)
    assert loaded == [1, 1]  # the thread's and load's own; no second thread


def test_what_will_be_counted_loads_numba_before(monkeypatch):
    loaded = []
    monkeypatch.setattr(counting, "_loading", None)
    monkeypatch.setattr(counting, "compiled_loops", lambda: loaded.append(1))
    counting.expect(counting._PAY)
    assert counting._loading is None
    counting.expect(counting._PAY + 1)
    counting._loading.join(10)
    assert loaded == [1]


# --- histograms ---------------------------------------------------------------------------------


def views():
    rng = np.random.default_rng(0)
    base = (rng.standard_normal((6, 70, 200)) * 3).astype(np.float32)
    base[base < -2] = 0
    base[0, 0, :3] = -0.0, 1e-45, -1e-45
    raw = b"x" + base.tobytes()
    frozen = base.copy()
    frozen.flags.writeable = False
    return {
        "contiguous": base,
        "transposed": base.T,
        "permuted": base.transpose(1, 2, 0),
        "strided": base[::2, ::-1, 1::3],
        "a strided line": base.ravel()[1::3],
        "unaligned": np.frombuffer(raw, np.float32, offset=1),
        "swapped": base.astype(">f4"),
        "broadcast": np.broadcast_to(base[:1], (3, 70, 200)),
        "read-only": frozen,
        "scalar": base[3, 4, 5],
        "float16": base.astype(np.float16),
        "bfloat16": base.astype(ml_dtypes.bfloat16),
        "float64": base.astype(np.float64) / 3,
        "int8": base.astype(np.int8),
        "int64": base.astype(np.int64) << 40,
    }


@pytest.mark.parametrize("name", views())
def test_any_array_gives_the_same_with_and_without_numba(name, monkeypatch):
    pytest.importorskip("numba")
    counting.load()
    array = views()[name]
    fast, slow = Histogram(), Histogram()
    fast.update(array)
    monkeypatch.setattr(counting, "compiled_loops", lambda: None)
    slow.update(array)
    assert fast == slow
    exact = np.asarray(array, np.float64).ravel()
    assert fast.extremes == MinMax(exact.min() + 0.0, exact.max() + 0.0, exact.size)
    assert fast.zeros == np.count_nonzero(exact == 0)
    places = np.trunc(exact / fast.width).astype(int) - (exact < 0) + fast.bins
    np.testing.assert_array_equal(fast.counts, np.bincount(places, minlength=2 * fast.bins))
    assert name == "scalar" or np.count_nonzero(fast.counts) > 3


def grown(order, bad):
    histogram = Histogram()
    for scale in order:
        values = np.random.default_rng(scale).standard_normal(3 * BLOCK + 17).astype(np.float32)
        values[-1] *= 10 * scale
        values[BLOCK : 2 * BLOCK] *= scale
        if bad:
            values[2 * BLOCK + 5], values[7] = np.nan, np.inf
        histogram.update(values)
    return histogram


@pytest.mark.parametrize("bad", [False, True])
def test_a_range_that_grows_within_an_array(compiled, monkeypatch, bad):
    fast = [grown(order, bad) for order in ((1, 50, 3000), (3000, 1, 50))]
    monkeypatch.setattr(counting, "compiled_loops", lambda: None)
    slow = [grown(order, bad) for order in ((50, 3000, 1), (1, 50, 3000))]
    assert fast[0] == fast[1] == slow[0] == slow[1]
    assert fast[0].nonfinite == (6 if bad else 0)
    assert fast[0].counts.sum() == 3 * (3 * BLOCK + 17) - fast[0].nonfinite


def test_threads_do_not_disturb_each_other(compiled):
    values = [
        np.random.default_rng(i).standard_normal(300_000).astype(np.float32) for i in range(4)
    ]
    alone = [Histogram() for _ in values]
    together = copy.deepcopy(alone)

    def work(histograms, i):
        for _ in range(5):
            histograms[i].update(values[i])

    for i in range(4):
        work(alone, i)
    threads = [threading.Thread(target=work, args=(together, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert together[0] != together[1]


@pytest.mark.usefixtures("compiled")
def test_memory_of_the_compiled_way_is_bounded():
    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    Histogram().update(values[:9000])
    tracemalloc.start()
    Histogram().update(values, values.reshape(2, -1).T)
    assert tracemalloc.get_traced_memory()[1] < 700_000  # the values are 16,000,000
    tracemalloc.stop()


# --- where numba is missing, or has nowhere to keep its code --------------------------------------

SCRIPT = """
import sys, numpy as np
{first}
from onnxdrp import counting
from onnxdrp.observers import Histogram
counting.load()
histogram = Histogram()
histogram.update(np.arange(-30000, 60001, dtype=np.float32))
print(histogram.counts.sum(), histogram.zeros, counting.compiled_loops() is None)
"""


def child(first="", code=SCRIPT, **environment):
    command = [sys.executable, "-W", "error", "-c", code.format(first=first)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_without_numba():
    assert child("sys.modules['numba'] = None") == ["90001", "1", "True"]
    assert child(NUMBA_DISABLE_JIT="1") == ["90001", "1", "True"]


def test_importing_the_observers_leaves_numba_alone():
    assert child(code="import sys, onnxdrp.observers; print('numba' in sys.modules)") == ["False"]


def test_the_code_is_kept_for_the_next_process(tmp_path):
    pytest.importorskip("numba")
    assert child(NUMBA_CACHE_DIR=str(tmp_path)) == ["90001", "1", "False"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    assert child(NUMBA_CACHE_DIR=str(tmp_path)) == ["90001", "1", "False"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")} == kept


def test_with_no_folder_to_keep_code_in():
    pytest.importorskip("numba")
    nowhere = "from numba.core import caching; caching.CacheImpl._locator_classes = []"
    assert child(nowhere) == ["90001", "1", "False"]
