"""Rounding of a weight matrix so that its errors cancel in the output of the layer.

With rows x of the layer's input and H = X'X, rounding w to q = w - d costs |X d|^2 = d'H d. Weights
are fixed one after the other; each time the rest moves to where it makes good best for the errors
d made so far (Hassibi and Stork 1993; OBQ and GPTQ, Frantar et al. 2022). With the lower triangular
M of H = M'M that is

    (M d)_j = M_jj d_j + sum_{i<j} M_ji d_i
    q_j = s * round((w_j + sum_{i<j} M_ji d_i / M_jj) / s)

so that no inverse of H is needed: Babai's nearest plane, seen as a lattice. Zeros stay zero: each
row is rounded with the H of the weights that it has; rows that lack few share the H of all, whose
factor is most of the work, and make good no errors in what they lack.
"""

from collections.abc import Iterator
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


_DENSE = 0.9  # the share of its weights from which a row counts as having all
_BLOCK = 128  # columns whose errors are handed on together, as a product of matrices


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
    found = nearest.copy()
    for group, rows, columns in _parts(steps):
        size = xx[group[:, None], columns, columns]
        if order == "activation":
            columns = columns[np.argsort(-size.sum(axis=0), kind="stable")]
        h = xx[np.ix_(group, columns, columns)]
        mean = size.mean(axis=1)
        np.einsum("gii->gi", h)[...] += np.where(mean > 0, damping * mean, 1.0)[:, None]
        place = np.ix_(group, rows, columns)
        found[place] = _descend(steps[place], _factor(h), limit)
    plain, error = output_error(steps - nearest, xx), output_error(steps - found, xx)
    better = error < plain
    codes = np.where(better[..., None], found, nearest).astype(np.int8)
    unit = np.square(np.asarray(scale, np.float64))
    return Rounded(codes, np.where(better, error, plain) * unit, plain * unit)


def output_error(deviation: Array, xx: Floats) -> Floats:
    """The sum of squares d'H d that deviations d [g, m, k] add to the outputs, [g, m]."""
    return np.asarray(np.einsum("gmk,gmk->gm", deviation @ xx, deviation))


def _parts(steps: Floats) -> Iterator[tuple[Array, Array, Array]]:
    """Groups, rows and columns to round together: rows of one support have one H.

    Rows that have all or almost all their weights count as having all; groups of nothing else make
    one part.
    """
    alive = steps != 0
    dense = alive.mean(axis=2) >= _DENSE
    full, columns = dense.all(axis=1), np.arange(steps.shape[2])
    if full.any():
        yield np.flatnonzero(full), np.arange(steps.shape[1]), columns
    for group in np.flatnonzero(~full):
        if dense[group].any():
            yield np.array([group]), np.flatnonzero(dense[group]), columns
        supports: dict[bytes, list[int]] = {}
        packed = np.packbits(alive[group], axis=1)
        for row in np.flatnonzero(~dense[group]):
            supports.setdefault(packed[row].tobytes(), []).append(row)
        for rows in supports.values():
            own = np.flatnonzero(alive[group, rows[0]])
            if own.size:
                yield np.array([group]), np.array(rows), own


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
