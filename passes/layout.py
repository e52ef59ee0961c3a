"""How an affine map passes nodes that move values or pool them, in either direction."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.passes.affine import Affine, CannotFuseError, Shape, permuted, reshaped
from onnxdrp.passes.edit import is_standard, producer

__all__ = ["carried_back", "carried_on", "ends_layer_norm", "shape_of", "sized_back"]

_RESHAPES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_HOMOGENEOUS = {"LeakyRelu", "Relu"}
_MAXIMA = {"GlobalMaxPool", "MaxPool"}
_MEANS = {"AveragePool", "GlobalAveragePool"}


def shape_of(tensor: gs.Tensor) -> Shape:
    """Its dimensions, None where unknown. Raises CannotFuseError if not even the rank is known."""
    if tensor.shape is not None:
        return tuple(d if isinstance(d, str) or (d or 0) > 0 else None for d in tensor.shape)
    node = producer(tensor)
    if node is not None and node.op == "Conv" and node.inputs[1].shape is not None:
        weight = node.inputs[1].shape
        return (None, weight[0], *(None for _ in weight[2:]))
    raise CannotFuseError(f"the shape of {tensor.name!r} is not known; run infer-shapes first")


def carried_back(node: gs.Node, affine: Affine) -> Affine | None:
    """The map that, done before `node`, has the effect of `affine` after it; None: none known.

    Raises:
        CannotFuseError: `node` moves values, but not so that there is one.
    """
    if not is_standard(node):
        return None
    if node.op == "Transpose":
        return permuted(affine, np.argsort(_perm(node, affine.scale.ndim)).tolist())
    if node.op in _RESHAPES:
        return reshaped(affine, shape_of(node.outputs[0]), shape_of(node.inputs[0]))
    return None


def sized_back(node: gs.Node, size: Affine) -> Affine | None:
    """As `carried_back` for a map that only scales, by factors above 0.

    Such a map passes what is positively homogeneous, f(s * x) = s * f(x), too.
    """
    if is_standard(node) and node.op in _HOMOGENEOUS:
        return size
    if is_standard(node) and node.op in _MAXIMA | _MEANS:
        return _pooled(node, size)
    return carried_back(node, size)


def carried_on(node: gs.Node, place: int, affine: Affine) -> Affine | None:
    """The map that, done after `node`, has the effect of `affine` before it; as `carried_back`."""
    if not is_standard(node) or place != 0:
        return None
    if node.op == "Transpose":
        return permuted(affine, _perm(node, affine.scale.ndim))
    if node.op in _RESHAPES:
        return reshaped(affine, shape_of(node.inputs[0]), shape_of(node.outputs[0]))
    if node.op in _MAXIMA | _MEANS:
        return _pooled(node, affine)
    return None


def _perm(node: gs.Node, rank: int) -> Sequence[int]:
    return list(node.attrs.get("perm", range(rank)[::-1]))


def _pooled(node: gs.Node, affine: Affine) -> Affine:
    if affine.axis not in (None, 0, 1):
        raise CannotFuseError(f"it varies along axis {affine.axis}, over which {node.op} pools")
    if sum(bool(t.name) for t in node.outputs) > 1:
        raise CannotFuseError(f"{node.op} after it also gives positions")
    if node.op in _MAXIMA and np.any(affine.scale < 0):
        raise CannotFuseError(f"{node.op} after it takes the maximum, and a scale is negative")
    if node.op == "AveragePool" and np.any(affine.shift) and _counts_border(node):
        raise CannotFuseError("AveragePool after it counts zeros of the border")
    return affine


def _counts_border(node: gs.Node) -> bool:
    border = str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    border = border or any(node.attrs.get("pads", ())) or bool(node.attrs.get("ceil_mode", 0))
    return border and bool(node.attrs.get("count_include_pad", 0))


def ends_layer_norm(tensor: gs.Tensor) -> bool:
    """Whether a tensor is (x - mean) / sqrt(var + epsilon), computed by single nodes."""
    node = producer(tensor)
    if node is None or node.op != "Div":
        return False
    root = producer(node.inputs[1])
    return root is not None and root.op == "Sqrt"
