"""Rounding of a weight matrix so that its errors cancel in the output of the layer.

With rows x of the layer's input and H = X'X, rounding w to q = w - d costs |X d|^2 = d'H d. Weights
are fixed one after the other; each time the rest moves to where it makes good best for the errors
d made so far (Hassibi and Stork 1993; OBQ and GPTQ, Frantar et al. 2022). With the lower triangular
M of H = M'M that is

    (M d)_j = M_jj d_j + sum_{i<j} M_ji d_i
    q_j = s * round((w_j + sum_{i<j} M_ji d_i / M_jj) / s)

so that no inverse of H is needed: Babai's nearest plane, seen as a lattice. Zeros stay zero, and
make good no errors: exact for columns of which no row has the weight, since these come first, and
else a start. Then sweeps over the columns move each weight to where it is best with all others as
they are, which can only lessen the error (coordinate descent; QuantEase, Behdin et al. 2023):

    q_j <- round(q_j + (H d)_j / H_jj)

So one factor serves all rows, whatever weights they lack.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, OptionError

__all__ = ["Order", "Rounded", "output_error", "round_rows"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Order = Literal["activation", "natural"]


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded matrix.

    Attributes:
        codes: the integers, int8 [g, m, k].
        error: what each row adds to the output, sum of squares over the rows of X, [g, m].
        nearest: what it would add, were each weight rounded alone.
    """

    codes: npt.NDArray[np.int8]
    error: Floats
    nearest: Floats


_BLOCK = 128  # columns whose errors are handed on together, as a product of matrices
_SWEEPS = 3


def round_rows(
    matrix: Array,
    scale: Array,
    xx: Floats,
    *,
    limit: int = 127,
    damping: float = 0.01,
    order: Order = "activation",
) -> "Rounded":
    """The integers q that stand for the weights q * scale; no row errs more than if rounded alone.

    Args:
        matrix: weights [g, m, k] of g groups of m outputs each; their zeros stay.
        scale: of each row, [g, m].
        xx: X'X of each group, [g, k, k], symmetric and positive semidefinite.
        limit: the largest |q|.
        damping: this share of the mean of H's diagonal is added to it: trust in other inputs than
            those seen.
        order: which columns are fixed first: those of the largest inputs, summed over the groups
            that are rounded together, or as they stand.

    Returns:
        For each row the second-order rounding, or the nearest integers where these err no more.

    Raises:
        DataError: `xx` is not finite.
        OptionError: damping is not above 0, or too small for a singular `xx`.
    """
    if not np.all(np.isfinite(xx)):
        raise DataError("the moments of a layer's input are not finite; check the data")
    if not damping > 0:
        raise OptionError(f"damping {damping}: give a share above 0; 0.01 is usual")
    steps = np.asarray(matrix, np.float64) / np.asarray(scale, np.float64)[..., None]
    nearest = np.clip(np.rint(steps), -limit, limit)
    size = np.einsum("gii->gi", xx)
    columns = np.arange(steps.shape[2])
    if order == "activation":
        columns = np.argsort(-size.sum(axis=0), kind="stable")
    alive = (steps != 0).any(axis=(0, 1))
    columns = np.concatenate([columns[~alive[columns]], columns[alive[columns]]])
    h = xx[:, columns[:, None], columns]
    mean = size.mean(axis=1)
    np.einsum("gii->gi", h)[...] += np.where(mean > 0, damping * mean, 1.0)[:, None]
    found = np.empty_like(steps)
    found[..., columns] = _settled(
        steps[..., columns], _descend(steps[..., columns], _factor(h), limit), h, limit
    )
    plain, error = output_error(steps - nearest, xx), output_error(steps - found, xx)
    better = error < plain
    codes = np.where(better[..., None], found, nearest).astype(np.int8)
    unit = np.square(np.asarray(scale, np.float64))
    return Rounded(codes, np.where(better, error, plain) * unit, plain * unit)


def output_error(deviation: Array, xx: Floats) -> Floats:
    """The sum of squares d'H d that deviations d [g, m, k] add to the outputs, [g, m]."""
    return np.asarray(np.einsum("gmk,gmk->gm", deviation @ xx, deviation))


def _factor(h: Floats) -> Floats:
    """M / diag(M), lower triangular with ones on its diagonal, where H = M'M."""
    try:
        flipped = np.linalg.cholesky(h[:, ::-1, ::-1])
    except np.linalg.LinAlgError as e:
        raise OptionError("damping is too small for the data; 0.01 is usual") from e
    m = flipped[:, ::-1, ::-1].swapaxes(1, 2)
    return np.ascontiguousarray(m / np.diagonal(m, axis1=1, axis2=2)[..., None])


def _descend(steps: Floats, factor: Floats, limit: int) -> Floats:
    """Fix columns from the first to the last; [g, m, k] in units of the scales."""
    columns = steps.shape[2]
    want = np.ascontiguousarray(steps.swapaxes(1, 2))  # [g, k, m]: a column lies in one piece
    errors, alive = np.zeros_like(want), want != 0
    for start in range(0, columns, _BLOCK):
        block = slice(start, min(start + _BLOCK, columns))
        moved = want[:, block] + factor[:, block, :start] @ errors[:, :start]
        inner, made = factor[:, block, block], errors[:, block]
        for j in range(moved.shape[1]):
            at = moved[:, j] + (inner[:, j : j + 1, :j] @ made[:, :j])[:, 0]
            q = np.clip(np.rint(at), -limit, limit) * alive[:, start + j]
            made[:, j] = want[:, start + j] - q
    return np.rint(want - errors).swapaxes(1, 2)


def _settled(steps: Floats, codes: Floats, h: Floats, limit: int) -> Floats:
    """Move weights one by one, [g, m, k], until none moves or the sweeps are over."""
    codes, alive = codes.copy(), steps != 0
    slope, power = (steps - codes) @ h, np.einsum("gii->gi", h)
    for _ in range(_SWEEPS):
        still = True
        for start in range(0, steps.shape[2], _BLOCK):
            block = slice(start, start + _BLOCK)
            here, inner = slope[..., block].copy(), h[:, block, block]
            moves = np.zeros_like(here)
            for j in range(here.shape[2]):
                old = codes[..., start + j]
                best = np.rint(old + here[..., j] / power[:, start + j, None])
                move = np.clip(best, -limit, limit) * alive[..., start + j] - old
                if move.any():
                    here -= move[..., None] * inner[:, None, j]
                    moves[..., j] = move
                    codes[..., start + j] += move
            if moves.any():
                slope -= moves @ h[:, block]
                still = False
        if still:
            break
    return codes
