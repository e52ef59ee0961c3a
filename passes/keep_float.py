"""Leave the cheapest set of layers float with which the quantized model reaches a goal.

    1. Sensitivity (onnxdrp.unit_sensitivity) says what weights and output of each unit alone do to
       the outputs of the model.
    2. Noise nearly adds up, so for a budget of noise it is known which units to quantize that most
       is saved (onnxdrp.noise_budget); the others stay float. Cost is multiply-adds; of an
       elementwise operator, the values it gives.
    3. The largest budget with which the goal is reached is found by bisection.
    4. Then units are given back, those of most cost per noise first, while the goal is reached.

Each trial quantizes the whole model, its weights to the nearest, and runs it on the same samples;
what RoundWeights and CorrectBias gain comes on top. Decibels are against the model as it comes;
points against the model before anything was pruned or removed (ctx.dense): a budget of accuracy is
one of the whole. Elementwise operators between float layers
follow by themselves (onnxdrp.plan). Fills ctx.kept_float and ctx.sensitivity; the model is not
touched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from onnxdrp.errors import CheckError, OptionError
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.noise_budget import BISECTIONS, NoiseModel, largest_budget
from onnxdrp.parameters import activation_parameters
from onnxdrp.passes.insert_qdq import InsertQdq
from onnxdrp.passes.measure_sensitivity import MeasureSensitivity, require_ranges
from onnxdrp.passes.quantize_weights import QuantizeWeights
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Plan, make_plan
from onnxdrp.quantization import Range, qlimits
from onnxdrp.targets import Target
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import (
    Sensitivity,
    UnitSensitivity,
    few,
    noise_power,
)

__all__ = ["KeepFloat"]

_RANKED = 16  # samples that units are ranked by; trials decide, and have more
_DECIBELS, _POINTS = 64, 256  # samples of trials


@dataclass(frozen=True)
class KeepFloat(Pass):
    """Leave layers float until the quantized model reaches `min_sqnr`, or keeps within `max_drop`.

    Stats: `goal`, `unit`; `quantized`, what the model has with nothing more left float; `reached`;
    `kept` {node: why}; `float_share`, of the multiply-adds that would be quantized; `trials`;
    `samples`; `interval`, of points lost, 95 %; `pruned`, points lost before any quantization.

    Attributes:
        min_sqnr: dB that the worst output must have against float.
        max_drop: points of top-1 that may be lost: of accuracy where the data has labels, else of
            agreement with float; with what pruning and the removal of channels have lost.
        samples: of the calibration data that trials run on, spread over it; all are held in memory.
            None: 64 for decibels, 256 for points, which need more.
        give_back: most trials of step 4.
        per_channel: as QuantizeWeights will have it.
    """

    name: ClassVar[str] = "keep-float"

    min_sqnr: float | None = None
    max_drop: float | None = None
    samples: int | None = None
    give_back: int = 16
    per_channel: bool | None = None

    def __post_init__(self) -> None:
        if (self.min_sqnr is None) == (self.max_drop is None):
            raise OptionError("keep-float needs a goal: give either min_sqnr or max_drop")
        if self.min_sqnr is not None and not 0 < self.min_sqnr <= 100:
            raise OptionError(f"min_sqnr {self.min_sqnr} is outside (0, 100] dB; 30 is usual")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise OptionError(f"max_drop {self.max_drop} is outside [0, 100] points; 0.5 is usual")
        if (self.samples is not None and self.samples < 1) or self.give_back < 0:
            raise OptionError("samples must be 1 or more, give_back 0 or more")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, ranges are known, and nothing is quantized yet."""
        require_ranges(self, ctx)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Measure, bisect, give back. Raises CheckError if the goal needs all layers float."""
        assert ctx.reader is not None  # see requires
        samples = self.samples or (_POINTS if self.min_sqnr is None else _DECIBELS)
        before = model if self.max_drop is None or ctx.dense is None else ctx.dense
        trials = Trials(before, few(ctx.reader, samples, ctx.seed))
        pruned = 0.0 if before is model else self._lost_before(trials, model)
        search = _Search(self, model, ctx, trials)
        quantized = reached = search.reading([])
        chosen: list[UnitSensitivity] = []
        stats: dict[str, Any] = {
            "goal": self.min_sqnr if self.min_sqnr is not None else self.max_drop,
            "unit": "dB" if self.min_sqnr is not None else f"points of {search.what}",
            "samples": trials.samples,
            "quantized": _plain(quantized),
            "reached": _plain(quantized),
            "kept": {},
            "float_share": 0.0,
            "warnings": [],
        }
        if not search.reached(quantized):
            samples = min(_RANKED, self.samples or _RANKED)
            MeasureSensitivity(samples, self.per_channel).run(model, ctx)
            assert ctx.sensitivity is not None  # it has measured it
            chosen, reached = search.find(ctx.sensitivity)
            stats["kept"] = {unit.name: _reason(unit) for unit in chosen}
            stats["reached"] = _plain(reached)
            stats["float_share"] = round(search.float_share(chosen), 6)
            ctx.kept_float, ctx.ranges = search.plan(chosen).kept, search.ranges
        stats["trials"] = search.count
        if self.max_drop is not None:
            stats["pruned"] = pruned
            interval = search.intervals[len(chosen), reached]
            stats["interval"] = list(interval)
            stats["warnings"] += self._coarse(trials.samples, *interval)
        return PassResult(modified=False, stats=stats)

    def _lost_before(self, trials: Trials, model: Model) -> float:
        """Points that the model has lost, all of it float."""
        lost, *_ = trials.drop(model)
        if self.max_drop is not None and lost > self.max_drop:
            raise CheckError(
                f"with all layers float {lost:.2f} points are lost by what was pruned or removed, "
                f"and {self.max_drop} may be in all; prune less, or allow more"
            )
        return lost

    def _coarse(self, samples: int, low: float, high: float) -> list[str]:
        """A warning where so few samples cannot tell that the goal is reached."""
        if self.max_drop is None or high <= self.max_drop:
            return []
        told = f"the 95 % interval of what is lost on {samples} samples, {low:.2f} to {high:.2f}"
        return [f"{told} points, reaches beyond {self.max_drop}; more samples would tell finer"]


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
        about: how many there will be, as far as known.
        intervals: {(units float, points lost): 95 % interval}, where the goal is in points.
    """

    step: KeepFloat
    model: Model
    ctx: PassContext
    trials: Trials
    ranges: dict[str, Range] = field(init=False)
    count: int = 0
    about: int = 1
    intervals: dict[tuple[int, float], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.plan([])
        self.ranges = _all_ranges(self.model, plan, self.ctx)
        found = layers(self.model)
        self._kinds = plan.nodes
        self._macs = {x.name: x.baseline_mac or 0 for x in found if x.name in plan.nodes}

    @property
    def what(self) -> str:
        """What points are of."""
        return "top-1 accuracy" if self.trials.labelled else "top-1 agreement"

    def plan(self, kept: Sequence[UnitSensitivity]) -> Plan:
        """The plan with these units float."""
        reasons = {name: _reason(unit) for unit in kept for name in unit.nodes}
        return make_plan(self.model, self.ctx.target, self.ctx.kept_float | reasons)

    def reading(self, kept: Sequence[UnitSensitivity]) -> float:
        """What the quantized model has with these units float."""
        self.count += 1
        if self.ctx.progress is not None:
            self.ctx.progress(self.count, max(self.about, self.count))
        ctx = PassContext(
            target=self.ctx.target,
            ranges=self.ranges,
            kept_float=self.plan(kept).kept,
            masks=dict(self.ctx.masks),
        )
        trial = self.model.clone()
        QuantizeWeights(self.step.per_channel).run(trial, ctx)
        InsertQdq().run(trial, ctx)
        if self.step.max_drop is not None:
            found = self.trials.drop(trial)
            self.intervals[len(kept), found[0]] = found[1:]
            return found[0]
        return self.trials.sqnr_db(trial)

    def reached(self, reading: float) -> bool:
        """Whether that is as good as the goal."""
        if self.step.max_drop is not None:
            return reading <= self.step.max_drop
        return self.step.min_sqnr is not None and reading >= self.step.min_sqnr

    def find(self, found: Sensitivity) -> tuple[list[UnitSensitivity], float]:
        """The set, and what is reached with it."""
        known = NoiseModel.of(self.model, found.units, self._kinds)
        reached: list[tuple[list[UnitSensitivity], float]] = []
        missed: list[tuple[int, float]] = []
        tried: dict[frozenset[str], bool] = {}

        def reaches(budget: float) -> bool:
            quantized = frozenset(known.quantized_within(budget))
            if quantized not in tried:
                kept = [unit for unit in found.units if unit.name not in quantized]
                reading = self.reading(kept)
                tried[quantized] = self.reached(reading)
                if tried[quantized]:
                    reached.append((kept, reading))
                else:
                    missed.append((len(kept), reading))
            return tried[quantized]

        self.about = self.count + BISECTIONS + min(self.step.give_back, len(found.units))
        goal = self.step.min_sqnr
        start = known.total / 10 if goal is None else noise_power(goal)
        largest_budget(reaches, start, known.total)
        best = min(reached, key=lambda found: self._total(found[0]), default=None)
        if best is None or self.float_share(best[0]) == 1:
            raise CheckError(self._unreachable(len(found.units), max(missed, default=None)))
        return self._given_back(*best, known)

    def _unreachable(self, units: int, best: tuple[int, float] | None) -> str:
        what = f"with {best[0]} of {units} units float it is {best[1]:.2f}; " if best else ""
        return (
            f"the goal {self._goal()} is reached only with all layers float; {what}"
            "ask for less, or look where the error jumps (onnxdrp compare --layers)"
        )

    def _total(self, kept: Sequence[UnitSensitivity]) -> tuple[float, int]:
        return sum(unit.macs or 0 for unit in kept), len(kept)

    def float_share(self, kept: Sequence[UnitSensitivity]) -> float:
        """The share of multiply-adds left float, of those that would be quantized."""
        quantized, total = self.plan(kept).nodes, sum(self._macs.values())
        left = sum(mac for name, mac in self._macs.items() if name not in quantized)
        return left / total if total else 0.0

    def _goal(self) -> str:
        if self.step.max_drop is not None:
            return f"of at most {self.step.max_drop} points of {self.what} lost"
        return f"of {self.step.min_sqnr} dB"

    def _given_back(
        self, chosen: list[UnitSensitivity], best: float, known: NoiseModel
    ) -> tuple[list[UnitSensitivity], float]:
        """Quantize again what is not needed, most cost for least noise first."""
        dearest = known.dearest({unit.name for unit in chosen})[: self.step.give_back]
        self.about = self.count + len(dearest)
        for name in dearest:
            fewer = [unit for unit in chosen if unit.name != name]
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
