"""What the readers of a tensor make of it, where that is one elementwise curve y = f(x).

    x -> Sigmoid, HardSigmoid, Tanh or HardSwish              y = f(x)
    x -> Sigmoid or HardSigmoid -> Mul <- x                   y = x f(x): SiLU, hard swish

An error of x costs what it becomes in y: little where f is flat, nothing where it is constant. So
values far below zero in front of a SiLU need no part of a range (onnxdrp.thresholds).
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model

__all__ = ["Curve", "curves"]

Floats = npt.NDArray[np.float64]
Curve = Callable[[Floats], Floats]


def curves(model: Model, quantized: Collection[str]) -> dict[str, Curve]:
    """{tensor: its curve}, of the tensors that have one.

    Args:
        model: any.
        quantized: names of the nodes whose outputs are rounded too. Others keep small differences
            of what they make, such as the scores that a detector's tail makes of logits: there a
            curve counts only as a factor of its own input.
    """
    kept = model.protected()
    found: dict[str, Curve] = {}
    for node in model.nodes("Sigmoid", "HardSigmoid", "Tanh", "HardSwish"):
        tensor, output = node.inputs[0], node.outputs[0]
        if tensor.name in kept or model.constant(tensor) is not None:
            continue
        curve = _function(node)
        readers = {id(reader): reader for reader in tensor.outputs}
        del readers[id(node)]
        if not readers and (node.name in quantized or node.op == "HardSwish"):
            found[tensor.name] = curve
        elif output.name not in kept and _is_gate(list(readers.values()), tensor, output):
            found[tensor.name] = _gated(curve)
    return found


def _is_gate(readers: list[gs.Node], tensor: gs.Tensor, output: gs.Tensor) -> bool:
    """Whether all that is left of a tensor and of its curve is their product."""
    if len(readers) != 1 or readers[0].op != "Mul" or len(output.outputs) != 1:
        return False
    product = readers[0]
    factors = {id(t) for t in product.inputs}
    return output.outputs[0] is product and factors == {id(tensor), id(output)}


def _gated(curve: Curve) -> Curve:
    return lambda x: x * curve(x)


def _function(node: gs.Node) -> Curve:
    attrs: dict[str, Any] = node.attrs
    if node.op == "Sigmoid":
        return lambda x: 0.5 + 0.5 * np.tanh(x / 2)  # without overflow
    if node.op == "Tanh":
        return np.tanh
    alpha, beta = (1 / 6, 0.5) if node.op == "HardSwish" else (0.2, 0.5)
    alpha, beta = float(attrs.get("alpha", alpha)), float(attrs.get("beta", beta))

    def hard(x: Floats) -> Floats:
        return np.clip(alpha * x + beta, 0, 1)

    return _gated(hard) if node.op == "HardSwish" else hard
