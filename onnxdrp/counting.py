"""The two loops over all values of an activation: extremes, and counts in equal bins about zero.

With b bins of width w on each side, x counts in column b + trunc(x / w) - [x < 0], so that bins
are [k, k + 1) * w and (-(k + 1), -k] * w, and either zero lies in [0, w). w is a power of two:
x / w is exact, but for subnormal results, and these truncate to 0 rounded or not.

Compiled code (onnxdrp.compiled, extra `fast`) counts 5 times as fast as numpy and gives the same
bits. It is made when that pays: it takes 0.07 s of a core, in which numpy counts 2^25 values.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "Found", "compiled_count", "count", "count_by_numpy", "expect", "extremes"]

Array = npt.NDArray[Any]

BLOCK = 1 << 15  # values that are looked at, then counted: they stay in the processor's cache
_SPAN = 1 << 17  # values for a minimum and a maximum; shorter, and calling numpy would show
_MANY = 1 << 31  # values that the compiled code's int32 counters cannot count
_PAY = 1 << 24  # values after which compiled code is made: most work has far fewer, or far more

_counted = 0  # roughly, where threads count at once
log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What `count` has counted: values up to `stop`, their extremes and how many are zero."""

    stop: int
    low: float
    high: float
    zeros: int


Way = Callable[[Array, int, float, float, Array], Found]


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
    global _counted
    way: Way = count_by_numpy
    if values.dtype == np.float32 and values.size < _MANY and _counted >= _PAY:
        way = compiled_count() or way
    found = way(values, start, limit, scale, counts)
    _counted += found.stop - start
    return found


def expect(values: int) -> bool:
    """Say how many values will be counted; whether that will be done by compiled code."""
    global _counted
    _counted = max(_counted, values)
    return _counted >= _PAY


@functools.cache
def compiled_count() -> Way | None:
    """`count` in machine code, made by the first call; None where there is none."""
    try:
        from onnxdrp.compiled import count as way
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # No llvmlite, or an old one; no memory may hold code; LLVM does not know the processor.
        log.info("activations are counted by numpy, not by compiled code: %s", error)
        return None
    return way


def count_by_numpy(values: Array, start: int, limit: float, scale: float, counts: Array) -> Found:
    """`count` by numpy alone: slower, the same result, in bounded memory as well."""
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
