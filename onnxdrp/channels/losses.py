"""What the layers that sum over channels lose when some go and the rest is fitted: from moments.

With C the covariance of a layer's rows x (X'X where it has no bias), its columns in the order in
which they go, last first, and C = L L',

    min over W'  E |W x - W' x|^2  =  sum over j >= n of |(W L)_j|^2        W' on n columns

since the trailing block of L is the factor of what the first n columns leave of the others (the
Schur complement). One factorization gives the loss at every n. A ridge is added to C.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf

from onnxdrp.errors import DataError
from onnxdrp.moments import MomentStats

__all__ = ["lost_shares"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def lost_shares(
    matrix: Array, stats: MomentStats, keeps: Sequence[Bools], ridge: float = 1e-3
) -> Floats:
    """The share of a layer's output power that is lost with each choice of columns.

    Args:
        matrix: the weights, [g, m, k].
        stats: moments of the rows, centred where the layer has a bias.
        keeps: which columns stay, [g, k] each; each choice is part of the one before.
        ridge: share of the mean of the diagonal.

    Raises:
        DataError: the moments are not finite.
    """
    if not np.isfinite(stats.xx).all():
        raise DataError("the moments of a layer are not finite; check the data")
    lost, power = np.zeros(len(keeps)), 0.0
    for g, weights in enumerate(np.asarray(matrix, np.float64)):
        often = np.sum([keep[g] for keep in keeps], axis=0)
        order = np.argsort(-often, kind="stable")
        h = stats.xx[g][order[:, None], order].T  # symmetric, and as LAPACK wants it
        pull = ridge * np.trace(h) / max(len(h), 1)
        if not pull > 0:
            continue  # nothing that it reads varies
        np.einsum("ii->i", h)[...] += pull
        factor, failed = dpotrf(h, lower=1, overwrite_a=1, clean=1)
        assert not failed  # the ridge is above what rounding may take
        parts = np.square(weights[:, order] @ factor).sum(0)
        behind = np.append(np.cumsum(parts[::-1])[::-1], 0.0)
        lost += behind[[int(keep[g].sum()) for keep in keeps]]
        power += float(behind[0])
    return lost / power if power else lost
