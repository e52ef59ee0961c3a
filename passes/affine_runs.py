"""Find runs of affine nodes and hand each to the weights before or after it, or shorten it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.absorb import Absorber
from onnxdrp.passes.affine import Affine, Array, CannotFuseError, affine_of, data_input, is_affine
from onnxdrp.passes.edit import Names, disconnect, only_consumer, producer, replace_uses
from onnxdrp.passes.layout import (
    carried_back,
    carried_on,
    ends_layer_norm,
    shape_of,
    sized_back,
)

__all__ = ["Sweep"]


@dataclass
class _Run:
    """Affine nodes in a row, each the only reader of the one before, and what they do together."""

    nodes: list[gs.Node]
    affine: Affine
    rest: Affine | None  # of all but the first

    @property
    def source(self) -> gs.Variable:
        return data_input(self.nodes[0])

    @property
    def result(self) -> gs.Variable:
        return self.nodes[-1].outputs[0]

    @property
    def only_adds(self) -> bool:
        return all(node.op in ("Add", "Sub") for node in self.nodes)


@dataclass
class _Sized:
    """A node whose outputs were scaled by `size`, with what it had before."""

    node: gs.Node
    inputs: list[gs.Tensor]
    attrs: dict[str, object]
    size: Affine
    passed: list[gs.Variable]

    def undo(self) -> None:
        """Give the node its old weights back."""
        self.node.inputs.clear()  # assigning a slice would not tell the tensors
        self.node.inputs.extend(self.inputs)
        self.node.attrs = self.attrs


@dataclass
class Sweep:
    """One walk over the graph."""

    model: Model
    skipped: dict[str, str] = field(default_factory=dict)
    changed: bool = False

    def __post_init__(self) -> None:
        self.protected = self.model.protected()
        self.names = Names(self.model)
        self.absorber = Absorber(self.model, self.names, self.protected)

    def run(self) -> None:
        """Fuse what can be; say why of the rest."""
        seen: set[int] = set()
        for node in self.model.nodes():
            if id(node) in seen or not is_affine(node):
                continue
            try:
                found = self._collect(node)
            except CannotFuseError as why:
                self.skipped[node.name] = str(why)
                continue
            seen |= {id(n) for n in found.nodes}
            if not self._is_bias(found):
                self._fuse(found)

    def _collect(self, node: gs.Node) -> _Run:
        shape = shape_of(data_input(node))
        found = _Run([node], affine_of(self.model, node, shape), None)
        while (after := only_consumer(found.result, self.protected)) is not None:
            if not is_affine(after) or after.op == "BatchNormalization":
                break
            try:
                one = affine_of(self.model, after, shape)
                whole, rest = found.affine.then(one), found.rest.then(one) if found.rest else one
            except CannotFuseError:
                break
            found = _Run([*found.nodes, after], whole, rest)
        if not found.affine.is_finite:
            raise CannotFuseError("its scale or shift is not finite")
        return found

    def _is_bias(self, found: _Run) -> bool:
        """Whether it is the one Add after a MatMul, which is where it belongs."""
        before = producer(found.source)
        alone = len(found.nodes) == 1 and found.only_adds
        return alone and before is not None and before.op == "MatMul"

    def _fuse(self, found: _Run) -> None:
        reasons = []
        for way in (self._back, self._forward, self._merge, self._shorten):
            try:
                way(found)
            except CannotFuseError as why:
                reasons.append(str(why))
                continue
            self.changed = True
            break
        if len(reasons) > 1:
            self.skipped[found.nodes[0].name] = f"back: {reasons[0]}; forward: {reasons[1]}"

    def _back(self, found: _Run) -> None:
        node, affine, passed = self._walk_back(found, found.affine, carried_back)
        added = self.absorber.after(node, affine)
        result, before = found.result, found.source.inputs[0]
        self._remove(found.nodes)
        before.outputs[0] = result
        self._rename(passed[1:])
        if added is not None:
            self._add(node, added)

    def _forward(self, found: _Run) -> None:
        if ends_layer_norm(found.source):
            raise CannotFuseError("it ends a layer normalization")
        sized = self._size_back(found)
        affine = found.affine if sized is None else found.affine.without(sized.size)
        try:
            node, place, affine, passed = self._walk_on(found, affine)
            added = self.absorber.before(node, place, affine)
        except CannotFuseError:
            if sized is not None:
                sized.undo()
            raise
        replace_uses(found.result, found.source)
        self._remove(found.nodes)
        self._rename([*passed, *(sized.passed if sized is not None else ())])
        if added is not None:
            self._add(node, added)

    def _walk_on(
        self, found: _Run, affine: Affine
    ) -> tuple[gs.Node, int, Affine, list[gs.Variable]]:
        """The node whose weights are next, its input, the map as it sees it, what lies between."""
        tensor, passed = found.result, []
        while True:
            node = self._only_reader(tensor)
            place = next(i for i, t in enumerate(node.inputs) if t is tensor)
            if (turned := carried_on(node, place, affine)) is None:
                break
            tensor, affine = node.outputs[0], turned
            passed.append(tensor)
        if node.op == "MatMul" and found.only_adds:
            raise CannotFuseError("MatMul after it would need an Add in its place")
        return node, place, affine, passed

    def _size_back(self, found: _Run) -> "_Sized | None":
        """Take a part of |scale| back through Relu into the weights before it, if they can take it.

        s * relu(x) = s / a * relu(a * x) for any a > 0. With a = sqrt(|s| * r2 / r1), where r1 and
        r2 are the largest weights that make and that read the channel, both are as large after it:
        so one range suits all channels when weights and activations are quantized (cross-layer
        equalization, Nagel et al. 2019).
        """
        ramp = found.affine.ramp
        if np.all(np.abs(found.affine.scale) == 1):
            return None
        try:
            node, channels, passed = self._walk_back(found, ramp, sized_back)
            after, place, read, _ = self._walk_on(found, ramp)
            size = found.affine.size.balanced(
                self.absorber.widths_after(node, channels),
                self.absorber.widths_before(after, place, read),
            )
            kept = _Sized(node, list(node.inputs), dict(node.attrs), size, passed)
            self.absorber.after(node, self._walk_back(found, size, sized_back)[1])
        except CannotFuseError:
            return None
        return kept

    def _walk_back(
        self, found: _Run, affine: Affine, carried: Callable[[gs.Node, Affine], Affine | None]
    ) -> tuple[gs.Node, Affine, list[gs.Variable]]:
        """The node whose weights come before, the map as it sees it, what lies between."""
        tensor, passed = found.source, []
        while True:
            node = producer(tensor)
            if node is None:
                raise CannotFuseError("its input is one of the model")
            self._only_reader(tensor)
            passed.append(tensor)
            if (turned := carried(node, affine)) is None:
                return node, affine, passed
            tensor, affine = node.inputs[0], turned

    def _merge(self, found: _Run) -> None:
        first, result = found.nodes[0], found.result
        if first.op != "BatchNormalization" or found.rest is None:
            raise CannotFuseError("there is no BatchNormalization before it")
        self.absorber.after(first, found.rest)
        self._remove(found.nodes[1:])
        first.outputs[0] = result

    def _shorten(self, found: _Run) -> None:
        """Say it with one Mul and one Add at most, and without Div, which has no 8-bit kernels."""
        scale, shift = found.affine.scale, found.affine.shift
        wanted = [("Mul", scale)] if np.any(scale != 1) else []
        wanted += [("Add", shift)] if np.any(shift != 0) else []
        ops = [node.op for node in found.nodes]
        shorter = len(wanted) < len(ops) or "Div" in ops
        if "BatchNormalization" in ops or not wanted or not shorter:
            raise CannotFuseError("it cannot be said shorter")
        tensor, result, name = found.source, found.result, found.nodes[0].name
        dtype = next(t.dtype for t in found.nodes[0].inputs if isinstance(t, gs.Constant))
        self._remove(found.nodes)
        for i, (op, values) in enumerate(wanted, 1):
            own = self.names.fresh(f"{name}_{op.lower()}")
            inner = gs.Variable(self.names.fresh(f"{own}_output"), dtype, result.shape)
            output = result if i == len(wanted) else inner
            constant = gs.Constant(self.names.fresh(f"{own}_value"), values.astype(dtype))
            node = gs.Node(op, own, inputs=[tensor, constant], outputs=[output])
            self.model.graph.nodes.append(node)
            tensor = output

    def _only_reader(self, tensor: gs.Tensor) -> gs.Node:
        if tensor.name in self.protected:
            raise CannotFuseError(f"{tensor.name!r} is an output of the model or read by a body")
        if len(tensor.outputs) != 1:
            raise CannotFuseError(f"{tensor.name!r} is read by {len(tensor.outputs)} nodes")
        return tensor.outputs[0]

    def _remove(self, nodes: list[gs.Node]) -> None:
        for node in nodes:
            disconnect(node)

    def _rename(self, tensors: list[gs.Variable]) -> None:
        """Give tensors whose values are others now names of their own."""
        for tensor in tensors:
            tensor.name = self.names.fresh(f"{tensor.name}_fused")

    def _add(self, node: gs.Node, values: Array) -> None:
        """Let an Add of `values` stand between a node and its output."""
        result = node.outputs[0]
        name = self.names.fresh(f"{node.name}_bias")
        inner = gs.Variable(self.names.fresh(f"{name}_input"), result.dtype, result.shape)
        node.outputs[0] = inner
        constant = gs.Constant(self.names.fresh(f"{name}_value"), values)
        add = gs.Node("Add", name, inputs=[inner, constant], outputs=[result])
        self.model.graph.nodes.append(add)
