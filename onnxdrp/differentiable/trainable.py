"""Which stored tensors of a model are trained, and how their values are held meanwhile.

Trained are the weights and biases of Conv, ConvTranspose, Gemm and MatMul; scale and bias of
normalizations (never their statistics); the slopes of PRelu; and constants with one value a channel
that Add, Sub and Mul apply behind a layer, with nothing but activations, pools and the like
between: what exporters make of biases and BatchNormalization. Boxes are decoded behind a Reshape or
Concat, so that grids and strides stay as they are.

    w = v * unit * mask          floats
    w = Q(v * unit * mask)       integers behind a DequantizeLinear, by their scale and zero point

v is what the optimizer sees. A step of Adam moves each v by about the learning rate, and units make
one rate suit layers and channels of any scale and size. It is the share of the deviation of an
output by which a step moves it, if all that it is made of moves the same way:

    weight   deviation of the output / (kept weights of the output * mean |x| of what they multiply)
    bias     deviation of the output
    scale    root mean square of the scales

to the nearest power of two, so that v * unit is exact. (The scaling by width is that of Yang et al.
2021; that by what the layer reads makes up for inputs far from mean 0.)

Integers stay within the largest distance from the zero point that the tensor has at the beginning
(weights of 4 bits stay that); biases of int32 within 2^30.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.dataflow import data_tensors, ordered
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.quantization import BIAS_LIMIT
from onnxdrp.stored import Stored, find_stored

__all__ = ["Grid", "Trainable", "trainables"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {0: "weight", 1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "BatchNormalization": {1: "scale", 2: "bias"},
    "InstanceNormalization": {1: "scale", 2: "bias"},
    "LayerNormalization": {1: "scale", 2: "bias"},
    "PRelu": {1: "scale"},
}
_APPLIED = {"Add": "bias", "Sub": "bias", "Mul": "scale"}
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
_THROUGH = {
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"),
    *("Selu", "Celu", "Gelu", "Mish", "Softplus", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *(
        "Transpose",
        "Identity",
        "Dropout",
        "QuantizeLinear",
        "DequantizeLinear",
        "Add",
        "Sub",
        "Mul",
    ),
}
"""Operators behind which a constant for each channel is still a layer's."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Integers that a tensor is stored as; all arrays are float32 and broadcast with it."""

    scale: Floats
    zero: Floats
    low: Floats
    high: Floats
    dtype: np.dtype[Any]

    def codes(self, values: Floats) -> Array:
        """The integers nearest to values."""
        codes: Array = np.rint(values / self.scale) + self.zero
        return np.clip(codes, self.low, self.high).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Trainable:
    """One stored tensor that is trained.

    Attributes:
        name: of the stored tensor.
        given: the tensors that stand for it in a Network: itself, or what dequantizes it.
        start: its values, float32.
        keep: where it is not pruned; None where all of it is kept.
        role: weight, bias or scale.
        reads: the tensor that a weight multiplies.
        output: what the node gives.
        output_axis: the axis of that along which the tensor has other values, or None.
        axis: the axis of the tensor that belongs to it.
        grid: the integers it is stored as, or None.
    """

    name: str
    given: tuple[str, ...]
    start: Floats
    keep: npt.NDArray[np.bool_] | None
    role: str
    reads: str
    output: str
    output_axis: int | None
    axis: int | None
    grid: Grid | None

    def unit(self, deviation: npt.ArrayLike, mean: float) -> Floats:
        """The unit, a power of two or as many as broadcast with the values.

        Args:
            deviation: of the output, for each index of `output_axis`, or of all.
            mean: of the absolute values of what a weight multiplies.
        """
        if self.role == "scale":
            return _power_of_two(np.sqrt(np.square(self.start, dtype=np.float64).mean()))
        sizes = np.asarray(deviation, np.float64).reshape(-1)
        sizes = np.maximum(sizes, 1e-3 * sizes.max())
        shape = [1] * self.start.ndim
        if self.axis is not None:
            width = self.start.shape[self.axis]  # less than the outputs where there are groups
            sizes = sizes.reshape(-1, width).mean(0)
            shape[self.axis] = width
        sizes = sizes.reshape(shape)
        if self.role == "weight":
            others = tuple(d for d, size in enumerate(shape) if size == 1)
            count = np.count_nonzero(self.start, axis=others, keepdims=True)
            sizes = sizes / (np.maximum(count, 1) * (mean or 1.0))
        return _power_of_two(sizes)

    def stored(self, values: Floats) -> Array:
        """What is to be stored for values in floats; pruned places are zero."""
        if self.keep is not None:
            values = np.where(self.keep, values, np.float32(0))
        return values if self.grid is None else self.grid.codes(values)


