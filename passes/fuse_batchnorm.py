"""Fuse BatchNormalization, and the Mul/Add that exporters make of it, into the weights beside it.

A run of such nodes is one affine map y = s * x + t (passes/affine.py). It goes, in this order:

1. back into the Conv, ConvTranspose, Gemm or MatMul that computes x, if nothing else reads x; back
   through Transpose and Reshape, the axis of the channels followed. MatMul keeps one Add.
2. forward into the Conv, Gemm or MatMul that reads y, if nothing else does, and the Conv does not
   pad or t = 0; forward through Transpose and Reshape, through average pooling, and through MaxPool
   where s >= 0. Keras models that normalize after the Relu need this one. There a part of |s| goes
   back through the Relu, s * relu(x) = s / a * relu(a * x): as much as makes the weights on both
   sides equally large, channel by channel, so that one range suits them all in 8 bits.
3. Mul and Add after a BatchNormalization that stays go into its scale and bias.
4. What stays of Mul, Div, Add and Sub becomes one Mul and one Add at most: no runtime divides in 8
   bits.

The formulas are in passes/absorb.py. Tensors whose values change get new names, so that a name
means one thing in the model before and after. Never touched: training mode, weights that are shared
or computed, outputs of the graph, tensors that bodies read, and the scale and shift that end a
layer normalization, which runtimes recognize as a whole.
"""

from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.model import Model
from onnxdrp.passes.affine_runs import Sweep
from onnxdrp.passes.edit import remove_dead
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["FuseBatchNorm"]

_ROUNDS = 4  # the Add that MatMul keeps may meet another


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """Fuse normalization into weights.

    Stats: `fused` counts the nodes that are gone, `skipped` says why the others are not.
    """

    name: ClassVar[str] = "fuse-batchnorm"
    keeps_results: ClassVar[bool] = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Fuse whatever can be, until nothing more can."""
        before, modified = len(model.nodes()), False
        for _ in range(_ROUNDS):
            sweep = Sweep(model)
            sweep.run()
            if not sweep.changed:
                break
            modified = True
            remove_dead(model)
        fused = before - len(model.nodes())
        return PassResult(modified=modified, stats={"fused": fused, "skipped": sweep.skipped})
