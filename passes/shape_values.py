"""Fold what nodes ask of shapes, where it is known though other dimensions are free."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.compute import store
from onnxdrp.passes.edit import is_standard, producer

__all__ = ["fold_shapes"]

Array = npt.NDArray[Any]


def fold_shapes(model: Model, outputs: set[str]) -> int:
    """Store the values of such nodes, but for outputs of the model; returns how many."""
    folded = 0
    for node in model.nodes(*_RULES):
        if not is_standard(node) or node.outputs[0].name in outputs:
            continue
        dims = _RULES[node.op](model, node)
        if dims is None or np.any(dims < 0):
            continue
        store(node, {node.outputs[0].name: dims})
        folded += 1
    return folded


def _shape(_model: Model, node: gs.Node) -> Array | None:
    """The dimensions that a Shape gives, -1 for those not known; which count: since opset 15."""
    shape = node.inputs[0].shape
    if shape is None:
        return None
    dims = [d if isinstance(d, int | np.integer) else -1 for d in shape]
    return np.array(dims[slice(node.attrs.get("start", 0), node.attrs.get("end"))], np.int64)


def _size(model: Model, node: gs.Node) -> Array | None:
    dims = _shape(model, node)
    return None if dims is None or np.any(dims < 0) else np.array(math.prod(dims.tolist()))


def _picked(model: Model, node: gs.Node) -> Array | None:
    """What a Gather or Slice picks of a Shape."""
    before = producer(node.inputs[0])
    if before is None or before.op != "Shape" or not is_standard(before):
        return None
    dims = _shape(model, before)
    stored = [p for t in node.inputs[1:] if (p := model.constant(t)) is not None]
    if dims is None or not stored or len(stored) < len(node.inputs) - 1:
        return None
    if node.op == "Gather":
        outside = np.any((stored[0] >= dims.size) | (stored[0] < -dims.size))
        return None if outside else np.asarray(dims[stored[0]])
    start, end, *_ = (int(p.reshape(-1)[0]) for p in stored)
    step = int(stored[3].reshape(-1)[0]) if len(stored) > 3 else 1
    return dims[start:end:step] if step > 0 else None


_RULES: dict[str, Callable[[Model, gs.Node], Array | None]] = {
    "Gather": _picked,
    "Shape": _shape,
    "Size": _size,
    "Slice": _picked,
}
