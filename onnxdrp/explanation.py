"""What a quantization would do with each node, without any data: the plan in words."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from onnxdrp.dataflow import ordered
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.exclusions import Kept
from onnxdrp.model import Model
from onnxdrp.operators import Kind
from onnxdrp.plan import Operand, Plan
from onnxdrp.report import Text

__all__ = ["Explanation", "NodePlan", "explain_plan"]

_HEAD = ("node", "operator", "quantized", "with", "shares parameters", "float because")


@dataclass(frozen=True)
class NodePlan:
    """What becomes of a node.

    Attributes:
        name: of the node.
        op: its operator.
        kind: weighted, own or same (see onnxdrp.operators); None if it stays float.
        unit: the node that it is computed with, nothing rounded between; "" if none.
        group: the name of the group of tensors whose parameters its outputs have; "" if no other
            tensor has them.
        why: why it stays float; "" if it does not.
    """

    name: str
    op: str
    kind: Kind | None
    unit: str = ""
    group: str = ""
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The node as JSON can hold it."""
        return {
            "name": self.name,
            "op": self.op,
            "quantized": self.kind is not None,
            "kind": self.kind,
            "unit": self.unit,
            "group": self.group,
            "why": self.why,
        }


@dataclass(frozen=True, repr=False)
class Explanation(Tabular):
    """Every node of a model, in the order in which they are computed.

    Attributes:
        nodes: what becomes of each.
        tail: the names of those that are the tail of a detector.
        notes: exclusions that have no effect, in words.
    """

    nodes: list[NodePlan]
    tail: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        quantized = sum(node.kind is not None for node in self.nodes)
        return {
            "nodes": [node.as_dict() for node in self.nodes],
            "quantized_nodes": quantized,
            "float_nodes": len(self.nodes) - quantized,
            "tail": self.tail,
            "notes": self.notes,
        }

    def table(self) -> Text:
        """A line a node, then what it comes to."""
        rows = [(n.name, n.op, n.kind or "-", n.unit, n.group, n.why) for n in self.nodes]
        found = self.as_dict()
        lines: list[Any] = [
            Table(_HEAD, rows),
            "",
            f"quantized: {found['quantized_nodes']} of {len(self.nodes)} nodes",
        ]
        if self.tail:
            ends = f"from {self.tail[0]!r} to {self.tail[-1]!r}"
            lines.append(
                f"tail: {len(self.tail)} nodes, {ends}; exclude-tail none would quantize them"
            )
        return Shown(*lines, *(f"note: {note}" for note in self.notes))


def explain_plan(model: Model, plan: Plan, kept: Kept) -> Explanation:
    """What a plan, made with these exclusions, does with each node of the model."""
    unit = {name: head for head, followers in plan.units.items() for name in followers}
    members = Counter(plan.groups.values())
    nodes = []
    for node in ordered(model.nodes()):
        groups = [plan.groups[t.name] for t in node.outputs if t.name in plan.groups]
        shared = next((g for g in groups if members[g] > 1), None)
        kind = plan.nodes.get(node.name)
        nodes.append(
            NodePlan(
                name=node.name,
                op=node.op,
                kind=kind,
                unit=unit.get(node.name, ""),
                group="" if shared is None or kind is None else _name(shared),
                why="" if kind else plan.kept.get(node.name, "it computes integers or booleans"),
            )
        )
    return Explanation(nodes, [name for name in kept.tail if name in plan.kept], kept.notes)


def _name(group: str | Operand) -> str:
    return group if isinstance(group, str) else f"{group[0]}[{group[1]}]"
