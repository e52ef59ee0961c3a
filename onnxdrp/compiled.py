"""The loops of onnxdrp.counting, compiled by numba; an ImportError where numba is missing.

What they compute is told there. What makes them fast:

- Extremes are those of an integer key, the float's bits with all but the sign flipped below zero,
  which orders floats by value: such a loop needs no care for NaN and becomes vector code.
  Infinities and NaN lie outside of all finite keys, so they show in the extremes.
- A float is truncated by the bare conversion instruction, which overflows on large values: these
  have been kept out by then. numba's own conversion would stay scalar.
- Each block is read twice, the second time from the processor's cache.
- Neighbours count in different lanes: values repeat, and adding to a counter that has just been
  stored to waits for the store.

The first import compiles (1 s) and keeps the machine code in numba's cache. A later one takes
0.4 s, a third of it numba itself, and the first call then costs no more than any other.
Where no folder for the cache can be written, each process compiles.
"""

# mypy: disallow-untyped-decorators=False

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

__all__ = ["LANES", "PAD", "STRIP", "count", "extremes"]

if config.DISABLE_JIT:
    raise ImportError("numba is told not to compile (NUMBA_DISABLE_JIT)")

LANES = 4
PAD = 16  # further columns of the table: lanes then lie in different lines of the cache
STRIP = 1 << 12  # places at a time; their 16 KiB stay in the first cache
_BLOCK = 1 << 15  # values at a time; their 128 KiB stay in the second
_FEW = 1 << 12  # up to here, emptying the lanes would take longer than counting

_FLOATS = types.Array(types.float32, 1, "C", readonly=True)  # takes writable ones as well
_INTS = types.Array(types.int32, 1, "C")
_COUNTS = [types.Array(kind, 1, "C") for kind in (types.int32, types.int64)]
_TABLE = types.Array(types.int32, 2, "C")
_PAIR = types.UniTuple(types.float32, 2)
_FOUND = types.Tuple((types.int64, types.float64, types.float64, types.int64))


def _kept(signature: Any) -> Callable[[Any], Any]:
    """Compiles at once, or loads from the cache; without a cache if that cannot be written."""

    def compiled(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder to write to; no space in it
            return njit(signature, nogil=True)(function)

    return compiled


@intrinsic
def _truncated(_: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fptosi(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(_: Any, bits: Any) -> Any:  # noqa: ARG001
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit
def _key(bits: Any) -> Any:
    """Orders the bits of floats by value; its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit
def _places(values: Any, factor: Any, middle: Any, places: Any) -> Any:
    """The column of each value; how many values are zero."""
    zeros = np.int32(0)
    for i in range(values.size):
        value = values[i]
        places[i] = _truncated(value * factor) - np.int32(value < np.float32(0)) + middle
        zeros += np.int32(value == np.float32(0))
    return zeros


@njit
def _tally(places: Any, size: Any, table: Any) -> None:
    whole = size - size % LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            table[lane, np.uint32(places[i + lane])] += np.int32(1)
    for i in range(whole, size):
        table[0, np.uint32(places[i])] += np.int32(1)


@njit
def _tally_few(places: Any, size: Any, counts: Any) -> None:
    for i in range(size):
        counts[np.uint32(places[i])] += np.int32(1)


@njit
def _empty(table: Any, first: Any, last: Any, counts: Any) -> None:
    """Moves the counts of columns first to last from the table, which is all zero again."""
    for k in range(first, last + 1):
        total = np.int64(0)
        for lane in range(LANES):
            total += table[lane, k]
            table[lane, k] = np.int32(0)
        counts[k] += total


@_kept(_PAIR(_FLOATS))
def extremes(values: Any) -> Any:
    """The least and the largest of at least one float32, (2,) float32; NaN lies outside of all."""
    bits = values.view(np.int32)
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        key = _key(bits[i])
        low, high = min(low, key), max(high, key)
    return _from_bits(_key(low)), _from_bits(_key(high))


@_kept([_FOUND(_FLOATS, types.int64, *[types.float64] * 2, c, _TABLE, _INTS) for c in _COUNTS])
def count(
    values: Any, start: Any, limit: Any, scale: Any, counts: Any, table: Any, places: Any
) -> Any:
    """What onnxdrp.counting.count does, for float32 values, of which there are fewer than 2^31.

    `table`, (LANES, counts.size + PAD) int32, is all zero, and is so again afterwards; `places`,
    (STRIP,) int32, is scratch.
    """
    middle, factor = np.int32(counts.size // 2), np.float32(scale)
    low, high, zeros = np.float64(np.inf), np.float64(-np.inf), np.int64(0)
    few = values.size - start <= _FEW
    while start < values.size:
        stop = min(start + _BLOCK, values.size)
        lowest, highest = extremes(values[start:stop])
        if not (lowest > -limit and highest < limit):
            break
        low, high = min(low, np.float64(lowest)), max(high, np.float64(highest))
        for at in range(start, stop, STRIP):
            strip = values[at : min(at + STRIP, stop)]
            zeros += _places(strip, factor, middle, places)
            if few:
                _tally_few(places, strip.size, counts)
            else:
                _tally(places, strip.size, table)
        start = stop
    if low <= high and not few:
        first = middle + np.int64(low * scale) - np.int64(low < 0)
        _empty(table, first, middle + np.int64(high * scale), counts)
    return start, low, high, zeros
