"""Edits of a graph that several passes share. None is quadratic in the size of the graph."""

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from onnxdrp.model import Model

__all__ = [
    "Names",
    "bypass",
    "captured",
    "disconnect",
    "is_standard",
    "only_consumer",
    "producer",
    "remove_dead",
    "replace_uses",
]


class Names:
    """Names that no tensor or node of a model has, for passes that need many of them."""

    def __init__(self, model: Model) -> None:
        graphs = [model.graph, *model.graph.subgraphs(recursive=True)]
        self._taken = {name for g in graphs for name in g.tensors()}
        self._taken |= {node.name for g in graphs for node in g.nodes}

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_1`, `stem_2`, ...: the first that is free; it is taken from here on."""
        name, n = stem, 0
        while name in self._taken:
            n += 1
            name = f"{stem}_{n}"
        self._taken.add(name)
        return name


def is_standard(node: gs.Node) -> bool:
    """Whether the operator is one of ONNX's own, not of another domain."""
    return node.domain in (None, "", "ai.onnx")


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor; None for graph inputs and stored tensors."""
    return tensor.inputs[0] if tensor.inputs else None


def only_consumer(tensor: gs.Tensor, protected: set[str]) -> gs.Node | None:
    """The one node that reads a tensor, once; None if others do, or it is in `protected`."""
    alone = len(tensor.outputs) == 1 and tensor.name not in protected
    return tensor.outputs[0] if alone else None


def captured(node: gs.Node) -> Iterator[gs.Tensor]:
    """Every tensor that the bodies of a node mention; those of the outer graph are among them."""
    for body in node.subgraphs(recursive=True):
        yield from body.outputs
        for inner in body.nodes:
            yield from inner.inputs


def replace_uses(old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every node that reads `old` read `new`."""
    for node in list(old.outputs):
        for i, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[i] = new


def disconnect(node: gs.Node) -> None:
    """Take a node out of the graph's edges; `remove_dead` then drops it."""
    node.inputs.clear()
    node.outputs.clear()


def bypass(node: gs.Node, protected: set[str]) -> bool:
    """Remove a node whose first output equals its first input; protected names stay.

    Returns:
        False, with nothing changed, where both tensors must keep their names.
    """
    source, result = node.inputs[0], node.outputs[0]
    if result.name not in protected:
        disconnect(node)
        replace_uses(result, source)
        return True
    maker = producer(source)
    if maker is None or source.name in protected:
        return False
    disconnect(node)
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is source)] = result
    replace_uses(source, result)
    return True


def remove_dead(model: Model) -> int:
    """Drop the nodes on which no output of the graph depends; returns how many."""
    live: set[int] = set()
    reached = list(model.graph.outputs)
    while reached:
        for node in reached.pop().inputs:
            if id(node) not in live:
                live.add(id(node))
                reached += node.inputs
                reached += captured(node)
    dead = [node for node in model.graph.nodes if id(node) not in live]
    for node in dead:
        disconnect(node)
    if dead:
        model.graph.nodes[:] = [node for node in model.graph.nodes if id(node) in live]
    return len(dead)
