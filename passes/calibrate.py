"""Measure the ranges of the activations that will be quantized.

Plans the quantization of the whole graph (onnxdrp.plan) and taps only the tensors that the plan
asks for; ranges are those of the model as it is, so after pruning. Fills ctx.ranges and
ctx.kept_float; the model is not touched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Histogram, MinMax
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Plan, make_plan
from onnxdrp.quantization import Range
from onnxdrp.selectors import check_selector, select

__all__ = ["Calibrate"]


@dataclass(frozen=True)
class Calibrate(Pass):
    """Take ranges from the calibration data.

    Selectors name nodes: by operator type, or by node name, exactly, by glob, or by "re:" and a
    regular expression. One that matches nothing is an error.

    Attributes:
        method: "minmax", the extremes; or "percentile", which leaves out the outermost values.
        percentile: percent of the values of a tensor that its range keeps, half of the rest being
            left out at each end.
        exclude: selectors of nodes that stay float.
        memory_limit: bytes of tapped activations held at a time.
    """

    name: ClassVar[str] = "calibrate"
    keeps_results: ClassVar[bool] = True

    method: Literal["minmax", "percentile"] = "percentile"
    percentile: float = 99.999
    exclude: tuple[str, ...] = ()
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.method not in ("minmax", "percentile"):
            raise OptionError(f"method {self.method!r}: there are minmax and percentile")
        if not 50 <= self.percentile <= 100:
            raise OptionError(f"percentile {self.percentile} is outside [50, 100]; 99.999 is usual")
        if self.memory_limit <= 0:
            raise OptionError(f"memory_limit {self.memory_limit}: give a number of bytes above 0")
        for selector in self.exclude:
            check_selector(selector)

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, and the model is not quantized yet."""
        if ctx.reader is None:
            raise DataError("calibration needs data; give some hundred images or arrays (--calib)")
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(
                f"node {node.name!r}: the model is quantized already; start from the float model"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where data is missing or gives NaN, ModelError if no node is left."""
        assert ctx.reader is not None  # requires() saw to it
        plan = make_plan(model, ctx.target, self._excluded(model))
        if not plan.nodes:
            raise ModelError(f"no node of the model can be quantized: {_first_reasons(plan)}")
        minmax = self.method == "minmax"
        taps = {name: Tap(name, MinMax() if minmax else Histogram()) for name in plan.observed}
        found = observe(model, ctx.reader, taps, self.memory_limit, ctx.progress)
        ctx.ranges = {name: self._range(result) for name, result in found.items()}
        ctx.kept_float = dict(plan.kept)
        return PassResult(modified=False, stats=_stats(plan, ctx.ranges))

    def _range(self, result: Range | Histogram) -> Range:
        if isinstance(result, Histogram):
            return result.percentile(self.percentile)
        return result

    def _excluded(self, model: Model) -> dict[str, str]:
        nodes = model.nodes()
        names = {node.name: (node.name,) for node in nodes}
        kept: dict[str, str] = {}
        for selector in self.exclude:
            of_type = [node.name for node in nodes if node.op == selector]
            found = (
                of_type if of_type and selector not in names else select(selector, names, "node")
            )
            kept |= dict.fromkeys(found, f"excluded by {selector!r}")
        return kept


def _stats(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, object]:
    constant = [name for name, r in ranges.items() if r.low == r.high]
    return {
        "quantized_nodes": len(plan.nodes),
        "float_nodes": len(plan.kept),
        "measured_tensors": len(ranges),
        "constant_tensors": constant,
        "skipped": dict(plan.kept),
    }


def _first_reasons(plan: Plan) -> str:
    reasons = list(dict.fromkeys(plan.kept.values()))
    return "; ".join(reasons[:3]) or "it has no node that computes floats"
