"""Run nodes that depend on stored tensors alone, and store what they compute."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.passes.edit import disconnect

__all__ = ["evaluate", "store"]

Array = npt.NDArray[Any]


def store(node: gs.Node, values: dict[str, Array]) -> None:
    """Let the outputs of a node be stored tensors; the node is left for `remove_dead`."""
    for tensor in node.outputs:
        if tensor.name in values:
            tensor.to_constant(np.asarray(values[tensor.name]))
    disconnect(node)


def evaluate(model: Model, nodes: list[gs.Node], skipped: dict[str, str]) -> dict[str, Array]:
    """{tensor: value} of all that others than `nodes` read; one by one if onnxruntime refuses."""
    inside = {id(n) for n in nodes}
    wanted = {
        t.name for n in nodes for t in n.outputs if any(id(c) not in inside for c in t.outputs)
    }
    part = model.clone()
    names = {n.name for n in nodes}
    chosen = [n for n in part.graph.nodes if n.name in names]
    part.graph.inputs = []
    try:
        return _run(part, chosen, wanted)
    except ModelError:
        values: dict[str, Array] = {}
    for node in chosen:
        try:
            results = _run(part, [node], {t.name for t in node.outputs if t.name})
        except ModelError as e:
            skipped[node.name] = str(e)
            continue
        store(node, results)
        values |= results
    return values


def _run(part: Model, nodes: list[gs.Node], wanted: set[str]) -> dict[str, Array]:
    outputs = [t for n in nodes for t in n.outputs if t.name in wanted]
    part.graph.nodes[:], part.graph.outputs = nodes, outputs
    names = [t.name for t in outputs]
    session = part.session(optimize=False)
    try:
        results = session.run(names, {})
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        first = str(e).strip().splitlines()[0]
        raise ModelError(f"onnxruntime cannot compute it: {first}") from e
    return dict(zip(names, results, strict=True))
