"""Observers of second moments: Moments of a layer, from which weights are fitted, ChannelMoments.

The weights W and bias b that minimise sum ||t - W x - b||^2 over all rows x that a layer multiplies
(onnxdrp.unfold) and targets t need no row, only

    n, sum x, sum t, X'X, X'T, sum t^2

Like those of onnxdrp.observers these are monoids, and read their arrays in blocks. Rows are
collected, from as many updates as it takes, until they make a product of matrices worth while: so
the products do not depend on how samples are cut into batches. All is float64: products in float32
take half the time, but err by 3e-7 of the diagonal of X'X, and by 3e-5 of that of the covariance
where means are ten times the deviations.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dgemm, dsyrk

from onnxdrp.curves import Curve
from onnxdrp.errors import DataError, OptionError
from onnxdrp.unfold import Unfolding

__all__ = ["ChannelMoments", "ChannelStats", "MomentStats", "Moments", "too_large"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_ROWS = (256, 4096)  # collected for a product; within that, as many as make 16 MiB
_COLLECTED = 1 << 21
_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class MomentStats:
    """Moments of the rows x [g, k] and targets t [g, m] of a layer of g groups; all float64.

    Without targets m is 0.

    Attributes:
        count: n, the number of rows.
        x: sum x, [g, k].
        t: sum t, [g, m].
        xx: X'X, [g, k, k].
        xt: X'T, [g, k, m].
        tt: sum t^2 of each output, [g, m].
    """

    count: int
    x: Floats
    t: Floats
    xx: Floats
    xt: Floats
    tt: Floats

    def centred(self) -> Self:
        """The same of the deviations from the means: xx / count is then the covariance.

        The best bias for weights W is (sum t - W sum x) / n, so a fit with a free bias is one
        without bias to these. Where means are r times the standard deviations, this loses r^2 of
        the 1e16 that float64 tells apart.
        """
        n = max(self.count, 1)
        xx = self.x[:, :, None] * self.x[:, None, :]  # symmetric to the last bit
        xx /= -n
        xx += self.xx
        tt = self.tt - self.t**2 / n
        none = np.zeros_like(self.x), np.zeros_like(self.t)
        return type(self)(self.count, *none, xx, self.centred_xt(), tt)

    def centred_xt(self) -> Floats:
        """X'T of the deviations from the means, [g, k, m]."""
        return self.xt - self.x[:, :, None] * (self.t / max(self.count, 1))[:, None, :]

    def of(self, outputs: npt.NDArray[np.intp]) -> Self:
        """The moments of some outputs of each group."""
        t, xt, tt = self.t[:, outputs], self.xt[:, :, outputs], self.tt[:, outputs]
        return type(self)(self.count, self.x, t, self.xx, xt, tt)

    def error(self, matrix: Array, bias: Array | float = 0.0) -> Floats:
        """Sum over rows of (t - W x - b)^2, [g, m]: of `matrix` W [g, m, k] and `bias` b [g, m]."""
        matrix, bias = np.asarray(matrix, np.float64), np.asarray(bias, np.float64)
        linear = self.t - np.einsum("gmk,gk->gm", matrix, self.x)
        rest = self.tt - 2 * np.einsum("gmk,gkm->gm", matrix, self.xt)
        rest += np.einsum("gmk,gmk->gm", matrix @ self.xx, matrix)
        rest += self.count * np.square(bias) - 2 * bias * linear
        return np.asarray(rest)


def too_large(layer: Unfolding, limit: int, copies: int, *, targets: bool = False) -> str:
    """Why the moments of a layer do not fit into memory; "" if they do.

    Args:
        layer: how it meets its weight.
        limit: bytes.
        copies: that there are of the moments, at most at a time.
        targets: whether X'T is among them.
    """
    columns = layer.columns + (layer.outputs if targets else 0)
    needed = copies * 8 * layer.groups * layer.columns * columns
    if needed <= limit:
        return ""
    return f"its moments take {needed / 1e9:.1f} GB, more than moments_limit"


