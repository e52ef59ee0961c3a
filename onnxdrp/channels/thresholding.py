"""How many channels of each group go, by what that costs in each: one threshold for all groups.

With d_g(r) what removing the share r of group g alone costs (onnxdrp.channels.sensitivity), group g
loses at the threshold t the share

    r_g(t) = the largest r with  d_g(r) + 1e-5 r <= t

up to the highest rate measured. The small slope lets groups that lose nothing lose alike. t is the
largest for which no more multiply-adds go than wanted, by bisection in at most 100 steps (AMD's
Vitis AI Optimizer, which takes measured rates alone). As what stays is a multiple of some number of
channels, that may be far from what is wanted: then units go multiple by multiple, each time those
that cost least for a multiply-add, until it is within 1 % or no more fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.choosing import at_rates
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.groups import Channels
from onnxdrp.channels.sensitivity import ChannelSensitivity

__all__ = ["Chosen", "by_threshold"]

Floats = npt.NDArray[np.float64]

_TRIES = 100
_SLOPE = 1e-5  # AMD's smallest threshold
_WITHIN = 0.01  # of the multiply-adds that are to be left


@dataclass(frozen=True)
class Chosen:
    """What goes.

    Attributes:
        removed: {group: its units}.
        threshold: of the drop.
        filled: how many multiples went after the threshold was found.
        macs: that are left.
        wanted: how many should be.
    """

    removed: dict[str, list[int]]
    threshold: float
    filled: int
    macs: int
    wanted: float

    @property
    def met(self) -> bool:
        """Whether as many multiply-adds are left as should be, within 1 %."""
        return abs(self.macs - self.wanted) <= _WITHIN * self.wanted


class _Group:
    """A group and its curve."""

    def __init__(self, rates: Floats, drops: Floats) -> None:
        self.rates, self.costs = rates, drops + _SLOPE * rates

    def rate(self, threshold: float) -> float:
        """The largest share that costs no more."""
        return float(np.interp(threshold, self.costs, self.rates))  # costs rise strictly

    def cost(self, rate: float) -> float:
        return float(np.interp(rate, self.rates, self.costs))


def by_threshold(
    channels: Channels,
    cost: Cost,
    scores: Mapping[str, Floats],
    sensitivity: ChannelSensitivity,
    groups: list[str],
    ratio: float,
    multiple: int,
) -> Chosen:
    """Choose channels that leave 1 - ratio of the multiply-adds.

    Args:
        channels: of the model.
        cost: of it.
        scores: {group: one for each unit}; the lowest go.
        sensitivity: with the curve of each of the groups.
        groups: that may lose channels.
        ratio: share of all multiply-adds, in [0, 1).
        multiple: that the channels which stay are of.
    """
    curves = {name: _Group(*sensitivity.drops(name)) for name in groups}
    wanted = (1 - ratio) * cost.whole

    def removed(threshold: float) -> dict[str, list[int]]:
        rates = {name: curve.rate(threshold) for name, curve in curves.items()}
        return at_rates(channels, scores, rates, multiple)

    def macs(gone: Mapping[str, list[int]]) -> int:
        return cost.macs(channels.alive(gone))

    low, high = 0.0, max(float(curve.costs[-1]) for curve in curves.values())
    if macs(removed(high)) >= wanted:
        low = high
    for _ in range(_TRIES):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if macs(removed(middle)) < wanted:
            high = middle
        else:
            low = middle
    gone = removed(low)
    left, filled = macs(gone), 0
    while abs(left - wanted) > _WITHIN * wanted:
        best = None
        for name in groups:
            for more in _one_more(channels, scores, name, gone.get(name, []), multiple):
                size = channels.group(name).size
                before, after = len(gone.get(name, [])) / size, len(more) / size
                if after > curves[name].rates[-1]:
                    continue
                there = macs({**gone, name: more})
                if not wanted * (1 - _WITHIN) <= there < left:
                    continue
                price = (curves[name].cost(after) - curves[name].cost(before)) / (left - there)
                if best is None or price < best[0]:
                    best = price, name, more, there
        if best is None:
            break
        _, name, gone[name], left = best
        filled += 1
    return Chosen(gone, low, filled, left, wanted)


def _one_more(
    channels: Channels, scores: Mapping[str, Floats], name: str, gone: list[int], multiple: int
) -> list[list[int]]:
    """What goes of a group if one more multiple of one of its blocks does, for each of them."""
    group, found = channels.group(name), []
    for block in group.blocks():
        step = group.step(int(block[0]), multiple)
        order = block[np.argsort(scores[name][block], kind="stable")]
        left = len(block) - int(np.isin(block, gone).sum())
        fewer = (left - 1) // step * step
        if fewer:
            found.append(sorted({*gone, *order[: len(block) - fewer].tolist()}))
    return found
