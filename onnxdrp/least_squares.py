"""Weights that reach given outputs best, of which some must stay zero: ridge regression on moments.

    min over W, b of  sum |t - W x - b|^2 + ridge * n * mean variance of x * |W - W0|^2

over the weights that are kept, for each output alone, with the bias free of charge. W0 are the
weights to start at. With H = X'X and G = T'X - W0 H of the deviations from the means, the step of a
row whose kept weights are S is

    (H_SS + ridge I) d_S = G_S

so it needs moments alone (onnxdrp.moments). Rows that keep the same weights share a factorization.
As the ridge is on the step, no row errs more than W0 with its best bias does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dposv

from onnxdrp.errors import DataError
from onnxdrp.moments import MomentStats

__all__ = ["Fit", "fit", "joined"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fit:
    """Weights of which no row errs more than before.

    Attributes:
        matrix: [g, m, k], of the dtype of the weights that were given.
        error: sum of squared errors of each row, with the best bias, [g, m].
        start: the same of the weights that were given.
        open: rows that keep more weights than there are rows of data, left as they were.
    """

    matrix: Array
    error: Floats
    start: Floats
    open: int


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


def fit(matrix: Array, keep: Bools, stats: MomentStats, *, ridge: float = 1e-3) -> Fit:
    """The kept weights that err least; the others are 0.

    Args:
        matrix: the weights to start at, [g, m, k]; zero where they are not kept.
        keep: [g, m, k].
        stats: moments of rows and targets, centred where the layer has a bias.
        ridge: share of the mean variance of the inputs of a group.

    Raises:
        DataError: the moments are not finite.
    """
    if not all(np.isfinite(part).all() for part in (stats.xx, stats.xt, stats.tt)):
        raise DataError("the moments of a layer are not finite; check the data")
    start = np.asarray(matrix, np.float64)
    slope = stats.xt - (start @ stats.xx).swapaxes(1, 2)
    enough = keep.sum(axis=2) < stats.count
    found = start.copy()
    for g in range(len(start)):
        _descend(found[g], keep[g] & enough[g][:, None], stats.xx[g], slope[g], ridge)
    found = found.astype(matrix.dtype)
    before, error = stats.error(matrix), stats.error(found)
    better = error < before  # False for NaN
    rows = np.where(better[..., None], found, matrix)
    return Fit(rows, np.where(better, error, before), before, int(np.count_nonzero(~enough)))


def _descend(rows: Floats, keep: Bools, xx: Floats, slope: Floats, ridge: float) -> None:
    """Add the best step to each row [m, k], in place; a row that keeps nothing stays."""
    mean = float(np.diagonal(xx).mean())
    if not mean > 0:
        return
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
        np.einsum("ii->i", h)[...] += ridge * mean
        _, step, failed = dposv(h, slope[support[:, None], alike], lower=1, overwrite_a=1)
        if failed:
            raise LinAlgError(f"the moments of a layer are not positive definite ({failed})")
        rows[alike[:, None], support] += step.T
