"""The two loops over all values of an activation: extremes, and counts in equal bins about zero.

With b bins of width w on each side, x counts in column b + trunc(x / w) - [x < 0], so that bins
are [k, k + 1) * w and (-(k + 1), -k] * w, and either zero lies in [0, w). w is a power of two:
x / w is exact, but for subnormal results, and these truncate to 0 rounded or not.

numba (extra `fast`) counts 4 times as fast as numpy and gives the same bits. It is used for float32
once it pays: loading takes 0.4 s of a core, in which numpy counts some 2^28 values, 50 MB and as
much again in libraries that are mapped.
"""

import functools
import math
import threading
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCK",
    "Found",
    "compiled_loops",
    "count",
    "count_by_numpy",
    "expect",
    "extremes",
    "load",
]

Array = npt.NDArray[Any]

BLOCK = 1 << 15  # values that are looked at, then counted: they stay in the processor's cache
_SPAN = 1 << 17  # values for a minimum and a maximum; shorter, and calling numpy would show
_PAY = 1 << 27  # values for which numba is loaded

_lock = threading.Lock()
_counted = 0  # roughly, where threads count at once
_loading: threading.Thread | None = None
_scratch = threading.local()


class Found(NamedTuple):
    """What `count` has counted: values up to `stop`, their extremes and how many are zero."""

    stop: int
    low: float
    high: float
    zeros: int


def extremes(values: Array) -> tuple[float, float]:
    """The least and the largest of flat float values, at least one; NaN if there is a NaN."""
    if values.size <= _SPAN:
        return float(values.min()), float(values.max())
    lows, highs = [], []
    for start in range(0, values.size, _SPAN):
        span = values[start : start + _SPAN]
        lows.append(span.min())
        highs.append(span.max())
    return float(np.min(lows)), float(np.max(highs))


def count(values: Array, start: int, limit: float, scale: float, counts: Array) -> Found:
    """Adds values[start:] to counts, up to a block of which some do not fit.

    Args:
        values: flat float32 or float64, aligned and contiguous.
        start: where to begin; blocks of BLOCK values are counted from there.
        limit: a block is counted if all its values are finite and less in size than this.
        scale: 1 / width of a bin, a power of two; limit * scale is at most counts.size / 2.
        counts: (2 * bins,) int32 or int64, from the most negative bin; changed in place.

    Returns:
        Where counting stopped, values.size if all did fit; and inf, -inf for no extremes.
    """
    loops = _loops(values.size - start) if values.dtype == np.float32 else None
    if loops is None:
        return count_by_numpy(values, start, limit, scale, counts)
    held = getattr(_scratch, "held", None)  # a thread's own; the table is left all zero
    columns = counts.size + loops.PAD
    if held is None or held[0].shape[1] != columns:
        held = np.zeros((loops.LANES, columns), np.int32), np.empty(loops.STRIP, np.int32)
        _scratch.held = held
    return Found(*loops.count(values, start, limit, scale, counts, *held))


@functools.cache
def compiled_loops() -> ModuleType | None:
    """The module onnxdrp.compiled, loaded by the first call; None where numba is missing."""
    try:
        from onnxdrp import compiled
    except ImportError:
        return None
    return compiled


def expect(values: int) -> None:
    """Say how many values will be counted: if it pays, numba is loaded beside other work.

    Until it is there, numpy counts.
    """
    if values > _PAY:
        _begin_loading()


def load() -> ModuleType | None:
    """Load numba now; None where it is missing."""
    _begin_loading().join()
    return compiled_loops()


def _begin_loading() -> threading.Thread:
    global _loading
    with _lock:
        if _loading is None:
            _loading = threading.Thread(target=compiled_loops, name="onnxdrp-loading", daemon=True)
            _loading.start()
        return _loading


def _loops(size: int) -> ModuleType | None:
    """The compiled loops, if they are there; their counters take less than 2^31 values."""
    global _counted
    if _loading is None or _loading.is_alive():
        _counted += size
        expect(_counted)
        return None
    return compiled_loops() if size < 1 << 31 else None


def count_by_numpy(values: Array, start: int, limit: float, scale: float, counts: Array) -> Found:
    """`count` without numba: slower, the same result, in bounded memory as well."""
    bins, factor = counts.size // 2, values.dtype.type(scale)
    size = min(BLOCK, values.size - start)
    whole, index = np.empty(size, np.int32), np.empty(size, np.intp)
    low, high, zeros = math.inf, -math.inf, 0
    while start < values.size:
        block = values[start : start + BLOCK]
        lowest, highest = float(block.min()), float(block.max())
        if not (lowest > -limit and highest < limit):  # as NaN is not
            break
        low, high = min(low, lowest), max(high, highest)
        whole, index = whole[: block.size], index[: block.size]
        np.multiply(block, factor, out=whole, casting="unsafe")
        np.add(whole, bins - 1, out=index)
        found = np.bincount(index, minlength=2 * bins - 1)
        # Truncation puts both sides of zero in one place; the number of negatives parts them.
        below = 0
        if lowest < 0:
            below = int(np.count_nonzero(block < 0)) - int(found[: bins - 1].sum())
        counts[: bins - 1] += found[: bins - 1]
        counts[bins - 1] += below
        counts[bins:] += found[bins - 1 :]
        counts[bins] -= below
        if lowest <= 0 <= highest:
            zeros += int(np.count_nonzero(block == 0))
        start += block.size
    return Found(start, low, high, zeros)
