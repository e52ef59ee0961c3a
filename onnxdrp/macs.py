"""Multiply-adds of a layer for one image, from the shapes that the graph states.

    Conv           output positions * Cout * Cin/group * prod(kernel)
    ConvTranspose  input positions * Cin * Cout/group * prod(kernel)
    Gemm, MatMul   prod(output shape) * K

The batch counts as 1: where the graph's first input has a fixed batch B, a leading dimension of n*B
counts as n (patches, time steps). A leading dimension that is a name, or unknown, is taken for the
batch, and `n*name` for n of it.
"""

import math
import re
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxdrp.model import Model

__all__ = ["Shape", "batch_of", "multiply_adds", "shape_of", "shape_text"]

Shape = tuple[int | str | None, ...] | None

_MULTIPLE = re.compile(r"(?:(\d+)\*)?[^\W\d][\w.:-]*")  # a name, or n*name


def shape_of(tensor: gs.Tensor) -> Shape:
    """The shape that the graph states: a str is a symbol, None an unknown dimension."""
    if tensor.shape is None:
        return None
    return tuple(_dimension(d) for d in tensor.shape)


def batch_of(model: Model) -> int | None:
    """The fixed batch of the graph's first input that has a leading axis, or None."""
    for info in model.inputs:
        if info.shape is not None and len(info.shape) > 1:
            return info.shape[0] if isinstance(info.shape[0], int) else None
    return None


def multiply_adds(
    node: gs.Node, weight: Sequence[int] | None, side: int | None, batch: int | None
) -> int | str:
    """Multiply-adds for one image, or why they are not known.

    Args:
        node: a Conv, ConvTranspose, Gemm or MatMul.
        weight: the shape of its weight; None where that is unknown or it has none.
        side: which input the weight is; None for a product of two activations.
        batch: the graph's fixed batch, if it has one.
    """
    if node.op in ("Conv", "ConvTranspose"):
        end = node.outputs[0] if node.op == "Conv" else node.inputs[0]
        if weight is None:
            return f"the shape of its weight {node.inputs[1].name!r} is unknown"
        return _product(end, shape_of(end), 0, {1}, math.prod(weight), batch)
    out = shape_of(node.outputs[0])
    rank = 0 if out is None else len(out)
    inner = _inner(node, side, weight)
    if inner is None:
        return f"the length of its products is unknown: {shape_text(shape_of(node.inputs[0]))}"
    # the constant on the left makes the outputs the last axis but one
    own = rank - 1 if side == 1 else rank - 2 if side == 0 else None
    leading = next((d for d in range(rank) if d != own), None)
    return _product(node.outputs[0], out, leading, set(), inner, batch)


def _inner(node: gs.Node, side: int | None, weight: Sequence[int] | None) -> int | None:
    """K, the length of the products that a Gemm or MatMul sums."""
    if side is not None and weight is not None and weight:
        turned = node.attrs.get("transB" if side == 1 else "transA", 0)
        across = (side == 1) != bool(turned)  # K is the last axis but one
        return weight[max(len(weight) - 2, 0)] if across else weight[-1]
    shape = shape_of(node.inputs[0])
    if not shape:
        return None
    inner = shape[0 if node.attrs.get("transA", 0) else -1]
    return inner if isinstance(inner, int) else None


def _product(
    tensor: gs.Tensor,
    shape: Shape,
    leading: int | None,
    skipped: set[int],
    each: int,
    batch: int | None,
) -> int | str:
    if shape is None:
        return f"the shape of {tensor.name!r} is unknown"
    total = each
    for axis, side in enumerate(shape):
        if axis in skipped:
            continue
        count = _images(side, batch) if axis == leading else side
        if not isinstance(count, int):
            return f"the shape of {tensor.name!r} is not fixed: {shape_text(shape)}"
        total *= count
    return total


def _images(side: int | str | None, batch: int | None) -> int | None:
    if side is None:
        return 1
    if isinstance(side, int):
        return side // batch if batch and side % batch == 0 else side
    multiple = _MULTIPLE.fullmatch(side)
    return None if multiple is None else int(multiple[1] or 1)


def _dimension(side: int | str | None) -> int | str | None:
    if side is None or side in (-1, "", "?"):  # what some exporters write for unknown
        return None
    return side if isinstance(side, str) else int(side)


def shape_text(shape: Shape) -> str:
    """A shape for reading: expressions of free dimensions, which can be long, are given as `?`."""
    if shape is None:
        return "?"
    return f"[{', '.join(_side_text(side) for side in shape)}]"


def _side_text(side: int | str | None) -> str:
    plain = isinstance(side, int) or (side is not None and _MULTIPLE.fullmatch(side) is not None)
    return str(side) if plain else "?"
