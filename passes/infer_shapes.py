"""Infer the shape and type of every tensor, on the graph without its weights.

1. ONNX's own inference, values of shapes propagated too.
2. Where something is still unknown, onnxruntime's symbolic inference (sympy): it writes what
   depends on a free dimension as an expression of it, such as `floor(height/2)`.

Either can be left out.

What a file states is completed, never contradicted. What neither finds is listed in `stats`, and so
is every node that inference stumbled over; what is known of the others is kept. Bodies of If and
Loop are left as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnx_graphsurgeon as gs

from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes.inference import (
    Dim,
    dims_of,
    onnx_inference,
    symbolic_inference,
    values_of,
)
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["InferShapes"]

_ROUNDS = 4


@dataclass(frozen=True)
class InferShapes(Pass):
    """Complete the shapes and types of all tensors.

    Stats: `inferred` counts the tensors of which more is known now, `unknown` lists those of which
    something is not, `warnings` says which nodes inference failed on.

    Attributes:
        standard: run ONNX's own inference.
        symbolic: run the symbolic inference where something is unknown.
    """

    name: ClassVar[str] = "infer-shapes"
    keeps_results: ClassVar[bool] = True

    standard: bool = True
    symbolic: bool = True

    def __post_init__(self) -> None:
        if not (self.standard or self.symbolic):
            raise OptionError("standard and symbolic are both off; leave the pass out instead")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Infer, again while that finds more: each of the two goes on from what the other found."""
        completed: set[str] = set()
        for _ in range(_ROUNDS):
            warnings: list[str] = []
            new = set[str]()
            if self.standard:
                new |= _complete(model, onnx_inference(model.skeleton(), warnings))
            if self.symbolic and _unknown(model):
                new |= _complete(model, symbolic_inference(model.skeleton(), warnings))
            completed |= new
            if not new or not _unknown(model):
                break
        stats: dict[str, Any] = {"inferred": len(completed), "unknown": _unknown(model)}
        if warnings:
            stats["warnings"] = warnings
        return PassResult(modified=bool(completed), stats=stats)


def _complete(model: Model, inferred: onnx.ModelProto) -> set[str]:
    """Write what is new into the graph; returns the names of the tensors it is new of."""
    values = {value.name: value for value in values_of(inferred)}
    completed = set()
    for tensor in _variables(model):
        value = values.get(tensor.name)
        if value is None or value.type.WhichOneof("value") != "tensor_type":
            continue
        kind = value.type.tensor_type
        if tensor.dtype is None and kind.elem_type:
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            completed.add(tensor.name)
        shape = _merged(tensor.shape, dims_of(kind)) if kind.HasField("shape") else tensor.shape
        if shape is not None and (tensor.shape is None or shape != list(tensor.shape)):
            tensor.shape = shape
            completed.add(tensor.name)
    return completed


def _merged(stated: list[Dim] | None, inferred: list[Dim]) -> list[Dim] | None:
    """A number beats a symbol, a symbol beats nothing; the file beats inference."""
    if stated is None:
        return inferred
    if len(stated) != len(inferred):
        return stated
    pairs = list(zip(stated, inferred, strict=True))
    return [new if _knows_more(new, old) else old for old, new in pairs]


def _knows_more(new: Dim, old: Dim) -> bool:
    return not _is_free(new) and (_is_free(old) or (isinstance(old, str) and isinstance(new, int)))


def _unknown(model: Model) -> list[str]:
    return [
        t.name
        for t in _variables(model)
        if t.dtype is None or t.shape is None or any(map(_is_free, t.shape))
    ]


def _is_free(dim: Dim) -> bool:
    return dim is None or dim == "" or dim == "?" or (isinstance(dim, int) and dim < 0)


def _variables(model: Model) -> Iterator[gs.Variable]:
    """The tensors that the nodes of the top graph compute."""
    for node in model.nodes():
        for tensor in node.outputs:
            if isinstance(tensor, gs.Variable) and tensor.name:
                yield tensor
