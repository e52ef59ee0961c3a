"""Simplify the graph with onnxscript's rewriter, as far as it stays portable.

Rules of onnxscript.rewriter merge runs of Transpose, Reshape, Cast, Slice, Relu and Clip, take Pad
into Conv, Min and Max into Clip, and drop what does nothing; its partial evaluation follows sizes
through Shape, Gather and Concat; onnx_ir merges nodes that compute the same twice. Folding of
weights and fusing of normalization have passes of their own, which keep names that it loses.

Why onnxscript (0.7.2). Measured on 14 real graphs of 3,770 nodes, 752 of them with weights, on two
cores; nodes are those that are left after all of preprocessing:

    optimizer           nodes  seconds  layers renamed  what else
    none                2,342
    onnxscript          2,310      2.2               0  works without the weights
    onnxslim 0.1.98     2,284      5.2             325  needs the weights; options are global
    onnxoptimizer 0.4.2 2,335      1.5               0  turns IR 3 into IR 4
    onnxruntime basic   2,296      1.1               5  8 more operator sets; one graph broken
    onnxsim 0.8.1       2,306      1.6               2  turns IR 3 into IR 4

A renamed layer is one that a user's rate or recipe no longer finds. onnxscript is kept by the
makers of PyTorch's ONNX exporter, gives standard operators only, and lets its rules be chosen.
"""

import logging
from dataclasses import dataclass
from typing import ClassVar

import onnx

from onnxdrp.errors import CheckError
from onnxdrp.model import Model
from onnxdrp.passes.rewriting import rewrite
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["Optimize"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Optimize(Pass):
    """Simplify by onnxscript's rules.

    A model that onnxscript cannot take is left as it is: the pass makes models better, none needs
    it, and the user's job goes on. `stats` then has `failed` with the cause, and a warning.
    """

    name: ClassVar[str] = "optimize"
    keeps_results: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Rewrite the skeleton; take the result if it is one that the rules of this pass allow."""
        skeleton = model.skeleton()
        before = len(skeleton.graph.node)
        try:
            result = rewrite(skeleton, model)
            _check(skeleton, result)
        except Exception as e:  # whatever a package of rewrite rules raises on an unforeseen model
            why = _root_cause(e)
            log.warning("optimize: the model is left as it is (%s)", why)
            return PassResult(modified=False, stats={"failed": why, "warnings": [why]})
        if _essence(result) == _essence(skeleton):
            return PassResult(modified=False, stats={"removed_nodes": 0})
        model.rebuild(result)
        removed = before - len(result.graph.node)
        return PassResult(modified=True, stats={"removed_nodes": removed})


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"onnxscript: {type(error).__name__}: {' '.join(str(error).split()[:40])}"


def _essence(proto: onnx.ModelProto) -> tuple[list[bytes], set[str]]:
    """What a rule changes: nodes and stored tensors; not what is said of shapes, nor any order."""
    nodes = []
    for node in proto.graph.node:
        plain = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        plain.input.extend(node.input)
        plain.output.extend(node.output)
        plain.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
        nodes.append(plain.SerializeToString(deterministic=True))
    return nodes, {t.name for t in proto.graph.initializer}


def _check(skeleton: onnx.ModelProto, result: onnx.ModelProto) -> None:
    domains = {node.domain for node in skeleton.graph.node}
    foreign = {n.op_type for n in result.graph.node if n.domain not in domains | {"", "ai.onnx"}}
    if foreign:
        raise CheckError(f"it brought in operators of other domains: {', '.join(sorted(foreign))}")
    for what in ("input", "output"):
        old = [v.name for v in getattr(skeleton.graph, what)]
        if old != [v.name for v in getattr(result.graph, what)]:
            raise CheckError(f"it changed the {what}s of the model")
