"""Which units to quantize so that as little as possible is computed in float within a noise budget.

Noise of what is rounded adds up: own(u), of the stored tensors of unit u, for each quantized unit;
and of(t), once for each tensor that at least one quantized unit reads or gives. So beside quantized
neighbours a unit adds less noise than alone, and all that touch a bad tensor must be float for it
to be spared. To quantize the units of most cost within the budget is a knapsack; it is filled
greedily, cost per added noise first, and what does not fit is passed over.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from onnxdrp.model import Model
from onnxdrp.operators import Kind
from onnxdrp.unit_sensitivity import UnitSensitivity, noise_power

__all__ = ["BISECTIONS", "Item", "NoiseModel", "largest_budget"]

_FREE = 1e-3  # of the budget, over the number of units: noise that is not worth a float unit
_NONE = 1e-30
_WIDER = 4.0  # times: steps of the budget until the goal lies between two of them
BISECTIONS = 5  # to 4 % of the budget


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


@dataclass(frozen=True)
class NoiseModel:
    """What is known of the noise of a model's units.

    Attributes:
        items: the units.
        noise: {tensor: noise power where it is rounded}.
    """

    items: Sequence[Item]
    noise: Mapping[str, float]

    @classmethod
    def of(
        cls, model: Model, units: Sequence[UnitSensitivity], kinds: Mapping[str, Kind]
    ) -> "NoiseModel":
        """From what each unit does alone.

        A tensor that no unit gives is measured in no row; what a reader's whole row has more than
        its parts is put down to it.

        Args:
            model: float, with shapes.
            units: of its sensitivity.
            kinds: {node: how it is quantized}, of the plan.
        """
        noise = {unit.output: noise_power(unit.output_db) for unit in units}
        items = []
        for unit in units:
            inputs = tuple(_source(model, name, kinds) for name in unit.inputs)
            own = noise_power(unit.weights_db)
            known = own + sum(noise.get(t, 0.0) for t in {*inputs, unit.output})
            unknown = {t for t in inputs if t not in noise}
            for tensor in unknown:
                noise[tensor] = max(0.0, unit.damage - known) / len(unknown)
            items.append(Item(unit.name, _cost(model, unit), own, (*inputs, unit.output)))
        return cls(items, noise)

    @property
    def total(self) -> float:
        """With every unit quantized."""
        return sum(item.own for item in self.items) + sum(self.noise.values())

    def added(self, item: Item, rounded: AbstractSet[str]) -> float:
        """The noise power that a unit adds where these tensors are rounded already."""
        return item.own + sum(self.noise.get(t, 0.0) for t in set(item.tensors) - rounded)

    def quantized_within(self, budget: float) -> dict[str, float]:
        """{unit to quantize: the noise it adds}, in the order chosen; the sum is in the budget.

        The time is that of the number of units squared.
        """
        rounded: set[str] = set()
        chosen: dict[str, float] = {}
        waiting, left = list(self.items), budget
        free = _FREE * budget / max(len(waiting), 1)
        while waiting:
            added = [self.added(item, rounded) for item in waiting]
            fitting = [i for i, extra in enumerate(added) if extra <= left]
            if not fitting:
                break
            best = max(fitting, key=lambda i: waiting[i].cost / max(added[i], free, _NONE))
            item = waiting.pop(best)
            chosen[item.name] = added[best]
            rounded.update(item.tensors)
            left -= added[best]
        return chosen

    def dearest(self, kept: AbstractSet[str]) -> list[str]:
        """Of units that are float, those first that save most for the noise they would add."""
        rounded = {t for item in self.items if item.name not in kept for t in item.tensors}
        items = [item for item in self.items if item.name in kept]
        items.sort(key=lambda item: -item.cost / max(self.added(item, rounded), _NONE))
        return [item.name for item in items]


def largest_budget(reaches: Callable[[float], bool], start: float, total: float) -> None:
    """Try budgets until the largest that reaches a goal is known to some percent.

    Args:
        reaches: tries one; that of 0 would reach.
        start: the first to try.
        total: one that does not reach.
    """
    low, high, budget = 0.0, total, min(start, total / _WIDER)
    while not low and budget > total * 1e-9:
        if reaches(budget):
            low = budget
        else:
            high, budget = budget, budget / _WIDER
    while low and high == total and low * _WIDER < total:
        if reaches(low * _WIDER):
            low *= _WIDER
        else:
            high = low * _WIDER
    for _ in range(BISECTIONS if low else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reaches(middle) else (low, middle)


def _source(model: Model, name: str, kinds: Mapping[str, Kind]) -> str:
    """The tensor whose values these are: nodes between that keep parameters round nothing."""
    tensor = model.tensor(name)
    while tensor.inputs and kinds.get(tensor.inputs[0].name) == "same":
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)


def _cost(model: Model, unit: UnitSensitivity) -> float:
    """Multiply-adds; of an elementwise operator, the values it gives."""
    if unit.macs:
        return float(unit.macs)
    shape = model.tensor(unit.output).shape or ()
    return float(math.prod(d for d in shape if isinstance(d, int)) or 1)
