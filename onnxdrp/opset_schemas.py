"""What onnx's schemas tell of two neighbouring versions of an operator, read downwards.

A node of the newer version is one of the older version as it stands if

1. each attribute that the older one lacks has the value which changes nothing (its default, unless
   `_NEUTRAL` says otherwise), and goes; no attribute has a value that came later (`_LATER`)
2. an attribute that it leaves out defaults to the same in both; else the default is written down
3. the older one takes as many inputs and outputs, and misses none
4. the older one takes the types of its tensors

Changes of meaning, which schemas do not show, and rewrites are in onnxdrp/opset_steps.py.
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["CannotLowerError", "Tensors", "as_it_is", "attribute"]

Array = npt.NDArray[Any]
Schema = onnx.defs.OpSchema


class CannotLowerError(Exception):
    """A node has no equal in the older opset; says why, in words."""


class Tensors:
    """What is known of the tensors of one graph; new ones are made and stored here.

    Args:
        graph: the graph that is rewritten; stored tensors are added to it.
        known: the same graph with all types that inference finds.
        outer: of the graph around this one, if it is the body of a node.
    """

    def __init__(
        self, graph: onnx.GraphProto, known: onnx.GraphProto, outer: Self | None = None
    ) -> None:
        self._graph = graph
        self._outer = outer
        self._taken: set[str] = outer._taken if outer else _names(graph)
        self._types: dict[str, onnx.TypeProto] = {
            v.name: v.type for v in (*known.value_info, *known.output, *known.input) if v.name
        }
        self._stored = {t.name: t for t in graph.initializer}
        for node in graph.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self._stored[node.output[0]] = value
        self._shared: dict[tuple[Any, ...], str] = {}

    def kind(self, name: str) -> onnx.TypeProto:
        """The type of a tensor. Raises CannotLowerError if nothing tells it."""
        if name in self._stored:
            tensor = self._stored[name]
            return helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        kind = self._types.get(name)
        if kind is not None and kind.WhichOneof("value"):
            return kind
        if self._outer is not None:
            return self._outer.kind(name)
        raise CannotLowerError(f"the type of its tensor {name!r} is unknown; run infer-shapes")

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type. Raises CannotLowerError if it is unknown."""
        return helper.tensor_dtype_to_np_dtype(self.kind(name).tensor_type.elem_type)

    def shape(self, name: str) -> list[int | None]:
        """The dimensions, None where free. Raises CannotLowerError if the rank is unknown."""
        kind = self.kind(name).tensor_type
        if not kind.HasField("shape"):
            raise CannotLowerError(f"the rank of its tensor {name!r} is unknown; run infer-shapes")
        return [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]

    def constant(self, node: onnx.NodeProto, place: int, what: str) -> Array | None:
        """The values of an input, None if there is none.

        Raises CannotLowerError, calling the input `what`, if they are computed.
        """
        name = node.input[place] if place < len(node.input) else ""
        if not name:
            return None
        tensor = self._stored.get(name)
        if tensor is None and self._outer is not None and name not in self._types:
            return self._outer.constant(node, place, what)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CannotLowerError(f"it computes its {what}; the older form takes stored ones")
        return numpy_helper.to_array(tensor)

    def store(self, stem: str, values: Array) -> str:
        """The name of a stored tensor with these values; equal ones are stored once."""
        key = (values.tobytes(), values.dtype.str, values.shape)
        if key not in self._shared:
            name = self.fresh(stem)
            self._stored[name] = numpy_helper.from_array(values, name)
            self._graph.initializer.append(self._stored[name])
            self._shared[key] = name
        return self._shared[key]

    def fresh(self, stem: str, like: str = "", *, ranked: bool = True) -> str:
        """A name that is free; of the type of `like`, its shape too if `ranked`."""
        name, n = stem, 0
        while name in self._taken:
            n += 1
            name = f"{stem}_{n}"
        self._taken.add(name)
        if like:
            self._types[name] = onnx.TypeProto()
            self._types[name].CopyFrom(self.kind(like))
            if not ranked:
                self._types[name].tensor_type.ClearField("shape")
        return name


