"""Counting: each value in its bin, told one by one; compiled code and numpy give the same bits."""

import copy
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxdrp import counting
from onnxdrp.counting import BLOCK, count, count_by_numpy
from onnxdrp.observers import Histogram, MinMax

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38,
           np.nan, -np.nan, np.inf, -np.inf, 0.99999994, -0.99999994]  # fmt: skip
FLOATS = st.one_of(
    st.sampled_from(SPECIAL).map(np.float32).map(float),
    st.floats(width=32),
    st.floats(-4, 4, width=32),
)
VALUES = hnp.arrays(np.float32, st.integers(1, 80), elements=FLOATS)


@pytest.fixture(scope="module", autouse=True)
def _from_the_first_value_on():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_counted", counting._PAY)
        yield


@pytest.fixture(scope="module")
def compiled():
    """`count` in machine code."""
    pytest.importorskip("llvmlite")
    way = counting.compiled_count()
    assert way is not None
    return way


def both(values, limit, bins, start=0):
    """What both ways have found and counted."""
    scale = bins / limit
    results = []
    for way in (count, count_by_numpy):
        before = np.arange(2 * bins, dtype=np.int32)  # not zeros: counting adds
        counts = before.copy()
        found = way(values, start, limit, scale, counts)
        results.append((tuple(found), (counts - before).tolist()))
    return results


# --- the two ways ------------------------------------------------------------------------------


@given(
    st.one_of(VALUES, hnp.arrays(np.float32, 80, elements=st.floats(-4, 4, width=32))),
    st.sampled_from([2.0**-100, 1.0, 8.0, 2.0**40, 2.0**128]),
    st.sampled_from([2, 64, 4096]),
)
@example(np.array(SPECIAL[:9], np.float32), 2.0**128, 4096)
@example(np.array(SPECIAL[-2:], np.float32), 1.0, 4096)
@example(np.array([-np.nan], np.float32), 1.0, 4096)
@example(np.array([-1.0, -1.0000001, 1.0, 1.0000001], np.float32), 8.0, 4096)
def test_both_ways_count_each_value_in_its_bin(compiled, values, limit, bins):
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


@pytest.mark.parametrize(
    "size", [4095, 4097, 8191, 8192, 8193, 8195, BLOCK - 1, BLOCK, 3 * BLOCK + 5]
)
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


def test_counters_of_either_width(compiled):
    values = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    for size in (100, 9000):
        narrow, wide = np.ones(8192, np.int32), np.full(8192, 1 << 40)
        assert compiled(values[:size], 0, 8.0, 512.0, narrow) == compiled(
            values[:size], 0, 8.0, 512.0, wide
        )
        np.testing.assert_array_equal(narrow - 1, wide - (1 << 40))
        assert narrow.sum() - 8192 == size


def test_bins_may_change_from_call_to_call(compiled):
    values = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    for bins in (64, 4096, 64, 2):
        one, two = both(values, 8.0, bins)
        assert one == two


def test_an_array_that_the_counters_cannot_take_is_left_to_numpy(compiled, monkeypatch):
    used = []
    monkeypatch.setattr(counting, "compiled_count", lambda: used.append(1))
    monkeypatch.setattr(counting, "_MANY", 3000)
    both(np.ones(3000, np.float32), 8.0, 64)
    both(np.ones(2999), 8.0, 64)
    assert used == []
    both(np.ones(2999, np.float32), 8.0, 64)
    assert used == [1]


def test_code_is_compiled_once_that_pays(monkeypatch):
    used = []
    monkeypatch.setattr(counting, "_counted", 0)
    monkeypatch.setattr(counting, "_PAY", 5000)
    monkeypatch.setattr(counting, "compiled_count", lambda: used.append(1))
    values = np.ones(2500, np.float32)
    histogram = Histogram()
    histogram.update(values, values[:2499])
    histogram.update(values[:1])
    assert used == []
    histogram.update(values)
    assert used == [1]


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
def test_any_array_gives_the_same_either_way(compiled, monkeypatch, name):
    array = views()[name]
    fast, slow = Histogram(), Histogram()
    fast.update(array)
    monkeypatch.setattr(counting, "compiled_count", lambda: None)
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
    monkeypatch.setattr(counting, "compiled_count", lambda: None)
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
    begin = threading.Barrier(4)

    def work(histograms, i):
        for _ in range(20):
            histograms[i].update(values[i])

    def at_once(histograms, i):
        begin.wait(10)
        work(histograms, i)

    for i in range(4):
        work(alone, i)
    threads = [threading.Thread(target=at_once, args=(together, i)) for i in range(4)]
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


# --- where code cannot be compiled ----------------------------------------------------------------

SCRIPT = """
import logging, sys
import numpy as np
{first}
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from onnxdrp import counting
from onnxdrp.observers import Histogram
counting._PAY = 1
histogram = Histogram()
histogram.update(np.ones(1, np.float32), np.arange(-30000, 60001, dtype=np.float32))
print(histogram.counts.sum(), histogram.zeros, counting.compiled_count() is None)
"""
TOLD = "activations are counted by numpy, not by compiled code: "


def child(first="", code=SCRIPT):
    """What a process of its own prints."""
    command = [sys.executable, "-W", "error", "-c", code.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_with_llvmlite(compiled):
    assert child() == ["90002 1 False"]


def test_without_llvmlite():
    told, printed = child("sys.modules['llvmlite'] = None")
    assert told.startswith(TOLD)
    assert "llvmlite" in told
    assert printed == "90002 1 True"


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("check_jit_execution", "OSError(13, 'no')"),
        ("parse_assembly", "RuntimeError('no')"),
        ("create_pass_builder", "AttributeError('no')"),
    ],
)
def test_where_llvm_cannot(compiled, what, error):
    first = f"import llvmlite.binding\ndef refuse(*_):\n    raise {error}\n"
    told, printed = child(first + f"llvmlite.binding.{what} = refuse")
    assert told.startswith(TOLD)
    assert told.endswith("no")
    assert printed == "90002 1 True"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_where_memory_may_not_hold_new_code(compiled):
    deny = "import ctypes; denied = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE"
    lines = child(deny + "\nif denied: print('cannot deny'); sys.exit()")
    if lines == ["cannot deny"]:
        pytest.skip("a kernel before 6.3")
    assert lines[0].startswith(TOLD)
    assert lines[1] == "90002 1 True"


def test_a_processor_that_llvm_cannot_tell(compiled):
    first = "import llvmlite.binding\ndef refuse():\n    raise RuntimeError('no')\n"
    assert child(first + "llvmlite.binding.get_host_cpu_features = refuse") == ["90002 1 False"]


def test_importing_the_observers_leaves_llvmlite_alone():
    code = "import sys, onnxdrp.observers; print('llvmlite' in sys.modules)"
    assert child(code=code) == ["False"]


def test_what_is_expected_decides_who_counts(monkeypatch):
    monkeypatch.setattr(counting, "_counted", 0)
    ways = []
    monkeypatch.setattr(counting, "compiled_count", lambda: ways.append(1))
    assert not counting.expect(counting._PAY - 1)
    monkeypatch.setattr(counting, "_counted", 0)
    Histogram().update(np.ones(10, np.float32))
    assert ways == []
    assert counting.expect(counting._PAY)
    Histogram().update(np.ones(10, np.float32))
    assert ways
