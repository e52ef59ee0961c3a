"""Writing QuantizeLinear and DequantizeLinear into a graph.

    activation   t -> QuantizeLinear -> DequantizeLinear: one pair, whatever the number of readers
    stored       the tensor keeps its name, holds integers, and is read through DequantizeLinear

Below opset 21, 16 bits are taken by the operators of the domain com.microsoft only. Graph outputs
keep their names: they come out of the DequantizeLinear.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.operators import data_inputs
from onnxdrp.passes.edit import Names, disconnect, producer
from onnxdrp.plan import Plan
from onnxdrp.quantization import QuantParams, quantize

__all__ = ["Reader", "Writer", "readers_of", "rounded_for"]

_CONTRIBUTED = "com.microsoft"

Reader = tuple[gs.Node, int]
"""A node and the place among its inputs at which it reads."""


def readers_of(tensor: gs.Tensor) -> list[Reader]:
    """Every node and place that reads a tensor in the top graph."""
    nodes = {id(node): node for node in tensor.outputs}.values()
    return [(n, i) for n in nodes for i, t in enumerate(n.inputs) if t is tensor]


def rounded_for(plan: Plan, tensor: gs.Tensor) -> tuple[list[Reader], bool]:
    """Who reads an activation rounded, and whether that is everybody.

    It is everybody where a quantized node gives it, else those that read it as data.
    """
    maker = producer(tensor)
    whole = maker is not None and maker.name in plan.nodes
    return [r for r in readers_of(tensor) if whole or _as_data(plan, r)], whole


def _as_data(plan: Plan, reader: Reader) -> bool:
    node, place = reader
    kind = plan.nodes.get(node.name)
    return kind is not None and place in ([0] if kind == "same" else data_inputs(node))


class Writer:
    """Makes the new nodes; `finish` puts each beside the node it belongs to."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = Names(model)
        self.outputs = {t.name for t in model.graph.outputs}
        self.protected = model.protected()
        self.gone: set[str] = set()
        self.after: dict[str, list[gs.Node]] = defaultdict(list)  # "" stands for the graph's inputs
        self.before: dict[str, list[gs.Node]] = defaultdict(list)

    def merge(self, node: gs.Node, maker: gs.Node) -> None:
        """Remove a node that reads the only output of `maker`; that gives its output now."""
        output = node.outputs[0]
        disconnect(node)
        maker.outputs[0] = output
        self.gone.add(node.name)

    def separate(self, reader: Reader, shape: tuple[int, ...] | None = None) -> None:
        """Give a reader a stored tensor of its own, of this shape, if it has not one already."""
        node, place = reader
        old = node.inputs[place]
        values = self.model.weight(old)
        alone = len(old.outputs) == 1 and old.name not in self.protected
        if alone and shape in (None, values.shape):
            return
        if shape is not None:
            values = np.broadcast_to(values.reshape(-1), shape)
        node.inputs[place] = gs.Constant(self.names.fresh(f"{old.name}_of_{node.name}"), values)

    def stored(self, readers: Sequence[Reader], params: QuantParams) -> None:
        """Make a stored tensor integers; `readers`, all that it has, dequantize it."""
        node, place = readers[0]
        name, values = node.inputs[place].name, self.model.weight(node.inputs[place])
        codes = gs.Constant(name, quantize(values, params))
        floats = self._variable(f"{name}_DequantizeLinear_Output", np.float32, values.shape)
        for reader, i in readers:
            reader.inputs[i] = floats
        self.before[node.name].append(
            self._node(
                "DequantizeLinear", name, [codes, *self._numbers(name, params)], floats, params
            )
        )

    def activation(
        self, tensor: gs.Tensor, readers: Sequence[Reader], params: QuantParams, *, rename: bool
    ) -> None:
        """Put a pair behind an input or a computed tensor; these readers read what it gives.

        Args:
            tensor: what is quantized.
            readers: who reads behind the pair.
            params: its parameters.
            rename: if it is a graph output, that comes out of the pair under its name; else the
                graph gives what goes in.
        """
        name, maker = tensor.name, producer(tensor)
        before, after = tensor, tensor
        if maker is not None and rename and name in self.outputs:
            before = self._variable(f"{name}_QuantizeLinear_Input", np.float32, tensor.shape)
            maker.outputs[[t is tensor for t in maker.outputs].index(True)] = before
        else:
            after = self._variable(f"{name}_DequantizeLinear_Output", np.float32, tensor.shape)
            for reader, i in readers:
                reader.inputs[i] = after
        codes = self._variable(f"{name}_QuantizeLinear_Output", params.dtype, tensor.shape)
        numbers = self._numbers(name, params)
        self.after[maker.name if maker is not None else ""] += [
            self._node("QuantizeLinear", name, [before, *numbers], codes, params),
            self._node("DequantizeLinear", name, [codes, *numbers], after, params),
        ]

    def finish(self) -> None:
        """Put the new nodes into the graph."""
        nodes = [*self.after[""]]
        for node in self.model.graph.nodes:
            if node.name not in self.gone:
                nodes += [*self.before[node.name], node, *self.after[node.name]]
        self.model.graph.nodes[:] = nodes

    def _node(
        self, op: str, name: str, inputs: list[gs.Tensor], output: gs.Tensor, params: QuantParams
    ) -> gs.Node:
        if params.axis is not None and self.model.opset < 13:
            raise ModelError(f"{name!r}: scales by channel need opset 13; run convert-opset first")
        attrs = {} if params.axis is None else {"axis": params.axis}
        node = gs.Node(op, self.names.fresh(f"{name}_{op}"), attrs, inputs, [output])
        if params.dtype in ("int16", "uint16") and self.model.opset < 21:
            node.domain = self._contributed()
        return node

    def _contributed(self) -> str:
        """The domain whose operators have 16 bits before opset 21."""
        if _CONTRIBUTED not in self.model.opsets:
            self.model.graph.import_domains.append(onnx.helper.make_opsetid(_CONTRIBUTED, 1))
        return _CONTRIBUTED

    def _numbers(self, name: str, params: QuantParams) -> tuple[gs.Constant, gs.Constant]:
        scale = gs.Constant(self.names.fresh(f"{name}_scale"), np.array(params.scale))
        zero = gs.Constant(self.names.fresh(f"{name}_zero_point"), np.array(params.zero_point))
        return scale, zero

    def _variable(self, stem: str, dtype: Any, shape: Any) -> gs.Variable:
        return gs.Variable(self.names.fresh(stem), np.dtype(dtype), shape)
