"""What it costs a layer to lose a weight, from data; scores by which patterns rank.

With H the covariance of a layer's input rows and w a row of its weights, losing the weights B, with
those that are left re-fitted as well as can be, adds to the mean square of the output

    cost(B) = w_B' ([H^-1]_BB)^-1 w_B       second-order: OBS (Hassibi and Stork 1993)
    cost(j) = w_j^2 H_jj                    activation: as if inputs did not depend on each other;
                                            Wanda (Sun et al. 2023), less the mean

The covariance and not X'X, since biases are fitted anew, and make good what is the same in all
rows. Scores are square roots of costs, equal for all weights of B: so the L2 norm of a vector's
scores is the root of its cost, and where inputs are white the ranks are those of magnitude.

Costs change with what else is lost: of two inputs that are alike either is free, both are not. So
`second_order_mask` goes in rounds, each with the H of the weights that are left, row by row, and
with these re-fitted (on single weights: OBC, Frantar and Alistarh 2022).
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, dpotrs, dtrtri

from onnxdrp.errors import DataError

__all__ = [
    "Choose",
    "Score",
    "activation",
    "affordable",
    "damped",
    "lifted",
    "second_order",
    "second_order_mask",
]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Score = Literal["magnitude", "activation", "second-order"]
Choose = Callable[[Floats, float], Bools]
"""What a pattern keeps: from scores [g, m, k] and a rate to booleans [g, m, k]."""

_DAMPING = 0.1  # errors on other images are less than with 0.01 or 0.3
_ROUNDS = (4, 16)  # as many as are made in some seconds
_ROUND = 3e10  # weights * columns^2 in all rounds
_WORK = 1e12  # weights * columns^2
_LEAST = 1e-30  # of the largest score


def damped(power: Floats) -> Floats:
    """Variances [g, k] or covariances [g, k, k], and a share of the mean variance on each variance.

    Trust in other inputs than those seen. Where nothing varies all variances become 1.
    """
    power = np.array(power, np.float64)
    variances = np.einsum("gii->gi", power) if power.ndim == 3 else power
    np.maximum(variances, 0, out=variances)  # rounding of what does not vary
    mean = variances.mean(axis=1, keepdims=True)
    variances += np.where(mean > 0, _DAMPING * mean, 1.0)
    return power


def activation(matrix: Array, variances: Floats) -> Floats:
    """Magnitude times the deviation of what it multiplies, [g, m, k].

    Args:
        matrix: weights [g, m, k].
        variances: of their inputs, damped, [g, k].
    """
    return np.asarray(np.abs(matrix) * np.sqrt(variances[:, None]), np.float64)


def second_order(matrix: Array, h: Floats, kept: Bools | None = None, unit: int = 1) -> Floats:
    """The root of what each weight costs, or of what its unit does, in equal shares; [g, m, k].

    Args:
        matrix: weights [g, m, k].
        h: covariance of their inputs, damped, [g, k, k].
        kept: what is left, [g, m, k]; the scores are those of `matrix` re-fitted to it, and 0
            elsewhere. Default: all, at the cost of one factorization instead of one for each
            support.
        unit: so many consecutive columns are lost together.

    Raises:
        DataError: `h` is not positive definite.
    """
    target = np.asarray(matrix, np.float64) @ h
    if kept is not None and unit > 1:
        kept = np.repeat(kept.reshape(*kept.shape[:2], -1, unit).any(axis=-1), unit, axis=-1)
    scores = np.zeros(target.shape)
    for g in range(len(h)):
        for rows, columns in _supports(target[g].shape, None if kept is None else kept[g]):
            place = rows[:, None], columns
            costs = _costs(h[g], target[g][place], columns, unit)
            scores[g][place] = np.sqrt(np.maximum(costs, 0))
    return scores


def second_order_mask(
    matrix: Array,
    h: Floats,
    choose: Choose,
    rate: float,
    *,
    kept: Bools | None = None,
    unit: int = 1,
    rounds: int | None = None,
) -> Bools:
    """What is left after rounds of losing the weights that cost least; fewer in the later ones.

    Args:
        matrix: weights [g, m, k].
        h: covariance of their inputs, damped, [g, k, k].
        choose: the pattern.
        rate: to be reached.
        kept: what was left before, [g, m, k]; what was lost is lost.
        unit: so many consecutive columns are lost together.
        rounds: 1 takes costs as if they did not change with what is lost; default 4 to 16, as many
            as do not take long.

    Returns:
        What `choose` made of the last scores and the rate, [g, m, k].
    """
    work = matrix.size * matrix.shape[2] ** 2
    rounds = rounds or int(np.clip(_ROUND / work, *_ROUNDS))
    start = 1.0 if kept is None else np.count_nonzero(kept) / kept.size
    end = min(1 - rate, start)
    if rounds == 1 or end == start:
        return choose(lifted(second_order(matrix, h, None, unit), kept), rate)
    for i in range(1, rounds):
        share = end + (start - end) * (1 - i / rounds) ** 2
        kept = choose(lifted(second_order(matrix, h, kept, unit), kept), 1 - share)
    return choose(lifted(second_order(matrix, h, kept, unit), kept), rate)


def affordable(groups: int, outputs: int, columns: int) -> bool:
    """Whether a second-order mask of a matrix of this size takes about two minutes at most."""
    return groups * outputs * columns**3 <= _WORK


def lifted(scores: Array, kept: Bools | None) -> Array:
    """The scores with what was lost before at the end of all ranks, even after other zeros."""
    if kept is None:
        return scores
    scores = scores.astype(np.float64)
    least = _LEAST * (float(scores.max(initial=0)) or 1.0)
    return np.where(kept, np.maximum(scores, least), np.minimum(scores, 0))  # padding stays below 0


def _supports(shape: tuple[int, ...], kept: Bools | None) -> Iterator[tuple[Array, Array]]:
    """Rows that keep the same columns, and these."""
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    if kept is None:
        yield rows, columns
        return
    _, first, which = np.unique(
        np.packbits(kept, axis=1), axis=0, return_index=True, return_inverse=True
    )
    for i, row in enumerate(first):
        yield rows[which.ravel() == i], columns[kept[row]]


def _costs(h: Floats, target: Floats, columns: Array, unit: int) -> Floats:
    """The cost of each of the columns that rows [r, s] keep, or of its unit in equal shares.

    `target` is W H: from it follow the weights that fit best with these columns alone.
    """
    if not len(columns):
        return target
    factor, failed = dpotrf(h[columns[:, None], columns].T, lower=True, overwrite_a=True)
    if failed:
        raise DataError(
            "the moments of a layer's input are not positive definite: "
            "it varies too little, or too much, around its mean; check the data"
        )
    fitted = dpotrs(factor, target.T, lower=True)[0]  # [s, r]
    root = dtrtri(factor, lower=True, overwrite_c=True)[0]  # H^-1 = root' root
    if unit == 1:
        return np.asarray(fitted**2 / np.einsum("ij,ij->j", root, root)[:, None]).T
    parts = root.T.reshape(-1, unit, len(columns))
    fitted = fitted.reshape(len(parts), unit, -1)
    costs = fitted * np.linalg.solve(parts @ parts.swapaxes(1, 2), fitted)
    return np.repeat(costs.sum(axis=1) / unit, unit, axis=0).T
