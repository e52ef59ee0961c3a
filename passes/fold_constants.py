"""Replace what depends on stored values alone by its value.

1. Shape and Size of a tensor whose asked-for dimensions are known become constants, and so does
   what Gather and Slice pick of a Shape if the picked dimensions are known.
2. Nodes whose inputs are all stored, or computed by such nodes, are run in onnxruntime, together
   and with its optimizations off; their results are stored under the same names.

Never folded: random operators; nodes with bodies (If, Loop, Scan); Quantize- and DequantizeLinear,
so that a quantized model stays one; operators of other domains; outputs of the graph; and results
of more than 1 MiB that are larger than what they are computed from, so that no Expand or
ConstantOfShape blows up the file; nor, for the same reason, what together would add over 64 MiB.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.compute import evaluate, store
from onnxdrp.passes.edit import bypass, is_standard, remove_dead
from onnxdrp.passes.inference import dims_of, onnx_inference, values_of
from onnxdrp.passes.shape_values import fold_shapes
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["FoldConstants"]

Array = npt.NDArray[Any]

LIMIT = 1 << 20  # bytes that a result may have though it is larger than its inputs
TOTAL = 64 << 20  # bytes by which all results together may exceed their inputs
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_QUANTIZED = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
_NO_TENSOR = {"Optional", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SplitToSequence"}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute once what does not depend on the input.

    Stats: `folded` counts the nodes replaced, `skipped` says why others with stored inputs stay.
    """

    name: ClassVar[str] = "fold-constants"
    keeps_results: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Fold shapes, then find, compute and store."""
        before = len(model.graph.nodes)
        outputs = {t.name for t in model.graph.outputs}
        if fold_shapes(model, outputs) + _fold_identities(model):
            remove_dead(model)
        skipped: dict[str, str] = {}
        nodes = _foldable(model, outputs, skipped)
        values = evaluate(model, nodes, skipped) if nodes else {}
        for node in nodes:
            if any(t.name in values for t in node.outputs):
                store(node, values)
        if values:
            remove_dead(model)
        folded = before - len(model.graph.nodes)
        return PassResult(modified=folded > 0, stats={"folded": folded, "skipped": skipped})


def _fold_identities(model: Model) -> int:
    """Read through them: a copy of a large weight would be stored twice."""
    protected = model.protected()
    copies = [n for n in model.nodes("Identity") if isinstance(n.inputs[0], gs.Constant)]
    return sum(is_standard(node) and bypass(node, protected) for node in copies)


def _foldable(model: Model, outputs: set[str], skipped: dict[str, str]) -> list[gs.Node]:
    """The nodes to compute, in order; those that depend on a skipped one are none."""
    sizes = _sizes(model.skeleton())  # which also brings the nodes into order
    found: list[gs.Node] = []
    computed: set[int] = set()
    growth = 0
    for node in model.nodes():
        given = [t for t in node.inputs if t.name]
        if not all(isinstance(t, gs.Constant) or id(t) in computed for t in given):
            continue
        size = sum(sizes.get(t.name, 0) for t in node.outputs)
        source = sum({t.name: sizes.get(t.name, 0) for t in given}.values())
        more = growth + max(0, size - source)
        why = _why_not(node, outputs) or _too_large(size, source, more)
        if why:
            skipped[node.name] = why
            continue
        found.append(node)
        growth = more
        computed |= {id(t) for t in node.outputs}
    return found


def _why_not(node: gs.Node, outputs: set[str]) -> str:
    if not is_standard(node):
        return f"operator of domain {node.domain!r}"
    if node.op in _RANDOM or (node.op == "Dropout" and len(node.inputs) > 2):
        return "its result is random"
    if node.op in _QUANTIZED:
        return "it keeps the model quantized"
    if any(True for _ in node.subgraphs()):
        return "it has a body"
    if node.op in _NO_TENSOR or node.op == "Constant":
        return "its result is no dense tensor"
    if any(t.name in outputs for t in node.outputs):
        return "its result is an output of the model"
    return ""


def _too_large(size: int, source: int, total: int) -> str:
    if size > max(LIMIT, source):
        return f"its result has {size:,} bytes, its inputs {source:,}"
    return f"constants would take {total:,} bytes more" if total > TOTAL else ""


def _sizes(skeleton: onnx.ModelProto) -> dict[str, int]:
    """{tensor: its bytes} as far as they are known."""
    types = {t.name: (t.data_type, list(t.dims)) for t in skeleton.graph.initializer}
    for value in values_of(onnx_inference(skeleton, [])):
        kind = value.type.tensor_type
        dims = [d for d in dims_of(kind) if isinstance(d, int)]
        if kind.elem_type and kind.HasField("shape") and len(dims) == len(kind.shape.dim):
            types[value.name] = (kind.elem_type, dims)
    to_numpy = onnx.helper.tensor_dtype_to_np_dtype
    return {name: math.prod(dims) * to_numpy(kind).itemsize for name, (kind, dims) in types.items()}
