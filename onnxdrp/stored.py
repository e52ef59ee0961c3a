"""A weight as the model stores it: floats, or integers behind a DequantizeLinear.

    w = (q - zero_point) * scale

A weight is zero where q is the zero point; to prune a stored integer is to set it to that. Floats
that go through a QuantizeLinear and a DequantizeLinear (quantization-aware exports) are floats.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError
from onnxdrp.masks import Mask
from onnxdrp.model import Model

__all__ = ["Readers", "Stored", "find_stored"]

Array = npt.NDArray[Any]

_FLOATS = {"float16", "float32", "float64", "bfloat16"}
_CASTS = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensor that holds a weight's values, and the node that makes floats of them, if any."""

    tensor: gs.Constant
    dequantize: gs.Node | None = None

    @property
    def name(self) -> str:
        """The name of the stored tensor, by which rates and masks are kept."""
        return str(self.tensor.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, known without reading the values."""
        return tuple(self.tensor.shape)

    def values(self, model: Model) -> Array:
        """The weight in floats; the stored array itself, read-only, where it holds floats."""
        stored = _constant(model, self.tensor)
        if self.dequantize is None:
            return stored
        scale, zero = self.parameters(model)
        return (stored.astype(np.float32) - zero) * scale

    def parameters(self, model: Model) -> tuple[Array, Array]:
        """Scale and zero point of stored integers, float32, in shapes that broadcast with them."""
        assert self.dequantize is not None
        scale = self._parameter(model, self.dequantize.inputs[1])
        return scale.astype(np.float32), self._zero(model).astype(np.float32)

    def nonzero(self, model: Model) -> npt.NDArray[np.bool_]:
        """Where the weight is not zero."""
        stored = _constant(model, self.tensor)
        if self.dequantize is None:
            return np.asarray(stored != 0)
        return np.asarray(stored.astype(np.float32) != self._zero(model).astype(np.float32))

    def holds(self, model: Model, mask: Mask) -> bool:
        """Whether everything that the mask prunes is zero. Raises OptionError if it is no fit."""
        mask.check_fits(self.shape, self.name)
        return not np.any(self.nonzero(model) & ~mask.keep)

    def apply(self, model: Model, mask: Mask) -> bool:
        """Set what the mask prunes to zero; False if all of it was zero before."""
        if self.holds(model, mask):
            return False
        stored = _constant(model, self.tensor)
        if self.dequantize is None:
            pruned = mask.apply(stored, self.name)
        else:
            pruned = np.where(mask.keep, stored, self._zero(model).astype(stored.dtype))
        model.set_weight(self.name, pruned)
        return True

    def _zero(self, model: Model) -> Array:
        inputs = self.dequantize.inputs if self.dequantize is not None else ()
        given = [tensor for tensor in inputs[2:] if not tensor.is_empty()]
        return self._parameter(model, given[0]) if given else np.zeros((), np.float32)

    def _parameter(self, model: Model, tensor: gs.Tensor) -> Array:
        """Scale or zero point, in a shape that broadcasts with the weight's."""
        node, rank = self.dequantize, len(self.shape)
        assert node is not None
        values = _constant(model, tensor)
        axis = node.attrs.get("axis", 1) % rank
        if values.size == 1:
            return values.reshape(())
        if values.ndim == 1:
            return values.reshape([-1 if d == axis else 1 for d in range(rank)])
        spread = np.repeat(values, node.attrs["block_size"], axis=axis)
        return spread.take(np.arange(self.shape[axis]), axis=axis)


def find_stored(model: Model, tensor: gs.Tensor) -> Stored | str:
    """Where the values of a weight are stored, or why it cannot be pruned: "kind: detail".

    Rules:
        1. A stored float tensor is the weight.
        2. So is a stored integer tensor behind a DequantizeLinear of stored parameters.
        3. So is a stored float tensor behind QuantizeLinear and DequantizeLinear.
    """
    dequantize, at = _producer(tensor, "DequantizeLinear"), tensor
    if dequantize is not None:
        at = dequantize.inputs[0]
        quantize = _producer(at, "QuantizeLinear")
        if quantize is not None:
            dequantize, at = None, quantize.inputs[0]
    if not isinstance(at, gs.Constant):
        return f"computed weight: {tensor.name!r} is not stored; run fold-constants first"
    values = model.constant(at)
    if values is None:
        return f"sparse weight: {at.name!r} is stored as a sparse tensor; export it dense"
    if dequantize is None:
        kind = values.dtype.name
        return Stored(at) if kind in _FLOATS else f"weight not float: {at.name!r} is {kind}"
    if not all(isinstance(t, gs.Constant) or t.is_empty() for t in dequantize.inputs[1:]):
        return f"computed weight: scale or zero point of {at.name!r}; run fold-constants first"
    return Stored(at, dequantize)


class Readers:
    """Who reads each tensor of a model: the nodes, of bodies too, and the outputs of graphs."""

    def __init__(self, model: Model) -> None:
        graphs = (model.graph, *model.graph.subgraphs(recursive=True))
        self._outputs = {t.name for graph in graphs for t in graph.outputs}
        self._nodes: dict[str, list[gs.Node]] = {}
        for graph in graphs:
            for node in graph.nodes:
                for tensor in node.inputs:
                    self._nodes.setdefault(tensor.name, []).append(node)

    def through_casts(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The nodes that read a tensor, itself or quantized and dequantized."""
        found, waiting = [], [tensor]
        while waiting:
            at = waiting.pop()
            for node in self._nodes.get(at.name, ()):
                if node.op in _CASTS and node.inputs[0].name == at.name:
                    waiting += node.outputs
                else:
                    found.append(node)
        return found

    def besides(self, stored: Stored, layers: set[str]) -> str:
        """Why the layers of these names are not all that uses a weight: "kind: detail", or ""."""
        ends = [stored.tensor]
        for at in ends:  # grows
            if at.name in self._outputs:
                return f"weight is an output: {at.name!r} leaves the graph"
            casts = [n for n in self._nodes.get(at.name, ()) if n.op in _CASTS]
            ends += [t for n in casts if n.inputs[0].name == at.name for t in n.outputs]
        other = next((n for n in self.through_casts(stored.tensor) if n.name not in layers), None)
        if other is None:
            return ""
        return f"weight used elsewhere: {stored.name!r} is read by {other.op} {other.name!r} too"


def _producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node of this operator that makes a tensor, or None."""
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op == op else None


def _constant(model: Model, tensor: gs.Tensor) -> Array:
    values = model.constant(tensor)
    if values is None:
        raise ModelError(
            f"tensor {tensor.name!r} is computed, not stored; run fold-constants first"
        )
    return values
