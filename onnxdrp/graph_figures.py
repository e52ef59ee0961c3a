"""The graph of a model as JSON can hold it, with the figures that colours stand for.

    nodes   a row a box: QuantizeLinear and DequantizeLinear are folded into tensors; in a graph of
            more than 5,000 nodes the nodes of a scope are one row
    links   [giver, taker], places in `nodes`

A node is computed with a layer if it is elementwise and reads nothing but what that layer gives, or
what is computed with it: an activation, a bias, both nodes of a SiLU.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxdrp.boxes import Box, Boxes, boxes_of
from onnxdrp.colours import Precision, Signal, Sparsity

if TYPE_CHECKING:
    from onnxdrp.evaluation import Comparison
    from onnxdrp.model import Model

__all__ = ["graph_figures"]

_MOST = 5000  # rows, as far as scopes allow
_TOO_MANY = 20_000  # for a page; such a graph has no scopes
_ELEMENTWISE = {
    "Add", "BatchNormalization", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Mish", "Mul", "PRelu", "Relu", "Sigmoid", "Softplus", "Sub", "Tanh",
}  # fmt: skip


def graph_figures(
    model: "Model", rows: Mapping[str, int], comparison: "Comparison | None"
) -> dict[str, Any]:
    """The tables above; of a graph of more than 20,000 nodes without scopes, why there are none.

    Args:
        model: is not changed.
        rows: {layer: the number of its row in the report, from 1}.
        comparison: with the original, by layers, or None.
    """
    found = boxes_of(model, most=_MOST)
    if len(found.boxes) > _TOO_MANY:
        return {"why_not": f"{len(found.boxes):,} nodes are too many, and names have no scopes"}
    sparsity, precision = Sparsity(model), Precision(found.wires)
    signal = None if comparison is None else Signal(comparison, found.wires)
    nodes = []
    for box, layer in zip(found.boxes, _computed_with(found, rows), strict=True):
        row: dict[str, Any] = {"name": box.name}
        row |= {"kind": box.kind} if box.kind != "node" else {"op": box.nodes[0].op}
        row |= {"nodes": len(box.nodes)} if box.kind == "scope" else {}
        row |= {"layer": layer} if layer else {}
        zeros, weights = sparsity.count(box)
        row |= {"zeros": zeros, "weights": weights} if weights else {}
        worst = None if signal is None else signal.worst(box)
        if worst is not None:
            row["sqnr_db"] = worst if math.isfinite(worst) else str(worst)
        if kind := precision.shared(box):
            row["precision"] = kind
        nodes.append(row)
    return {"nodes": nodes, "links": [[link.source, link.target] for link in found.links]}


def _computed_with(found: Boxes, rows: Mapping[str, int]) -> list[int]:
    """For each box the row of its layer; 0 where it has none."""
    givers: dict[int, list[int]] = {}
    for link in found.links:
        givers.setdefault(link.target, []).append(link.source)
    layer = [_own(box, rows) for box in found.boxes]
    for i, box in enumerate(found.boxes):  # in graph order
        if not layer[i] and box.kind == "node" and box.nodes[0].op in _ELEMENTWISE:
            read = {layer[giver] for giver in givers.get(i, ())}
            layer[i] = read.pop() if len(read) == 1 else 0
    return layer


def _own(box: Box, rows: Mapping[str, int]) -> int:
    return rows.get(box.name, 0) if box.kind == "node" else 0
