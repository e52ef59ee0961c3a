"""Share out what is pruned among the layers so that the outputs err least, from data.

SelectLayers gives all layers the rate that is asked for as a whole; here those that bear more get
more, while the share of weights, or of multiply-adds, that is pruned in all stays what it was:

    min sum_l d_l(r_l)      d_l(r) what pruning layer l alone does to the model's outputs

(onnxdrp.passes.lone_layers), by dynamic programming (onnxdrp.allocation). Errors of several layers
nearly add up while they are small. Rates are whole numbers of the pattern's units. No label is
read, and no weight is touched. The data is read once by the float model; then some samples run
twice through half of it, on average, for each layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxdrp.allocation import Curve, allocate
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.model import Model
from onnxdrp.passes.lone_layers import Damage, LoneLayers, units
from onnxdrp.patterns import Pattern, parse_pattern, prune_count
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.pruning_curves import interpolated
from onnxdrp.selectors import check_selector, select

__all__ = ["AllocateRates"]

_OPTIONS = 96  # rates of a layer that are compared


@dataclass(frozen=True)
class AllocateRates(Pass):
    """Give each layer a rate of its own.

    Stats: `rates` {weight: rate}; `curves` {weight: [rate, error of the outputs] of each rate
    looked at}; `error`, the sum of these `before` and `after`; `kept`, weights whose rate was not
    to change; `skipped` {node: why it keeps its rate}.

    Attributes:
        of: what is shared out: the "weights" that are pruned, or the "macs" that this saves.
        pattern: as PruneBlocks has it; default: the target's.
        keep: selectors of layers that keep the rate they have.
        highest: rate of a layer, unless it has a higher one.
        samples: of the calibration data on which outputs are compared, spread over it.
        rows: of a layer's input that are looked at, if there are more: output positions of samples.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in four copies, keeps its
            rate.
    """

    name: ClassVar[str] = "allocate-rates"
    keeps_results: ClassVar[bool] = True

    of: Literal["weights", "macs"] = "weights"
    pattern: str | None = None
    keep: tuple[str, ...] = ()
    highest: float = 0.95
    samples: int = 32
    rows: int = 10_000
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if self.of not in ("weights", "macs"):
            raise OptionError(f"of {self.of!r}: there are weights and macs")
        if not 0 < self.highest < 1:
            raise OptionError(f"highest {self.highest} is outside (0, 1); 0.95 is usual")
        for number in ("samples", "rows", "memory_limit", "moments_limit"):
            if getattr(self, number) < 1:
                raise OptionError(f"{number} {getattr(self, number)}: give 1 or more")
        for selector in self.keep:
            check_selector(selector)
        if self.pattern is not None:
            _check_free(parse_pattern(self.pattern))

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Layers are chosen and none is pruned, the pattern leaves rates open, there is data."""
        if ctx.reader is None:
            raise DataError("rates are shared out by data; give some hundred images (--calib)")
        if not ctx.rates:
            raise ModelError("no layer is chosen yet; run select-layers first")
        if ctx.masks:
            raise ModelError("weights are pruned already; run allocate-rates before that")
        users = by_weight(layers(model))
        for weight in ctx.rates:
            if weight not in users:
                raise ModelError(f"no layer has the weight {weight!r} any more; select layers last")
        _check_free(parse_pattern(self.pattern or ctx.target.pattern))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError where multiply-adds are asked for and not known, DataError for NaN."""
        pattern = parse_pattern(self.pattern or ctx.target.pattern)
        found = layers(model, pattern.block)
        users, kept = by_weight(found), self._kept(found, ctx)
        costs = {weight: self._cost(users[weight]) for weight in ctx.rates.keys() - kept}
        lone = LoneLayers(
            model,
            ctx,
            pattern,
            users,
            highest=self.highest,
            rows=self.rows,
            memory_limit=self.memory_limit,
            moments_limit=self.moments_limit,
            kept=kept,
        )
        damages = lone.damages(self.samples)
        curves = [
            _curve(damage, units(users[weight][0], pattern), costs[weight])
            for weight, damage in damages.items()
        ]
        before = [
            prune_count(ctx.rates[weight], curve.units)
            for weight, curve in zip(damages, curves, strict=True)
        ]
        budget = math.fsum(c.kept_cost(p) for c, p in zip(curves, before, strict=True))
        after = allocate(curves, budget)
        ctx.rates = ctx.rates | {
            weight: pruned / curve.units
            for weight, curve, pruned in zip(damages, curves, after, strict=True)
        }
        stats = {
            "rates": dict(ctx.rates),
            "curves": {
                weight: [list(point) for point in zip(d.rates, d.errors, strict=True)]
                for weight, d in damages.items()
            },
            "error": {"before": _summed(curves, before), "after": _summed(curves, after)},
            "kept": sorted(kept),
            "skipped": lone.skipped,
        }
        return PassResult(modified=False, stats=stats)

    def _kept(self, found: Sequence[Layer], ctx: PassContext) -> set[str]:
        """The weights whose rates are not to change."""
        names = {u.name: tuple(filter(None, (u.name, u.weight))) for u in found}
        weights = {u.name: u.weight for u in found}
        hit = {weights[n] for selector in self.keep for n in select(selector, names, "layer")}
        return {weight for weight in hit if weight is not None and weight in ctx.rates}

    def _cost(self, users: Sequence[Layer]) -> int:
        """Of all of a weight."""
        if self.of == "weights":
            return users[0].weights
        total = 0
        for layer in users:
            if layer.baseline_mac is None:
                raise ModelError(
                    f"the multiply-adds of {layer.name!r} are not known: {layer.why_no_mac}; fix "
                    "the shapes of the inputs, or share out weights"
                )
            total += layer.baseline_mac
        return total


def _check_free(pattern: Pattern) -> None:
    if pattern.fixed_rate is not None:
        raise OptionError(
            f"{pattern.name} is a rate of {float(pattern.fixed_rate):g} in every layer; leave "
            "allocate-rates out, or take the pattern nm"
        )


def _curve(damage: Damage, count: int, cost: int) -> Curve:
    """The rates that a weight of so many units may have."""
    known = np.array(damage.rates) * count
    options = np.linspace(0, known[-1], min(round(known[-1]), _OPTIONS) + 1)
    options = np.unique(np.append(options, known).round().astype(np.int64))
    errors = interpolated(options / count, damage.rates, np.asarray(damage.errors))
    return Curve(count, cost / count, options, errors)


def _summed(curves: Sequence[Curve], pruned: Sequence[int]) -> float:
    return math.fsum(curve.error(p) for curve, p in zip(curves, pruned, strict=True))
