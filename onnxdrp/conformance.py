"""Whether a quantized model is as its target wants it, read off the graph alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.targets import Target

__all__ = ["departures"]

Array = npt.NDArray[Any]


def departures(model: Model, target: Target) -> list[str]:
    """The rules of the target that the model's Q/DQ nodes break, a line each; empty if none.

    Rules:
        1. Activations have the target's type, and its zero point if it is symmetric.
        2. Weights are int8 with zero point 0; one scale a tensor unless the target has more.
        3. Tensors that must share parameters have equal ones.
    """
    found: dict[str, list[str]] = {}
    for node in model.nodes():
        for rule in _broken(model, node, target):
            found.setdefault(rule, []).append(node.name)
    return [f"{rule}: {_few(nodes)}" for rule, nodes in found.items()]


def _broken(model: Model, node: gs.Node, target: Target) -> Iterator[str]:
    name = target.name
    if node.op == "QuantizeLinear":
        zero = _stored(model, node, 2)
        if zero.dtype.name != target.activation_dtype:
            yield f"{name} takes {target.activation_dtype} activations, not {zero.dtype.name}"
        if target.activation_symmetric and np.any(zero != (128 if zero.dtype == np.uint8 else 0)):
            yield f"{name} takes symmetric activations, not a zero point"
    elif node.op in target.operators.weighted:
        for dequantize in _dequantizers(node):
            if isinstance(dequantize.inputs[0], gs.Constant):
                yield from _broken_weight(model, dequantize, target)
    elif node.op in (*target.operators.shared_inputs, *target.operators.shared_inputs_and_output):
        around = _dequantizers(node)
        if len(around) < len(node.inputs):
            return  # a bias, or float
        if node.op in target.operators.shared_inputs_and_output:
            around += [n for n in node.outputs[0].outputs if n.op == "QuantizeLinear"]
        if len({_parameters(model, n) for n in around}) > 1:
            yield f"{name} wants the same parameters around {node.op}"


def _broken_weight(model: Model, dequantize: gs.Node, target: Target) -> Iterator[str]:
    codes, zero = _stored(model, dequantize, 0), _stored(model, dequantize, 2)
    if codes.dtype == np.int32:
        return  # a bias
    if codes.dtype != np.int8 or zero.any():
        yield f"{target.name} takes int8 weights with zero point 0"
    if zero.size > 1 and not target.per_channel:
        yield f"{target.name} takes weights with one scale a tensor"


def _dequantizers(node: gs.Node) -> list[gs.Node]:
    makers = [t.inputs[0] for t in node.inputs if t.inputs]
    return [maker for maker in makers if maker.op == "DequantizeLinear"]


def _parameters(model: Model, node: gs.Node) -> tuple[bytes, bytes]:
    return _stored(model, node, 1).tobytes(), _stored(model, node, 2).tobytes()


def _stored(model: Model, node: gs.Node, place: int) -> Array:
    """Scale, zero point or codes; the zero point is uint8 0 where there is none."""
    if len(node.inputs) <= place or node.inputs[place].is_empty():
        return np.zeros((), np.uint8)
    values = model.constant(node.inputs[place])
    return np.zeros((), np.uint8) if values is None else values


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
