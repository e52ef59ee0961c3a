"""How much to prune of each layer, so that a cost is met and the errors sum up to the least.

    min sum_l e_l(p_l)      with  sum_l c_l (u_l - p_l) <= budget

over p_l, the units pruned of the u_l of layer l, of which each costs c_l while it is kept: a
knapsack of one choice a layer, solved by dynamic programming over the cost in buckets (SPDY,
Frantar and Alistarh 2022). Costs are rounded up to buckets, so the budget holds; what that leaves
of it is given to single units, most error per cost first, until no unit fits any more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import OptionError

__all__ = ["Curve", "allocate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BUCKETS = 10_000
_SLACK = 1e-9  # of the budget: sums of floats


@dataclass(frozen=True, eq=False)
class Curve:
    """What pruning a layer costs.

    Attributes:
        units: how many the layer has.
        cost: of each unit that is kept, above 0.
        pruned: the numbers of units that may be chosen, int [n], rising.
        errors: of each, [n]; between them, errors lie on a line.
    """

    units: int
    cost: float
    pruned: Ints
    errors: Floats

    def kept_cost(self, pruned: Any) -> Any:
        """What the layer costs with so many units pruned."""
        return self.cost * (self.units - np.asarray(pruned))

    def error(self, pruned: float) -> float:
        """The error with so many units pruned."""
        return float(np.interp(pruned, self.pruned, self.errors))


def allocate(curves: Sequence[Curve], budget: float, buckets: int = _BUCKETS) -> list[int]:
    """The units to prune of each layer.

    The choice is the best there is where all costs are whole multiples of one number of which the
    budget is no more than `buckets` above the least possible cost; else the best to within what a
    bucket for each layer makes.

    Args:
        curves: of the layers.
        budget: the most that all may cost.
        buckets: into which the budget is divided.

    Returns:
        For each layer a number between its least and its most. The cost is at most the budget, and
        less by less than a unit of any layer that could be pruned less.

    Raises:
        OptionError: the budget is exceeded even with as much pruned as may be.
    """
    least = [float(curve.kept_cost(curve.pruned[-1])) for curve in curves]
    free = budget - math.fsum(least)
    if free < -_SLACK * abs(budget):
        raise OptionError(
            f"with as much pruned as may be {math.fsum(least):g} remains, more than the budget of "
            f"{budget:g}; ask for less, or let layers be pruned more"
        )
    if free <= _SLACK * abs(budget):
        return [int(curve.pruned[-1]) for curve in curves]
    steps = [curve.kept_cost(curve.pruned) - low for curve, low in zip(curves, least, strict=True)]
    bucket = _bucket(steps, free, buckets)
    needed = [np.ceil(step / bucket - _SLACK).astype(np.int64) for step in steps]
    size = min(math.floor(free / bucket + _SLACK), sum(int(n.max()) for n in needed))
    chosen = _best(needed, [curve.errors for curve in curves], size)
    pruned = [int(curve.pruned[i]) for curve, i in zip(curves, chosen, strict=True)]
    return _filled(curves, pruned, budget)


def _bucket(steps: Sequence[Floats], free: float, buckets: int) -> float:
    """The cost of a bucket: what all costs are multiples of, if that is not too fine."""
    if all(np.array_equal(step, np.rint(step)) for step in steps):
        common = math.gcd(*(int(value) for step in steps for value in step)) or 1
        if free / common <= buckets:
            return float(common)
    return free / buckets


def _best(needed: Sequence[Ints], errors: Sequence[Floats], size: int) -> list[int]:
    """The choice of each layer, of least error, that needs no more than `size` buckets in all."""
    table = np.zeros(size + 1)  # least error of the layers so far within so many buckets
    taken = []
    for need, error in zip(needed, errors, strict=True):
        best, choice = np.full(size + 1, np.inf), np.zeros(size + 1, np.int32)
        for i in np.flatnonzero(need <= size):
            sums = table[: size + 1 - need[i]] + error[i]
            better = sums < best[need[i] :]
            best[need[i] :][better] = sums[better]
            choice[need[i] :][better] = i
        table = best
        taken.append(choice)
    chosen = []
    for need, choice in zip(reversed(needed), reversed(taken), strict=True):
        chosen.append(int(choice[size]))
        size -= int(need[chosen[-1]])
    return chosen[::-1]


def _filled(curves: Sequence[Curve], pruned: list[int], budget: float) -> list[int]:
    """Prune less while the budget allows it: up to the next option, of most error per cost."""
    found = list(pruned)
    while True:
        spent = math.fsum(float(c.kept_cost(p)) for c, p in zip(curves, found, strict=True))
        left = budget - spent + _SLACK * budget
        best, gain = None, -math.inf
        for i, (curve, at) in enumerate(zip(curves, found, strict=True)):
            before = curve.pruned[curve.pruned < at]
            count = min(int(at - before[-1]), int(left // curve.cost)) if before.size else 0
            saved = curve.error(at) - curve.error(at - count)
            if count and saved / (curve.cost * count) > gain:
                best, gain = (i, count), saved / (curve.cost * count)
        if best is None:
            return found
        found[best[0]] -= best[1]
