"""What the readers of a tensor make of it, where that is one elementwise curve y = f(x).

    x -> Relu, Clip, LeakyRelu, Sigmoid, HardSigmoid, Tanh or HardSwish     y = f(x)
    x -> Sigmoid or HardSigmoid -> Mul <- x                                 y = x f(x)

The last are SiLU and hard swish. An error of x costs what it becomes in y: little where f is flat,
nothing where it is constant.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.operators import clip_bounds

__all__ = ["Curve", "curves"]

Floats = npt.NDArray[np.float64]

_STEP = 2.0**-10  # for slopes
_OPERATORS = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


@dataclass(frozen=True)
class Curve:
    """An elementwise function.

    Attributes:
        kind: Sigmoid, Tanh, or what is made of straight lines: LeakyRelu, and Clip of a x + b.
        slope: a; of a LeakyRelu the slope below 0.
        offset: b.
        low: where a Clip begins.
        high: where it ends.
        gated: whether the result is multiplied by x.
    """

    kind: str
    slope: float = 1.0
    offset: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    gated: bool = False

    @classmethod
    def of(cls, model: Model, node: gs.Node) -> Self | None:
        """The curve of a node; None if it has none, or its bounds are computed."""
        if node.op in ("Sigmoid", "Tanh"):
            return cls(node.op)
        if node.op in ("Relu", "Clip"):
            bounds = clip_bounds(model, node)
            return None if bounds is None else cls("Clip", low=bounds[0], high=bounds[1])
        if node.op == "LeakyRelu":
            return cls("LeakyRelu", float(node.attrs.get("alpha", 0.01)))
        if node.op == "HardSwish":
            return cls("Clip", 1 / 6, 0.5, 0, 1, gated=True)
        if node.op == "HardSigmoid":
            a, b = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
            return cls("Clip", a, b, 0, 1)
        return None

    def __call__(self, x: npt.NDArray[Any]) -> Floats:
        """f(x)."""
        x = np.asarray(x, np.float64)
        if self.kind == "Sigmoid":
            y = 0.5 + 0.5 * np.tanh(x / 2)  # without overflow
        elif self.kind == "Tanh":
            y = np.tanh(x)
        elif self.kind == "LeakyRelu":
            y = np.where(x < 0, self.slope * x, x)
        else:
            y = np.clip(self.slope * x + self.offset, self.low, self.high)
        return x * y if self.gated else np.asarray(y)

    def slopes(self, x: npt.NDArray[Any]) -> Floats:
        """f'(x)."""
        return np.asarray((self(x + _STEP) - self(x - _STEP)) / (2 * _STEP))

    def steepest(self) -> float:
        """The largest |f'(x)| of x from -8 to 8."""
        return float(np.abs(self.slopes(np.linspace(-8, 8, 4001))).max())


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
    for node in model.nodes(*_OPERATORS):
        tensor, output = node.inputs[0], node.outputs[0]
        curve = Curve.of(model, node)
        if curve is None or tensor.name in kept or model.constant(tensor) is not None:
            continue
        others = [reader for reader in tensor.outputs if reader is not node]
        if not others and (node.name in quantized or node.op == "HardSwish"):
            found[tensor.name] = curve
        elif output.name not in kept and _is_gate(others, tensor, output):
            found[tensor.name] = replace(curve, gated=True)
    return found


def _is_gate(readers: list[gs.Node], tensor: gs.Tensor, output: gs.Tensor) -> bool:
    """Whether all that is left of a tensor and of its curve is their product."""
    if len(readers) != 1 or readers[0].op != "Mul" or len(output.outputs) != 1:
        return False
    factors = {id(t) for t in readers[0].inputs}
    return output.outputs[0] is readers[0] and factors == {id(tensor), id(output)}
