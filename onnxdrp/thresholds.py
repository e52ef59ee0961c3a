"""From a histogram to the range that a tensor is quantized with: entropy, mse and sigma.

    mse       min over low, high of   sum_x (x - x')^2,       x' as QuantizeLinear gives it back
    entropy   min over T of           KL(P || Q),             P the counts within |x| <= T,
                                                              Q what n levels leave of them
    mse of f  the same of f(x) and f(x'), where readers make f of the tensor (onnxdrp.curves)
    sigma     [mean - k std, mean + k std]

A range is never wider than the extremes. No value, a constant, and zeros alone give the extremes.
Exact zeros are left out of both searches: every grid holds 0, so they cost nothing at any range.

Within a bin, values are taken to be spread evenly. Everything is computed in units of a bin, so a
tensor times a power of two gets the range times that, bit for bit. All candidates are evaluated at
once from running sums over the bins: some milliseconds a tensor, however many values it had.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.curves import Curve
from onnxdrp.errors import OptionError
from onnxdrp.observers import Histogram
from onnxdrp.quantization import Range, qlimits

__all__ = ["entropy", "mse", "mse_of", "sigma"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Type8 = Literal["int8", "uint8"]

_CANDIDATES = 512  # thresholds that entropy tries
_CLIPPED = 1e-3  # the share of the values that are not 0 which entropy may clip
_NEAR = 16  # bins on each side that say whether a bin is a point mass
_EMPTY = 0.5  # values in a level that only clipping fills
_SAME_KL = 1e-9  # nats: far below what differs between thresholds, far above rounding
_RATIO = 1.05  # of neighbouring steps in the first search of mse
_COARSE = 1.03  # of neighbouring ends in the search of mse_of
_FINE = 101  # steps in its second search, between the neighbours of the best
_FINEST = 0.125  # its narrowest step, in bins
_SAME_ERROR = 1.001  # a histogram cannot tell errors closer than this apart


def entropy(histogram: Histogram, dtype: Type8 = "int8", *, symmetric: bool = False) -> Range:
    """The threshold that loses least by Kullback-Leibler divergence, of |x|, cut to the extremes.

    After 8-bit calibration in TensorRT (S. Migacz, 8-bit Inference with TensorRT, GTC 2017). For
    each T, a bin's edge:

        P    the counts of the bins within |x| <= T, and in the outermost bin of each side also all
             that lies beyond it: what is clipped gets the end's value;
        Q    the counts without what lies beyond, where each bin that P has any count in gets the
             mean, over such bins, of its quantization level; a level is the bins that round to it,
             by the step and zero point that `onnxdrp.quantization` gives the range [-T, T], cut to
             the extremes (if symmetric: the counts of |x|, and the levels from 0 on), but the
             outermost bin is always of the outermost level;
        KL   sum p log(p / q) of P and Q divided by their sums.

    The widest T whose KL is within 1e-9 of the least is taken. Differences to the source, without
    which real networks lose tens of dB:

    - Levels are those of the grid: that of 0 reaches half a step to each side.
    - Point masses do not count. A value that repeats exactly (0, the limit of a Clip, what a layer
      makes of a constant background) is a peak that Q spreads over its level, at a KL far above
      that of all clipping, though rounding moves it half a step at most. So exact zeros are left
      out, and the count of a bin within |x| <= T is at most the median of the 33 bins around it
      that are not empty (mirrored at the ends). Beyond T all counts are whole.
    - An outermost level without a value of its own, to which some are clipped, counts as half a
      value in Q. Else no T in the gap before an outlier would do: KL would be infinite.
    - T is never so narrow that more than 0.1 % of the values other than 0 lie beyond, or that a
      step is less than a bin. Where nothing else is left, the extremes are the range.

    Args:
        histogram: of the tensor; 2048 bins a side or more. T is one of at most 512 edges, evenly
            spaced from 0 to the one that holds all.
        dtype: the quantized type.
        symmetric: whether the zero point is fixed in the middle.

    Raises:
        OptionError: no 8-bit type.
    """
    grid = _Grid.of(dtype, symmetric)
    extremes = histogram.extremes.result()
    if extremes.low == extremes.high:
        return extremes
    whole = _Sides.of(histogram, symmetric)
    least, most = -whole.holds(-whole.low), whole.holds(whole.high)
    peak = max(-least, most)
    tried = np.unique(-(-peak * np.arange(1, _CANDIDATES + 1) // _CANDIDATES))
    low, high = np.maximum(-tried, least), np.minimum(tried, most)

    bins = whole.bins
    total = _running(whole.counts)
    beyond = total[-1] - (total[high + bins] - total[low + bins])
    sane = (beyond <= _CLIPPED * total[-1]) & (high - low >= grid.steps)
    sane[-1] = True
    tried, low, high = tried[sane], low[sane], high[sane]

    divergence = _divergence(whole, low, high, grid)
    best = tried[np.flatnonzero(divergence <= divergence.min() + _SAME_KL)[-1]]
    # The last edge lies outside of the extremes, which cut it.
    return _cut(-best * histogram.width, best * histogram.width, extremes)


def mse(histogram: Histogram, dtype: Type8 = "int8", *, symmetric: bool = False) -> Range:
    """The range of the least squared error: of rounding within it, and of clipping beyond it.

    A grid is its step s and zero point z. An x within it costs (x - s round(x / s))^2, whatever z
    is, one beyond it the square of its distance from the end. So for each s, one pass over the
    levels gives the error of every z. Steps are searched from that of the extremes down to 1/8 of
    a bin, first by 5 %, then about the best by 0.1 %. Of steps whose errors are within 0.1 % of the
    least, the widest is taken.

    Args:
        histogram: of the tensor. The more bins, the closer. The error is that of the values as long
            as a step is some bins wide, which it is but for outliers 1000 times the rest; where a
            few exact values make up most of a tensor, it is known less well.
        dtype: the quantized type.
        symmetric: whether the zero point is fixed in the middle.

    Raises:
        OptionError: no 8-bit type.
    """
    grid = _Grid.of(dtype, symmetric)
    extremes = histogram.extremes.result()
    if extremes.low == extremes.high:
        return extremes
    whole = _Sides.of(histogram, symmetric)
    widest = (whole.high - whole.low) / grid.steps
    error = _Error(whole, grid)

    number = max(0, math.ceil(math.log(widest / _FINEST) / math.log(_RATIO))) + 1
    steps = widest * _RATIO ** -np.arange(number, dtype=np.float64)
    best = int(error.table(steps).min(axis=1).argmin())
    around = _RATIO ** np.linspace(-1, min(best, 1), _FINE)
    steps = np.unique(np.append(steps[best] * around, widest))  # ascending
    steps = steps[steps <= widest]
    errors = error.table(steps)
    least = errors.min(axis=1)
    chosen = int(np.flatnonzero(least <= least.min() * _SAME_ERROR)[-1])
    if steps[chosen] == widest:
        return extremes
    low, high = error.ends(float(steps[chosen]), int(errors[chosen].argmin()))
    if symmetric:
        low = -high
    elif whole.mirrored:
        low, high = -high, -low
    return _cut(low * histogram.width, high * histogram.width, extremes)


def mse_of(
    histogram: Histogram, curve: Curve, dtype: Type8 = "int8", *, symmetric: bool = False
) -> Range:
    """The range of the least squared error of f(x), to first order within the range.

    An x within it errs by its rounding, step^2 / 12 on average, times the squared slope of f in its
    bin; one beyond it by f(x) - f(end). Ends are searched from the extremes towards 0 by 3 %, to
    1 % of them.

    Args:
        histogram: of the tensor.
        curve: f.
        dtype: the quantized type.
        symmetric: whether the zero point is fixed in the middle.

    Raises:
        OptionError: no 8-bit type.
    """
    grid = _Grid.of(dtype, symmetric)
    extremes = histogram.extremes.result()
    if extremes.low == extremes.high:
        return extremes
    bins, width = histogram.bins, histogram.width
    counts = histogram.counts.astype(np.float64)
    counts[bins] -= histogram.zeros
    edges = width * np.arange(-bins, bins + 1)
    at_edges, made = curve(edges), curve(edges[:-1] + width / 2)
    rough = _running(counts * np.square(np.diff(at_edges) / width))
    sums = [_running(counts * power) for power in (np.ones_like(made), made, made**2)]

    ratios = np.append(_COARSE ** -np.arange(0.0, 156.0), 0)
    if symmetric:
        high = ratios[:-1] * max(-extremes.low, extremes.high)
        low, step = -high, high / grid.steps
    else:
        low = ratios[:, None] * min(extremes.low, 0.0)
        high = ratios * max(extremes.high, 0.0)
        step = (high - low) / grid.steps
    first = np.clip(np.floor(low / width).astype(np.int64), -bins, bins) + bins
    last = np.clip(np.ceil(high / width).astype(np.int64), -bins, bins) + bins
    left = _about(curve(low), [part[first] for part in sums])
    right = _about(curve(high), [part[-1] - part[last] for part in sums])
    errors = np.where(step > 0, left + right + step**2 / 12 * (rough[last] - rough[first]), np.inf)
    best = np.unravel_index(errors.argmin(), errors.shape)
    low, high = (np.broadcast_to(end, errors.shape)[best] for end in (low, high))
    return _cut(low, high, extremes)


def sigma(histogram: Histogram, k: float = 6.0) -> Range:
    """[mean - k std, mean + k std], cut to the extremes.

    Mean and standard deviation are those of the bins, exact zeros as 0: at most half a bin and one
    bin off those of the values. A bin is at most 1 / 2048 of the largest |x| where there are 4096.

    Raises:
        OptionError: k is not above 0.
    """
    if not k > 0:
        raise OptionError(f"{k} standard deviations are no range; give a number above 0, such as 6")
    extremes = histogram.extremes.result()
    if extremes.low == extremes.high:
        return extremes
    whole = _Sides.of(histogram)
    place = np.arange(-whole.bins, whole.bins)
    number = whole.counts.sum() + histogram.zeros
    width = histogram.width
    mean = float((whole.counts * (place + 0.5)).sum() / number)
    # Centred first: the squares of a narrow peak far from 0 would cancel.
    spread = (whole.counts * ((place + 0.5 - mean) ** 2 + 1 / 12)).sum()
    reach = k * math.sqrt(float(spread + histogram.zeros * mean**2) / number)
    mean *= -width if whole.mirrored else width
    mean = min(max(mean, extremes.low), extremes.high)
    return _cut(mean - reach * width, mean + reach * width, extremes)


@dataclass(frozen=True)
class _Grid:
    """The quantized type as a grid: `steps` (of a symmetric one, half) span the range.

    Attributes:
        steps: the range divided by the scale; of a symmetric grid its positive half.
        top: the largest level, counted from the low end; of a symmetric grid from 0.
    """

    steps: float
    top: int

    @classmethod
    def of(cls, dtype: Type8, symmetric: bool) -> Self:
        if dtype not in ("int8", "uint8"):
            raise OptionError(f"activations of type {dtype!r}: there are int8 and uint8")
        low, high = qlimits(dtype, symmetric=symmetric)
        return (
            cls((high - low) / 2, (high - low) // 2) if symmetric else cls(high - low, high - low)
        )


@dataclass(frozen=True)
class _Sides:
    """The values other than 0 as a grid sees them, in bins.

    Attributes:
        counts: (2 * bins,) from the most negative; of |x| if symmetric; of -x if mirrored.
        bins: a side.
        low: the lowest value, or 0.
        high: the highest; above 0.
        mirrored: no value was above 0, and the grid is not symmetric: one-sided means positive.
    """

    counts: Floats
    bins: int
    low: float
    high: float
    mirrored: bool

    @classmethod
    def of(cls, histogram: Histogram, symmetric: bool = False) -> Self:
        bins, width = histogram.bins, histogram.width
        counts = histogram.counts.astype(np.float64)
        counts[bins] -= histogram.zeros
        low = min(histogram.extremes.low, 0.0) / width
        high = max(histogram.extremes.high, 0.0) / width
        if symmetric:
            counts[bins:] += counts[bins - 1 :: -1]
            counts[:bins] = 0
            return cls(counts, bins, 0.0, max(-low, high), False)
        if high == 0:
            return cls(counts[::-1], bins, 0.0, -low, True)
        return cls(counts, bins, low, high, False)

    @staticmethod
    def holds(size: float) -> int:
        """The bins of one side that hold values up to this size."""
        return math.floor(size) + 1 if size > 0 else 0


def _divergence(whole: _Sides, low: Ints, high: Ints, grid: _Grid) -> Floats:
    """KL(P || Q) in nats for the edges [low, high] of each candidate: sums over levels alone.

    sum p log(p / q) = sum p log p - sum_levels p_level log q_level, as q is one in a level.
    """
    bins, counts = whole.bins, _without_points(whole.counts)
    mass, filled = _running(counts), _running(counts > 0)
    own = _running(_x_log_x(counts))
    total = _running(whole.counts)
    first, last = low + bins, high + bins

    step = (high - low) / grid.steps
    zero = np.rint(-low / step)
    bounds = np.rint((np.arange(1, grid.top + 1) - zero[:, None] - 0.5) * step[:, None])
    # What is clipped goes to the outermost bins, so the outermost levels own these.
    bounds = np.clip(bounds, low[:, None] + 1, high[:, None] - 1).astype(np.int64) + bins
    bounds = np.concatenate([first[:, None], bounds, last[:, None]], axis=1)
    q = np.diff(mass[bounds])
    spread = np.diff(filled[bounds])

    p = q.copy()
    entropy_p = own[last] - own[first]
    for level, end, beyond in (
        (0, counts[first], total[first]),
        (-1, counts[last - 1], total[-1] - total[last]),
    ):
        p[:, level] += beyond
        spread[:, level] += (end == 0) & (beyond > 0)
        q[:, level] += _EMPTY * ((q[:, level] == 0) & (beyond > 0))
        entropy_p += _x_log_x(end + beyond) - _x_log_x(end)
    sum_p, sum_q = p.sum(axis=1), q.sum(axis=1)

    cross = (p * np.log(np.where(p > 0, q, 1) / np.maximum(spread, 1))).sum(axis=1)
    found: Floats = (entropy_p - cross) / sum_p - np.log(sum_p / sum_q)
    return found


def _without_points(counts: Floats) -> Floats:
    """The counts, each at most the median of the bins around it that are not empty."""
    at = np.flatnonzero(counts)
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(counts[at], _NEAR, mode="reflect"), 2 * _NEAR + 1
    )
    capped = counts.copy()
    capped[at] = np.minimum(counts[at], np.median(around, axis=1))
    return capped


class _Error:
    """Squared error, in bins, for every step and zero point."""

    def __init__(self, whole: _Sides, grid: _Grid) -> None:
        self.whole, self.grid = whole, grid
        place = np.arange(-whole.bins, whole.bins, dtype=np.float64)
        # The sums of 1, x and x^2 up to each edge.
        powers = (np.ones_like(place), place + 0.5, place * (place + 1) + 1 / 3)
        self.sums = [_running(whole.counts * power) for power in powers]
        self.levels = np.arange(-grid.top if whole.low < 0 else 0, grid.top + 1)

    def table(self, steps: Floats) -> Floats:
        """The error of each step (rows) and lowest level (columns; 0 alone if one-sided).

        Level k has the value k * step; a grid is `top` + 1 neighbouring levels, 0 among them.
        """
        top, step = self.grid.top, steps[:, None]
        bounds = step * np.append(self.levels - 0.5, top + 0.5)
        below = self._up_to(bounds)
        above = [all_[-1] - part for all_, part in zip(self.sums, below, strict=True)]
        value = step * self.levels
        rounding = _running(_about(value, [np.diff(part) for part in below]))
        count = self.levels.size - top  # grids
        low, high = value[:, :count], value[:, top:]
        left = _about(low, [part[:, :count] for part in below])
        right = _about(high, [part[:, top + 1 :] for part in above])
        return left + (rounding[:, top + 1 :] - rounding[:, :count]) + right

    def ends(self, step: float, place: int) -> tuple[float, float]:
        """The range of a cell of the table, moved into the extremes.

        The best cell moves by less than half a step, so its zero point stays: a grid that reaches
        further beyond one extreme clips more at the other than its neighbour does.
        """
        span = step * self.grid.steps
        low = min(max(step * int(self.levels[place]), self.whole.low), self.whole.high - span)
        return low, low + span

    def _up_to(self, bounds: Floats) -> list[Floats]:
        """The sums of 1, x and x^2 over x < bound."""
        bins = self.whole.bins
        bounds = np.clip(bounds, -bins, bins)
        edge = np.minimum(np.floor(bounds), bins - 1)
        at = edge.astype(np.intp) + bins
        part = bounds - edge
        inside = self.whole.counts[at] * part
        sums = [all_[at] for all_ in self.sums]
        sums[0] += inside
        sums[1] += inside * (edge + part / 2)
        sums[2] += inside * (edge * (edge + part) + part * part / 3)
        return sums


def _about(value: Floats, sums: list[Floats]) -> Floats:
    """The sum of (x - value)^2 from the sums of 1, x and x^2."""
    return sums[2] + value * (value * sums[0] - 2 * sums[1])


def _running(values: npt.NDArray[Any]) -> Floats:
    """The sums of the first 0, 1, ... entries along the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.maximum(x, 1))  # of counts: 0 or at least 1


def _cut(low: float, high: float, extremes: Range) -> Range:
    return Range(max(float(low), extremes.low), min(float(high), extremes.high))
