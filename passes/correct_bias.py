"""Take the mean error that rounding makes out of each output, by the bias of its layer.

    fast         b' = b + E[W x] - E[W' x]      x the layer's input in the float model, W' = rounded
                                                weights: what its own weights do to a layer, all
                                                layers in one forward
    sequential   b' = b + Shift(y, y')          y the layer's output in the float model, y' with all
                                                that was rounded before it, activations too, and the
                                                biases corrected so far

a mean for each output of the layer over samples and positions (Nagel et al. 2019, section 4.2, from
data). The second sees what nonlinear layers make of the noise of those before, and what rounding
does to values that repeat, such as those of a padded background. Its shift is the one that brings
what the activation behind the layer makes of y' closest to what it makes of y (onnxdrp.shifts):
where a Relu drops a value in both it does not matter by how much they differ.

Biases that several nodes read are copied. A MatMul is corrected in the constant Add that makes it a
fully connected layer; without one it has no bias, and is passed over.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.curves import curves
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import observe
from onnxdrp.passes.biases import Biases
from onnxdrp.passes.edit import Names
from onnxdrp.passes.noisy import noisy_copy
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Plan, make_plan
from onnxdrp.segments import default_cuts
from onnxdrp.shifts import Shift
from onnxdrp.taps import Tap
from onnxdrp.walk import walk

__all__ = ["CorrectBias"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Shift biases so that rounded weights leave the mean of each output as it was.

    Stats: `corrected` is the largest shift of each layer; `skipped` says why others have none.

    Attributes:
        mode: "fast", in one forward; "sequential", layer by layer, in about four.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
    """

    name: ClassVar[str] = "correct-bias"

    mode: Literal["fast", "sequential"] = "sequential"
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "sequential"):
            raise OptionError(f"mode {self.mode!r}: there are fast and sequential")
        if self.memory_limit < 1:
            raise OptionError(f"memory_limit {self.memory_limit}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Weights are rounded, what they were is known, and there is data."""
        if ctx.reader is None:
            raise DataError("correct-bias needs data; give some hundred images or arrays (--calib)")
        if not ctx.quantization or ctx.reference is None:
            raise ModelError("the weights are not rounded yet; run quantize-weights first")
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(f"node {node.name!r}: run correct-bias before insert-qdq")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Give each layer a bias of its own, then shift it."""
        plan = make_plan(model, ctx.target, ctx.kept_float)
        layers, skipped = _layers(model, plan)
        corrected: dict[str, float] = {}
        if layers and self.mode == "sequential":
            corrected = _sequential(model, ctx, plan, layers, self.memory_limit)
        elif layers:
            corrected = _fast(model, ctx, layers, self.memory_limit)
        stats = {"corrected": corrected, "skipped": skipped}
        return PassResult(modified=bool(corrected), stats=stats)


@dataclass(frozen=True)
class _Layer:
    """A layer whose bias can be shifted; all but `axis` are names."""

    node: str
    data: str
    weight: str
    bias: str
    output: str
    axis: int


def _layers(model: Model, plan: Plan) -> tuple[list[_Layer], dict[str, str]]:
    """The layers of the plan, each with a bias of its own; and why others can have none."""
    nodes = {node.name: node for node in model.nodes()}
    varying = {cut[0] for cut in default_cuts(model)}
    biases = Biases(model)
    layers, skipped = [], {}
    for name, use in plan.layers.items():
        node = nodes[name]
        holder, place = plan.biases.get(name, (name, 2))
        data = node.inputs[use.data].name
        if data not in varying:
            skipped[name] = "it reads what is the same for every sample"
        elif name not in plan.biases and (node.op == "MatMul" or not use.outputs):
            skipped[name] = "its operator has no bias"
        elif name not in plan.biases and len(node.inputs) > 2 and node.inputs[2].name:
            skipped[name] = "its bias is computed"
        else:
            bias = biases.own(nodes[holder], place, use.outputs)
            axis = -1 if node.op == "MatMul" else 1
            weight, output = node.inputs[use.weight].name, node.outputs[0].name
            layers.append(_Layer(name, data, weight, bias, output, axis))
    return layers, skipped


def _fast(
    model: Model, ctx: PassContext, layers: list[_Layer], memory_limit: int
) -> dict[str, float]:
    """Beside each layer of the float model, the same with the errors of its weights."""
    assert ctx.reader is not None
    assert ctx.reference is not None
    beside = ctx.reference.clone()
    names, nodes = Names(beside), {node.name: node for node in beside.nodes()}
    held, before = model.tensors(), ctx.reference.tensors()
    taps: dict[str, Tap] = {}
    for layer in layers:
        node = nodes[layer.node]
        name = names.fresh(f"{layer.node}_error")
        error = model.weight(held[layer.weight]) - ctx.reference.weight(before[layer.weight])
        weight = gs.Constant(names.fresh(f"{name}_weight"), error)
        output = gs.Variable(names.fresh(f"{name}_output"), np.float32)
        inputs = [node.inputs[0], weight]
        beside.graph.nodes.append(gs.Node(node.op, name, dict(node.attrs), inputs, [output]))
        taps[layer.node] = Tap(output.name, ChannelMoments(layer.axis))
    found = observe(
        beside,
        ctx.reader,
        taps,
        memory_limit=memory_limit,
        executor=ctx.executor,
        workers=ctx.workers,
        progress=ctx.progress,
    )
    return {x.node: _shift(model, held[x.bias], -found[x.node].mean) for x in layers}


def _sequential(
    model: Model, ctx: PassContext, plan: Plan, layers: list[_Layer], memory_limit: int
) -> dict[str, float]:
    """Both models side by side, the rounded one with the biases that it has by then."""
    assert ctx.reader is not None
    assert ctx.reference is not None
    at: dict[str, list[_Layer]] = {}
    for layer in layers:
        at.setdefault(layer.data, []).append(layer)
    cuts = [cut for cut in default_cuts(model) if cut[0] in at]
    behind = curves(model, plan.nodes)
    rounded = noisy_copy(model, ctx)
    pair = {"float": ctx.reference, "rounded": rounded}
    held, walked = model.tensors(), rounded.tensors()
    shifts: dict[str, float] = {}
    stops = walk(
        pair,
        ctx.reader,
        cuts,
        memory_limit=memory_limit,
        workers=ctx.workers,
        progress=ctx.progress,
    )
    for stop in stops:
        here = at[stop.cut[0]]
        taps = {
            layer.node: Tap(
                (("float", layer.output), ("rounded", layer.output)),
                Shift(layer.axis, behind.get(layer.output)),
            )
            for layer in here
        }
        found = stop.observe(taps)
        for layer in here:
            shifts[layer.node] = _shift(model, held[layer.bias], found[layer.node])
            rounded.set_weight(walked[layer.bias], model.weight(held[layer.bias]))
    return shifts


def _shift(model: Model, bias: gs.Tensor, by: Array) -> float:
    """Add to a bias; the largest of the shifts."""
    values = model.weight(bias)
    model.set_weight(bias, (values + by.reshape(values.shape)).astype(np.float32))
    return float(np.abs(by).max(initial=0))
