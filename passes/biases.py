"""Where the bias of a layer is added, and a stored bias that is the layer's own.

A Conv or Gemm adds its third input; a MatMul has the constant Add that only it feeds, one value for
each output: together they are a fully connected layer. A MatMul without one has no bias.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.operators import weight_use
from onnxdrp.passes.edit import Names, only_consumer

__all__ = ["BiasPlace", "Biases"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class BiasPlace:
    """Where the bias of a layer is, or would be.

    Attributes:
        holder: the node that adds it: the layer, or the Add behind a MatMul.
        place: which of its inputs it is; there may be none there yet.
        outputs: how many values it has.
        result: the tensor with the bias in it: the output of `holder`.
        axis: of `result`, the axis of the layer's outputs.
    """

    holder: gs.Node
    place: int
    outputs: int
    result: str
    axis: int


class Biases:
    """Finds the biases of a model's layers, and gives layers some of their own.

    Args:
        model: whose graph changes where a bias is given, and nowhere else.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.names, self.protected = model, Names(model), model.protected()

    def place(self, node: gs.Node) -> BiasPlace | str:
        """Where the bias of a Conv, Gemm or MatMul is added, or why it can have none."""
        use = weight_use(self.model, node)
        if use is None or node.op not in ("Conv", "Gemm", "MatMul"):
            return "its weight is not stored"
        if not use.outputs:
            return use.why_whole
        if node.op == "MatMul":
            return self._behind(node, use.outputs)
        given = len(node.inputs) > 2 and bool(node.inputs[2].name)
        if given and not self._is_bias(node.inputs[2], use.outputs):
            return "its bias is computed, or not one value for each output"
        return BiasPlace(node, 2, use.outputs, str(node.outputs[0].name), 1)

    def _behind(self, node: gs.Node, outputs: int) -> BiasPlace | str:
        add = only_consumer(node.outputs[0], self.protected)
        if add is None or add.op != "Add":
            return "its operator has no bias"
        place = int(add.inputs[0] is node.outputs[0])
        if not self._is_bias(add.inputs[place], outputs):
            return "its operator has no bias"
        return BiasPlace(add, place, outputs, str(add.outputs[0].name), -1)

    def _is_bias(self, tensor: gs.Tensor, outputs: int) -> bool:
        values = self.model.constant(tensor)
        if values is None or values.dtype.kind != "f":
            return False
        return values.size == 1 or values.shape == (1,) * (values.ndim - 1) + (outputs,)

    def own(self, node: gs.Node, place: int, outputs: int) -> str:
        """The name of a bias that this node alone reads, given to it where it had none.

        It has a value for each output, and enters the output with a factor of 1: the beta of a
        Gemm is multiplied in.
        """
        if len(node.inputs) <= place or not node.inputs[place].name:
            name = self.names.fresh(f"{node.name}_bias")
            constant = gs.Constant(name, np.zeros(outputs, _float_of(node)))
            if len(node.inputs) > place:
                node.inputs[place] = constant
            else:
                node.inputs.append(constant)
            node.attrs.pop("beta", None)  # it multiplied nothing
            return name
        tensor = node.inputs[place]
        values = self.model.weight(tensor)
        alone = len(tensor.outputs) == 1 and tensor.name not in self.protected
        beta = values.dtype.type(node.attrs.pop("beta", 1.0) if node.op == "Gemm" else 1.0)
        if not alone or values.size != outputs or beta != 1:
            wide = values if values.size == outputs else np.broadcast_to(values.ravel(), outputs)
            node.inputs[place] = gs.Constant(self.names.fresh(f"{tensor.name}_copy"), wide * beta)
        return str(node.inputs[place].name)


def _float_of(node: gs.Node) -> Any:
    """The type in which a layer computes: that of its stored weight."""
    stored = next((t for t in node.inputs[:2] if isinstance(t, gs.Constant)), None)
    return np.float32 if stored is None else stored.dtype