@dataclass(eq=False)
class _Sums:
    """The sums of a layer; the rows x have a 1 at their end, t has rows of outputs first."""

    gram: Floats  # [g, k + 1, k + 1]; of one group only the lower triangle counts
    cross: Floats  # [g, m, k + 1]
    squares: Floats  # [g, m]

    @classmethod
    def zero(cls, groups: int, columns: int, outputs: int, gram: bool = True) -> Self:
        side = columns if gram else 0
        shapes = (side, side), (outputs, columns), (outputs,)
        return cls(*(np.zeros((groups, *shape)) for shape in shapes))

    def add(self, x: Floats, t: Floats) -> None:
        """Takes in rows [g, rows, k + 1] and [g, rows, m], of one group contiguous."""
        if len(x) == 1:
            # BLAS adds in place, and makes one triangle only: half of the work, no second matrix
            if self.gram.size:
                dsyrk(1.0, x[0].T, beta=1.0, c=self.gram[0].T, overwrite_c=True)
            if t.size:
                into = self.cross[0].T
                dgemm(1.0, x[0].T, t[0].T, beta=1.0, c=into, trans_b=True, overwrite_c=True)
        else:
            turned = x.swapaxes(1, 2)
            if self.gram.size:
                self.gram += turned @ x
            self.cross += (turned @ t).swapaxes(1, 2)
        self.squares += np.einsum("grm,grm->gm", t, t)

    def merge(self, other: Self) -> None:
        """Takes in the other's sums."""
        self.gram += other.gram
        self.cross += other.cross
        self.squares += other.squares


