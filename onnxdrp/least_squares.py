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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dposv

from onnxdrp.errors import DataError
from onnxdrp.moments import MomentStats

__all__ = ["RIDGES", "Fit", "best_ridge", "descent", "fit", "joined"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
_ROWS = 64  # of a group, that a ridge is chosen by


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of which no row errs more than before.

    Attributes:
        matrix: [g, m, k], of the dtype of the weights that were given.
        open: [g, m], the rows that keep as many weights as there are rows of data, or more: these
            do not determine them, and they are left as they were.
    """

    matrix: Array
    open: Bools


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
    found = (start + descent(keep & enough[..., None], stats.xx, slope, ridge)).astype(matrix.dtype)
    better = stats.error(found) < stats.error(matrix)  # False for NaN
    return Fit(np.where(better[..., None], found, matrix), ~enough)


def descent(keep: Bools, xx: Floats, slope: Floats, ridge: float) -> Floats:
    """The step of each row, [g, m, k]; 0 for weights that are not kept, and where x never varies.

    Args:
        keep: [g, m, k].
        xx: H, [g, k, k].
        slope: G, [g, k, m].
        ridge: share of the mean of H's diagonal.

    Raises:
        DataError: H or G is not finite.
    """
    if not (np.isfinite(xx).all() and np.isfinite(slope).all()):
        raise DataError("the moments of a layer are not finite; check the data")
    step = np.zeros(keep.shape)
    for g, mean in enumerate(np.einsum("gii->g", xx) / max(keep.shape[2], 1)):
        if mean > 0:
            _descend(step[g], keep[g], xx[g], slope[g], ridge * mean)
    return step


def _descend(step: Floats, keep: Bools, xx: Floats, slope: Floats, ridge: float) -> None:
    """Write the steps of the rows of one group, [m, k]."""
    _, first, which = np.unique(
        np.packbits(keep, axis=1), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(which.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(which.ravel(), minlength=len(first)))
    for row, alike in zip(first, np.split(order, ends[:-1]), strict=True):
        support = np.flatnonzero(keep[row])
        if not support.size:
            continue
        h = xx[support[:, None], support]
        np.einsum("ii->i", h)[...] += ridge
        _, found, failed = dposv(h, slope[support[:, None], alike], lower=1, overwrite_a=1)
        if not failed:  # else what varies is the rounding of what does not: there is nothing to fit
            step[alike[:, None], support] = found.T
