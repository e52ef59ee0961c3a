"""Zero the weights that matter least, in the units of a sparsity pattern.

Fills ctx.masks {weight: what stays}. What stays keeps its bits; what goes becomes +0, or the zero
point where integers are stored. Layers and rates are those of SelectLayers.

What matters least is what is smallest, or what costs the outputs of its layer least on the data
(onnxdrp.scores): all as the model stands before this pass. Of k steps the i-th prunes each weight
with the rate

    1 - (1 - rate)^(i/k)

so each step the same share of what is left. What was pruned before stays pruned.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy.typing as npt

from onnxdrp.errors import CheckError, DataError, ModelError, OptionError
from onnxdrp.geometry import WeightGeometry, to_slabs
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, Moments, too_large
from onnxdrp.passes.prunable import Prunable, deviations
from onnxdrp.passes.select_layers import SelectLayers
from onnxdrp.patterns import Pattern, Unstructured, exact_rate, parse_pattern, without_rate
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.pruned import PrunedWeight, expected_count, warnings_of
from onnxdrp.scores import Score, affordable, damped
from onnxdrp.segments import default_cuts
from onnxdrp.stored import Stored
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding
from onnxdrp.walk import walk

__all__ = ["PruneBlocks"]

Array = npt.NDArray[Any]

_COPIES = 5  # of X'X, at most at a time


@dataclass(frozen=True)
class PruneBlocks(Pass):
    """Prune by magnitude, or by what the data say.

    Stats: `by_magnitude` says which weights were ranked so although another score was asked for,
    and why; `by_activation` which are too large for the second-order score.

    Attributes:
        pattern: block, flex-nm, nm, nm:N:M, row or unstructured; default: the target's.
        rate: of every layer that may be pruned by default; default: what SelectLayers chose before,
            or if it has not run, its defaults.
        score: "magnitude", which needs no data; "activation", magnitude times the deviation of what
            it multiplies; "second-order", what the outputs lose when the others are re-fitted.
        step: of `steps`; for others to mend the model in between.
        steps: in which the rate is reached.
        positions: output positions of each sample that are looked at.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in five copies, is ranked by
            activation instead of second-order; so is one that would take more than some minutes.
    """

    name: ClassVar[str] = "prune-blocks"

    pattern: str | None = None
    rate: float | None = None
    score: Score = "magnitude"
    step: int = 1
    steps: int = 1
    positions: int = 64
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 30

    def __post_init__(self) -> None:
        SelectLayers(rate=self.rate, pattern=self.pattern)  # refuses what is not possible
        if self.score not in ("magnitude", "activation", "second-order"):
            raise OptionError(
                f"score {self.score!r}: there are magnitude, activation and second-order"
            )
        if not 1 <= self.step <= self.steps:
            raise OptionError(f"step {self.step} of {self.steps}: give a step from 1 to steps")
        if self.positions < 1:
            raise OptionError(f"{self.positions} positions of a sample: give 1 or more")
        for limit in ("memory_limit", "moments_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """The rates in the context are for weights that the model has, and that fit the pattern.

        There is data, where the score needs it.
        """
        if self.score != "magnitude" and ctx.reader is None:
            raise DataError(
                f"pruning by {self.score} needs data; "
                "give some hundred images or arrays (--calib), or take the score magnitude"
            )
        if ctx.rates:
            _pruned_layers(model, ctx, self._pattern(ctx))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Choose all masks, then apply them. Raises ModelError, naming a weight not finite."""
        pattern = self._pattern(ctx)
        self._select(model, ctx)
        ctx.dense = ctx.dense or model.clone()
        jobs = {
            weight: Prunable(*_whole(users[0]), users, pattern, self._rate(ctx, weight), ctx.masks)
            for weight, users in _pruned_layers(model, ctx, pattern).items()
        }
        found, notes = self._by_data(model, ctx, jobs)
        pruned: dict[str, PrunedWeight] = {}
        changed = 0
        for weight, job in jobs.items():
            result = found[weight] if weight in found else job.by_magnitude(model)
            changed += job.stored.apply(model, result.mask)
            ctx.masks[weight] = result.mask
            pruned |= dict.fromkeys((layer.name for layer in job.users), result)
        stats = _stats(pruned, pattern, ctx)
        stats["warnings"] += notes.warnings()
        return PassResult(modified=changed > 0, stats=stats | {"score": self.score} | vars(notes))

    def _by_data(
        self, model: Model, ctx: PassContext, jobs: Mapping[str, Prunable]
    ) -> tuple[dict[str, PrunedWeight], "_Notes"]:
        """The weights that data can rank, and notes on the others; one walk, one layer at a time.

        The model stays as it is, for what later layers read must not depend on earlier masks.
        """
        notes, found = _Notes(), dict[str, PrunedWeight]()
        if self.score == "magnitude":
            return found, notes
        assert ctx.reader is not None  # `requires` has seen it
        at = _places(model, jobs, notes)
        missing = Counter(name for uses in at.values() for name, _ in uses)
        sums: dict[str, tuple[int, Array]] = {}
        cuts = [cut for cut in default_cuts(model) if cut[0] in at]
        if not cuts:
            return found, notes
        stops = walk(
            model,
            ctx.reader,
            cuts,
            memory_limit=self.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        for stop in stops:
            (tensor,) = stop.cut
            taps = {
                i: Tap(tensor, self._observer(name, way, ctx, notes))
                for i, (name, way) in enumerate(at[tensor])
            }
            seen = stop.observe(taps)
            for i, (name, way) in enumerate(at[tensor]):
                count, squares = deviations(seen.pop(i), way)
                if name in sums:
                    count, squares = sums[name][0] + count, sums[name][1] + squares
                sums[name] = count, squares
                missing[name] -= 1
                if not missing[name]:
                    count, squares = sums.pop(name)
                    found[name] = jobs[name].by_data(model, way, damped(squares / max(count, 1)))
        return found, notes

    def _observer(
        self, name: str, way: Unfolding, ctx: PassContext, notes: "_Notes"
    ) -> Moments | ChannelMoments:
        """Of the moments that the score of a weight needs."""
        if self.score == "second-order":
            why = too_large(way, self.moments_limit, _COPIES)
            if not why and not affordable(way.groups, way.outputs, way.columns):
                why = f"{way.outputs} rows of {way.columns} weights take too long otherwise"
            if not why:
                return Moments(way, self.positions, ctx.seed)
            notes.by_activation[name] = why
        return ChannelMoments(way.data_axis)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """Every mask has the pattern and the exact count, and what it prunes is zero."""
        pattern = self._pattern(ctx)
        for weight, users in _pruned_layers(model, ctx, pattern).items():
            stored, geometry = _whole(users[0])
            mask, rate = ctx.masks[weight], self._rate(ctx, weight)
            if mask.count != (expected_count(geometry, pattern, rate) or mask.count):
                raise CheckError(f"weight {weight!r} keeps {mask.count}, not what {rate} says")
            if not pattern.valid(to_slabs(mask.keep, geometry)):
                raise CheckError(f"the mask of weight {weight!r} is not {pattern.name}")
            if not stored.holds(model, mask):
                raise CheckError(f"weight {weight!r} is not zero everywhere its mask prunes")

    def _pattern(self, ctx: PassContext) -> Pattern:
        pattern = parse_pattern(self.pattern or ctx.target.pattern)
        return pattern if self.step == self.steps else without_rate(pattern)

    def _rate(self, ctx: PassContext, weight: str) -> float:
        """The rate of this step."""
        rate = ctx.rates[weight]
        return rate if self.step == self.steps else 1 - (1 - rate) ** (self.step / self.steps)

    def _select(self, model: Model, ctx: PassContext) -> None:
        """Let SelectLayers choose where it has not, or where this pass has a rate of its own."""
        before = (ctx.rates, ctx.refused)
        if ctx.rates and self.rate is None:
            return
        SelectLayers(rate=self.rate, pattern=self.pattern).run(model, ctx)
        if before[0] and before[0] != ctx.rates:
            ctx.rates, ctx.refused = before
            raise OptionError(
                f"rate {self.rate} conflicts with the rates that are chosen already; "
                "give it to select-layers, or leave it out there"
            )


@dataclass
class _Notes:
    """Which weights were not ranked as asked for, and why."""

    by_magnitude: dict[str, str] = field(default_factory=dict)
    by_activation: dict[str, str] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Of what the user may want to change."""
        large = self.by_activation.items()
        return [f"weight {name!r} is ranked by activation: {why}" for name, why in large]


def _places(
    model: Model, jobs: Mapping[str, Prunable], notes: _Notes
) -> dict[str, list[tuple[str, Unfolding]]]:
    """{tensor: weights that multiply it, and how}; and notes on those that data cannot rank."""
    varying = {cut[0] for cut in default_cuts(model)}
    nodes = {node.name: node for node in model.nodes()}
    at: dict[str, list[tuple[str, Unfolding]]] = {}
    for name, job in jobs.items():
        users = [nodes[layer.name] for layer in job.users]
        try:
            ways = [Unfolding.of(model, node) for node in users]
        except ModelError as why:
            notes.by_magnitude[name] = str(why)
            continue
        data = [str(n.inputs[way.data].name) for n, way in zip(users, ways, strict=True)]
        if not varying.issuperset(data):
            notes.by_magnitude[name] = "its layer reads what is the same for every sample"
            continue
        for tensor, way in zip(data, ways, strict=True):
            at.setdefault(tensor, []).append((name, way))
    return at


def _pruned_layers(model: Model, ctx: PassContext, pattern: Pattern) -> dict[str, list[Layer]]:
    """{weight: its layers} of the weights that have a rate."""
    users = by_weight(layers(model, pattern.block))
    for weight in ctx.rates:
        if weight not in users:
            raise ModelError(f"no layer has the weight {weight!r} any more; run select-layers last")
        _, geometry = _whole(users[weight][0])
        if not (geometry.aligned or isinstance(pattern, Unstructured)):
            raise OptionError(
                f"weight {weight!r}: its input channels are not a multiple of {pattern.block}; "
                f"give select-layers the pattern {pattern.name} too"
            )
    return {weight: users[weight] for weight in ctx.rates}


def _whole(layer: Layer) -> tuple[Stored, WeightGeometry]:
    if layer.stored is None or layer.geometry is None:
        raise ModelError(f"{layer.name!r} cannot be pruned ({layer.barred})")
    return layer.stored, layer.geometry


def _stats(
    pruned: Mapping[str, PrunedWeight], pattern: Pattern, ctx: PassContext
) -> dict[str, Any]:
    masks = [ctx.masks[weight] for weight in ctx.rates]
    size = sum(mask.size for mask in masks)
    asked = sum(exact_rate(r) * ctx.masks[w].size for w, r in ctx.rates.items()) / Fraction(size)
    advice = ctx.target.advice(float(asked))
    return {
        "pattern": pattern.name,
        "weights": size,
        "pruned": size - sum(mask.count for mask in masks),
        "sparsity": 1 - sum(mask.count for mask in masks) / size,
        "layers": {name: figures.as_dict() for name, figures in pruned.items()},
        "warnings": [*warnings_of(pruned, pattern), *([advice] if advice else [])],
        "skipped": dict(ctx.refused),
    }
