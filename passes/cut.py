"""Let the graph end at named tensors; what only served the rest goes.

This is how a part that an accelerator cannot run (the decoding of boxes, say) is left to the host.
Inputs that nothing reads any more go as well, since every input must be fed.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.edit import captured, remove_dead
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["Cut"]


@dataclass(frozen=True)
class Cut(Pass):
    """Make the named tensors the outputs of the graph.

    Attributes:
        outputs: names of tensors of the input file, in the order that the outputs shall have.
    """

    name: ClassVar[str] = "cut"
    outputs: Sequence[str] = ()

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Raise OptionError if a name is unknown, named twice, or not computed by a node."""
        computed = {t.name for node in model.nodes() for t in node.outputs if t.name}
        if not self.outputs:
            raise OptionError("cut: no output is named; name at least one tensor")
        for name in self.outputs:
            if name in computed:
                continue
            if name in model.tensors():
                raise OptionError(
                    f"{name!r} is an input or a stored tensor, it cannot be an output"
                )
            raise OptionError(f"no tensor is called {name!r}{_hint(model, name, computed)}")
        if len(set(self.outputs)) < len(self.outputs):
            raise OptionError(f"cut: an output is named twice in {', '.join(self.outputs)}")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """End the graph at the tensors; infer what they are where the file does not say."""
        if [t.name for t in model.graph.outputs] == list(self.outputs):
            return PassResult(modified=False, stats={"removed_nodes": 0, "removed_inputs": []})
        tensors = model.tensors()
        chosen = [tensors[name] for name in self.outputs]
        if any(t.dtype is None or t.shape is None for t in chosen):
            InferShapes().run(model, ctx)
        for tensor in chosen:
            if tensor.dtype is None or tensor.shape is None:
                raise ModelError(
                    f"type and shape of tensor {tensor.name!r} cannot be inferred; cut elsewhere"
                )
        model.graph.outputs = chosen
        removed = remove_dead(model)
        inputs = _remove_unused_inputs(model)
        return PassResult(modified=True, stats={"removed_nodes": removed, "removed_inputs": inputs})


def _hint(model: Model, name: str, computed: set[str]) -> str:
    for node in model.nodes():
        if node.name == name:
            return (
                f"; the node of that name computes {', '.join(repr(t.name) for t in node.outputs)}"
            )
    near = difflib.get_close_matches(name, sorted(computed), 3)
    return f"; near: {', '.join(map(repr, near))}" if near else ""


def _remove_unused_inputs(model: Model) -> list[str]:
    inside = {t.name for node in model.nodes() for t in captured(node)}
    unused = [t for t in model.graph.inputs if not t.outputs and t.name not in inside]
    model.graph.inputs = [t for t in model.graph.inputs if not any(t is u for u in unused)]
    return [t.name for t in unused if isinstance(t, gs.Variable)]