@dataclass(eq=False)
class Moments:
    """Second moments of a layer: `update(x)` or `update(x, t)`, x its input and t at its output.

    Of further arrays, of the shape of t, the sum is taken from t; with a curve f, t is f of the
    first less f of the second.

    Of each sample at most `positions` output positions are taken: one from each of so many equal
    stretches of them; where in it, `seed` and the number of positions decide. All samples of a
    size have the same ones, whatever batch, shard or order they come in. Where x has no axes but
    samples and channels, all are taken.

    Rows in which x or t has NaN or infinity are left out; `nonfinite` counts them.

    The same samples in the same order give the same bits for every batch size; shards merged in
    another order, or cut otherwise, differ by the rounding of float64 sums.

    Memory: (k + 1)(k + 1 + m) * 8 bytes a group (a 3x3 Conv on 512 channels: k = 4608, 170 MB, and
    37 kB an output), 16 MiB of collected rows (256 rows, if that is more) and, while it works, one
    sample and one block of rows. Nothing before the first update.

    Attributes:
        unfolding: of the layer.
        positions: output positions of a sample to take; None: all.
        seed: chooses among them.
        curve: f; without it the identity.
        gram: False leaves X'X out, which is most of the work; count, sum x and X'X are then 0.
    """

    unfolding: Unfolding
    positions: int | None = None
    seed: int = 0
    curve: Curve | None = None
    gram: bool = True
    nonfinite: int = 0
    _held: int = field(default=0, init=False, repr=False)  # rows of the next three in use
    _x: Floats = field(default_factory=lambda: np.empty((0, 0, 0)), init=False, repr=False)
    _t: Floats = field(default_factory=lambda: np.empty((0, 0, 0)), init=False, repr=False)
    _sums: "_Sums | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.positions is not None and self.positions < 1:
            raise OptionError(f"{self.positions} positions of a sample: give 1 or more")

    def update(self, *arrays: Array) -> None:
        """Takes in the input, or input and target and what stands beside it, of some samples.

        Raises:
            DataError: they are not of the layer's shapes.
        """
        x, *given = arrays
        layer = self.unfolding
        lines, spatial = layer.lines(x)
        total = math.prod(layer.output(spatial))
        chosen = self._chosen(total, thin=np.ndim(x) > 2)
        if given:
            targets = [layer.targets(array, len(lines), total) for array in given]
        else:
            targets = [np.empty((*lines.shape[:1], total, 0))]
        self._begin(layer.outputs if given else 0)
        for line, *wanted in zip(lines, *targets, strict=True):
            # gathering is much faster where channels are together: worth a copy if most is read
            if len(chosen) * math.prod(layer.kernel) >= len(line):
                line = np.ascontiguousarray(line)
            start = 0
            while start < len(chosen):
                taken = chosen[start : start + self._x.shape[1] - self._held]
                target = self._target(*(part[taken] for part in wanted))
                self._collect(layer.rows(line, spatial, taken), target)
                start += len(taken)

    def _target(self, wanted: Array, *there: Array) -> Array:
        """What the layer is to add to what is there."""
        if self.curve is not None:
            return self.curve(wanted) - self.curve(there[0])
        for part in there:
            wanted = wanted - part
        return wanted

    def _chosen(self, total: int, thin: bool) -> npt.NDArray[np.intp]:
        """The flat output positions to take of a sample that has so many."""
        if not thin or self.positions is None or total <= self.positions:
            return np.arange(total)
        edges = np.arange(self.positions + 1) * total // self.positions
        random = np.random.default_rng([self.seed, total])
        return np.asarray(edges[:-1] + random.integers(np.diff(edges)), np.intp)

    def _begin(self, outputs: int) -> _Sums:
        """The sums, made where there are none."""
        if self._sums is None:
            groups, columns = self.unfolding.groups, self.unfolding.columns + 1
            rows = min(max(_COLLECTED // (groups * columns), _ROWS[0]), _ROWS[1])
            self._x = np.empty((groups, rows, columns))  # pages that no row needs are never made
            self._t = np.empty((groups, rows, outputs))
            self._sums = _Sums.zero(groups, columns, outputs, self.gram)
        if self._t.shape[2] != outputs:
            raise ValueError("moments with targets and moments without do not go together")
        return self._sums

    def _collect(self, rows: Array, target: Array) -> None:
        """Takes in rows [g, rows, k] and their targets [rows, g * m]; there is room for them."""
        groups, count, _ = rows.shape
        x, t = (part[:, self._held : self._held + count] for part in (self._x, self._t))
        x[..., :-1], x[..., -1] = rows, 1
        t[...] = target.reshape(count, groups, t.shape[2]).swapaxes(0, 1)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs; see below
            fine = math.isfinite(x.sum() + t.sum())
        if not fine:
            good = np.isfinite(x).all((0, 2)) & np.isfinite(t).all((0, 2))
            kept = int(np.count_nonzero(good))
            x[:, :kept], t[:, :kept] = x[:, good], t[:, good]
            self.nonfinite += count - kept
            count = kept
        self._held += count
        if self._held == self._x.shape[1]:
            self._flush()

    def _flush(self) -> None:
        """Takes what was collected into the sums."""
        if self._sums is not None and self._held:
            self._sums.add(*self._rows())
            self._held = 0

    def _rows(self) -> tuple[Floats, Floats]:
        return self._x[:, : self._held], self._t[:, : self._held]

    def merge(self, other: Self) -> None:
        """Takes in the other's sums, of this layer or of one that shares its weight.

        Raises:
            ValueError: the other's weight is seen otherwise, or only one of them has targets.
        """
        if other.unfolding.geometry != self.unfolding.geometry:
            raise ValueError("moments of weights that are seen in different ways do not merge")
        self.nonfinite += other.nonfinite
        if other._sums is None:
            return
        sums = self._begin(other._t.shape[2])
        sums.merge(other._sums)
        if other._held:
            sums.add(*other._rows())

    def result(self) -> MomentStats:
        """The moments of all that was seen."""
        self._flush()
        groups, columns = self.unfolding.groups, self.unfolding.columns + 1
        sums = self._sums or _Sums.zero(groups, columns, 0)
        full = np.broadcast_to(np.float64(0), (groups, columns, columns))
        if self.gram:
            full = sums.gram.copy()
            for i in range(columns):
                full[:, i, i + 1 :] = full[:, i + 1 :, i]
        return MomentStats(
            count=round(full[0, -1, -1]),
            x=full[:, -1, :-1],
            t=sums.cross[..., -1].copy(),
            xx=full[:, :-1, :-1],
            xt=sums.cross[..., :-1].swapaxes(1, 2).copy(),
            tt=sums.squares.copy(),
        )


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """How the values of each channel are spread; arrays [channels], empty if nothing was seen.

    `variance` is the mean square of the deviations from the mean. Both are 0 where `count` is.
    """

    count: npt.NDArray[np.int64]
    mean: Floats
    variance: Floats


@dataclass(eq=False)
class ChannelMoments:
    """Mean and variance of each channel along `axis`: `update(a)`, of any shape that has it.

    Blocks of values are centred on their own means, and merged by those (Chan, Golub and LeVeque
    1979): a mean that is large against the deviations costs no digits of the variance. NaN and
    infinities are left out; `nonfinite` counts them.
    """

    axis: int = 1
    nonfinite: int = 0
    _count: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, np.int64), init=False, repr=False
    )
    _mean: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)
    _squares: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def update(self, *arrays: Array) -> None:
        """Takes in each array.

        Raises:
            DataError: it lacks the axis, or has another number of channels than those before.
        """
        for array in map(np.asarray, arrays):
            if not -array.ndim <= self.axis < array.ndim:
                raise DataError(f"a tensor of shape {list(array.shape)} has no axis {self.axis}")
            axis = self.axis % array.ndim
            before, channels, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
            if self._count.size and channels != self._count.size:
                raise DataError(
                    f"a tensor of shape {list(array.shape)} has not the {self._count.size} "
                    f"channels of those before it, along axis {self.axis}"
                )
            parts = array.reshape(math.prod(before), channels, math.prod(after))
            wide = min(max(_BLOCK // max(channels, 1), 1), max(parts.shape[2], 1))
            deep = max(_BLOCK // max(channels * wide, 1), 1)
            for i in range(0, len(parts), deep):
                for j in range(0, parts.shape[2], wide):
                    self._add(parts[i : i + deep, :, j : j + wide])

    def _add(self, block: Array) -> None:
        """Takes in a block [any, channels, any]."""
        values = np.array(block, np.float64)
        count = np.full(values.shape[1], values.shape[0] * values.shape[2])
        with np.errstate(invalid="ignore", over="ignore"):  # looked into next
            total = values.sum((0, 2))
        if np.isfinite(total).all():
            mean = total / count
            values -= mean[:, None]
        else:
            good = np.isfinite(values)
            self.nonfinite += int(np.count_nonzero(~good))
            count = np.count_nonzero(good, axis=(0, 2))
            mean = values.sum((0, 2), where=good) / np.maximum(count, 1)
            values = np.where(good, values - mean[:, None], 0)
        self._join(count, mean, np.einsum("acb,acb->c", values, values))

    def _join(self, count: npt.NDArray[np.int64], mean: Floats, squares: Floats) -> None:
        if not self._count.size:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        share = count / np.maximum(total, 1)
        shift = mean - self._mean
        self._squares = self._squares + squares + shift**2 * self._count * share
        self._mean = self._mean + shift * share
        self._count = total

    def merge(self, other: Self) -> None:
        """Takes in what the other has seen."""
        if self._count.size and other._count.size and self._count.size != other._count.size:
            raise ValueError("moments of different numbers of channels do not merge")
        self.nonfinite += other.nonfinite
        if other._count.size:
            self._join(other._count, other._mean, other._squares)

    def result(self) -> ChannelStats:
        """The figures of all that was seen."""
        variance = self._squares / np.maximum(self._count, 1)
        return ChannelStats(self._count.copy(), self._mean.copy(), variance)
