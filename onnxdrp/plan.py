"""The plan of a quantization: what is quantized, decided for the whole graph before any number.

Rules, in order:
    1. A node is a candidate if the target quantizes its operator and nothing about it forbids it.
    2. A candidate, a constant Add that makes MatMul a fully connected layer, and a Relu or Clip
       that nobody else reads past are one unit: nothing is rounded between them. So is, where the
       target wants it, the Add of a residual; its other input is an activation of the unit.
    3. Weighted units are quantized; so is an `own` one that reads a quantized tensor, and a `same`
       one whose input is quantized or whose outputs are read by quantized nodes alone. So no
       elementwise operator is rounded between float ones, where it would cost and gain nothing.
    4. Tensors that must have equal parameters (outputs of `same`; what the target shares) form
       groups, by union-find over the whole graph.

Each node and each edge is looked at a fixed number of times.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.dataflow import data_tensors, ordered
from onnxdrp.groups import Groups
from onnxdrp.model import Model
from onnxdrp.operators import Kind, WeightUse, data_inputs, kind_of, weight_use, why_float
from onnxdrp.targets import Target

__all__ = ["Operand", "Plan", "make_plan"]

Operand = tuple[str, int]
"""A stored tensor as data of an operator: (node name, place among its inputs)."""


@dataclass
class Plan:
    """What is quantized, and which parameters are shared.

    Attributes:
        nodes: {name: kind} of every quantized node, units' followers included.
        kept: {name: why it stays float}.
        units: {name: names of the followers computed with it}, of quantized nodes that have some.
        layers: {name: its stored weight} of quantized nodes that have one.
        biases: {layer name: (node name, place)} of the stored tensor that is its bias.
        outputs: {layer name: tensor that its unit gives}.
        groups: {tensor or operand: name of its group} of everything that gets parameters.
        observed: the tensors whose ranges must be measured (the keys).
        fixed: {tensor: its range}, where the target fixes one.
        wide_fixed: {tensor: its range in the wide type}, where the target fixes another for it.
        made: {node name: the tensors that its unit gives}, of those that get parameters.
        tied: {node name: the tensors and operands that it makes share parameters}.
    """

    nodes: dict[str, Kind] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layers: dict[str, WeightUse] = field(default_factory=dict)
    biases: dict[str, Operand] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    groups: dict[str | Operand, str | Operand] = field(default_factory=dict)
    observed: dict[str, None] = field(default_factory=dict)
    fixed: dict[str, tuple[float, float]] = field(default_factory=dict)
    wide_fixed: dict[str, tuple[float, float]] = field(default_factory=dict)
    made: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tied: dict[str, tuple[str | Operand, ...]] = field(default_factory=dict)


def make_plan(model: Model, target: Target, kept: Mapping[str, str]) -> Plan:
    """The plan for a model.

    Args:
        model: a float model, whose types are known.
        target: the profile.
        kept: {node: why it stays float}, decided before: exclusions, or those of an earlier plan.
    """
    return _Planner(model, target, kept).plan()


class _Planner:
    def __init__(self, model: Model, target: Target, kept: Mapping[str, str]) -> None:
        self.model, self.target = model, target
        self.order = ordered(model.nodes())
        self.node = {n.name: n for n in self.order}
        self.protected = model.protected()
        self.quantized: dict[str, None] = {}  # tensor names, in the order found
        self.data: dict[str, set[int]] = {}  # ids of the tensors that a node reads as data
        self.result = Plan()
        self.kinds = self._candidates(kept)
        self.units, self.owner = self._units()

    def plan(self) -> Plan:
        self._spread([name for name, kind in self.kinds.items() if self._is_seed(name, kind)])
        for node in reversed(self.order):
            if self.kinds.get(node.name) == "same" and self._all_readers_quantized(node):
                self._spread([node.name])
        self._explain()
        self._share()
        return self.result

    # ------------------------------------------------------------------------- candidates and units

    def _candidates(self, kept: Mapping[str, str]) -> dict[str, Kind]:
        data = data_tensors(self.model)
        kinds: dict[str, Kind] = {}
        for node in self.order:
            if not any(t.dtype is None or _is_float(t) for t in node.outputs if t.name):
                continue  # it computes integers or booleans
            why = kept.get(node.name) or why_float(self.model, node, self.target)
            if not why and not any(t.name in data for t in node.outputs):
                why = "it computes shapes or constants, not data"
            kind = kind_of(node, self.target)
            if why or kind is None:
                self.result.kept[node.name] = why
            else:
                kinds[node.name] = kind
        return kinds

    def _units(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """{head: followers}, and {follower: head}."""
        units: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        for node in self.order:
            if node.name not in self.kinds or node.name in owner or not self._can_lead(node):
                continue
            followers, last = [], node
            add = self._bias_add(node) if node.op == "MatMul" else None
            if add is None:
                add = self._residual(node)
            if add is not None and add.name not in owner:
                followers.append(add.name)
                last = add
            after = self._only_reader(last)
            if after is not None and self._is_activation(after, last):
                followers.append(after.name)
            units[node.name] = followers
            owner |= dict.fromkeys(followers, node.name)
        return units, owner

    def _can_lead(self, node: gs.Node) -> bool:
        ops = self.target.operators
        tied = node.op in ops.shared_inputs_and_output or node.op in ops.fixed_range
        return self.kinds[node.name] != "same" and not tied and node.op not in ("Relu", "Clip")

    def _only_reader(self, node: gs.Node) -> gs.Node | None:
        """The node that reads the output, once, if nobody else does."""
        output = node.outputs[0]
        alone = output.name not in self.protected and len(output.outputs) == 1
        return output.outputs[0] if alone else None

    def _is_activation(self, node: gs.Node, after: gs.Node) -> bool:
        fits = node.op in ("Relu", "Clip") and node.inputs[0] is after.outputs[0]
        return fits and node.name in self.kinds

    def _bias_add(self, node: gs.Node) -> gs.Node | None:
        """The Add of a constant, one value for each output, that only this MatMul feeds."""
        add = self._only_reader(node) if self.target.operators.matmul_add_is_fc else None
        layer = weight_use(self.model, node)
        if add is None or add.op != "Add" or add.name not in self.kinds or layer is None:
            return None
        bias = add.inputs[1 if add.inputs[0] is node.outputs[0] else 0]
        return add if layer.outputs and self._is_bias(bias, layer) else None

    def _residual(self, node: gs.Node) -> gs.Node | None:
        """The node that adds another activation to what only it reads of this weighted one."""
        after = self._only_reader(node) if self.kinds[node.name] == "weighted" else None
        if after is None or after.op not in self.target.operators.fused_residual:
            return None
        others = [t for t in after.inputs if t is not node.outputs[0]]
        computed = all(self.model.constant(t) is None for t in others)
        return after if after.name in self.kinds and others and computed else None

    def _is_bias(self, tensor: gs.Tensor, layer: WeightUse) -> bool:
        values = self.model.constant(tensor)
        if values is None or values.dtype != np.float32:
            return False
        return values.size == 1 or values.shape == (1,) * (values.ndim - 1) + (layer.outputs,)

    def _unit_output(self, head: str) -> gs.Tensor:
        followers = self.units.get(head)
        return self.node[followers[-1] if followers else head].outputs[0]

    # -------------------------------------------------------------------------- what gets quantized

    def _is_seed(self, name: str, kind: Kind) -> bool:
        return kind == "weighted" or self.node[name].op in self.target.operators.always_quantized

    def _spread(self, heads: Iterable[str]) -> None:
        """Quantize these nodes and all that this makes read a quantized tensor."""
        waiting = [t for head in heads for t in self._quantize(head)]
        while waiting:
            for reader in self._readers(waiting.pop()):
                waiting += self._quantize(reader)

    def _readers(self, tensor: gs.Tensor) -> list[str]:
        """The candidates that a quantized tensor makes quantized: they read it as data."""
        nodes = (n for n in tensor.outputs if n.name in self.kinds and n.name not in self.owner)
        return [node.name for node in nodes if id(tensor) in self._data(node)]

    def _data(self, node: gs.Node) -> set[int]:
        """Which tensors a candidate reads as data."""
        if node.name not in self.data:
            places = [0] if self.kinds[node.name] == "same" else data_inputs(node)
            self.data[node.name] = {id(node.inputs[i]) for i in places}
        return self.data[node.name]

    def _quantize(self, head: str) -> list[gs.Tensor]:
        """Mark a unit; the tensors that become quantized by it."""
        if head in self.result.nodes:
            return []
        node, kind = self.node[head], self.kinds[head]
        followers = self.units.get(head, [])
        self.result.nodes |= {name: self.kinds[name] for name in (head, *followers)}
        tensors = [node.inputs[i] for i in self._places(node)]
        for before, name in pairwise((head, *followers)):
            inner, follower = self.node[before].outputs[0], self.node[name]
            places = self._places(follower)
            tensors += [t for i in places if (t := follower.inputs[i]) is not inner]
        if kind == "same":
            tensors += [t for t in node.outputs if t.name]
        elif node.op not in self.target.operators.float_output:
            tensors.append(self._unit_output(head))
        new = {t.name: t for t in tensors if t.name not in self.quantized}
        self.quantized |= dict.fromkeys(new)
        return list(new.values())

    def _places(self, node: gs.Node) -> list[int]:
        """The inputs of a quantized node that are activations."""
        places = [0] if self.kinds[node.name] == "same" else data_inputs(node)
        return [i for i in places if self.model.constant(node.inputs[i]) is None]

    def _all_readers_quantized(self, node: gs.Node) -> bool:
        outputs = [t for t in node.outputs if t.name]
        return all(
            t.name in self.quantized
            and t.name not in self.protected
            and all(r.name in self.result.nodes for r in t.outputs)
            for t in outputs
        )

    # ----------------------------------------------------------------------------- what comes of it

    def _explain(self) -> None:
        plan = self.result
        for name, kind in self.kinds.items():
            if name not in plan.nodes:
                what = "its input is not" if kind == "same" else "none of its inputs is"
                plan.kept[name] = f"{what} quantized"
            elif name in self.units:
                if self.units[name]:
                    plan.units[name] = tuple(self.units[name])
                self._note_layer(self.node[name])
        plan.nodes = {n.name: plan.nodes[n.name] for n in self.order if n.name in plan.nodes}
        plan.kept = {n.name: plan.kept[n.name] for n in self.order if n.name in plan.kept}

    def _note_layer(self, node: gs.Node) -> None:
        layer = weight_use(self.model, node) if self.kinds[node.name] == "weighted" else None
        if layer is None:
            return
        self.result.layers[node.name] = layer
        self.result.outputs[node.name] = self._unit_output(node.name).name
        holder, place = node, 2
        first = next(iter(self.units[node.name]), "")
        if node.op == "MatMul" and first and self.node[first].op == "Add":
            holder = self.node[first]
            place = int(holder.inputs[0] is node.outputs[0])
        elif node.op == "MatMul" or len(node.inputs) < 3 or not layer.outputs:
            return
        if self._is_bias(holder.inputs[place], layer):
            self.result.biases[node.name] = (holder.name, place)

    def _share(self) -> None:
        """Group what must have equal parameters; what is made of others need not be measured."""
        groups: Groups[str | Operand] = Groups()
        plan, ops, measured = self.result, self.target.operators, self._in_order()
        for name, kind in plan.nodes.items():
            if name in self.owner:
                continue
            node = self.node[name]
            outputs = [t.name for t in node.outputs if t.name]
            operands = [self._key(node, i) for i in data_inputs(node)] if kind == "own" else []
            for key in operands:
                groups.join([key])
            if kind == "same":
                groups.join([node.inputs[0].name, *outputs])
            elif node.op in (*ops.shared_inputs_and_output, *ops.shared_inputs):
                tied = [*operands, *(outputs if node.op in ops.shared_inputs_and_output else [])]
                plan.tied[name] = tuple(tied)
                groups.join(tied)
            if kind == "same" or node.op in (*ops.shared_inputs_and_output, *ops.fixed_range):
                for output in outputs:
                    measured.pop(output, None)
            if node.op in ops.fixed_range:
                plan.fixed[outputs[0]] = ops.fixed_range[node.op]
                plan.wide_fixed[outputs[0]] = ops.wide_fixed_range.get(
                    node.op, ops.fixed_range[node.op]
                )
        for tensor in self._in_order():
            groups.join([tensor])
        plan.groups, plan.observed = groups.roots(), measured
        for name in plan.nodes:
            last = (plan.units.get(self.owner.get(name, name)) or (name,))[-1]
            names = [t.name for t in self.node[last].outputs]
            plan.made[name] = tuple(n for n in names if n in plan.groups)

    def _in_order(self) -> dict[str, None]:
        """The quantized tensors, in the order in which they are computed."""
        made = [t for node in self.order for t in node.outputs]
        names = [t.name for t in (*self.model.graph.inputs, *made)]
        return {name: None for name in names if name in self.quantized}

    def _key(self, node: gs.Node, place: int) -> str | Operand:
        tensor = node.inputs[place]
        return tensor.name if self.model.constant(tensor) is None else (node.name, place)


def _is_float(tensor: gs.Tensor) -> bool:
    return tensor.dtype in (np.float16, np.float32, np.float64)
