"""Follow the channels of a whole graph, from the layers that make them to those that sum over them.

What an output of the model has, what a body of If or Loop reads, and what reaches an operator that
is not followed, is pinned: it stays whole.
"""

from collections import defaultdict
from collections.abc import Set as AbstractSet

import onnx_graphsurgeon as gs

from onnxdrp.channels.lanes import Site, Trace
from onnxdrp.channels.rules import LAYERS, RULES, UnfollowedError, View
from onnxdrp.dataflow import ordered
from onnxdrp.model import Model, reads

__all__ = ["places", "traced"]


def traced(model: Model) -> Trace:
    """The channels of a model, which is not changed. Shapes should have been inferred."""
    trace, nodes = Trace(), model.nodes()
    bodies = {node.name for node in nodes if list(node.subgraphs())}
    watched = {t.name for t in model.graph.outputs}
    watched |= {t.name for node in nodes if node.name in bodies for t in reads(node)}
    for node in ordered(nodes):
        _through(View(model, node, trace, watched), node.name in bodies)
    for tensor in model.graph.outputs:
        trace.pin([trace.lanes.get(tensor.name)], f"{tensor.name!r} is an output of the model")
    _join_shared(model, trace, watched)
    return trace


def _through(at: View, has_body: bool) -> None:
    node, trace = at.node, at.trace
    lanes = [trace.lanes.get(t.name) for t in (reads(node) if has_body else node.inputs)]
    rule = RULES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
    if rule is None or has_body:
        trace.pin(lanes, f"{node.op} {node.name!r} is not followed")
        return
    if node.op not in LAYERS and not any(lane is not None for lane in lanes):
        return
    before = len(trace.sites), len(trace.edits)
    try:
        rule(at)
    except UnfollowedError as e:
        why = trace.unfollowed[node.name] = f"{node.op} {node.name!r}: {e}"
        del trace.sites[before[0] :], trace.edits[before[1] :]
        for tensor in node.outputs:
            trace.lanes.pop(tensor.name, None)
        trace.pin(lanes, why)


def _join_shared(model: Model, trace: Trace, watched: AbstractSet[str]) -> None:
    """A weight that several nodes read has one set of channels, or keeps all of them.

    Of other stored tensors each reader can have its own.
    """
    weights = {site.tensor for site in trace.sites if site.weight}
    sites: dict[str, dict[int, list[Site]]] = defaultdict(lambda: defaultdict(list))
    for site in trace.sites:
        if site.tensor in weights:
            sites[site.tensor][site.axis].append(site)
    tensors = model.tensors()
    for name, axes in sites.items():
        readers = {(n.name, i) for n in tensors[name].outputs for i in places(n, name)}
        for found in axes.values():
            for other in found[1:]:
                trace.tie(found[0].atoms, other.atoms)
            strangers = readers - {(site.node, site.place) for site in found}
            if strangers or name in watched:
                who = repr(min(strangers)[0]) if strangers else "a body, or is an output"
                why = f"{name!r} is read by {who} too, where its channels are not followed"
                trace.pins.append((found[0].atoms, why))


def places(node: gs.Node, name: str) -> list[int]:
    """Where a node reads a tensor."""
    return [i for i, t in enumerate(node.inputs) if t.name == name]
