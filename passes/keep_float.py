"""Leave the cheapest set of layers float with which the quantized model reaches a goal.

    1. Sensitivity (onnxdrp.sensitivity) says what weights and output of each unit alone do to the
       outputs of the model.
    2. Noise nearly adds up, so for a budget of noise it is known which units to quantize that most
       is saved (onnxdrp.noise_budget); the others stay float. Cost is multiply-adds; of an
       elementwise operator, the values it gives.
    3. The largest budget with which the goal is reached is found by bisection.
    4. Then units are given back, those of most cost per noise first, while the goal is reached.

Each trial quantizes the whole model and runs it on the same samples. Elementwise operators between
float layers follow by themselves (onnxdrp.plan). Fills ctx.kept_float; the model is not touched.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from onnxdrp.errors import CheckError, DataError, ModelError, OptionError
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.noise_budget import Item, noise_with, quantized_within
from onnxdrp.parameters import activation_parameters
from onnxdrp.passes.insert_qdq import InsertQdq
from onnxdrp.passes.quantize_weights import QuantizeWeights
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Plan, make_plan
from onnxdrp.quantization import Range, qlimits
from onnxdrp.sensitivity import (
    Sensitivity,
    UnitSensitivity,
    few,
    noise_power,
    quantization_sensitivity,
)
from onnxdrp.targets import Target
from onnxdrp.trials import Trials

__all__ = ["KeepFloat"]

_RANKED = 16  # samples that units are ranked by; trials count, and have more
_WIDER = 4.0  # times: steps of the budget until the goal is between two of them
_LEAST = 1e-9  # of the noise there is
_BISECTIONS = 5  # to 4 % of the budget


@dataclass(frozen=True)
class KeepFloat(Pass):
    """Leave layers float until the quantized model reaches `min_sqnr`, or keeps within `max_drop`.

    Stats: `goal`, `unit`; `quantized`, what the model has with nothing more left float; `reached`;
    `kept` {node: why}; `float_share`, of the multiply-adds that would be quantized; `trials`;
    `samples`.

    Attributes:
        min_sqnr: dB that the worst output must have against float.
        max_drop: points of top-1 that may be lost: of accuracy where the data has labels, else of
            agreement with float.
        samples: of the calibration data that trials run on, spread over it; all are held in memory.
        give_back: most trials of step 4.
        per_channel: as QuantizeWeights will have it.
    """

    name: ClassVar[str] = "keep-float"

    min_sqnr: float | None = None
    max_drop: float | None = None
    samples: int = 64
    give_back: int = 16
    per_channel: bool | None = None

    def __post_init__(self) -> None:
        if (self.min_sqnr is None) == (self.max_drop is None):
            raise OptionError("keep-float needs a goal: give either min_sqnr or max_drop")
        if self.min_sqnr is not None and not 0 < self.min_sqnr <= 100:
            raise OptionError(f"min_sqnr {self.min_sqnr} is outside (0, 100] dB; 30 is usual")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise OptionError(f"max_drop {self.max_drop} is outside [0, 100] points; 0.5 is usual")
        if self.samples < 1 or self.give_back < 0:
            raise OptionError("samples must be 1 or more, give_back 0 or more")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, ranges are known, and nothing is quantized yet."""
        if ctx.reader is None:
            raise DataError("keep-float needs data; give some hundred images or arrays (--calib)")
        if not ctx.ranges:
            raise ModelError("no ranges are known; run calibrate first")
        if ctx.quantization:
            raise ModelError("the weights are quantized already; run keep-float before that")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Measure, bisect, give back. Raises CheckError if the goal needs all layers float."""
        assert ctx.reader is not None  # see requires
        trials = Trials(model, few(ctx.reader, self.samples, ctx.seed))
        search = _Search(self, model, ctx, trials)
        quantized = search.reading([])
        stats: dict[str, Any] = {
            "goal": self.min_sqnr if self.min_sqnr is not None else self.max_drop,
            "unit": "dB" if self.min_sqnr is not None else f"points of {search.what}",
            "samples": trials.samples,
            "quantized": _plain(quantized),
            "reached": _plain(quantized),
            "kept": {},
            "float_share": 0.0,
            "warnings": self._coarse(trials.samples),
        }
        if not search.reached(quantized):
            chosen, reached = search.find(self._sensitivity(model, ctx))
            reasons = {name: _reason(unit) for unit in chosen for name in unit.nodes}
            ctx.kept_float = make_plan(model, ctx.target, ctx.kept_float | reasons).kept
            ctx.ranges = search.ranges
            stats["kept"] = {unit.name: _reason(unit) for unit in chosen}
            stats["reached"] = _plain(reached)
            stats["float_share"] = round(search.float_share(chosen), 6)
        stats["trials"] = search.count
        return PassResult(modified=False, stats=stats)

    def _sensitivity(self, model: Model, ctx: PassContext) -> Sensitivity:
        assert ctx.reader is not None  # see requires
        return quantization_sensitivity(
            model,
            ctx.reader,
            ctx.target,
            ctx.ranges,
            kept_float=ctx.kept_float,
            per_channel=self.per_channel,
            samples=min(_RANKED, self.samples),
            seed=ctx.seed,
            progress=ctx.progress,
        )

    def _coarse(self, samples: int) -> list[str]:
        if self.max_drop is None or self.max_drop * samples >= 100:
            return []
        return [
            f"max_drop {self.max_drop} is less than one of {samples} samples: none may change; "
            "more samples would tell finer"
        ]


def _reason(unit: UnitSensitivity) -> str:
    return f"kept float: quantized alone it leaves {unit.sqnr_db:.1f} dB at the outputs"


def _plain(reading: float) -> float | None:
    return round(reading, 4) if math.isfinite(reading) else None  # JSON has no infinity


@dataclass
class _Search:
    """The search for one model.

    Attributes:
        ranges: those of ctx, and for tensors that take over another's range while all is quantized
            the one that they have then: with some layers float they may need one of their own.
        count: trials done.
    """

    step: KeepFloat
    model: Model
    ctx: PassContext
    trials: Trials
    ranges: dict[str, Range] = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        plan = make_plan(self.model, self.ctx.target, self.ctx.kept_float)
        self.ranges = _all_ranges(self.model, plan, self.ctx)
        found = layers(self.model)
        self._kinds = plan.nodes
        self._macs = {x.name: x.baseline_mac or 0 for x in found if x.name in plan.nodes}

    @property
    def what(self) -> str:
        """What points are of."""
        return "top-1 accuracy" if self.trials.labelled else "top-1 agreement"

    def reading(self, kept: Sequence[UnitSensitivity]) -> float:
        """What the quantized model has with these units float."""
        self.count += 1
        names = {name: "" for unit in kept for name in unit.nodes}
        reasons = self.ctx.kept_float | dict.fromkeys(names, "kept float")
        ctx = replace(
            PassContext(target=self.ctx.target, ranges=self.ranges, kept_float=reasons),
            masks=dict(self.ctx.masks),
        )
        trial = self.model.clone()
        QuantizeWeights(self.step.per_channel).run(trial, ctx)
        InsertQdq().run(trial, ctx)
        if self.step.max_drop is not None:
            return self.trials.drop(trial)
        return self.trials.sqnr_db(trial)

    def reached(self, reading: float) -> bool:
        """Whether that is as good as the goal."""
        if self.step.max_drop is not None:
            return reading <= self.step.max_drop
        return self.step.min_sqnr is not None and reading >= self.step.min_sqnr

    def find(self, found: Sensitivity) -> tuple[list[UnitSensitivity], float]:
        """The set, and what is reached with it."""
        items, noise = self._noise(found)
        total = sum(item.own for item in items) + sum(noise.values())
        best: tuple[list[UnitSensitivity], float] | None = None
        short: tuple[int, float] | None = None  # of the dearest set that does not reach the goal
        tried: dict[frozenset[str], bool] = {}

        def try_budget(budget: float) -> bool:
            nonlocal best, short
            quantized = quantized_within(items, noise, budget)
            kept = [unit for unit in found.units if unit.name not in quantized]
            key = frozenset(quantized)
            if key not in tried:
                reading = self.reading(kept)
                tried[key] = self.reached(reading)
                if not tried[key]:
                    short = max(short or (0, 0.0), (len(kept), reading))
                elif best is None or self._total(kept) <= self._total(best[0]):
                    best = kept, reading
            return tried[key]

        low, high = 0.0, total
        budget = total / 10 if self.step.min_sqnr is None else noise_power(self.step.min_sqnr)
        while low == 0 and budget > total * _LEAST:
            if try_budget(min(budget, total)):
                low = budget
            else:
                high, budget = budget, budget / _WIDER
        while high == total and low * _WIDER < total:
            if try_budget(low * _WIDER):
                low *= _WIDER
            else:
                high = low * _WIDER
        for _ in range(_BISECTIONS if low else 0):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if try_budget(middle) else (low, middle)
        if best is None or self.float_share(best[0]) == 1:
            raise CheckError(self._unreachable(len(found.units), short))
        return self._given_back(*best, items, noise)

    def _unreachable(self, units: int, short: tuple[int, float] | None) -> str:
        what = f"with {short[0]} of {units} units float it is {short[1]:.2f}; " if short else ""
        return (
            f"the goal {self._goal()} is reached only with all layers float; {what}ask for less, or "
            "look for the layer where the error jumps (onnxdrp compare --layers)"
        )

    def _noise(self, found: Sensitivity) -> tuple[list[Item], dict[str, float]]:
        """The units, and the noise of each tensor that they touch.

        A tensor that no unit gives is measured in no row; what a reader's whole row has more than
        its parts is put down to it.
        """
        noise = {unit.output: noise_power(unit.output_db) for unit in found.units}
        items = []
        for unit in found.units:
            inputs = tuple(self._source(name) for name in unit.inputs)
            own = noise_power(unit.weights_db)
            known = own + sum(noise.get(t, 0.0) for t in {*inputs, unit.output})
            unknown = [t for t in inputs if t not in noise]
            for tensor in unknown:
                noise[tensor] = max(0.0, unit.damage - known) / len(unknown)
            items.append(Item(unit.name, self.cost(unit), own, (*inputs, unit.output)))
        return items, noise

    def _source(self, name: str) -> str:
        """The tensor whose values these are: nodes between that keep parameters round nothing."""
        tensor = self.model.tensor(name)
        while tensor.inputs and self._kinds.get(tensor.inputs[0].name) == "same":
            tensor = tensor.inputs[0].inputs[0]
        return str(tensor.name)

    def _total(self, kept: Sequence[UnitSensitivity]) -> tuple[float, int]:
        return sum(unit.macs or 0 for unit in kept), len(kept)

    def float_share(self, kept: Sequence[UnitSensitivity]) -> float:
        """The share of multiply-adds left float, of those that would be quantized."""
        names = {name for unit in kept for name in unit.nodes}
        plan = make_plan(
            self.model, self.ctx.target, self.ctx.kept_float | dict.fromkeys(names, "kept float")
        )
        total = sum(self._macs.values())
        left = sum(mac for name, mac in self._macs.items() if name not in plan.nodes)
        return left / total if total else 0.0

    def _goal(self) -> str:
        if self.step.max_drop is not None:
            return f"of at most {self.step.max_drop} points of {self.what} lost"
        return f"of {self.step.min_sqnr} dB"

    def cost(self, unit: UnitSensitivity) -> float:
        """Multiply-adds; of an elementwise operator, the values it gives."""
        if unit.macs:
            return float(unit.macs)
        shape = self.model.tensor(unit.output).shape or ()
        return float(math.prod(d for d in shape if isinstance(d, int)) or 1)

    def _given_back(
        self,
        chosen: list[UnitSensitivity],
        best: float,
        items: Sequence[Item],
        noise: Mapping[str, float],
    ) -> tuple[list[UnitSensitivity], float]:
        """Quantize again what is not needed, most cost for least noise first."""
        kept = {unit.name for unit in chosen}
        rounded = {t for item in items if item.name not in kept for t in item.tensors}
        order = sorted(
            (item for item in items if item.name in kept),
            key=lambda item: -item.cost / max(noise_with(item, noise, rounded), 1e-30),
        )
        for item in order[: self.step.give_back]:
            fewer = [unit for unit in chosen if unit.name != item.name]
            reading = self.reading(fewer)
            if self.reached(reading):
                chosen, best = fewer, reading
        return chosen, best


def _all_ranges(model: Model, plan: Plan, ctx: PassContext) -> dict[str, Range]:
    """The range of every tensor of a plan, measured or the one that its parameters stand for."""
    target: Target = ctx.target
    dtype, symmetric = target.activation_dtype, target.activation_symmetric
    ends = np.array(qlimits(dtype, symmetric=symmetric), np.float64)
    found = dict(ctx.ranges)
    for name, params in activation_parameters(model, plan, ctx.ranges, target).items():
        if isinstance(name, str) and name not in found:
            low, high = (ends - float(params.zero_point)) * float(params.scale)
            found[name] = Range(float(low), float(high))
    return found
