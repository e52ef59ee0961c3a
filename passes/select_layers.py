"""Choose the layers to prune and the rate of each.

Fills ctx.rates {weight: rate} and ctx.refused {node: why not}; the model is not touched. Never
chosen: the first layers, input channels that are no multiple of the pattern's block, weights that
are computed, batched or used elsewhere. Not by default: the last layers, depthwise ones.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.model import Model
from onnxdrp.patterns import Pattern, exact_rate, parse_pattern
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.refusals import kind, refusals
from onnxdrp.selectors import check_selector, select

__all__ = ["DEFAULT_RATE", "SelectLayers"]

DEFAULT_RATE = 0.7


@dataclass(frozen=True)
class SelectLayers(Pass):
    """Choose layers and rates.

    Selectors name layers by node or weight name: exactly, by glob, or by "re:" and a regular
    expression. One that matches nothing is an error.

    Attributes:
        rate: of all layers that `rates` does not name; default 0.7, or what the pattern fixes.
        pattern: its block decides which layers fit; default: the target's.
        rates: {selector: rate}; of several that match a layer, the last one holds.
        exclude: selectors of layers that stay whole.
        prune_last: prune the last layers too.
        prune_depthwise: prune depthwise convolutions too.
    """

    name: ClassVar[str] = "select-layers"
    keeps_results: ClassVar[bool] = True

    rate: float | None = None
    pattern: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    prune_last: bool = False
    prune_depthwise: bool = False

    def __post_init__(self) -> None:
        for rate in (*self.rates.values(), *(() if self.rate is None else (self.rate,))):
            exact_rate(rate)
        for selector in (*self.rates, *self.exclude):
            check_selector(selector)
        if self.pattern is not None:
            self._check_fixed(parse_pattern(self.pattern))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if no layer is left, OptionError if a selector matches none."""
        pattern = parse_pattern(self.pattern or ctx.target.pattern)
        self._check_fixed(pattern)
        found = layers(model, pattern.block)
        refused = refusals(
            found,
            pattern,
            prune_last=self.prune_last,
            prune_depthwise=self.prune_depthwise,
            excluded=self._excluded(found),
        )
        chosen = {w: u for w, u in by_weight(found).items() if u[0].name not in refused}
        if not chosen:
            raise ModelError(_nothing(refused))
        ctx.rates = self._rates(found, chosen, pattern)
        ctx.refused = refused
        stats = {"layers": len(found) - len(refused), "rates": dict(ctx.rates), "skipped": refused}
        return PassResult(modified=False, stats=stats)

    def _check_fixed(self, pattern: Pattern) -> None:
        fixed = pattern.fixed_rate
        if fixed is None:
            return
        for rate in (*self.rates.values(), *(() if self.rate is None else (self.rate,))):
            if abs(exact_rate(rate) - fixed) > 1e-9:
                raise OptionError(
                    f"{pattern.name} is a rate of {float(fixed):g}; a rate of {rate} conflicts: "
                    "leave the rate out, or take the pattern nm"
                )

    def _excluded(self, found: list[Layer]) -> dict[str, str]:
        names = _names(found)
        return {
            name: f"excluded: by {selector!r}"
            for selector in reversed(self.exclude)
            for name in select(selector, names, "layer")
        }

    def _rates(
        self, found: list[Layer], chosen: dict[str, list[Layer]], pattern: Pattern
    ) -> dict[str, float]:
        fixed = pattern.fixed_rate
        rate = self.rate if self.rate is not None else DEFAULT_RATE
        rates = dict.fromkeys(chosen, float(fixed if fixed is not None else rate))
        names, weight_of = _names(found), {u.name: w for w, us in chosen.items() for u in us}
        for selector, own in self.rates.items():
            matched = select(selector, names, "layer")
            hit = [weight_of[name] for name in matched if name in weight_of]
            if not hit:
                few = ", ".join(map(repr, matched[:3]))
                raise OptionError(f"the rate of {selector!r} is for layers not pruned: {few}")
            rates |= dict.fromkeys(hit, own)
        return rates


def _names(found: list[Layer]) -> dict[str, tuple[str, ...]]:
    return {layer.name: tuple(filter(None, (layer.name, layer.weight))) for layer in found}


def _nothing(refused: Mapping[str, str]) -> str:
    if not refused:
        return "no layer can be pruned: the model has no Conv, Gemm or MatMul"
    counts = Counter(map(kind, refused.values()))
    return f"no layer can be pruned: {', '.join(f'{n} {what}' for what, n in counts.items())}"
