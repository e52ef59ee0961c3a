"""Observers: streaming statistics of tensors, in bounded memory.

Each is a monoid: `update` with arrays, `merge` another of its kind, `result`. A new one is the
identity. Minima, maxima and counts are the same bit for bit however the data is cut and merged;
sums differ in rounding only. They are plain state: they pickle, and a copy goes its own way.

Arrays are read in blocks that stay in the processor's cache (onnxdrp.counting); no activation is
copied whole.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.counting import BLOCK, count, extremes
from onnxdrp.errors import DataError, OptionError
from onnxdrp.fidelity import Error, ErrorStats, TopAgreement
from onnxdrp.quantization import Range

__all__ = ["Error", "ErrorStats", "Histogram", "MeanMinMax", "MinMax", "Observer", "TopAgreement"]

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int32] | npt.NDArray[np.int64]

_MANY = 1 << 31  # values that an int32 cannot count
_FINEST = -120  # the exponent of the narrowest bin: 2^120 is still a float32


class Observer(Protocol):
    """What a statistic of tensors must do to be gathered by `observe`.

    A class attribute `each_sample = True`, which need not be there, asks for one call of `update`
    for each sample; else a call may bring a batch of any size. Where it is there, an attribute
    `sample` has the number of the sample before each of these calls.
    """

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
        for values in _flat(arrays):
            low, high = extremes(values)
            if math.isfinite(low) and math.isfinite(high):
                self.add(low, high, values.size)
                continue
            for start in range(0, values.size, BLOCK):
                finite = self.drop_nonfinite(values[start : start + BLOCK])
                if finite.size:
                    self.add(*extremes(finite), finite.size)

    def add(self, low: float, high: float, count: int) -> None:
        """Takes in the extremes of so many finite values."""
        self.low = min(self.low, low + 0.0)  # -0.0 + 0.0 is 0.0: else the order would tell
        self.high = max(self.high, high + 0.0)
        self.count += count

    def drop_nonfinite(self, values: Array) -> Array:
        """The finite ones of the values; counts the others."""
        kept: Array = values[np.isfinite(values)]
        self.nonfinite += values.size - kept.size
        return kept

    def merge(self, other: Self) -> None:
        """Takes in the other's extremes and counts."""
        self.add(other.low, other.high, other.count)
        self.nonfinite += other.nonfinite

    def result(self) -> Range:
        """The range of the finite values; [0, 0] if there were none."""
        return Range(self.low, self.high) if self.count else Range(0.0, 0.0)


@dataclass
class MeanMinMax:
    """The mean over samples of each sample's least and of its largest finite value.

    A sample that is empty or has no finite value is left out. At batch 1 this is what onnxruntime's
    MinMaxCalibrater gives with moving_average=True and one call of collect_data: np.nanmean over
    batches of ReduceMin and ReduceMax, there in float32; its averaging_constant only weighs a
    second call of collect_data against the first. The sums are float64, so another order of samples
    may change them by rounding.
    """

    each_sample: ClassVar[bool] = True

    lows: float = 0.0
    highs: float = 0.0
    samples: int = 0
    nonfinite: int = 0

    def update(self, *arrays: Array) -> None:
        """Takes in each array, one sample."""
        for array in arrays:
            sample = MinMax()
            sample.update(array)
            self.nonfinite += sample.nonfinite
            if sample.count:
                self.lows += sample.low
                self.highs += sample.high
                self.samples += 1

    def merge(self, other: Self) -> None:
        """Takes in the other's samples."""
        self.lows += other.lows
        self.highs += other.highs
        self.samples += other.samples
        self.nonfinite += other.nonfinite

    def result(self) -> Range:
        """The mean range; [0, 0] if there was no sample."""
        many = max(self.samples, 1)
        return Range(self.lows / many, self.highs / many)


