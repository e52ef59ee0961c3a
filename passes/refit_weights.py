"""Fit the weights that pruning has left to what the float model computes, layer by layer.

    min over kept W, b of  sum |t - W x - b|^2 + ridge * |W - W0|^2

with x what the layer reads in the model as it is pruned and mended up to there, and t what it
should give (onnxdrp.passes.sweeps). Where an activation f follows, steps bring f(W x + b) closer to
f(t) from there (onnxdrp.least_squares). Both models walk forward together, once (onnxdrp.walk).

Every layer after the first pruned one is fitted, pruned or not: what it reads has changed. Zeros
stay zero. What is not concerned keeps its bits. On the data no output is farther from t than with
the weights that the layer had; nor, behind an activation, than it is from there.
"""

import math
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masked import check_masks, pruned_weights
from onnxdrp.model import Model
from onnxdrp.moments import too_large
from onnxdrp.passes.mending import Mender
from onnxdrp.passes.sweeps import Mended, sweep, without
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.walk import walk

__all__ = ["RefitWeights"]

_COPIES = 6  # of X'X, at most at a time


@dataclass(frozen=True)
class RefitWeights(Pass):
    """Fit the kept weights and the biases of all layers after the first pruned one.

    Stats: `layers` has for each layer what was wrong `before` its weights were fitted and `after`,
    as shares of the variance of what it should give, and the `ridge`; `skipped` says why others
    were passed over. Warnings name layers with too little data.

    Attributes:
        ridge: share of the mean variance of a layer's inputs; default: for each layer the one that
            does best on a fifth of the samples, which are held back for that.
        steps: behind an activation, at most so many.
        rows: of a layer's input that are looked at, if there are more: output positions of samples.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in six copies, is passed over.
    """

    name: ClassVar[str] = "refit-weights"

    ridge: float | None = None
    steps: int = 3
    rows: int = 20_000
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if self.ridge is not None and not 0 < self.ridge <= 10:
            raise OptionError(f"ridge {self.ridge} is outside (0, 10]; 0.01 is usual")
        if self.steps < 0:
            raise OptionError(f"{self.steps} steps: give 0 or more; 3 is usual")
        if self.rows < 1:
            raise OptionError(f"{self.rows} rows: give 1 or more; 20000 is usual")
        for limit in ("memory_limit", "moments_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There are masks, the model that they were taken from, and data."""
        if ctx.reader is None:
            raise DataError("re-fitting needs data; give some hundred images or arrays (--calib)")
        if ctx.dense is None:
            raise ModelError("nothing is pruned yet; run prune-blocks or remove-channels first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError if an activation is not finite; names tensor, node and sample."""
        assert ctx.reader is not None
        assert ctx.dense is not None  # `requires` has seen to both
        stops, skipped = sweep(model, {*pruned_weights(ctx.masks), *ctx.shortened})
        stops, large = without(stops, self._too_large)
        skipped |= large
        if not stops:
            return PassResult(modified=False, stats={"layers": {}, "skipped": skipped})
        mender = Mender(model, ctx.masks, stops, self.ridge, self.steps, ctx.seed)
        walked = walk(
            {"float": ctx.dense, "pruned": model},
            ctx.reader,
            [stop.cut for stop in stops],
            memory_limit=self.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        with closing(walked):
            for at, stop in zip(walked, stops, strict=True):
                for turn in stop.rounds:
                    mender.mend(at, turn, positions=math.ceil(self.rows / at.samples))
        stats = {"layers": mender.figures, "skipped": skipped, "warnings": mender.warnings}
        return PassResult(modified=True, stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def _too_large(self, weight: Mended) -> str:
        return too_large(weight.uses[0].unfolding, self.moments_limit, _COPIES, targets=True)
