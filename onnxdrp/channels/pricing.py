"""How many channels of each group go, by what that costs for a multiply-add: one price for all.

With d_g(r) what removing the share r of group g alone costs (onnxdrp.channels.sensitivity), the sum
of d^2 over all groups is kept least for the multiply-adds that go. So one multiple of channels
after the other goes, each time the one with the least

    price = (d_g(r + step)^2 - d_g(r)^2) / (share of the multiply-adds that goes with it now)

until as much is gone as wanted, within 1 % of what shall be left, or no more fits. Of d each line
between two rates is made at least as steep as those before: what is spoilt already is no bargain.
Thus d is convex, and the cheapest next step is part of the cheapest whole (Fox 1966). A small slope
lets groups that lose nothing lose alike. No more of a group goes than the highest rate measured.

AMD's Vitis AI Optimizer has one threshold for d itself, whatever a group's channels are worth in
multiply-adds, which is the rule for d^p with p without end, but for the worth: a layer of few
multiply-adds that alone can lose most of its channels loses them for nothing then. A plain sum,
p = 1, trusts the curves too much, which know nothing of each other, and spoils single groups.
docs/slimming.md has figures.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.sensitivity import ChannelSensitivity
from onnxdrp.channels.subnets import Subnet, Subnets

__all__ = ["Chosen", "by_price"]

Floats = npt.NDArray[np.float64]

_SLOPE = 1e-5  # AMD's smallest threshold
_WITHIN = 0.01  # of the multiply-adds that are to be left


@dataclass(frozen=True)
class Chosen:
    """What goes.

    Attributes:
        subnet: what stays.
        price: of the last step that was taken, for all multiply-adds; 0 if none was.
        wanted: the share of the multiply-adds that should go.
    """

    subnet: Subnet
    price: float
    wanted: float

    @property
    def met(self) -> bool:
        """Whether as many multiply-adds are left as should be, within 1 %."""
        return abs(self.subnet.share - self.wanted) <= _WITHIN * (1 - self.wanted)


def by_price(subnets: Subnets, sensitivity: ChannelSensitivity, ratio: float) -> Chosen:
    """Choose channels that leave 1 - ratio of the multiply-adds.

    Args:
        subnets: of groups that all have a curve.
        sensitivity: with the curves.
        ratio: share of all multiply-adds, in [0, 1).
    """
    curves = [_convex(*sensitivity.drops(name)) for name in subnets.groups]
    blocks, sizes = subnets.block_groups, subnets.block_sizes
    totals = np.bincount(blocks, sizes)[blocks]  # units of a block's group
    highest = np.array([rates[-1] for rates, _ in curves])[blocks] * (1 + 1e-9)

    def costs(gone: Floats) -> Floats:
        """d^2 of each block's group, with so many of its units gone."""
        shares = gone / totals
        drops = [np.interp(r, *curves[g]) for g, r in zip(blocks, shares, strict=True)]
        return np.square(drops)

    kept, share, price = sizes, 0.0, 0.0
    most = ratio + _WITHIN * (1 - ratio)
    while share < ratio - _WITHIN * (1 - ratio):
        gone = np.bincount(blocks, sizes - kept)[blocks].astype(np.float64)
        fewer = subnets.one_less(kept)
        there = subnets.shares_with(kept, fewer)
        after = gone + kept - fewer
        fits = (fewer > 0) & (after <= highest * totals) & (there > share) & (there <= most)
        if not fits.any():
            break
        prices = np.full(len(blocks), np.inf)
        prices[fits] = (costs(after) - costs(gone))[fits] / (there - share)[fits]
        best = int(prices.argmin())
        kept = kept.copy()
        kept[best] = fewer[best]
        share, price = float(there[best]), float(prices[best])
    return Chosen(subnets.of(kept), price, ratio)


def _convex(rates: Floats, drops: Floats) -> tuple[Floats, Floats]:
    """The same, with no line less steep than one before, and each a little."""
    slopes = np.maximum.accumulate(np.diff(drops) / np.diff(rates)) + _SLOPE
    return rates, np.concatenate([[0.0], np.cumsum(slopes * np.diff(rates))])