def trainables(model: Model, masks: Mapping[str, Mask]) -> tuple[list[Trainable], dict[str, str]]:
    """What is trained, in the order of the nodes; and {stored tensor: why it is not}."""
    found: dict[str, Trainable] = {}
    skipped: dict[str, str] = {}
    users = _dequantizers(model)
    for node, place, role in _places(model):
        stored = find_stored(model, node.inputs[place])
        if isinstance(stored, str):
            skipped[node.inputs[place].name] = stored
            continue
        if stored.name in found:
            continue
        why = _why_not(stored, users)
        if why:
            skipped[stored.name] = why
            continue
        given = [n.outputs[0].name for n in users.get(stored.name, ())]
        values = stored.values(model).astype(np.float32)
        keep = masks[stored.name].keep if stored.name in masks else None
        found[stored.name] = Trainable(
            stored.name,
            tuple(given) if stored.dequantize is not None else (stored.name,),
            values,
            keep,
            role,
            node.inputs[1 - place].name if role == "weight" else "",
            node.outputs[0].name,
            *_axes(node, place, role, values.shape),
            None if stored.dequantize is None else _grid(model, stored),
        )
    return list(found.values()), skipped


def _places(model: Model) -> list[tuple[gs.Node, int, str]]:
    """(node, input, role) of everything that may be trained."""
    found: list[tuple[gs.Node, int, str]] = []
    behind: set[str] = set()
    data = data_tensors(model)
    for node in ordered(model.nodes()):
        inputs = {t.name for t in node.inputs}
        for place, role in _ROLES.get(node.op, {}).items():
            if place < len(node.inputs) and node.inputs[place].name:
                tensor = node.inputs[place]
                multiplied = node.op in ("Gemm", "MatMul") and role == "weight"
                if not multiplied or tensor.name not in data:
                    found.append((node, place, role))
        if node.op in _APPLIED and inputs & behind:
            found += [
                (node, place, _APPLIED[node.op])
                for place, tensor in enumerate(node.inputs)
                if tensor.name not in behind and _is_stored(tensor) and _is_channelwise(tensor)
            ]
        if node.op in _LAYERS or (node.op in _THROUGH and inputs & behind):
            behind |= {t.name for t in node.outputs}
    return found


def _is_stored(tensor: gs.Tensor) -> bool:
    while tensor.inputs and tensor.inputs[0].op in ("QuantizeLinear", "DequantizeLinear"):
        tensor = tensor.inputs[0].inputs[0]
    return isinstance(tensor, gs.Constant)


def _is_channelwise(tensor: gs.Tensor) -> bool:
    while tensor.inputs:
        tensor = tensor.inputs[0].inputs[0]
    shape = tuple(tensor.shape)
    return max(shape, default=1) > 1 and max(shape) == np.prod(shape, dtype=np.int64)


def _dequantizers(model: Model) -> dict[str, list[gs.Node]]:
    """{stored integers: the nodes that dequantize them}."""
    found: dict[str, list[gs.Node]] = {}
    for node in model.nodes("DequantizeLinear"):
        if isinstance(node.inputs[0], gs.Constant):
            found.setdefault(node.inputs[0].name, []).append(node)
    return found


def _why_not(stored: Stored, users: Mapping[str, list[gs.Node]]) -> str:
    if stored.dequantize is None:
        dtype = np.dtype(stored.tensor.dtype)
        return "" if dtype == np.float32 else f"it is {dtype}; only float32 is trained"
    parameters = {tuple(t.name for t in node.inputs[1:]) for node in users[stored.name]}
    if len(parameters) > 1:
        return "it is dequantized in several ways"
    kind = np.dtype(stored.tensor.dtype).kind
    return "" if kind in "iu" or "int" in str(stored.tensor.dtype) else "it is no integer"


def _axes(
    node: gs.Node, place: int, role: str, shape: tuple[int, ...]
) -> tuple[int | None, int | None]:
    """The axis of the output along which a tensor has other values, and that of the tensor."""
    wide = [d for d, size in enumerate(shape) if size > 1]
    if role != "weight":
        if len(wide) != 1:
            return None, None
        blocked = node.op not in ("Gemm", "LayerNormalization", *_APPLIED)
        return (1 if blocked else wide[0] - len(shape)), wide[0]
    if node.op == "Conv":
        return 1, 0
    if node.op == "ConvTranspose":
        return 1, 1  # the outputs of all groups share it
    if node.op == "Gemm":
        turned = bool(node.attrs.get("transB" if place else "transA", 0))
        return (-1 if place else -2), int(turned != bool(place))
    if len(shape) < 2:
        return None, None
    return (-1, len(shape) - 1) if place else (-2, len(shape) - 2)


def _power_of_two(sizes: npt.ArrayLike) -> Floats:
    """The powers of two nearest to sizes, float32; 1 for 0."""
    sizes = np.asarray(sizes, np.float64)
    exponents = np.rint(np.log2(np.where(sizes > 0, sizes, 1.0)))
    return np.asarray(np.exp2(np.clip(exponents, -100, 100)), np.float32)


def _grid(model: Model, stored: Stored) -> Grid:
    codes = model.weight(stored.tensor)
    scale, zero = stored.parameters(model)
    if codes.dtype == np.int32:
        lowest, highest = -BIAS_LIMIT, BIAS_LIMIT
        distance = np.float32(BIAS_LIMIT)
    else:
        limits = ml_dtypes.iinfo(codes.dtype)  # type: ignore[no-untyped-call]
        lowest, highest = limits.min, limits.max
        distance = np.abs(codes.astype(np.float32) - zero).max(initial=0)
    low = np.maximum(zero - distance, np.float32(lowest))
    high = np.minimum(zero + distance, np.float32(highest))
    return Grid(scale, zero, low, high, codes.dtype)
