"""Which units to quantize so that as little as possible is computed in float within a noise budget.

Noise of what is rounded adds up: own(u), of the stored tensors of unit u, for each quantized unit;
and of(t), once for each tensor that at least one quantized unit reads or gives. So beside quantized
neighbours a unit adds less noise than alone, and all that touch a bad tensor must be float for it
to be spared. To quantize the units of most cost within the budget is a knapsack; it is filled
greedily, cost per added noise first, and what does not fit is passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Item", "noise_with", "quantized_within"]

_FREE = 1e-3  # of the budget, over the number of units: noise that is not worth a float unit


@dataclass(frozen=True)
class Item:
    """A unit.

    Attributes:
        name: of the unit.
        cost: of computing it in float.
        own: noise power of its rounded weights.
        tensors: what it reads and gives, rounded if it is quantized.
    """

    name: str
    cost: float
    own: float
    tensors: tuple[str, ...]


def noise_with(item: Item, noise: Mapping[str, float], rounded: set[str]) -> float:
    """The noise power that a unit adds where these tensors are rounded already."""
    return item.own + sum(noise.get(t, 0.0) for t in set(item.tensors) - rounded)


def quantized_within(
    items: Sequence[Item], noise: Mapping[str, float], budget: float
) -> dict[str, float]:
    """{unit to quantize: the noise it adds}, in the order chosen; the sum is within the budget.

    The time is that of the number of units squared.

    Args:
        items: the units.
        noise: {tensor: noise power where it is rounded}.
        budget: noise power.
    """
    rounded: set[str] = set()
    chosen: dict[str, float] = {}
    left, waiting = budget, list(items)
    free = _FREE * budget / max(len(items), 1)
    while waiting:
        added = [noise_with(item, noise, rounded) for item in waiting]
        fitting = [i for i, extra in enumerate(added) if extra <= left]
        if not fitting:
            break
        best = max(fitting, key=lambda i: waiting[i].cost / max(added[i], free, 1e-30))
        item = waiting.pop(best)
        chosen[item.name] = added[best]
        rounded.update(item.tensors)
        left -= added[best]
    return chosen
