"""Operators that are new in an opset, written out in older ones.

    HardSwish(x) = x * HardSigmoid(x; 1/6, 1/2)        Mish(x)  = x * tanh(softplus(x))
    Swish(x)     = x * sigmoid(alpha * x)               Gelu(x)  = x/2 * (1 + erf(x / sqrt(2)))
    Gelu(x)      ~ x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))      where it says "tanh"
    Celu(x)      = max(0, x) + min(0, alpha * (exp(x / alpha) - 1))
    LayerNormalization(x)  = (x - m) / sqrt(mean((x - m)^2) + epsilon) * scale + bias,  m = mean(x)
    RMSNormalization(x)    = x / sqrt(mean(x^2) + epsilon) * scale
    GroupNormalization(x)  = InstanceNormalization of x as [N, groups, rest], * scale + bias

The formulas are those of the operators' texts. The function bodies that onnx has for normalizations
take the variance as E x^2 - (E x)^2, in which digits cancel, and compute shapes; these do neither.
Only float32 tensors: what narrower ones are rounded to in between, versions say differently.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxdrp.opset_schemas import CannotLowerError, Tensors, attribute

__all__ = ["FORMULAS"]

Node = onnx.NodeProto


@dataclass
class _Writer:
    """Writes nodes that compute the first output of a node."""

    node: Node
    tensors: Tensors
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any(self.node.output[1:]):
            raise CannotLowerError("its further outputs have no older form")
        dtype = self.tensors.dtype(self.x)
        if dtype != np.float32:
            raise CannotLowerError(f"the operator is new, and written out for float32, not {dtype}")

    @property
    def x(self) -> str:
        """The first input."""
        return str(self.node.input[0])

    def __call__(self, op: str, *inputs: "str | float", **attributes: Any) -> str:
        """Add a node; numbers become stored scalars. Returns the name of its output."""
        names = [i if isinstance(i, str) else self.scalar(i) for i in inputs]
        y = self.tensors.fresh(f"{self.node.output[0]}_{op}", like=self.x, ranked=False)
        self.nodes.append(onnx.helper.make_node(op, names, [y], **attributes))
        return y

    def scalar(self, value: float) -> str:
        """A stored number."""
        return self.tensors.store("scalar", np.array(value, np.float32))

    def done(self) -> list[Node]:
        """The nodes, the last of which computes the node's output."""
        self.nodes[-1].output[0] = self.node.output[0]
        return self.nodes


def _hard_swish(w: _Writer) -> None:
    w("Mul", w.x, w("HardSigmoid", w.x, alpha=1 / 6, beta=0.5))


def _mish(w: _Writer) -> None:
    w("Mul", w.x, w("Tanh", w("Softplus", w.x)))


def _swish(w: _Writer) -> None:
    alpha = attribute(w.node, "alpha", 1.0)
    w("Mul", w.x, w("Sigmoid", w.x if alpha == 1 else w("Mul", w.x, alpha)))


def _gelu(w: _Writer) -> None:
    if attribute(w.node, "approximate", "none") == "tanh":
        cube = w("Mul", w("Mul", w.x, w.x), w.x)
        inner = w("Add", w.x, w("Mul", cube, 0.044715))
        gate = w("Tanh", w("Mul", inner, float(np.sqrt(2 / np.pi))))
    else:
        gate = w("Erf", w("Div", w.x, float(np.sqrt(2))))
    w("Mul", w("Mul", w.x, 0.5), w("Add", gate, 1.0))


def _celu(w: _Writer) -> None:
    alpha = attribute(w.node, "alpha", 1.0)
    below = w("Mul", w("Elu", w("Div", w.x, alpha)), alpha)
    w("Add", w("Max", w.x, 0.0), w("Min", below, 0.0))


def _layer_norm(w: _Writer) -> None:
    scale, *bias = w.node.input[1:]
    axes = _last_axes(w)
    centred = w("Sub", w.x, w("ReduceMean", w.x, axes=axes))
    variance = w("ReduceMean", w("Mul", centred, centred), axes=axes)
    y = w("Mul", _over_root(w, centred, variance), scale)
    if bias and bias[0]:
        w("Add", y, bias[0])


