"""Follow the channels of a whole graph, from the layers that make them to those that sum over them.

What an output of the model has, what a body of If or Loop reads, and what reaches an operator that
is not followed, is pinned: it stays whole.
"""

from collections import defaultdict

import onnx_graphsurgeon as gs

from onnxdrp.channels.lanes import Site, Trace
from onnxdrp.channels.rules import LAYERS, RULES, UnfollowedError, View
from onnxdrp.dataflow import ordered
from onnxdrp.model import Model, reads

__all__ = ["traced"]


def traced(model: Model) -> Trace:
    """The channels of a model, which is not changed. Shapes should have been inferred."""
    trace = Trace()
    for node in ordered(model.nodes()):
        _through(model, node, trace)
    for tensor in model.graph.outputs:
        trace.pin([trace.lanes.get(tensor.name)], f"{tensor.name!r} is an output of the model")
    _join_shared(model, trace)
    return trace


def _through(model: Model, node: gs.Node, trace: Trace) -> None:
    lanes = [trace.lanes.get(t.name) for t in reads(node)]
    standard = node.domain in (None, "", "ai.onnx")
    rule = RULES.get(node.op) if standard else None
    if rule is None or list(node.subgraphs()):
        trace.pin(lanes, f"{node.op} {node.name!r} is not followed")
        return
    if node.op not in LAYERS and not any(lane is not None for lane in lanes):
        return
    before = len(trace.sites), len(trace.edits)
    try:
        rule(View(model, node, trace))
    except UnfollowedError as why:
        del trace.sites[before[0] :], trace.edits[before[1] :]
        trace.pin(lanes, f"{node.op} {node.name!r}: {why}")


def _join_shared(model: Model, trace: Trace) -> None:
    """A stored tensor that several nodes read has one set of channels, or keeps all of them."""
    sites: dict[str, dict[int, list[Site]]] = defaultdict(lambda: defaultdict(list))
    for site in trace.sites:
        sites[site.tensor][site.axis].append(site)
    inner = {t.name for n in model.nodes() if list(n.subgraphs()) for t in reads(n)}
    tensors = model.tensors()
    for name, axes in sites.items():
        readers = [(n, i) for n in tensors[name].outputs for i in _places(n, name)]
        for found in axes.values():
            for other in found[1:]:
                trace.tie(found[0].atoms, other.atoms)
            known = {site.node for site in found}
            strangers = [n.name for n, _ in readers if n.name not in known]
            if strangers or name in inner or len(found) < len(readers):
                who = repr(strangers[0]) if strangers else "a node that sees it otherwise"
                trace.pins.append((found[0].atoms, f"{name!r} is read by {who} too"))


def _places(node: gs.Node, name: str) -> list[int]:
    return [i for i, t in enumerate(node.inputs) if t.name == name]
