"""Which nodes of a graph come before and after which: reachability in linear time."""

from collections.abc import Iterable

import onnx_graphsurgeon as gs

from onnxdrp.model import Model, reads

__all__ = ["Flow"]


class Flow:
    """The edges between the nodes of a model's top graph, by their place in `model.graph.nodes`.

    What an If or Loop body captures counts as input of the node that holds the body, and so of all
    its outputs. The order of the nodes in the list does not matter.
    """

    def __init__(self, model: Model) -> None:
        nodes = model.graph.nodes
        self.producer = {t.name: i for i, node in enumerate(nodes) for t in node.outputs if t.name}
        self._before = [
            sorted({self.producer[t.name] for t in reads(node) if t.name in self.producer})
            for node in nodes
        ]
        self._after: list[list[int]] = [[] for _ in nodes]
        for i, sources in enumerate(self._before):
            for j in sources:
                self._after[j].append(i)
        inputs = {t.name for t in model.graph.inputs}
        fed = [i for i, node in enumerate(nodes) if any(t.name in inputs for t in reads(node))]
        self._data = inputs
        self._fed = {*fed, *self.descendants(fed)}

    def descendants(self, nodes: Iterable[int]) -> set[int]:
        """The nodes that some of `nodes` come before; each node is visited once."""
        return _reach(self._after, nodes)

    def ancestors(self, nodes: Iterable[int]) -> set[int]:
        """The nodes that some of `nodes` come after; each node is visited once."""
        return _reach(self._before, nodes)

    def is_activation(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor of the top graph depends on what the user feeds."""
        return tensor.name in self._data or self.producer.get(tensor.name, -1) in self._fed


def _reach(edges: list[list[int]], start: Iterable[int]) -> set[int]:
    waiting = [j for i in start for j in edges[i]]
    found: set[int] = set()
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            waiting += edges[i]
    return found
