"""Modelled cycles of a pruned weight: MODELS of how hardware might use zeros, not facts about one.

Three readings of one published figure; `keep` is in the slab view of onnxdrp.geometry (groups,
outputs, slabs, block). Cycles are counted in weight slots per output position: a dense weight whose
inputs are a multiple of the block takes `keep.size` slots, as many as it has multiply-adds there.
Speed-up = keep.size / slots; one of more than 16 is not modelled.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["cycles_a", "cycles_b", "cycles_c"]

Bools = npt.NDArray[np.bool_]

_MAX_SPEED_UP = 16


def cycles_a(keep: Bools) -> int:
    """Reading A, a model: lanes run their rows packed, and wait for the longest of the group."""
    rows = keep.sum(axis=(2, 3))
    return _capped(int(rows.max(axis=1).sum()) * keep.shape[1], keep)


def cycles_b(keep: Bools) -> int:
    """Reading B, a model: the vectors with any weight left, times the slots of a vector."""
    return _capped(int(keep.any(axis=-1).sum()) * keep.shape[-1], keep)


def cycles_c(keep: Bools) -> int:
    """Reading C, a model: sum over slabs of (most weights that any output keeps there) * outputs.

    Each lane (output) skips its own zeros within a slab, and waits there for the slowest lane.
    """
    return _capped(int(keep.sum(axis=-1).max(axis=1).sum()) * keep.shape[1], keep)


def _capped(slots: int, keep: Bools) -> int:
    return max(slots, -(-keep.size // _MAX_SPEED_UP))
