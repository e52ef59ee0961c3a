"""Remove what does nothing.

1. Stored tensors with the same type, shape and bytes become one. Only those whose first 4 KiB agree
   are read whole.
2. Nodes whose output is their input: Identity; Dropout in inference; Transpose, Cast, Pad, Slice,
   Expand, Reshape and Flatten that change nothing; pooling over single values; Concat, Sum, Min,
   Max and Mean of one tensor. What depends on shapes goes only where they are known.
3. Optional outputs that nothing reads, and nodes on which no output of the model depends.

Names of inputs, outputs and tensors that bodies of If and Loop read are kept, whatever goes. Inputs
are kept even if nothing reads them: they are the model's signature.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.edit import bypass, is_standard, remove_dead, replace_uses
from onnxdrp.passes.no_op import does_nothing
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["Clean"]

_SAMPLE = 4096  # bytes


@dataclass(frozen=True)
class Clean(Pass):
    """Remove duplicates, nodes without effect and dead nodes.

    Stats: `duplicates` counts stored tensors, `no_ops`, `dead` and `unused_outputs` nodes and
    outputs; `skipped` says which nodes without effect must stay for their names.
    """

    name: ClassVar[str] = "clean"
    keeps_results: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Merge, bypass, drop."""
        protected = model.protected()
        stats = {"duplicates": _merge_duplicates(model, protected)}
        skipped = {}
        idle = [node for node in model.nodes() if does_nothing(model, node)]
        gone = 0
        for node in idle:
            if bypass(node, protected):
                gone += 1
            else:
                skipped[node.name] = "it joins two tensors that must keep their names"
        stats |= {"no_ops": gone, "dead": remove_dead(model) - gone}
        stats["unused_outputs"] = _drop_outputs(model, protected)
        return PassResult(modified=any(stats.values()), stats={**stats, "skipped": skipped})


def _merge_duplicates(model: Model, protected: set[str]) -> int:
    constants = [t for t in model.tensors().values() if isinstance(t, gs.Constant)]
    alike = _groups(constants, lambda t: (str(t.dtype), tuple(t.shape)))
    alike = [g for group in alike for g in _groups(group, lambda t: _digest(model, t, _SAMPLE))]
    same = [g for group in alike for g in _groups(group, lambda t: _digest(model, t, None))]
    merged = 0
    for group in same:
        kept = next((t for t in group if t.name in protected), group[0])
        for tensor in group:
            if tensor is not kept and tensor.name not in protected:
                replace_uses(tensor, kept)
                merged += 1
    return merged


def _groups(
    tensors: Iterable[gs.Constant], key: Callable[[gs.Constant], Hashable]
) -> list[list[gs.Constant]]:
    """Those that share a key, where there are several."""
    found: dict[Hashable, list[gs.Constant]] = defaultdict(list)
    for tensor in tensors:
        found[key(tensor)].append(tensor)
    return [group for group in found.values() if len(group) > 1]


def _digest(model: Model, tensor: gs.Constant, size: int | None) -> Hashable:
    """A hash of the first `size` bytes; the tensor's own name where it has no plain bytes."""
    values = model.constant(tensor)
    if values is None or values.dtype == object:
        return str(tensor.name)
    start = values.reshape(-1)[: None if size is None else size // values.itemsize]
    data = np.ascontiguousarray(start).view(np.uint8).data
    return hashlib.blake2b(data, digest_size=16).digest()


def _drop_outputs(model: Model, protected: set[str]) -> int:
    dropped = 0
    for node in model.nodes():
        if len(node.outputs) < 2 or not is_standard(node):
            continue
        formal = onnx.defs.get_schema(node.op, model.opset, "").outputs
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        while (
            len(node.outputs) > 1
            and formal[min(len(node.outputs), len(formal)) - 1].option == optional
        ):
            last = node.outputs[-1]
            if last.outputs or last.name in protected:
                break
            node.outputs.pop()
            dropped += bool(last.name)
    return dropped
