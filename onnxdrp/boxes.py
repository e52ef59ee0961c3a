"""A model's graph as boxes and links between them, as they are drawn.

QuantizeLinear and DequantizeLinear are folded into the tensors that they stand on, nodes of one
scope into one box (onnxdrp.scopes). Stored tensors have no box.
"""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxdrp.model import Model, reads
from onnxdrp.scopes import grouped

__all__ = ["Box", "Boxes", "Link", "Wires", "boxes_of"]

_QDQ = {"QuantizeLinear", "DequantizeLinear"}


@dataclass
class Box:
    """A node, the nodes of a scope, or an end of the model.

    Attributes:
        name: of the node, the scope or the tensor.
        nodes: that it stands for; none of an end.
        kind: "node", "scope", "input" or "output".
        open: whether more is linked to it than is drawn.
    """

    name: str
    kind: str
    nodes: list[gs.Node] = field(default_factory=list)
    open: bool = False


@dataclass
class Link:
    """What one box gives to another: tensors by name, QDQ folded away."""

    source: int
    target: int
    tensors: list[str]


@dataclass
class Boxes:
    """What is drawn.

    Attributes:
        boxes: in graph order.
        links: by index of the boxes; at most one between two.
        wires: of the whole model.
        around: index of the box in the middle; None if there is none.
    """

    boxes: list[Box]
    links: list[Link]
    wires: "Wires"
    around: int | None = None


class Wires:
    """The nodes of a model with the ends, and what links them.

    Attributes:
        nodes: those that have a box.
        through: {tensor: the one that it is a rounded copy of}, of tensors folded away.
        rounded: {tensor: the integer type that it is stored or handed on in}.
    """

    def __init__(self, model: Model, fold: bool) -> None:
        self.through: dict[str, str] = {}
        self.rounded: dict[str, str] = {}
        self.nodes: list[gs.Node] = []
        for node in model.nodes():
            if fold and node.op in _QDQ and node.inputs:
                self._fold(node)
            else:
                self.nodes.append(node)
        self.ends = [("input", t.name) for t in model.inputs]
        self.ends += [("output", t.name) for t in model.outputs]

    def _fold(self, node: gs.Node) -> None:
        source, given = self.root(node.inputs[0].name), node.outputs[0].name
        self.through[given] = source
        stored = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
        zero = node.inputs[2] if len(node.inputs) > 2 else stored
        dtype = stored.dtype if stored.dtype is not None else zero.dtype
        if dtype is not None:
            self.rounded[given] = str(dtype)

    def root(self, tensor: str) -> str:
        """The tensor itself, or what it is a rounded copy of."""
        return self.through.get(tensor, tensor)

    def links(self) -> list[tuple[int, int, str]]:
        """(giver, taker, tensor): indices into nodes, then ends."""
        count = len(self.nodes)
        givers = {t.name: i for i, node in enumerate(self.nodes) for t in node.outputs}
        givers |= {name: count + i for i, (kind, name) in enumerate(self.ends) if kind == "input"}
        takers: list[Iterable[str]] = [dict.fromkeys(t.name for t in reads(n)) for n in self.nodes]
        takers += [[name] if kind == "output" else [] for kind, name in self.ends]
        return [
            (givers[source], i, source)
            for i, names in enumerate(takers)
            for source in dict.fromkeys(map(self.root, names))
            if source in givers and source
        ]


def boxes_of(
    model: Model,
    around: str | None = None,
    hops: int = 3,
    *,
    expand: Collection[str] = (),
    collapse: Collection[str] = (),
    most: int = 150,
    fold: bool = True,
) -> Boxes:
    """What to draw of a model.

    Args:
        model: is not changed.
        around: a node; nothing is drawn that is more than `hops` links away from it, either way.
        hops: how far.
        expand: scopes that are opened.
        collapse: scopes that are one box.
        most: boxes, as far as scopes allow.
        fold: whether QuantizeLinear and DequantizeLinear are folded.

    Raises:
        ModelError: no node is called `around`.
        OptionError: there is no such scope.
    """
    wires = Wires(model, fold)
    links = wires.links()
    count = len(wires.nodes)
    middle = None if around is None else _middle(model, wires, around)
    shown = set(range(count + len(wires.ends)))
    if middle is not None:
        shown = _near(middle, hops, links)
    there = [i for i in sorted(shown) if i < count]
    names = grouped([wires.nodes[i].name for i in there], most, expand, collapse)
    found: dict[str | int, Box] = {}
    home: dict[int, Box] = {}
    for i, name in zip(there, names, strict=True):
        node = wires.nodes[i]
        # nodes may lack a name, or have that of a scope
        key = i if name == node.name else name
        home[i] = found.setdefault(key, Box(name, "node" if key == i else "scope"))
        home[i].nodes.append(node)
    ends = [(i, *wires.ends[i - count]) for i in sorted(shown) if i >= count]
    home |= {i: Box(name, kind) for i, kind, name in ends}
    boxes = [*(home[i] for i, kind, _ in ends if kind == "input"), *found.values()]
    boxes += [home[i] for i, kind, _ in ends if kind == "output"]
    index = {id(box): i for i, box in enumerate(boxes)}
    merged: dict[tuple[int, int], Link] = {}
    for a, b, tensor in links:
        if a in shown and b in shown:
            pair = index[id(home[a])], index[id(home[b])]
            if pair[0] != pair[1]:
                link = merged.setdefault(pair, Link(*pair, []))
                link.tensors += [] if tensor in link.tensors else [tensor]
        elif a in shown or b in shown:
            home[a if a in shown else b].open = True
    at = None if middle is None else index[id(home[middle])]
    return Boxes(boxes, list(merged.values()), wires, at)


def _middle(model: Model, wires: Wires, around: str) -> int:
    """The index of a node; of one that is folded, that of the node whose output it rounds."""
    node = model.node(around)
    source = wires.root(node.outputs[0].name)
    for i, other in enumerate(wires.nodes):
        if other is node or source in (t.name for t in other.outputs):
            return i
    takers = {b for _, b, tensor in wires.links() if tensor == source}
    readers = (i for i, n in enumerate(wires.nodes) if node.outputs[0] in n.inputs)
    return min(takers, default=next(readers, 0))


def _near(middle: int, hops: int, links: Iterable[tuple[int, int, str]]) -> set[int]:
    beside: dict[int, set[int]] = {}
    for a, b, _ in links:
        beside.setdefault(a, set()).add(b)
        beside.setdefault(b, set()).add(a)
    far = {middle: 0}
    waiting = deque([middle])
    while waiting:
        here = waiting.popleft()
        for other in beside.get(here, ()) if far[here] < hops else ():
            if other not in far:
                far[other] = far[here] + 1
                waiting.append(other)
    return set(far)
