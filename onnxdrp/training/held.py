"""The mask of a weight at a rate, within the mask that it has already.

What is pruned stays pruned: its score is 0 and that of everything alive above 0, so that a pattern,
which keeps the largest, takes it only where the rate is below what is pruned already. Then nothing
changes. A run of rising rates therefore gives masks each of which lies in the one before it, and
each of which has the pattern.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.geometry import PADDING, WeightGeometry, from_slabs, to_slabs
from onnxdrp.patterns import Pattern

__all__ = ["next_mask"]

_LEAST = np.finfo(np.float32).tiny  # the score of an alive zero; its square is no zero in float64


def next_mask(
    weight: npt.NDArray[Any],
    keep: npt.NDArray[np.bool_],
    geometry: WeightGeometry,
    pattern: Pattern,
    rate: float,
) -> npt.NDArray[np.bool_]:
    """The places that are kept at a rate: the mask by magnitude of what is alive.

    Args:
        weight: any floating-point type, of the geometry's shape; what it has where nothing is kept
            does not count.
        keep: bool, of the same shape: what is alive.
        geometry: how the pattern sees the weight.
        pattern: what the mask must look like.
        rate: in [0, 1), of all of the weight.

    Returns:
        bool, of the weight's shape, False wherever `keep` is.

    Raises:
        ModelError: the weight holds NaN or infinity, or its inputs do not divide into blocks.
    """
    wide = np.float64 if weight.dtype == np.float64 else np.float32
    magnitude = np.abs(weight.astype(wide, copy=False))
    # NaN and infinity stay what they are where they count, and are refused by the pattern
    scores = np.where(keep, np.maximum(magnitude, _LEAST), np.zeros((), wide))
    scores = to_slabs(scores, geometry, fill=PADDING)
    return from_slabs(pattern.mask(scores, rate), geometry) & keep
