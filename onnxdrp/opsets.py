"""Lower the opset of a graph, which onnx's version converter cannot.

An opset is a version of every operator at once. A node goes down one version of its operator at a
time: by the step of that version where one stands in onnxdrp/opset_steps.py, which may write it as
several nodes, and for the rest by comparing the two schemas (onnxdrp/opset_schemas.py). All nodes
go, or the graph stays as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

from onnxdrp.opset_schemas import CannotLowerError, Tensors, as_it_is
from onnxdrp.opset_steps import STEPS

__all__ = ["NEWEST", "OLDEST", "Lowering", "lower_opset"]

NEWEST = 28  # the steps are those of ONNX's change log up to here; a later change is not known
OLDEST = 10  # QuantizeLinear and DequantizeLinear exist from here on
_STANDARD = ("", "ai.onnx")


@dataclass
class Lowering:
    """What came of it.

    Attributes:
        model: with the older opset; not to be used where something was refused.
        rewritten: {node name: the operators that it is now}, of every node that had to change.
        refused: {node name: why it cannot be said in the older opset}.
    """

    model: onnx.ModelProto
    rewritten: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def lower_opset(skeleton: onnx.ModelProto, inferred: onnx.ModelProto, opset: int) -> Lowering:
    """The same graph in an older opset; names of tensors and nodes stay.

    Args:
        skeleton: the model; is not changed.
        inferred: the same model with the types and shapes of its tensors.
        opset: the older version, at least `OLDEST`.
    """
    done = Lowering(onnx.ModelProto())
    done.model.CopyFrom(skeleton)
    (standard,) = (o for o in done.model.opset_import if o.domain in _STANDARD)
    _lower_graph(done.model.graph, inferred.graph, standard.version, opset, done, None)
    standard.version = opset
    return done


def _lower_graph(
    graph: onnx.GraphProto,
    inferred: onnx.GraphProto,
    from_: int,
    to: int,
    done: Lowering,
    outer: Tensors | None,
) -> None:
    tensors = Tensors(graph, inferred, outer)
    nodes: list[onnx.NodeProto] = []
    for node, known in zip(graph.node, inferred.node, strict=True):
        for body, known_body in zip(_bodies(node), _bodies(known), strict=True):
            _lower_graph(body, known_body, from_, to, done, tensors)
        try:
            lowered = list(_lower(node, from_, to, tensors))
        except CannotLowerError as e:
            done.refused[node.name] = f"{node.op_type}: {e}"
            continue
        if lowered != [node]:
            _name(lowered, node, tensors)
            done.rewritten[node.name] = ", ".join(n.op_type for n in lowered)
        nodes += lowered
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _lower(node: onnx.NodeProto, from_: int, to: int, tensors: Tensors) -> Iterator[onnx.NodeProto]:
    """Yield what the node is in opset `to`."""
    if node.domain not in _STANDARD:
        yield node
        return
    newer = onnx.defs.get_schema(node.op_type, from_, "")
    since = newer.since_version
    if since <= to:
        yield node
        return
    if since > NEWEST:
        raise CannotLowerError(f"what changed in opset {since} is not known here")
    step = STEPS.get((node.op_type, since))
    older = _schema(node.op_type, since - 1)
    if step is None and (older is None or older.deprecated):
        raise CannotLowerError(f"the operator is new in opset {since}")
    if step is None and older is not None and older.attributes.keys() - newer.attributes.keys():
        raise CannotLowerError(f"opset {since} changed its attributes into inputs")
    for part in step(node, tensors) if step is not None else [node]:
        if part.op_type == node.op_type and older is not None:
            part = as_it_is(part, newer, older, tensors)
        yield from _lower(part, since - 1, to, tensors)


def _schema(op: str, version: int) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op, version, "") if onnx.defs.has(op, version, "") else None


def _name(lowered: list[onnx.NodeProto], node: onnx.NodeProto, tensors: Tensors) -> None:
    """Let one of the new nodes have the name of the old one, and the others names like it."""
    if all(part.name != node.name for part in lowered):
        lowered[-1].name = node.name
    for part in lowered:
        if not part.name:
            part.name = tensors.fresh(f"{node.name}_{part.op_type}")


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