def as_it_is(
    node: onnx.NodeProto, newer: Schema, older: Schema, tensors: Tensors
) -> onnx.NodeProto:
    """The node in the older version of its operator, by the rules above.

    Raises:
        CannotLowerError: it has none.
    """
    result = onnx.NodeProto()
    result.CopyFrom(node)
    _settle_attributes(result, newer, older)
    _check_places(result.input, older.inputs, (older.min_input, older.max_input), "inputs", older)
    _check_places(
        result.output, older.outputs, (older.min_output, older.max_output), "outputs", older
    )
    _check_types(result, older, tensors)
    return result


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, text decoded; `default` where the node has none."""
    for a in node.attribute:
        if a.name == name:
            return _value(a)
    return default


# Of attributes that an older version lacks: what it always does, where that is not the default.
_NEUTRAL: dict[tuple[str, str], Callable[[Any], bool]] = {
    ("AveragePool", "dilations"): lambda v: not v or set(v) <= {1},
    ("Dropout", "seed"): lambda _: True,  # nothing is drawn when a model is only run
    ("LpPool", "dilations"): lambda v: not v or set(v) <= {1},
    ("RoiAlign", "coordinate_transformation_mode"): lambda v: v == "output_half_pixel",
    ("TopK", "sorted"): lambda _: True,  # 0 leaves the order open
}
# Values of attributes that came with a version: {(operator, since, attribute): values}.
_LATER: dict[tuple[str, int, str], set[Any]] = {
    ("Pad", 19, "mode"): {"wrap"},
    ("Resize", 19, "coordinate_transformation_mode"): {"half_pixel_symmetric"},
    ("ScatterElements", 18, "reduction"): {"max", "min"},
    ("ScatterND", 18, "reduction"): {"max", "min"},
}


def _settle_attributes(node: onnx.NodeProto, newer: Schema, older: Schema) -> None:
    given = {a.name: a for a in node.attribute}
    for name, formal in newer.attributes.items():
        value = _value(given[name]) if name in given else _default(formal)
        if value in _LATER.get((node.op_type, newer.since_version, name), ()):
            raise CannotLowerError(f"{name}={value!r} is new in opset {newer.since_version}")
        if name not in older.attributes:
            neutral = _NEUTRAL.get((node.op_type, name))
            same = value == _default(formal) if neutral is None else neutral(value)
            if value is not None and not same:
                raise CannotLowerError(f"{name}={value!r} is new in opset {newer.since_version}")
            if name in given:
                node.attribute.remove(given[name])
        elif name not in given and value is not None and value != _default(older.attributes[name]):
            node.attribute.append(formal.default_value)
    for name, formal in older.attributes.items():
        if formal.required and name not in given:
            raise CannotLowerError(f"below opset {newer.since_version} it needs {name!r}")


def _check_places(names: Any, formal: Any, span: tuple[int, int], what: str, older: Schema) -> None:
    low, high = span
    if not low <= len(names) <= high:
        raise CannotLowerError(
            f"it has {len(names)} {what}, {older.name} of opset {older.since_version} has "
            f"{low}{'' if low == high else f' to {high}'}"
        )
    for name, one in zip(names, formal, strict=False):
        if not name and one.option == Schema.FormalParameterOption.Single and what == "inputs":
            raise CannotLowerError(
                f"it leaves out {one.name!r}, which opset {older.since_version} needs"
            )


def _check_types(node: onnx.NodeProto, older: Schema, tensors: Tensors) -> None:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in older.type_constraints}
    bound: dict[str, str] = {}
    for names, formal in ((node.input, older.inputs), (node.output, older.outputs)):
        for i, name in enumerate(names):
            if not name:
                continue
            one = formal[min(i, len(formal) - 1)]
            kind = _type_text(tensors.kind(name))
            variable = one.type_str
            if kind not in allowed.get(variable, {variable}):
                raise CannotLowerError(
                    f"{older.name} of opset {older.since_version} takes no {kind}"
                )
            if one.is_homogeneous and bound.setdefault(variable, kind) != kind:
                raise CannotLowerError(
                    f"{older.name} of opset {older.since_version} does not mix {kind} with "
                    f"{bound[variable]}"
                )


def _type_text(kind: onnx.TypeProto) -> str:
    """A type as schemas write it, such as `tensor(float)`."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        name = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()
        return f"tensor({name})"
    if which == "sequence_type":
        return f"seq({_type_text(kind.sequence_type.elem_type)})"
    if which == "optional_type":
        return f"optional({_type_text(kind.optional_type.elem_type)})"
    return str(which)


def _default(formal: Any) -> Any:
    return _value(formal.default_value) if formal.default_value.type else None


def _value(a: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(a)
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str | int | float) else _plain(value)


def _plain(value: Any) -> Any:
    return list(value) if not isinstance(value, onnx.TensorProto | onnx.GraphProto) else value


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name in a graph and its bodies."""
    found = {t.name for t in graph.initializer} | {v.name for v in (*graph.input, *graph.output)}
    for node in graph.node:
        found |= {node.name, *node.input, *node.output}
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found |= _names(a.g)
    return found
