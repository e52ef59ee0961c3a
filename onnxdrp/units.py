"""What a quantization does to one unit alone: its inputs, its stored tensors, its output.

A unit is a node with its followers, nothing rounded between them (onnxdrp.plan): a layer with its
activation, an elementwise operator. With parameters as the whole quantized model has them

    whole    y' = Q(f(Q(x); Q(w)))
    weights  y' = f(x; Q(w))
    output   y' = Q(f(x; w))

where Q rounds to the integers of a tensor's parameters and back, and a bias to int32 of s_in * s_w.
A node whose outputs keep the parameters of its input rounds nothing itself, and is no unit; unless
it is one that the target quantizes wherever it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.operators import data_inputs
from onnxdrp.parameters import activation_parameters
from onnxdrp.pipeline import PassContext
from onnxdrp.plan import Operand, Plan, make_plan
from onnxdrp.quantization import QuantParams, bias_params, fake_quantize
from onnxdrp.session import open_session
from onnxdrp.taps import run_session
from onnxdrp.targets import Target
from onnxdrp.weights import Weights

__all__ = ["Part", "Runner", "Unit", "Units", "head_nodes"]

Array = npt.NDArray[Any]
Part = Literal["whole", "weights", "output"]


def head_nodes(plan: Plan, ops: Mapping[str, str], target: Target) -> dict[str, tuple[str, ...]]:
    """{first node: all nodes} of the units of a plan, in its order.

    Args:
        plan: of the model.
        ops: {node name: operator}.
        target: that the plan was made for.
    """
    followers = {name for unit in plan.units.values() for name in unit}
    always = target.operators.always_quantized
    return {
        name: (name, *plan.units.get(name, ()))
        for name, kind in plan.nodes.items()
        if name not in followers and (kind != "same" or ops[name] in always)
    }


@dataclass(frozen=True, eq=False)
class Unit:
    """One unit, ready to run.

    Attributes:
        name: of its first node.
        op: its operator.
        nodes: the names of all its nodes.
        reads: the computed tensors that it reads.
        output: the tensor that it gives.
        rounded_inputs: {tensor of `reads`: parameters}.
        rounded_output: parameters of `output`; None if that stays float.
        stored: {stored tensor that it reads: its values, rounded}, those with parameters alone.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    output: str
    rounded_inputs: Mapping[str, QuantParams]
    rounded_output: QuantParams | None
    stored: Mapping[str, Array]
    _graph: onnx.ModelProto
    _constants: Mapping[str, Array]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of it can be rounded alone, the whole first."""
        weights: tuple[Part, ...] = ("weights",) if self.stored else ()
        output: tuple[Part, ...] = () if self.rounded_output is None else ("output",)
        return ("whole", *weights, *output)

    def runner(self) -> "Runner":
        """What computes it."""
        return Runner(self)


class Runner:
    """A unit in onnxruntime, unoptimized: what is read and stored is fed, so one serves all parts.

    Raises:
        ModelError: onnxruntime cannot run the unit.
    """

    def __init__(self, unit: Unit) -> None:
        graph = onnx.ModelProto.FromString(unit._graph.SerializeToString())
        self._unit = unit
        self._session = open_session(graph, Weights(), [unit.output], optimize=False, threads=1)

    def run(self, live: Mapping[str, Array], part: Part) -> Array:
        """Its output with a part rounded.

        Args:
            live: the tensors of `reads`; with part "output", that of `output`.
            part: what is rounded.

        Raises:
            DataError: onnxruntime fails on the data.
        """
        unit = self._unit
        if part == "output":
            return self._rounded(live[unit.output])
        feed = {name: np.asarray(live[name]) for name in unit.reads}
        if part == "whole":
            feed |= {n: fake_quantize(feed[n], p) for n, p in unit.rounded_inputs.items()}
        feed |= {**unit._constants, **unit.stored}
        value = run_session(self._session, [unit.output], feed)[0]
        return self._rounded(value) if part == "whole" else value

    def _rounded(self, value: Array) -> Array:
        params = self._unit.rounded_output
        return value if params is None else fake_quantize(value, params)


class Units:
    """The units of a model with their parameters.

    Args:
        model: float, calibrated, types known; is not changed.
        ctx: its ranges, what is kept float, the target; is not changed.
        per_channel: as QuantizeWeights has it.

    Attributes:
        model: the float model, in which quantized layers have weights of their own.
        units: in the order of the graph.

    Raises:
        ModelError: a range is missing.
        OptionError: per-channel weights need a newer opset.
    """

    def __init__(self, model: Model, ctx: PassContext, per_channel: bool | None = None) -> None:
        from onnxdrp.passes.quantize_weights import QuantizeWeights

        own = PassContext(
            target=ctx.target, ranges=ctx.ranges, kept_float=ctx.kept_float, masks=dict(ctx.masks)
        )
        rounded, step = model.clone(), QuantizeWeights(per_channel)
        step.requires(rounded, own)
        step.run(rounded, own)
        assert own.reference is not None  # the pass sets it
        self.model = own.reference
        self._plan = make_plan(self.model, own.target, own.kept_float)
        self._params: dict[str | Operand, QuantParams] = dict(
            activation_parameters(self.model, self._plan, own.ranges, own.target)
        )
        self._params.update(own.quantization)
        self._rounded, self._held = rounded, rounded.tensors()
        self._skeleton = self.model.skeleton()
        self._protos = {node.name: node for node in self._skeleton.graph.node}
        self._nodes = {node.name: node for node in self.model.nodes()}
        ops = {name: node.op for name, node in self._nodes.items()}
        heads = head_nodes(self._plan, ops, own.target)
        self._float_output = own.target.operators.float_output
        self.units = [self._unit(name, nodes) for name, nodes in heads.items()]

    def _unit(self, head: str, names: tuple[str, ...]) -> Unit:
        nodes = [self._nodes[name] for name in names]
        inside = {t.name for node in nodes for t in node.outputs}
        tensors = {t.name: t for n in nodes for t in n.inputs if t.name and t.name not in inside}
        values = {name: self.model.constant(t) for name, t in tensors.items()}
        constants = {name: v for name, v in values.items() if v is not None}
        reads = tuple(name for name, v in values.items() if v is None)
        stored = self._stored(head, nodes)
        places = [0] if self._plan.nodes[head] == "same" else data_inputs(nodes[0])
        data = {nodes[0].inputs[i].name for i in places} & set(reads)
        output = nodes[-1].outputs[0].name
        quantized_output = nodes[0].op not in self._float_output and output in self._params
        return Unit(
            name=head,
            op=nodes[0].op,
            nodes=names,
            reads=reads,
            output=output,
            rounded_inputs={n: self._params[n] for n in reads if n in data},
            rounded_output=self._params[output] if quantized_output else None,
            stored=stored,
            _graph=self._graph(nodes, {n: tensors[n].dtype for n in tensors}),
            _constants={n: v for n, v in constants.items() if n not in stored},
        )

    def _stored(self, head: str, nodes: list[gs.Node]) -> dict[str, Array]:
        """The stored tensors of a unit that have parameters, rounded."""
        plan, node = self._plan, nodes[0]
        operands = (i for i in range(len(node.inputs)) if (head, i) in self._params)
        found = {node.inputs[i].name: self._fake(node.inputs[i], (head, i)) for i in operands}
        if (use := plan.layers.get(head)) is None:
            return found
        weight = node.inputs[use.weight].name
        found[weight] = self._rounded.weight(self._held[weight])
        if head in plan.biases:
            holder, place = plan.biases[head]
            bias = self._nodes[holder].inputs[place]
            scale = self._params[node.inputs[use.data].name].scale
            params = bias_params(scale, self._params[weight])
            found[bias.name] = fake_quantize(self._values(bias, use.outputs), params)
        return found

    def _fake(self, tensor: gs.Tensor, key: Operand) -> Array:
        return fake_quantize(self._values(tensor), self._params[key])

    def _values(self, tensor: gs.Tensor, outputs: int | None = None) -> Array:
        """Stored values; with `outputs`, one for each of these."""
        values = self.model.weight(tensor)
        return values if outputs is None else np.broadcast_to(values.reshape(-1), outputs)

    def _graph(self, nodes: list[gs.Node], inputs: Mapping[str, Any]) -> onnx.ModelProto:
        whole = self._skeleton
        part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
        part.graph.name = nodes[0].name
        part.graph.node.extend(self._protos[node.name] for node in nodes)
        part.graph.input.extend(
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None
            )
            for name, dtype in inputs.items()
        )
        return part