@dataclass(eq=False)
class Histogram:
    """Counts of values in `bins` equal bins on each side of zero, and the exact extremes.

    Bins are 2^`exponent` wide: the k-th holds [k, k+1) * width on the positive side, (-(k+1), -k]
    * width on the negative one, so that -x gives the mirror image. When a value lies outside, the
    width doubles by merging pairs of bins. It ends at the narrowest one that holds all, whatever
    came first, and truncation makes a pair's sum what counting at that width would have given: so
    merging is exact. At least half of the bins on the longer side are in use.

    Attributes:
        bins: on each side; a power of two.
        exponent: that of a bin's width.
        counts: (2 * bins,) from the most negative bin: int32 while fewer than 2^31 values were
            seen, int64 from then on. Zeros that take no memory, and cannot be written, before the
            first value.
        zeros: how many values are 0, of either sign; `counts` has them in the first positive bin.
        extremes: of all values, and how many they are.
    """

    bins: int = 4096
    exponent: int = _FINEST
    counts: Counts = field(init=False)
    zeros: int = 0
    extremes: MinMax = field(default_factory=MinMax)

    def __post_init__(self) -> None:
        if self.bins < 2 or self.bins & (self.bins - 1):
            raise OptionError(f"{self.bins} bins: give a power of two, such as 4096")
        self.counts = np.broadcast_to(np.int32(0), 2 * self.bins)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = ((h.bins, h.exponent, h.zeros, h.extremes) for h in (self, other))
        return mine == theirs and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # it changes

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
        for values in _flat(arrays):
            self._add(values)

    def _add(self, values: Array) -> None:
        if not self.counts.flags.writeable:
            self.counts = np.zeros(2 * self.bins, np.int32)
        self._make_room(self.extremes.count + values.size)
        start = 0
        while start < values.size:
            # The product may be inf, which all finite values are less than.
            limit, scale = self.bins * self.width, math.ldexp(1.0, -self.exponent)
            found = count(values, start, limit, scale, self.counts)
            self.extremes.add(found.low, found.high, found.stop - start)
            self.zeros += found.zeros
            start = found.stop
            block = values[start : start + BLOCK]
            if block.size and not self._widen(*extremes(block)):
                self._add(self.extremes.drop_nonfinite(block))
                start += block.size

    def _make_room(self, count: int) -> None:
        """Lets so many values be counted."""
        if count >= _MANY and self.counts.dtype == np.int32:
            self.counts = self.counts.astype(np.int64)

    def _widen(self, low: float, high: float) -> bool:
        """Doubles the width until all of this range fits; False if it is not finite."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        peak = max(-low, high, 0.0)
        needed = math.frexp(peak)[1] - (self.bins.bit_length() - 1) if peak else _FINEST
        if needed > self.exponent:
            if self.extremes.count:  # else there is nothing to merge
                self.counts = _coarser(self.counts, needed - self.exponent)
            self.exponent = needed
        return True

    def merge(self, other: Self) -> None:
        """Takes in the other's counts."""
        if other.bins != self.bins:
            raise ValueError(f"histograms of {self.bins} and {other.bins} bins do not merge")
        self.extremes.merge(other.extremes)
        if other.extremes.count:
            self._widen(self.extremes.low, self.extremes.high)
            self._make_room(self.extremes.count)
            self.counts = self.counts + _coarser(other.counts, self.exponent - other.exponent)
            self.zeros += other.zeros

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

    def sketch(self, parts: int) -> list[int]:
        """The counts in so many equal parts of [least value, largest]; [] if these are the same.

        A bin that lies in two parts counts where its middle is.
        """
        low, high = self.extremes.low, self.extremes.high
        if not low < high:
            return []
        used = np.flatnonzero(self.counts)
        middles = (used + 0.5 - self.bins) * self.width
        places = np.clip((middles - low) / (high - low) * parts, 0, parts - 1).astype(np.int64)
        found = np.zeros(parts, np.int64)
        np.add.at(found, places, self.counts[used])
        return list(map(int, found))

    def outside(self, range_: Range) -> float:
        """The share of the values that lie outside of a range, as far as bins tell.

        A bin holds the edge nearer to zero, where what was clipped to a range gathers: it is
        outside only if that edge is, by more than rounding.
        """
        if not self.extremes.count:
            return 0.0
        edges, rounding = self.edges, 1e-6 * (range_.high - range_.low)
        beyond = (edges[1:] < range_.low - rounding) | (edges[:-1] > range_.high + rounding)
        return float(self.counts[beyond].sum(dtype=np.int64) / self.extremes.count)

    @staticmethod
    def _place(counts: Counts, p: float) -> int:
        """The bin of the smallest value that p percent of the values do not exceed."""
        total = counts.cumsum(dtype=np.int64)
        rank = math.ceil(int(total[-1]) * (p / 100) - 1)  # as numpy's inverted_cdf counts, from 0
        return int(np.searchsorted(total, max(rank, 0), side="right"))


def _coarser(counts: Counts, doublings: int) -> Counts:
    """The counts in bins so many times doubled; pairs never straddle zero."""
    inner, bins = counts, counts.size // 2
    for _ in range(min(doublings, bins.bit_length() - 1)):
        inner = inner[::2] + inner[1::2]
    if inner is counts:
        return counts
    merged = np.zeros_like(counts)
    merged[bins - inner.size // 2 : bins + inner.size // 2] = inner
    return merged


def _flat(arrays: Iterable[Array]) -> Iterator[Array]:
    """All values in any order, as flat contiguous float32 or float64, without a copy of a whole."""
    for array in map(np.asarray, arrays):
        if array.dtype.kind in "cSUOMm":
            raise DataError(f"a tensor of {array.dtype} has no range")
        if not array.size:
            continue
        if array.dtype == np.float32 and array.flags.forc and array.flags.aligned:
            yield array.ravel("K")
            continue
        # Up to 16 bits, all values are float32 ones; so are those of the half-precision types.
        narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
        kind = np.float32 if narrow else np.float64
        flags: Any = ["external_loop", "buffered"]
        each: Any = [["readonly", "aligned", "contig"]]
        yield from np.nditer(array, flags, each, [kind], casting="unsafe", buffersize=BLOCK)
