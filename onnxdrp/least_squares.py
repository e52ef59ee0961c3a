"""Weights that reach given outputs best, of which some must stay zero: ridge regression on moments.

    min over W, b of  sum |t - W x - b|^2 + ridge * |W - W0|^2

over the weights that are kept, for each output alone, with the bias free of charge. W0 are the
weights to start at; the ridge is a share of the mean of the inputs' squared deviations. With
H = X'X and G = X'(t - W0 x) of the deviations from the means, the step of a row whose kept weights
are S is

    (H_SS + ridge I) d_S = G_S

so it needs moments alone (onnxdrp.moments). Rows that keep the same weights share a factorization.
As the ridge is on the step, no row errs more than W0 with its best bias does.

Behind an activation f, y = W x + b should give f(y) close to f(t): what f drops in both needs no
weight. The matching loss, whose slope in y is f(y) - f(t), is convex where f rises (Helmbold,
Kivinen and Warmuth 1999); its curvature is at most L, the steepest slope of f. So steps with
G = X'(f(t) - f(y)) / L lessen it until they vanish, with the same H.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, dpotrs

from onnxdrp.errors import DataError
from onnxdrp.moments import MomentStats

__all__ = ["RIDGES", "Descent", "Fit", "best_ridge", "fit", "joined"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_ROWS = 24  # of a group, that a ridge is chosen by


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of which no row errs more than before.

    Attributes:
        matrix: [g, m, k], of the dtype of the weights that were given.
        open: [g, m], the rows that keep as many weights as there are rows of data, or more: these
            do not determine them, and they are left as they were.
        descent: of the weights that may move, with the factors that the fit has made.
    """

    matrix: Array
    open: Bools
    descent: "Descent"


def joined(stats: Sequence[MomentStats]) -> MomentStats:
    """The moments of one weight at several places; centred ones leave each place its own bias."""
    first, *rest = stats
    for other in rest:
        first = MomentStats(
            first.count + other.count,
            first.x + other.x,
            first.t + other.t,
            first.xx + other.xx,
            first.xt + other.xt,
            first.tt + other.tt,
        )
    return first


def best_ridge(matrix: Array, keep: Bools, most: MomentStats, few: MomentStats) -> float:
    """The ridge with which weights that are fitted to most samples err least on a few others.

    Args:
        matrix: the weights to start at, [g, m, k].
        keep: [g, m, k].
        most: moments that weights are fitted to, centred where the layer has a bias.
        few: moments that they are judged by; centred likewise.
    """
    rows = np.arange(0, matrix.shape[1], -(-matrix.shape[1] // _ROWS))
    matrix, keep = matrix[:, rows], keep[:, rows]
    most, few = most.of(rows), few.of(rows)
    errors = [few.error(fit(matrix, keep, most, ridge).matrix).sum() for ridge in RIDGES]
    return RIDGES[int(np.argmin(errors))]


def fit(matrix: Array, keep: Bools, stats: MomentStats, ridge: float) -> Fit:
    """The kept weights that err least; the others stay as they are.

    Args:
        matrix: the weights to start at, [g, m, k].
        keep: which may move, [g, m, k].
        stats: moments of rows and targets, centred where the layer has a bias.
        ridge: as a share; above 0.

    Raises:
        DataError: the moments are not finite.
    """
    start = np.asarray(matrix, np.float64)
    slope = stats.xt - (start @ stats.xx).swapaxes(1, 2)
    enough = keep.sum(axis=2) < stats.count
    descent = Descent(keep & enough[..., None], stats.xx, ridge)
    found = (start + descent(slope)).astype(matrix.dtype)
    better = stats.error(found) < stats.error(matrix)  # False for NaN
    return Fit(np.where(better[..., None], found, matrix), ~enough, descent)


class Descent:
    """Steps d_S = (H_SS + ridge I)^-1 G_S for many G of one H.

    Factors are kept from one step to the next as far as memory allows.

    Args:
        keep: S of each row, [g, m, k].
        xx: H, [g, k, k].
        ridge: share of the mean of H's diagonal.
        limit: bytes of factors to keep.

    Attributes:
        ridge: what is added to the diagonal of H, [g].

    Raises:
        DataError: H is not finite.
    """

    def __init__(self, keep: Bools, xx: Floats, ridge: float, limit: int = 1 << 28) -> None:
        if not np.isfinite(xx).all():
            raise DataError("the moments of a layer are not finite; check the data")
        self._shape, self._xx, self._left = keep.shape, xx, limit
        self.ridge = ridge * np.einsum("gii->g", xx) / max(keep.shape[2], 1)
        self._rows = [
            (g, *some) for g in range(len(keep)) if self.ridge[g] > 0 for some in _alike(keep[g])
        ]
        self._factors: dict[int, Floats | None] = {}

    def __call__(self, slope: Floats) -> Floats:
        """The step of each row, [g, m, k]; 0 for what is not kept, and where x does not vary.

        Args:
            slope: G, [g, k, m].

        Raises:
            DataError: G is not finite.
        """
        if not np.isfinite(slope).all():
            raise DataError("the moments of a layer are not finite; check the data")
        step = np.zeros(self._shape)
        for i, (g, rows, support) in enumerate(self._rows):
            factor = self._factor(i)
            if factor is not None:
                found, _ = dpotrs(factor, slope[g][support[:, None], rows], lower=1)
                step[g][rows[:, None], support] = found.T
        return step

    def _factor(self, i: int) -> Floats | None:
        """The Cholesky factor of some rows.

        None: what varies is the rounding of what does not, so there is nothing to fit.
        """
        if i in self._factors:
            return self._factors[i]
        g, _, support = self._rows[i]
        h = self._xx[g][support[:, None], support].T  # symmetric, and as LAPACK wants it
        np.einsum("ii->i", h)[...] += self.ridge[g]
        factor, failed = dpotrf(h, lower=1, overwrite_a=1, clean=0)
        found = None if failed else factor
        if h.nbytes <= self._left:
            self._left -= h.nbytes
            self._factors[i] = found
        return found


def _alike(keep: Bools) -> Iterator[tuple[Index, Index]]:
    """The rows of a group that keep the same weights, and which; none that keep nothing."""
    _, first, which = np.unique(
        np.packbits(keep, axis=1), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(which.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(which.ravel(), minlength=len(first)))
    for row, rows in zip(first, np.split(order, ends[:-1]), strict=True):
        if keep[row].any():
            yield rows, np.flatnonzero(keep[row])
