"""What stays wrong in a layer when it is pruned and its other weights are fitted, by rate.

    e(r) = min over W', b of  sum |W x - W' x - b|^2       W' zero where the mask of rate r prunes

over the rows x that the layer reads in the float model (onnxdrp.least_squares), so from its moments
alone. A fit takes the cube of the weights that a row keeps: of wide layers a part of the rows is
fitted, spread over them by how much is wrong with each at one rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from onnxdrp.least_squares import fit
from onnxdrp.moments import MomentStats

__all__ = ["error_curve", "fit_to_own", "interpolated", "spread_rows"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_WORK = 5e10  # products of all fits of one rate, were nothing pruned: about a second for all rates
_RIDGE = 1e-3  # as a share of the mean variance of a layer's inputs
_ROWS = (8, 64)  # fitted of a layer, at least and at most


def fit_to_own(matrix: Array, keep: Bools, stats: MomentStats) -> tuple[Array, Floats]:
    """The kept weights that come closest to what all of them give; sums of squared errors, [g, m].

    Args:
        matrix: all weights, [g, m, k].
        keep: [g, m, k].
        stats: moments of the rows, centred where the layer has a bias; targets do not matter.
    """
    wide = np.asarray(matrix, np.float64)
    xt = (wide @ stats.xx).swapaxes(1, 2)
    t, tt = np.einsum("gmk,gk->gm", wide, stats.x), np.einsum("gmk,gkm->gm", wide, xt)
    own = replace(stats, t=t, xt=xt, tt=tt)
    fitted = fit(np.where(keep, matrix, matrix.dtype.type(0)), keep, own, ridge=_RIDGE).matrix
    return fitted, own.error(fitted)


def spread_rows(errors: Floats, columns: int) -> Ints:
    """Which rows of each group to fit, [g, n]: evenly spread over the rows by their errors [g, m].

    Args:
        errors: of the rows, at some rate.
        columns: weights of a row.
    """
    groups, outputs = errors.shape
    most = min(max(int(_WORK / columns**3), _ROWS[0]), _ROWS[1])
    count = min(max(-(-most // groups), 1), outputs)
    at = ((np.arange(count) + 0.5) * outputs / count).astype(np.intp)
    return np.argsort(errors, axis=1, kind="stable")[:, at]


def error_curve(
    matrix: Array,
    keep: Callable[[float], Bools],
    stats: MomentStats,
    rates: Sequence[float],
    rows: Ints,
) -> Floats:
    """What stays wrong at each rate, summed over some rows and never less than at a lower rate.

    Args:
        matrix: the weights, [g, m, k].
        keep: gives the mask of a rate, [g, m, k].
        stats: as `fit_to_own`.
        rates: rising.
        rows: of each group, [g, n].
    """
    chosen = np.take_along_axis(matrix, rows[..., None], axis=1)
    errors = []
    for rate in rates:
        kept = np.take_along_axis(keep(rate), rows[..., None], axis=1)
        errors.append(float(fit_to_own(chosen, kept, stats)[1].sum()))
    return np.maximum.accumulate(np.maximum(errors, 0.0))


def interpolated(at: Array, rates: Sequence[float], errors: Floats) -> Floats:
    """A curve at other rates within its own: cubic, never falling (Fritsch and Carlson 1980)."""
    smooth = PchipInterpolator(np.asarray(rates, np.float64), errors)
    return np.maximum.accumulate(np.maximum(smooth(at), 0.0))
