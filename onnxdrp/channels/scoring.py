"""What the layers that sum over channels lose when some go, and the order in which they go best.

With H the covariance of what such a layer reads and W its weights [m, k], losing the columns S of
some channels, with the others re-fitted as well as can be, adds to the mean square of the outputs

    cost(S) = tr(W_S P_SS^-1 W_S'),     P = H^-1          (OBS; Hassibi and Stork 1993)

and leaves the same problem with fewer columns K,

    W_K - W_S P_SS^-1 P_SK,     P_KK - P_KS P_SS^-1 P_SK

S is all that a channel is to a layer: every place of its kernel, every value that a Flatten made of
it, every input of a Concat that it came by. A unit costs the sum over the layers that read it, each
as a share of the variance of what the layer gives. Where of H only the variances v are known, a
layer loses sum W_S^2 v_S, as if inputs did not depend on each other.

Units go in the order of what they cost, a few at a time, each time with what is left re-fitted: of
two channels that are alike either is free, both are not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, dpotri

from onnxdrp.channels.groups import Channels
from onnxdrp.channels.lanes import Ints
from onnxdrp.channels.reading import Reader
from onnxdrp.errors import DataError
from onnxdrp.scores import damped

__all__ = ["Losses", "Part", "cumulated"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_ROUND = 16  # a round takes this part of the units that are left; single ones are no better


@dataclass(frozen=True, eq=False)
class Part:
    """What a layer, or a group of its inputs, multiplies of the units of a group.

    Attributes:
        weights: of these columns, [m, c].
        inverse: their rows and columns of H^-1, [c, c].
        units: the place in the group of each column's unit, [c].
    """

    weights: Floats
    inverse: Floats
    units: Ints

    def costs(self, size: int) -> Floats:
        """What each of so many units costs; 0 for those that have no column."""
        found = np.zeros(size)
        for units, columns in _alike(self.units):
            parts = self.inverse[columns[:, :, None], columns[:, None, :]]
            own = self.weights.T[columns]  # [units, columns of each, m]
            found[units] = np.einsum("usm,usm->u", own, np.linalg.solve(parts, own))
        return found

    def without(self, units: Ints) -> tuple[Self, float]:
        """The same with some units gone, and what that costs."""
        gone = np.isin(self.units, units)
        if not gone.any():
            return self, 0.0
        stay = ~gone
        rows, own = self.inverse.compress(gone, 0), self.weights.compress(gone, 1)
        cross = rows.compress(stay, 1)
        found = np.linalg.solve(rows.compress(gone, 1), np.hstack([cross, own.T]))
        to_stay, to_own = np.hsplit(found, [cross.shape[1]])
        left = self.inverse.compress(stay, 0).compress(stay, 1)
        left -= cross.T @ to_stay
        weights = self.weights.compress(stay, 1)
        weights -= own @ to_stay
        return type(self)(weights, left, self.units[stay]), float(np.vdot(own.T, to_own))


def _alike(units: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Units that have as many columns [u], and which [u, s]."""
    order = np.argsort(units, kind="stable")
    found, first, counts = np.unique(units[order], return_index=True, return_counts=True)
    for count in np.unique(counts).tolist():
        here = counts == count
        yield found[here], order[first[here][:, None] + np.arange(count)]


