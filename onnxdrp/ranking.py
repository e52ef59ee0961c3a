"""How many units a rate prunes, and which of them: exact in number, the same every time."""

import math
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import OptionError

__all__ = ["Rate", "above_threshold", "exact_rate", "largest", "prune_count"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Rate = float | str | Decimal | Fraction


def exact_rate(rate: Rate) -> Fraction:
    """The rate as the decimal that was written: 0.7 is 7/10, not the nearest binary fraction.

    Raises:
        OptionError: it is not a number in [0, 1).
    """
    try:
        exact = rate if isinstance(rate, Fraction) else Fraction(Decimal(str(rate)))
    except (InvalidOperation, ValueError, OverflowError) as e:
        raise OptionError(
            f"the rate {rate!r} is not a number; give one in [0, 1), such as 0.7"
        ) from e
    if not 0 <= exact < 1:
        raise OptionError(f"the rate {rate} is outside [0, 1); give one such as 0.7")
    return exact


def prune_count(rate: Rate, units: int) -> int:
    """How many of `units` the rate prunes: floor(rate * units + 1/2), at most units - 1."""
    count = math.floor(exact_rate(rate) * units + Fraction(1, 2))
    return max(0, min(count, units - 1))


def largest(scores: Array, count: int) -> Bools:
    """The `count` largest along the last axis; of equal ones those that come first."""
    length = scores.shape[-1]
    if count >= length:
        return np.ones(scores.shape, np.bool_)
    threshold = np.partition(scores, length - count, axis=-1)[..., length - count]
    return above_threshold(scores, threshold, np.broadcast_to(count, threshold.shape))


def above_threshold(scores: Array, threshold: Array, counts: Array) -> Bools:
    """`counts` of each line: those above its threshold, and the first of those that equal it.

    A threshold alone keeps too many on ties; a stable sort would do too, slower.
    """
    keep = scores >= threshold[..., None]
    tied = np.nonzero(keep.sum(axis=-1) != counts)
    if tied[0].size:
        lines, limit = scores[tied], threshold[tied][..., None]
        above, equal = lines > limit, lines == limit
        missing = (counts[tied] - above.sum(axis=-1))[..., None]
        keep[tied] = above | (equal & (equal.cumsum(axis=-1) <= missing))
    return keep
