"""Observers: streaming statistics of tensors, in bounded memory.

Each is a monoid: `update` with arrays, `merge` another of its kind, `result`. A new one is the
identity. Minima, maxima and counts are the same bit for bit however the data is cut and merged;
sums differ in rounding only. They are plain state: they pickle, and a copy goes its own way.

Arrays are read in blocks that stay in the processor's cache; no activation is copied whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, OptionError
from onnxdrp.fidelity import Error, ErrorStats, TopAgreement
from onnxdrp.quantization import Range

__all__ = ["Error", "ErrorStats", "Histogram", "MinMax", "Observer", "TopAgreement"]

Array = npt.NDArray[Any]

_BLOCK = 1 << 15
_FINEST = -120  # the exponent of the narrowest bin: 2^120 is still a float32


class Observer(Protocol):
    """What a statistic of tensors must do to be gathered by `observe`."""

    def update(self, *arrays: Array) -> None:
        """Takes in one array, or one of each tensor that is tapped together."""

    def merge(self, other: Self) -> None:
        """Takes in what another observer of the same kind and options has seen."""

    def result(self) -> Any:
        """The statistic of all that was seen."""

    @property
    def nonfinite(self) -> int:
        """How many NaN and infinities were seen and left out; `observe` refuses them by name."""


@dataclass
class MinMax:
    """The exact extremes. `nonfinite` counts NaN and infinities, which they leave out."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    nonfinite: int = 0

    def update(self, *arrays: Array) -> None:
        """Takes in each array."""
        for array in arrays:
            for block in _blocks(array):
                self._add(block)

    def _add(self, block: Array) -> Array:
        """Takes in a block; what of it is finite."""
        low, high = float(block.min()), float(block.max())
        if not math.isfinite(low - high):  # NaN spreads through min and max
            finite = block[np.isfinite(block)]
            self.nonfinite += block.size - finite.size
            block = finite
            low, high = float(block.min(initial=np.inf)), float(block.max(initial=-np.inf))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += block.size
        return block

    def merge(self, other: Self) -> None:
        """Takes in the other's extremes and counts."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.nonfinite += other.nonfinite

    def result(self) -> Range:
        """The range of the finite values; [0, 0] if there were none."""
        return Range(self.low, self.high) if self.count else Range(0.0, 0.0)


@dataclass(eq=False)
class Histogram:
    """Counts of values in `bins` equal bins on each side of zero, and the exact extremes.

    Bins are 2^`exponent` wide: the k-th holds [k, k+1) * width on the positive side, (-(k+1), -k]
    * width on the negative one, so that -x gives the mirror image. When a value lies outside, the
    width doubles by merging pairs of bins. It ends at the narrowest one that holds all, whatever
    came first, and truncation makes a pair's sum what counting at that width would have given: so
    merging is exact. At least half of the bins on the longer side are in use.
    """

    bins: int = 2048
    exponent: int = _FINEST
    counts: npt.NDArray[np.int64] = field(init=False)
    extremes: MinMax = field(default_factory=MinMax)

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins & (self.bins - 1):
            raise OptionError(f"{self.bins} bins: give a power of two, such as 2048")
        self.counts = np.zeros(2 * self.bins, np.int64)

    @property
    def nonfinite(self) -> int:
        """How many NaN and infinities were left out."""
        return self.extremes.nonfinite

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The 2 * bins + 1 edges of `counts`, from the most negative."""
        return np.arange(-self.bins, self.bins + 1, dtype=np.float64) * self.width

    def update(self, *arrays: Array) -> None:
        """Takes in each array; NaN and infinities are only counted, in `extremes.nonfinite`."""
        whole, index = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.intp)
        for array in arrays:
            for block in _blocks(array):
                finite = self.extremes._add(block)
                if finite.size:
                    self._count(finite, whole[: finite.size], index[: finite.size])

    def _count(
        self, block: Array, whole: npt.NDArray[np.int32], index: npt.NDArray[np.intp]
    ) -> None:
        self._widen(max(-self.extremes.low, self.extremes.high))
        factor = block.dtype.type(math.ldexp(1.0, -self.exponent))
        np.multiply(
            block, factor, out=whole, casting="unsafe"
        )  # exact, but for what truncates to 0
        np.add(whole, self.bins - 1, out=index)
        found = np.bincount(index, minlength=2 * self.bins - 1)
        # Truncation puts both sides of zero in one place; the number of negatives parts them.
        middle = self.bins - 1
        below = int(np.count_nonzero(block < 0)) - int(found[:middle].sum())
        self.counts[:middle] += found[:middle]
        self.counts[middle] += below
        self.counts[middle + 1 :] += found[middle:]
        self.counts[middle + 1] -= below

    def _widen(self, peak: float) -> None:
        """Doubles the width until a value of this size fits."""
        needed = math.frexp(peak)[1] - (self.bins.bit_length() - 1) if peak else _FINEST
        if needed > self.exponent:
            self._coarsen(needed - self.exponent)

    def _coarsen(self, doublings: int) -> None:
        shift = min(doublings, self.bins.bit_length())
        place = np.arange(self.bins) >> shift
        merged = np.zeros_like(self.counts)
        np.add.at(merged, self.bins + place, self.counts[self.bins :])
        np.add.at(merged, self.bins - 1 - place, self.counts[self.bins - 1 :: -1])
        self.counts = merged
        self.exponent += doublings

    def merge(self, other: Self) -> None:
        """Takes in the other's counts."""
        if other.bins != self.bins:
            raise ValueError(f"histograms of {self.bins} and {other.bins} bins do not merge")
        self.extremes.merge(other.extremes)
        self._widen(max(-self.extremes.low, self.extremes.high, 0.0))
        theirs = Histogram(self.bins, other.exponent)
        theirs.counts = other.counts
        theirs._coarsen(self.exponent - other.exponent)
        self.counts = self.counts + theirs.counts

    def result(self) -> Self:
        """The histogram itself: ask it for a percentile."""
        return self

    def percentile(self, p: float = 99.999, tails: Literal["two", "one", "abs"] = "two") -> Range:
        """A range that leaves out the outermost values.

        Each end lies within one bin outside of np.percentile(values, ..., method="inverted_cdf"),
        and never outside of the extremes. [0, 0] if nothing was seen.

        Args:
            p: how much of the data to keep, in percent; 100 gives the exact extremes.
            tails: "two": (100 - p) / 2 percent is left out at each end; "one": 100 - p percent at
                each end, so each end alone keeps p; "abs": 100 - p percent of the largest |x|,
                and the range is symmetric.
        """
        if tails not in ("two", "one", "abs"):
            raise OptionError(f"no tails {tails!r}: there are two, one, abs")
        if not 50 <= p <= 100:
            raise OptionError(f"percentile {p} is outside [50, 100]; 99.99 is usual")
        if not self.extremes.count:
            return Range(0.0, 0.0)
        low, high = self.extremes.low, self.extremes.high
        if tails == "abs":
            sizes = self.counts[self.bins :] + self.counts[self.bins - 1 :: -1]
            peak = min((self._place(sizes, p) + 1) * self.width, max(-low, high))
            return Range(-peak, peak)
        tail = (100 - p) / (2 if tails == "two" else 1)
        first, last = self._place(self.counts, tail), self._place(self.counts, 100 - tail)
        edges = self.edges
        return Range(max(low, float(edges[first])), min(high, float(edges[last + 1])))

    @staticmethod
    def _place(counts: npt.NDArray[np.int64], p: float) -> int:
        """The bin of the smallest value that p percent of the values do not exceed."""
        total = counts.cumsum()
        rank = math.ceil(int(total[-1]) * (p / 100) - 1)  # as numpy's inverted_cdf counts, from 0
        return int(np.searchsorted(total, max(rank, 0), side="right"))


def _blocks(array: Array) -> Iterator[Array]:
    """The values in any order, as flat float32 or float64 blocks."""
    array = np.asarray(array)
    if array.dtype.kind in "cSUOMm":
        raise DataError(f"a tensor of {array.dtype} has no range")
    # Up to 16 bits, all values are float32 ones; so are those of the half-precision types.
    narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    kind = np.float32 if narrow else np.float64
    return iter(np.nditer(array, flags, op_dtypes=[kind], casting="unsafe", buffersize=_BLOCK))
