"""What quantization must know of single operators, each fact in one place.

A node is quantized in one of three ways (`Kind`):

    weighted   it has a weight, or multiplies two activations; int32 accumulation
    own        inputs and outputs each have parameters of their own
    same       outputs are made of values of the first input and keep its parameters
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.quantization import Range
from onnxdrp.targets import Target

__all__ = [
    "Kind",
    "WeightUse",
    "changes_nothing",
    "channel_axis",
    "clip_bounds",
    "data_inputs",
    "kind_of",
    "weight_use",
    "why_float",
]

Kind = Literal["weighted", "own", "same"]

# Of these only the first input carries data; their other float inputs are bounds, scales or values.
_FIRST_ONLY = {"Clip", "Pad", "Resize", "Upsample", "Dropout"}
_NEAREST = {"Resize", "Upsample"}
_MANY_OUTPUTS = {"Split"}


def data_inputs(node: gs.Node) -> list[int]:
    """The places of the inputs that carry data: float tensors other than a bias or a parameter."""
    if node.op in _FIRST_ONLY:
        return [0]
    last = 2 if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") else len(node.inputs)
    return [i for i, t in enumerate(node.inputs[:last]) if t.name and t.dtype == np.float32]


def kind_of(node: gs.Node, target: Target) -> Kind | None:
    """How the target quantizes the operator, or None if it does not."""
    ops = target.operators
    if node.op in ops.keep_float:
        return None
    if node.op in ops.weighted:
        return "weighted"
    nearest = node.op in _NEAREST and node.attrs.get("mode", "nearest") == "nearest"
    if node.op in ops.same_range and (nearest or node.op not in _NEAREST):
        return "same"
    return "own" if node.op in ops.own_range else None


def why_float(model: Model, node: gs.Node, target: Target) -> str:
    """Why this node alone cannot be quantized, whatever stands around it; "" if it can."""
    if node.domain not in (None, "", "ai.onnx"):
        return f"operator of domain {node.domain!r}"
    kind = kind_of(node, target)
    if kind is None:
        return f"target {target.name} computes {node.op} in float"
    for tensor in (*node.inputs, *node.outputs):
        if tensor.name and tensor.dtype in (np.float16, np.float64):
            return f"{np.dtype(tensor.dtype).name} tensors; export the model in float32"
    if any(t.name and t.dtype is None for t in (*node.inputs, *node.outputs)):
        return "the type of its input or output is unknown; run infer-shapes first"
    if sum(bool(t.name) for t in node.outputs) > 1 and node.op not in _MANY_OUTPUTS:
        return "it has a second output"
    if kind == "same":
        return _why_not_same(model, node)
    if kind == "weighted" and node.op in ("Conv", "ConvTranspose"):
        return "" if model.constant(node.inputs[1]) is not None else "its weight is computed"
    for i in data_inputs(node):
        values = model.constant(node.inputs[i])
        if values is not None and not np.all(np.isfinite(values)):
            return f"its constant {node.inputs[i].name!r} is not finite"
    if node.op == "Clip" and clip_bounds(model, node) is None:
        return "its bounds are computed"
    return ""


def _why_not_same(model: Model, node: gs.Node) -> str:
    if model.constant(node.inputs[0]) is not None:
        return "its input is a constant"
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
        fill = node.attrs.get("value", 0.0)
        if len(node.inputs) > 2 and node.inputs[2].name:
            stored = model.constant(node.inputs[2])
            fill = None if stored is None else stored.item()
        return "" if fill == 0 else f"it pads with {'a computed value' if fill is None else fill}"
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it extrapolates"
    return ""


def clip_bounds(model: Model, node: gs.Node) -> tuple[float, float] | None:
    """The interval that a Relu or Clip lets pass; None if its bounds are computed."""
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for i, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            stored = model.constant(tensor)
            if stored is None:
                return None
            bounds[i] = float(stored.item())
    return bounds[0], bounds[1]


def changes_nothing(bounds: tuple[float, float], interval: Range) -> bool:
    """Whether all values of an interval lie inside bounds, give or take the rounding of a scale."""
    slack = 1e-6 * (interval.high - interval.low)
    return bounds[0] - slack <= interval.low and interval.high <= bounds[1] + slack


@dataclass(frozen=True)
class WeightUse:
    """A node with a stored weight.

    Attributes:
        node: its name.
        data: the place of the input that carries activations.
        weight: the place of the weight among its inputs.
        axis: along which the weight's outputs lie; None if it must be quantized as a whole.
        outputs: the length of a bias; 0 if it can have none.
        why_whole: why `axis` is None.
    """

    node: str
    data: int
    weight: int
    axis: int | None
    outputs: int
    why_whole: str = ""


def weight_use(model: Model, node: gs.Node) -> WeightUse | None:
    """What quantization must know of the weight of a node; None if its weight is not stored."""
    stored = [model.constant(t) is not None for t in node.inputs[:2]]
    if stored not in ([True, False], [False, True]):
        return None
    place = stored.index(True)
    shape = tuple(node.inputs[place].shape)
    if node.op == "Conv":
        return WeightUse(node.name, 0, 1, 0, shape[0])
    if node.op == "ConvTranspose":
        groups = int(node.attrs.get("group", 1))
        whole = "the groups of a ConvTranspose share their axis of outputs" if groups > 1 else ""
        return WeightUse(node.name, 0, 1, None if whole else 1, shape[1] * groups, whole)
    turned = bool(node.attrs.get("transB" if place else "transA", 0))
    if len(shape) != 2:
        whole = f"it multiplies by a stored tensor of rank {len(shape)}"
        return WeightUse(node.name, 1 - place, place, None, 0, whole)
    if place == 0:
        whole = "its weight is the left factor, which 8-bit kernels take with one scale"
        return WeightUse(node.name, 1, 0, None, 0, whole)
    return WeightUse(node.name, 0, 1, 0 if turned else 1, shape[0 if turned else 1])


def channel_axis(node: gs.Node, use: WeightUse, target: Target) -> int | None:
    """The axis for scales by output channel; None if the target takes one scale of its operator."""
    return None if node.op in target.operators.whole_weights else use.axis
