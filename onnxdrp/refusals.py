"""Which layers are not pruned, and why.

    first layer         never pruned
    depthwise layer     only with prune_depthwise
    inputs of a group not a multiple of the pattern's block
                        never pruned, except by the unstructured pattern
    last layer          only with prune_last
    shared weight       pruned only if every layer that has it may be

Before these rules come the reasons that lie in the graph (see onnxdrp.layers).
"""

from collections.abc import Mapping, Sequence

from onnxdrp.layers import Layer, by_weight
from onnxdrp.patterns import Pattern, Unstructured

__all__ = ["kind", "refusals"]


def kind(reason: str) -> str:
    """The part of a reason "kind: detail" that layers refused for the same cause share."""
    return reason.partition(":")[0]


def refusals(
    found: Sequence[Layer],
    pattern: Pattern,
    *,
    prune_last: bool = False,
    prune_depthwise: bool = False,
    excluded: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{layer: why it is not pruned}, in the order of the layers.

    Args:
        found: all layers of a model, seen in blocks of the pattern's size.
        pattern: what is going to prune them.
        prune_last: prune the last layers too.
        prune_depthwise: prune depthwise layers too.
        excluded: {layer: why} of those that the user leaves out.
    """
    left_out = excluded or {}
    why = {
        layer.name: _refusal(layer, pattern, prune_last, prune_depthwise)
        or left_out.get(layer.name, "")
        for layer in found
    }
    for users in by_weight(found).values():
        refused = next((layer.name for layer in users if why[layer.name]), None)
        if refused is not None:
            shared = f"shared weight: with {refused!r}, which is not pruned ({kind(why[refused])})"
            why |= {layer.name: why[layer.name] or shared for layer in users}
    return {name: reason for name, reason in why.items() if reason}


def _refusal(layer: Layer, pattern: Pattern, prune_last: bool, prune_depthwise: bool) -> str:
    geometry = layer.geometry
    if geometry is None:
        return layer.barred
    if layer.first:
        return "first layer: no other comes before it"
    if layer.depthwise and not prune_depthwise:
        return "depthwise layer: pruned only with prune_depthwise"
    if not geometry.aligned and not isinstance(pattern, Unstructured):
        each = " in each group" if layer.groups > 1 and not layer.depthwise else ""
        return f"input channels not a multiple of {pattern.block}: {geometry.inputs}{each}"
    if layer.last and not prune_last:
        return "last layer: pruned only with prune_last"
    return ""
