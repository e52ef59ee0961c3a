"""In which order a graph computes, and which of its tensors carry data rather than shapes."""

from collections import defaultdict
from collections.abc import Sequence
from graphlib import TopologicalSorter

import onnx_graphsurgeon as gs

from onnxdrp.model import Model, reads

__all__ = ["data_tensors", "ordered"]


def ordered(nodes: Sequence[gs.Node]) -> list[gs.Node]:
    """The nodes, each after those that it reads from; in the given order if that is so already."""
    makers = {t.name: i for i, node in enumerate(nodes) for t in node.outputs if t.name}
    needs = {
        i: [makers[t.name] for t in reads(node) if t.name in makers] for i, node in enumerate(nodes)
    }
    if all(need < i for i, before in needs.items() for need in before):
        return list(nodes)
    return [nodes[i] for i in TopologicalSorter(needs).static_order()]


def data_tensors(model: Model) -> set[str]:
    """The names of tensors made from the inputs by way of values, not of shapes alone."""
    readers: dict[str, list[gs.Node]] = defaultdict(list)
    for node in model.nodes():
        if node.op not in ("Shape", "Size"):
            for tensor in reads(node):
                readers[tensor.name].append(node)
    found: set[str] = set()
    waiting = [info.name for info in model.inputs]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [t.name for n in readers[name] for t in n.outputs if t.name]
    return found
