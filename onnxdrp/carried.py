"""What graphsurgeon does not keep between import and export, taken off before and put back after.

Kept by the name of the node or tensor it belongs to, so that it survives as long as that does:
metadata and doc strings, attributes of kinds that graphsurgeon skips, non-tensor types,
quantization annotations, which initializers are graph inputs as well (the rule below IR 4), and
which constants were Constant nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from onnxdrp.errors import ModelError

__all__ = ["Carried"]

_PLAIN = {onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, onnx.AttributeProto.TENSOR}
_LOST = {
    onnx.AttributeProto.GRAPHS,
    onnx.AttributeProto.TENSORS,
    onnx.AttributeProto.UNDEFINED,
}
_LISTS = {
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRINGS: "strings",
}


@dataclass
class Carried:
    """What one model needs put back into each proto that graphsurgeon exports of it."""

    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)  # without its graph
    graph: onnx.GraphProto = field(default_factory=onnx.GraphProto)  # metadata and annotations only
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)  # extras only
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)  # all, in order
    constants: dict[str, onnx.NodeProto] = field(default_factory=dict)  # without their value
    inner: set[str] = field(default_factory=set)  # names of initializers inside bodies
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)  # doc and metadata only

    @classmethod
    def take(cls, skeleton: onnx.ModelProto) -> "Carried":
        """Prepare a skeleton, in place, for graphsurgeon; keep what its import would lose."""
        _name_nodes(skeleton.graph)
        carried = cls()
        carried._take_model(skeleton)
        for graph in _graphs(skeleton.graph):
            if graph is not skeleton.graph:
                carried.inner |= {t.name for t in graph.initializer}
            for tensor in graph.initializer:
                carried._take_tensor(tensor)
            for node in graph.node:
                carried._take_node(node)
            for value in (*graph.input, *graph.output, *graph.value_info):
                carried._take_value(value)
        carried._constants_to_initializers(skeleton.graph)
        return carried

    def merged(self, newer: "Carried") -> "Carried":
        """This and what only `newer` has: for a graph that was rebuilt."""
        newer.nodes |= self.nodes
        newer.values |= self.values
        newer.constants |= self.constants
        newer.tensors |= self.tensors
        newer.inputs, newer.model, newer.graph = self.inputs, self.model, self.graph
        return newer

    def put_back(self, proto: onnx.ModelProto, *, as_loaded: bool, nodes_up_to: int | None) -> None:
        """Complete what graphsurgeon exported.

        Args:
            proto: graphsurgeon's export; is changed.
            as_loaded: also restore initializers that were graph inputs and constants that were
                Constant nodes, as files have them; without it constants are plain initializers,
                which every tool takes.
            nodes_up_to: with `as_loaded`, constants of this many bytes and more stay initializers,
                since only those can be external data.
        """
        outer = {t.name for t in proto.graph.initializer}
        for graph in _graphs(proto.graph):
            if graph is not proto.graph:
                self._hoist(graph, proto.graph, outer)
            for tensor in graph.initializer:
                self._put_tensor(tensor)
            for node in graph.node:
                self._put_node(node)
            for value in (*graph.input, *graph.output, *graph.value_info):
                self._put_value(value)
        if as_loaded:
            self._restore_inputs(proto)
            self._restore_constants(proto, nodes_up_to)
        else:
            proto.ir_version = max(
                proto.ir_version, 4
            )  # below 4 every initializer must be an input
        self._put_model(proto)

    # --------------------------------------------------------------------------------------- taking

    def _take_model(self, skeleton: onnx.ModelProto) -> None:
        self.model.CopyFrom(skeleton)
        for name in ("graph", "opset_import", "ir_version", "functions"):
            self.model.ClearField(name)
        self.graph.metadata_props.extend(skeleton.graph.metadata_props)
        self.graph.quantization_annotation.extend(skeleton.graph.quantization_annotation)
        for value in skeleton.graph.input:
            self.inputs[value.name] = onnx.ValueInfoProto.FromString(value.SerializeToString())

    def _take_tensor(self, tensor: onnx.TensorProto) -> None:
        if tensor.doc_string or tensor.metadata_props:
            extras = onnx.TensorProto(doc_string=tensor.doc_string)
            extras.metadata_props.extend(tensor.metadata_props)
            self.tensors[tensor.name] = extras

    def _take_node(self, node: onnx.NodeProto) -> None:
        extras = onnx.NodeProto(op_type=node.op_type)
        for name in ("doc_string", "overload"):
            if getattr(node, name, ""):
                setattr(extras, name, getattr(node, name))
        extras.metadata_props.extend(node.metadata_props)
        for attribute in [a for a in node.attribute if not _survives(a)]:
            if attribute.type in _LOST:
                raise ModelError(
                    f"node {node.name!r}: attribute {attribute.name!r} is of a kind that is lost "
                    f"({onnx.AttributeProto.AttributeType.Name(attribute.type)}); export without it"
                )
            extras.attribute.append(attribute)
            node.attribute.remove(attribute)
        extras.attribute.extend(
            onnx.AttributeProto(name=a.name, doc_string=a.doc_string)  # of no type: only the text
            for a in node.attribute
            if a.doc_string
        )
        if extras.ByteSize() > onnx.NodeProto(op_type=node.op_type).ByteSize():
            self.nodes[node.name] = extras

    def _take_value(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.WhichOneof("value")
        dims = value.type.tensor_type.shape.dim
        if (
            value.doc_string
            or value.metadata_props
            or value.type.denotation
            or any(d.denotation for d in dims)
            or kind not in ("tensor_type", None)
        ):
            self.values[value.name] = onnx.ValueInfoProto.FromString(value.SerializeToString())
        if kind not in ("tensor_type", "sequence_type", None):
            value.ClearField("type")  # graphsurgeon knows no others

    def _constants_to_initializers(self, graph: onnx.GraphProto) -> None:
        kept = []
        for node in graph.node:
            tensor = _constant_value(node) if node.op_type == "Constant" else None
            if tensor is None:
                kept.append(node)
                continue
            tensor.name = node.output[0]
            self._take_tensor(tensor)
            graph.initializer.append(tensor)
            origin = onnx.NodeProto.FromString(node.SerializeToString())
            origin.ClearField("attribute")
            self.constants[tensor.name] = origin
        if len(kept) < len(graph.node):
            nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
            graph.ClearField("node")
            graph.node.extend(nodes)

    # -------------------------------------------------------------------------------------- putting

    def _hoist(self, body: onnx.GraphProto, top: onnx.GraphProto, outer: set[str]) -> None:
        """Give constants of the top graph that a body captures back to the top graph."""
        captured = [t for t in body.initializer if t.name not in self.inner]
        for tensor in captured:
            if tensor.name not in outer:
                top.initializer.append(tensor)
                outer.add(tensor.name)
            body.initializer.remove(tensor)
        made = {name for node in body.node for name in node.output}
        for value in [v for v in body.value_info if v.name not in made]:
            body.value_info.remove(value)

    def _put_tensor(self, tensor: onnx.TensorProto) -> None:
        extras = self.tensors.get(tensor.name)
        if extras is not None:
            tensor.doc_string = extras.doc_string
            tensor.ClearField("metadata_props")
            tensor.metadata_props.extend(extras.metadata_props)

    def _put_node(self, node: onnx.NodeProto) -> None:
        extras = self.nodes.get(node.name)
        if extras is None:
            return
        same_operator = extras.op_type == node.op_type
        attributes = list(extras.attribute) if same_operator else []
        node.doc_string = extras.doc_string
        node.metadata_props.extend(extras.metadata_props)
        present = {a.name: a for a in node.attribute}
        for attribute in attributes:
            if attribute.name in present:
                present[attribute.name].doc_string = attribute.doc_string
            elif attribute.type != onnx.AttributeProto.UNDEFINED:
                node.attribute.append(attribute)
        if getattr(extras, "overload", ""):
            node.overload = extras.overload

    def _put_value(self, value: onnx.ValueInfoProto) -> None:
        kept = self.values.get(value.name)
        if kept is None:
            return
        value.doc_string = kept.doc_string
        value.metadata_props.extend(kept.metadata_props)
        kind = kept.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            value.type.CopyFrom(kept.type)
            return
        value.type.denotation = kept.type.denotation
        dims = value.type.tensor_type.shape.dim
        if len(dims) == len(kept.type.tensor_type.shape.dim):
            for dim, old in zip(dims, kept.type.tensor_type.shape.dim, strict=True):
                dim.denotation = old.denotation

    def _restore_inputs(self, proto: onnx.ModelProto) -> None:
        present = {value.name: value for value in proto.graph.input}
        initializers = {t.name: t for t in proto.graph.initializer}
        inputs = []
        for name, old in self.inputs.items():
            if name in present:
                inputs.append(present.pop(name))
            elif name in initializers:
                tensor = initializers[name]
                inputs.append(
                    onnx.helper.make_tensor_value_info(
                        name, tensor.data_type, tensor.dims, old.doc_string
                    )
                )
        inputs += present.values()
        copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in inputs]
        proto.graph.ClearField("input")
        proto.graph.input.extend(copies)

    def _restore_constants(self, proto: onnx.ModelProto, nodes_up_to: int | None) -> None:
        graph = proto.graph
        inputs = {value.name for value in graph.input}
        names = {node.name for node in graph.node}
        initializers, nodes = [], []
        for tensor in graph.initializer:
            was_node = tensor.name in self.constants
            new_below_ir_4 = proto.ir_version < 4 and tensor.name not in inputs
            external = nodes_up_to is not None and _bytes(tensor) >= nodes_up_to
            if not (was_node or new_below_ir_4) or (external and not new_below_ir_4):
                initializers.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
                continue
            node = onnx.NodeProto(op_type="Constant", output=[tensor.name], name=tensor.name)
            if was_node:
                node.CopyFrom(self.constants[tensor.name])
            while node.name in names:
                node.name += "_"
            names.add(node.name)
            node.attribute.append(onnx.helper.make_attribute("value", tensor))
            nodes.append(node)
        if nodes:
            nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
            graph.ClearField("node")
            graph.node.extend(nodes)
            graph.ClearField("initializer")
            graph.initializer.extend(initializers)

    def _put_model(self, proto: onnx.ModelProto) -> None:
        proto.MergeFrom(self.model)
        proto.graph.metadata_props.extend(self.graph.metadata_props)
        alive = {n for node in proto.graph.node for n in node.output}
        alive |= {t.name for t in proto.graph.initializer} | {v.name for v in proto.graph.input}
        proto.graph.quantization_annotation.extend(
            a for a in self.graph.quantization_annotation if a.tensor_name in alive
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and, recursively, the bodies in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: `Conv_12` if it had none, `name_1` if that was taken."""
    taken = {node.name for g in _graphs(graph) for node in g.node if node.name}
    used: set[str] = set()
    for body in _graphs(graph):
        for i, node in enumerate(body.node):
            if node.name and node.name not in used:
                used.add(node.name)
                continue
            stem, n = node.name or f"{node.op_type}_{i}", 0
            name = stem
            while name in taken:
                n += 1
                name = f"{stem}_{n}"
            node.name = name
            taken.add(name)
            used.add(name)


def _survives(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon imports and exports an attribute unchanged."""
    if attribute.type in _PLAIN or attribute.type == onnx.AttributeProto.GRAPH:
        return True
    if attribute.type == onnx.AttributeProto.STRING:
        return _is_text(attribute.s)
    values = getattr(attribute, _LISTS[attribute.type]) if attribute.type in _LISTS else ()
    if attribute.type == onnx.AttributeProto.STRINGS and not all(map(_is_text, values)):
        return False
    return len(values) > 0


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node, or None for sparse and string values, which stay nodes."""
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: onnx.TensorProto = onnx.TensorProto.FromString(attribute.t.SerializeToString())
            return tensor
        if attribute.name in ("value_float", "value_floats"):
            many = attribute.name == "value_floats"
            values = list(attribute.floats) if many else [attribute.f]
            return onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [len(values)] * many, values)
        if attribute.name in ("value_int", "value_ints"):
            many = attribute.name == "value_ints"
            numbers = list(attribute.ints) if many else [attribute.i]
            return onnx.helper.make_tensor(
                "", onnx.TensorProto.INT64, [len(numbers)] * many, numbers
            )
    return None


def _bytes(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
