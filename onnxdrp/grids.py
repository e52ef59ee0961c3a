"""The grids that a quantized graph rounds its tensors to, as its nodes say them.

An activation is rounded where it goes through a QuantizeLinear; what comes out of the
DequantizeLinear behind it is what its readers see. A stored tensor of integers is seen through its
DequantizeLinear.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.quantization import DType, QuantParams, dequantize, qlimits

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Rounding", "find_rounding", "node_params", "saturated", "stored_values"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rounding:
    """Where an activation is rounded.

    Attributes:
        before: the tensor that is quantized.
        after: what its readers see; None if nothing dequantizes it.
        params: scale, zero point and dtype.
    """

    before: str
    after: str | None
    params: QuantParams


def find_rounding(model: "Model", tensor: str) -> Rounding | None:
    """How a tensor is rounded, whichever side of the pair has its name; None if it is not."""
    for node in model.nodes("QuantizeLinear"):
        readers = [n for n in node.outputs[0].outputs if n.op == "DequantizeLinear"]
        after = next((str(n.outputs[0].name) for n in readers), None)
        params = node_params(model, node) if tensor in (node.inputs[0].name, after) else None
        if params is not None:
            return Rounding(str(node.inputs[0].name), after, params)
    return None


def node_params(model: "Model", node: gs.Node) -> QuantParams | None:
    """Of a QuantizeLinear or DequantizeLinear; None where they are computed or by blocks."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    scale, zero = (model.constant(t) for t in node.inputs[1:3])
    if scale is None or zero is None or scale.ndim > 1 or scale.dtype != np.float32:
        return None
    dtype = next((d for d in get_args(DType) if d == zero.dtype.name), None)
    axis = node.attrs.get("axis", 1) if scale.ndim else None
    return None if dtype is None else QuantParams(scale, zero, dtype, axis)


def stored_values(model: "Model", tensor: gs.Tensor) -> tuple[Array | None, QuantParams | None]:
    """The values of a weight as its readers see them, and the grid of what is dequantized.

    Args:
        model: it is of.
        tensor: stored, or what a DequantizeLinear makes of a stored one. The values are None where
            it is neither, or where the parameters cannot be told.
    """
    values = model.constant(tensor)
    if values is not None or not tensor.inputs or tensor.inputs[0].op != "DequantizeLinear":
        return values, None
    node = tensor.inputs[0]
    codes = model.constant(node.inputs[0])
    params = node_params(model, node)
    if codes is None or params is None or codes.dtype.name != params.dtype:
        return None, None
    return dequantize(codes, params), params


def saturated(values: Array, params: QuantParams) -> tuple[int, int]:
    """How many values lie (below, above) a grid with one scale, and are clipped to its ends."""
    low, high = qlimits(params.dtype)
    codes = np.rint(values.astype(np.float64) / float(params.scale)) + int(params.zero_point)
    return int(np.count_nonzero(codes < low)), int(np.count_nonzero(codes > high))