def _rms_norm(w: _Writer) -> None:
    axes = w.tensors.store("axes", np.array(_last_axes(w), np.int64))  # an input, from opset 18 on
    square = w("ReduceMean", w("Mul", w.x, w.x), axes)
    w("Mul", _over_root(w, w.x, square), w.node.input[1])


def _over_root(w: _Writer, x: str, square: str) -> str:
    epsilon = attribute(w.node, "epsilon", 1e-5)
    return w("Div", x, w("Sqrt", w("Add", square, epsilon)))


def _last_axes(w: _Writer) -> list[int]:
    """From `axis` to the last; counted from the front."""
    rank = len(w.tensors.shape(w.x))
    return list(range(attribute(w.node, "axis", -1) % rank, rank))


def _group_norm(w: _Writer, *, scale_of_group: bool) -> None:
    shape = w.tensors.shape(w.x)
    groups = attribute(w.node, "num_groups")
    if sum(d is None for d in shape[1:]) > 1 or shape[1] is None:
        raise CannotLowerError("the operator is new, and the sizes of its input are free")
    back = np.array([0, *(-1 if d is None else d for d in shape[1:])], np.int64)
    rows = w.tensors.store("groups", np.array([0, groups, -1], np.int64))
    ones, zeros = (np.full(groups, v, np.float32) for v in (1, 0))
    stored = [w.tensors.store("ones", ones), w.tensors.store("zeros", zeros)]
    inner = list(w.node.input[1:3]) if scale_of_group else stored
    epsilon = attribute(w.node, "epsilon", 1e-5)
    rowwise = w("InstanceNormalization", w("Reshape", w.x, rows), *inner, epsilon=epsilon)
    y = w("Reshape", rowwise, w.tensors.store("shape", back))
    if scale_of_group:
        return
    column = w.tensors.store("column", np.array([-1, *[1] * (len(shape) - 2)], np.int64))
    scale, bias = (w("Reshape", name, column) for name in w.node.input[1:3])
    w("Add", w("Mul", y, scale), bias)


def _group_norm_18(w: _Writer) -> None:
    _group_norm(w, scale_of_group=True)


def _group_norm_21(w: _Writer) -> None:
    _group_norm(w, scale_of_group=False)


def _written(formula: Callable[[_Writer], None]) -> Callable[[Node, Tensors], list[Node]]:
    def step(node: Node, tensors: Tensors) -> list[Node]:
        writer = _Writer(node, tensors)
        formula(writer)
        return writer.done()

    return step


def _cast_like(node: Node, tensors: Tensors) -> list[Node]:
    """The type is known, so it is a Cast."""
    x, like = node.input
    to = tensors.kind(like).tensor_type.elem_type
    kept = [a for a in node.attribute if a.name == "saturate"]
    cast = onnx.helper.make_node("Cast", [x], node.output, to=to)
    cast.attribute.extend(kept)
    return [cast]


def _or_equal(strict: str) -> Callable[[Node, Tensors], list[Node]]:
    def step(node: Node, tensors: Tensors) -> list[Node]:
        (y,) = node.output
        names = [tensors.fresh(f"{y}_{op}", like=y) for op in (strict, "Equal")]
        parts = [
            onnx.helper.make_node(op, node.input, [name])
            for op, name in zip((strict, "Equal"), names, strict=True)
        ]
        return [*parts, onnx.helper.make_node("Or", names, [y])]

    return step


FORMULAS: dict[tuple[str, int], Callable[[Node, Tensors], list[Node]]] = {
    ("Celu", 12): _written(_celu),
    ("GreaterOrEqual", 12): _or_equal("Greater"),
    ("LessOrEqual", 12): _or_equal("Less"),
    ("HardSwish", 14): _written(_hard_swish),
    ("CastLike", 15): _cast_like,
    ("LayerNormalization", 17): _written(_layer_norm),
    ("GroupNormalization", 18): _written(_group_norm_18),
    ("Mish", 18): _written(_mish),
    ("Gelu", 20): _written(_gelu),
    ("GroupNormalization", 21): _written(_group_norm_21),
    ("RMSNormalization", 23): _written(_rms_norm),
    ("Swish", 24): _written(_swish),
}
"""{(operator, opset that brought it): the step to the opset before}."""
