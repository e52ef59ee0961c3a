"""Observers of how close one tensor stays to another: Error and TopAgreement.

Like those of onnxdrp.observers they are monoids, and read their arrays in blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError

__all__ = ["Error", "ErrorStats", "TopAgreement"]

Array = npt.NDArray[Any]

_BLOCK = 1 << 13  # too short for a BLAS to share out over threads, whose sums would vary


@dataclass(frozen=True)
class ErrorStats:
    """How far one tensor is from its reference.

    `sqnr_db` is 10 log10(sum of signal^2 / sum of error^2): inf without error, -inf where only
    the reference is zero. `cosine` is 1 if both are zero, 0 if one is. `nonfinite` counts the
    places left out because NaN or infinity stands in either, unless both are the same infinity.
    """

    sqnr_db: float
    cosine: float
    max_abs_error: float
    count: int = 0
    nonfinite: int = 0


@dataclass
class Error:
    """The error of a tensor against its reference: `update(reference, actual)`, of one shape."""

    signal: float = 0.0
    power: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    worst: float = 0.0
    count: int = 0
    nonfinite: int = 0

    def update(self, *arrays: Array) -> None:
        """Takes in a reference and what stands in its place."""
        for a, b in _pairs(*arrays):
            with np.errstate(invalid="ignore"):  # infinity less itself; looked into below
                error = a - b
            peak = float(np.abs(error).max())
            if not math.isfinite(peak):
                fine = np.isfinite(a) & np.isfinite(b)
                self.nonfinite += int(np.count_nonzero(~fine & (a != b)))
                a, b, error = a[fine], b[fine], error[fine]
                peak = float(np.abs(error).max(initial=0))
            self.signal += float(np.vdot(a, a))
            self.power += float(np.vdot(b, b))
            self.noise += float(np.vdot(error, error))
            self.dot += float(np.vdot(a, b))
            self.worst = max(self.worst, peak)
            self.count += a.size

    def merge(self, other: Self) -> None:
        """Takes in the other's sums."""
        self.signal += other.signal
        self.power += other.power
        self.noise += other.noise
        self.dot += other.dot
        self.worst = max(self.worst, other.worst)
        self.count += other.count
        self.nonfinite += other.nonfinite

    def result(self) -> ErrorStats:
        """The figures of all that was seen; those of equal tensors if that was nothing."""
        if not self.noise:
            sqnr, cosine = math.inf, 1.0
        elif not (self.signal and self.power):
            sqnr, cosine = -math.inf if self.power else 0.0, 0.0
        else:
            sqnr = 10 * (math.log10(self.signal) - math.log10(self.noise))
            cosine = self.dot / (math.sqrt(self.signal) * math.sqrt(self.power))
        return ErrorStats(sqnr, max(-1.0, min(1.0, cosine)), self.worst, self.count, self.nonfinite)


@dataclass
class TopAgreement:
    """The share of samples whose largest score has the same index in both: `update(a, b)`.

    Scores run along `axis`, the last one unless told; each line of them is a sample. A line with
    NaN agrees with none.
    """

    axis: int = -1
    agreeing: int = 0
    count: int = 0
    nonfinite: int = 0  # a NaN score is a disagreement, not an error

    def update(self, *arrays: Array) -> None:
        """Takes in the scores of two models."""
        reference, actual = _same_shape(*arrays)
        if not reference.ndim or not reference.shape[self.axis]:
            raise DataError(f"scores of shape {list(reference.shape)} have no classes to compare")
        same = reference.argmax(self.axis) == actual.argmax(self.axis)
        known = ~np.isnan(reference.max(self.axis)) & ~np.isnan(actual.max(self.axis))
        self.agreeing += int(np.count_nonzero(same & known))
        self.count += same.size

    def merge(self, other: Self) -> None:
        """Takes in the other's counts."""
        self.agreeing += other.agreeing
        self.count += other.count

    def result(self) -> float:
        """The share that agrees; NaN if nothing was seen."""
        return self.agreeing / self.count if self.count else math.nan


def _pairs(*arrays: Array) -> Iterator[tuple[Array, Array]]:
    """Two arrays of one shape, as pairs of flat float64 blocks."""
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    kinds = [np.float64, np.float64]
    pair = _same_shape(*arrays)
    yield from np.nditer(pair, flags, op_dtypes=kinds, casting="unsafe", buffersize=_BLOCK)


def _same_shape(*arrays: Array) -> tuple[Array, Array]:
    reference, actual = map(np.asarray, arrays)
    if reference.shape != actual.shape:
        raise DataError(
            f"tensors of shapes {list(reference.shape)} and {list(actual.shape)} do not compare"
        )
    return reference, actual
