"""Round weights to int8, and fix the parameters of weights and activations.

    w' = s * saturate(round(w / s)),   s = max|w| / 127, of the tensor or of each output channel

(64 instead of 127 where the target's products of int8 and uint8 saturate: onnxdrp.saturation),

raised where an int32 bias of scale s_in * s would overflow (onnxdrp.quantization). Zeros stay zero.
The weights stay float tensors, now on the grid of int8: what comes between here and InsertQdq sees
what the quantized model will compute with. Fills ctx.quantization, and ctx.reference with the model
as it was before rounding.

A weight that other than quantized layers read too is copied for these. alpha and beta of a Gemm are
multiplied into its weight and bias, so that its bias has the scale s_in * s.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.conflicts import conflict_warnings, conflicts
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.operators import WeightUse
from onnxdrp.parameters import activation_parameters, uses_by_weight, weight_parameters
from onnxdrp.passes.edit import Names, replace_uses
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Operand, Plan, make_plan
from onnxdrp.quantization import QuantParams, fake_quantize, qlimits
from onnxdrp.targets import Target

__all__ = ["Grids", "QuantizeWeights"]


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round the weights of quantized layers to the grid of int8.

    Attributes:
        per_channel: a scale for each output channel (needs opset 13); None: as the target has it.
        reduce_range: weights use -64..64; None: as the target has it.
    """

    name: ClassVar[str] = "quantize-weights"

    per_channel: bool | None = None
    reduce_range: bool | None = None

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Ranges are there, weights are not yet rounded, and the opset has what is asked for."""
        if not ctx.ranges:
            raise ModelError("no ranges are known; run calibrate first")
        if ctx.quantization:
            raise ModelError("the weights are quantized already; start from the float model")
        if self._by_channel(ctx) and model.opset < 13:
            raise OptionError(
                f"per-channel weights need opset 13, the model has {model.opset}; run the pass "
                "convert-opset first, or take per_channel=False"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Separate what is shared, compute all parameters, round."""
        plan = make_plan(model, ctx.target, ctx.kept_float)
        separate = _Separate(model, plan, ctx)
        separate.scaled_gemms()
        separate.read_elsewhere()
        known = activation_parameters(
            model, plan, ctx.ranges, ctx.target, ctx.wide, ctx.calibration
        )
        activations = {key: p for key, p in known.items() if isinstance(key, str)}
        by_channel, reduced = self._by_channel(ctx), self._reduced(ctx)
        weights = weight_parameters(
            model, plan, activations, ctx.target, per_channel=by_channel, reduce_range=reduced
        )
        uses = uses_by_weight(separate.nodes, plan)
        ctx.reference = model.clone()
        limit = qlimits("int8", symmetric=True, reduce_range=reduced)[1]
        weights, figures = self.round(model, ctx, Grids(separate.nodes, weights, uses, limit))
        ctx.quantization = {**activations, **weights}
        whole = {n: _why_whole(uses[n], ctx.target) for n, p in weights.items() if p.axis is None}
        found = conflicts(model, plan, ctx.ranges, ctx.target, ctx.wide)
        stats = {
            "weights": len(weights),
            "per_tensor": whole if by_channel else len(whole),
            "reduced_range": reduced,
            "copied": separate.copied,
            "conflicts": found,
            "warnings": conflict_warnings(found),
        }
        return PassResult(modified=bool(weights), stats=stats | figures)

    def round(
        self, model: Model, ctx: PassContext, grids: "Grids"
    ) -> tuple[dict[str, QuantParams], dict[str, Any]]:
        """Put every weight on its grid; the parameters it has then, and figures of the pass."""
        for name, params in grids.params.items():
            tensor = grids.tensor(name)
            replace_uses(tensor, gs.Constant(name, fake_quantize(model.weight(tensor), params)))
        return grids.params, {}

    def _by_channel(self, ctx: PassContext) -> bool:
        return ctx.target.per_channel if self.per_channel is None else self.per_channel

    def _reduced(self, ctx: PassContext) -> bool:
        return ctx.target.reduces_range if self.reduce_range is None else self.reduce_range


@dataclass(frozen=True)
class Grids:
    """The weights to be rounded.

    Attributes:
        nodes: of the model, by name.
        params: {weight: int8 parameters}.
        uses: {weight: the layers that have it}.
        limit: the largest integer that they are rounded to.
    """

    nodes: dict[str, gs.Node]
    params: dict[str, QuantParams]
    uses: dict[str, list[WeightUse]]
    limit: int = 127

    def tensor(self, name: str) -> gs.Tensor:
        """A weight in the graph."""
        use = self.uses[name][0]
        return self.nodes[use.node].inputs[use.weight]


def _why_whole(uses: list[WeightUse], target: Target) -> str:
    if uses[0].why_whole:
        return uses[0].why_whole
    if len({use.axis for use in uses}) > 1:
        return "its layers have their outputs on different axes"
    return f"target {target.name} takes one scale of its operator"


class _Separate:
    """Gives quantized layers weights of their own where they must not share them."""

    def __init__(self, model: Model, plan: Plan, ctx: PassContext) -> None:
        self.model, self.plan, self.ctx = model, plan, ctx
        self.nodes = {node.name: node for node in model.nodes()}
        self.names = Names(model)
        self.copied: dict[str, str] = {}

    def scaled_gemms(self) -> None:
        """Multiply alpha and beta of each Gemm into its weight and bias."""
        for use in self.plan.layers.values():
            node = self.nodes[use.node]
            if node.op != "Gemm":
                continue
            self._scale(node, use.weight, "alpha")
            if use.node in self.plan.biases:
                self._scale(node, 2, "beta")

    def _scale(self, node: gs.Node, place: int, attribute: str) -> None:
        factor = np.float32(node.attrs.get(attribute, 1.0))
        if factor != 1:
            self._copy([(node.name, place)], self.model.weight(node.inputs[place]) * factor)
            node.attrs[attribute] = 1.0

    def read_elsewhere(self) -> None:
        """Copy the weights that other than quantized layers read, or a body or the user does."""
        protected = self.model.protected()
        for name, uses in uses_by_weight(self.nodes, self.plan).items():
            tensor = self.nodes[uses[0].node].inputs[uses[0].weight]
            if len(tensor.outputs) > len(uses) or name in protected:
                self._copy([(use.node, use.weight) for use in uses], self.model.weight(tensor))

    def _copy(self, places: list[Operand], values: npt.NDArray[Any]) -> None:
        old = self.nodes[places[0][0]].inputs[places[0][1]]
        new = gs.Constant(self.names.fresh(f"{old.name}_copy"), values)
        for node, place in places:
            self.nodes[node].inputs[place] = new
        self.copied[new.name] = old.name
        if old.name in self.ctx.masks:
            self.ctx.masks[new.name] = self.ctx.masks[old.name]