def cumulated(parts: Iterable[Part], fixed: Floats, blocks: Sequence[Ints]) -> Floats:
    """For each unit, what is lost with it and with all that go before it.

    Args:
        parts: of the layers that read the units.
        fixed: what each unit costs besides, whatever else goes.
        blocks: places of units; in a round each block loses the same share.
    """
    size, lost = len(fixed), 0.0
    found, alive = np.zeros(size), np.ones(size, np.bool_)
    parts = list(parts)
    most = left = max(len(block) for block in blocks)
    while left:
        left -= max(1, left // _ROUND)
        costs = sum((part.costs(size) for part in parts), fixed)
        here = [block[alive[block]] for block in blocks]
        stay = [-(-len(block) * left // most) for block in blocks]
        gone = np.concatenate(
            [b[np.argsort(costs[b])[: len(b) - n]] for b, n in zip(here, stay, strict=True)]
        )
        gone = gone[np.argsort(costs[gone], kind="stable")]
        cost = float(fixed[gone].sum())
        for i, part in enumerate(parts):
            parts[i], own = part.without(gone)
            cost += own
        shares = np.cumsum(np.maximum(costs[gone], 0))
        found[gone] = lost + cost * shares / (shares[-1] or 1.0)
        lost += cost
        alive[gone] = False
    return found


class Losses:
    """The scores of groups, from the moments of one layer after the other.

    What a group needs is held from the first layer that reads it to the last, and no longer.

    Args:
        channels: of the model.
        readers: all that will be added.

    Attributes:
        scores: {group: what is lost with each unit and those before it}, of groups of which all
            readers are added.
    """

    def __init__(self, channels: Channels, readers: Sequence[Reader]) -> None:
        self.scores: dict[str, Floats] = {}
        self._groups = channels.groups
        count = int(channels.unit.max(initial=-1)) + 2  # the last stands for unit -1
        self._owner, self._place = np.full(count, -1), np.full(count, -1)
        for i, group in enumerate(channels.groups):
            self._owner[group.units], self._place[group.units] = i, np.arange(group.size)
        self._missing = Counter(i for reader in readers for i in self.read_by(reader))
        self._fixed = [np.zeros(group.size) for group in channels.groups]
        self._parts: dict[int, list[Part]] = defaultdict(list)
        for i in range(len(self._groups)):
            self._finish(i)

    def read_by(self, reader: Reader) -> list[int]:
        """The numbers of the groups whose units a layer reads."""
        owners = np.unique(self._owner[reader.units])
        return [int(i) for i in owners if i >= 0]

    def needed(self, reader: Reader) -> dict[int, int]:
        """{number of a group: bytes held of a layer until the last one that reads the group}."""
        owner, outputs = self._owner[reader.units], reader.matrix.shape[1]
        own = {i: np.count_nonzero(owner == i, axis=1) for i in self.read_by(reader)}
        return {i: int(8 * (columns * (columns + outputs)).sum()) for i, columns in own.items()}

    def add(self, reader: Reader, power: Floats) -> None:
        """Take in a layer.

        Args:
            reader: the layer.
            power: covariance of what it reads, [g, k, k], or variances, [g, k]; moments about 0
                where it has no bias.

        Raises:
            DataError: the covariance is not positive definite.
        """
        matrix = np.asarray(reader.matrix, np.float64)
        spread = matrix @ power if power.ndim == 3 else matrix * power[:, None]
        given = float(np.vdot(matrix, spread))
        if given > 0:
            self._take(reader, matrix / np.sqrt(given), damped(power))
        for i in self.read_by(reader):
            self._missing[i] -= 1
            self._finish(i)

    def _take(self, reader: Reader, matrix: Floats, power: Floats) -> None:
        owner, place = self._owner[reader.units], self._place[reader.units]
        for g, weights in enumerate(matrix):
            whole = _inverse(power[g]) if power.ndim == 3 else None
            for i in np.unique(owner[g][owner[g] >= 0]).tolist():
                own = np.flatnonzero(owner[g] == i)
                units = place[g, own]
                if whole is None:
                    costs = np.square(weights[:, own]).sum(0) * power[g, own]
                    self._fixed[i] += np.bincount(units, costs, minlength=len(self._fixed[i]))
                else:
                    inverse = whole if len(own) == len(whole) else whole[own[:, None], own]
                    self._parts[i].append(Part(weights[:, own], inverse, units))

    def _finish(self, i: int) -> None:
        if not self._missing[i]:
            group = self._groups[i]
            self.scores[group.name] = cumulated(
                self._parts.pop(i, ()), self._fixed[i], group.blocks()
            )


def _inverse(h: Floats) -> Floats:
    """H^-1; `h` is used up. Raises DataError."""
    factor, failed = dpotrf(h.T, lower=True, overwrite_a=True)
    if failed:
        raise DataError(
            "the moments of a layer's input are not positive definite: "
            "it varies too little, or too much, around its mean; check the data"
        )
    lower = np.tril(dpotri(factor, lower=True, overwrite_c=True)[0])
    np.einsum("ii->i", lower)[...] /= 2
    return np.asarray(lower + lower.T)
