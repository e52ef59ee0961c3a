"""Zero the weights of smallest magnitude, in the units of a sparsity pattern.

Fills ctx.masks {weight: what stays}. What stays keeps its bits; what goes becomes +0, or the zero
point where integers are stored. Layers and rates are those of SelectLayers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from onnxdrp.errors import CheckError, ModelError, OptionError
from onnxdrp.geometry import WeightGeometry, magnitude, to_slabs
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.model import Model
from onnxdrp.passes.select_layers import SelectLayers
from onnxdrp.patterns import Pattern, Unstructured, exact_rate, parse_pattern
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.pruned import PrunedWeight, expected_count, warnings_of
from onnxdrp.stored import Stored

__all__ = ["PruneBlocks"]


@dataclass(frozen=True)
class PruneBlocks(Pass):
    """Prune by magnitude.

    Attributes:
        pattern: block, flex-nm, nm, nm:N:M, row or unstructured; default: the target's.
        rate: of every layer that may be pruned by default; default: what SelectLayers chose before,
            or if it has not run, its defaults.
    """

    name: ClassVar[str] = "prune-blocks"

    pattern: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        SelectLayers(rate=self.rate, pattern=self.pattern)  # refuses what is not possible

    def requires(self, model: Model, ctx: PassContext) -> None:
        """The rates in the context are for weights that the model has, and that fit the pattern."""
        if ctx.rates:
            _pruned_layers(model, ctx, self._pattern(ctx))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """One weight at a time. Raises ModelError, naming the weight, if one is not finite."""
        pattern = self._pattern(ctx)
        self._select(model, ctx)
        ctx.dense = ctx.dense or model.clone()
        pruned: dict[str, PrunedWeight] = {}
        changed = 0
        for weight, users in _pruned_layers(model, ctx, pattern).items():
            stored, geometry = _whole(users[0])
            result = _prune(model, stored, geometry, pattern, ctx.rates[weight])
            changed += stored.apply(model, result.mask)
            ctx.masks[weight] = result.mask
            pruned |= dict.fromkeys((layer.name for layer in users), result)
        return PassResult(modified=changed > 0, stats=_stats(pruned, pattern, ctx))

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """Every mask has the pattern and the exact count, and what it prunes is zero."""
        pattern = self._pattern(ctx)
        for weight, users in _pruned_layers(model, ctx, pattern).items():
            stored, geometry = _whole(users[0])
            mask, rate = ctx.masks[weight], ctx.rates[weight]
            if mask.count != (expected_count(geometry, pattern, rate) or mask.count):
                raise CheckError(f"weight {weight!r} keeps {mask.count}, not what {rate} says")
            if not pattern.valid(to_slabs(mask.keep, geometry)):
                raise CheckError(f"the mask of weight {weight!r} is not {pattern.name}")
            if not stored.holds(model, mask):
                raise CheckError(f"weight {weight!r} is not zero everywhere its mask prunes")

    def _pattern(self, ctx: PassContext) -> Pattern:
        return parse_pattern(self.pattern or ctx.target.pattern)

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


def _prune(
    model: Model, stored: Stored, geometry: WeightGeometry, pattern: Pattern, rate: float
) -> PrunedWeight:
    scores = magnitude(stored.values(model), geometry)
    try:
        return PrunedWeight.choose(scores, geometry, pattern, rate)
    except ModelError as e:
        raise ModelError(f"weight {stored.name!r}: {e}") from e


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
