"""Fit the weights that pruning has left to what the float model computes, layer by layer.

    min over kept W, b of  sum |t - W x - b|^2 + ridge * |W - W0|^2

with x what the layer reads in the model as it is pruned and mended up to there, and t what it
should give (onnxdrp.passes.sweeps, onnxdrp.least_squares). Both models walk forward together, once
(onnxdrp.walk). Every layer after the first pruned one is fitted, pruned or not: what it reads has
changed. Zeros stay zero. What is not concerned keeps its bits.

No output of a layer is farther from t on the data than it would be with the weights it had.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.least_squares import fit, joined
from onnxdrp.masked import check_masks
from onnxdrp.model import Model
from onnxdrp.moments import Moments, MomentStats
from onnxdrp.passes.biases import Biases
from onnxdrp.passes.sweeps import Mended, Stop, Use, sweep
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.taps import Tap
from onnxdrp.walk import walk

__all__ = ["RefitWeights"]

Array = npt.NDArray[Any]

_COPIES = 4  # of X'X, at most at a time


@dataclass(frozen=True)
class RefitWeights(Pass):
    """Fit the kept weights and the biases of all layers after the first pruned one.

    Stats: `layers` has for each layer, as shares of the variance of what it should give, what was
    wrong `before` its weights were fitted and `after`; `skipped` says why others were passed over.

    Attributes:
        ridge: share of the mean variance of a layer's inputs that is added to each.
        rows: of a layer's input that are looked at, if there are more: output positions of samples.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in four copies, is passed
            over.
    """

    name: ClassVar[str] = "refit-weights"

    ridge: float = 1e-3
    rows: int = 20_000
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 10:
            raise OptionError(f"ridge {self.ridge} is outside (0, 10]; 0.001 is usual")
        if self.rows < 1:
            raise OptionError(f"{self.rows} rows: give 1 or more; 20000 is usual")
        for limit in ("memory_limit", "moments_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There are masks, the model that they were taken from, and data."""
        if ctx.reader is None:
            raise DataError(
                "refit-weights needs data; give some hundred images or arrays (--calib)"
            )
        if ctx.dense is None:
            raise ModelError("no weight is pruned yet; run prune-blocks or apply-masks first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError if an activation is not finite; names tensor, node and sample."""
        assert ctx.reader is not None
        assert ctx.dense is not None  # `requires` has seen to both
        pruned = [name for name, mask in ctx.masks.items() if mask.count < mask.size]
        stops, skipped = sweep(model, pruned)
        stops = [s for stop in stops if (s := self._affordable(stop, skipped)).rounds]
        figures: dict[str, Any] = {}
        stats = {"layers": figures, "skipped": skipped}
        if not stops:
            return PassResult(modified=False, stats=stats)
        biases = _own_biases(model, stops)
        mender = _Mender(model, ctx, biases, self.ridge)
        steps = walk(
            {"float": ctx.dense, "pruned": model},
            ctx.reader,
            [stop.cut for stop in stops],
            memory_limit=self.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        for at, stop in zip(steps, stops, strict=True):
            positions = math.ceil(self.rows / at.samples)
            for mended in stop.rounds:
                taps = {
                    use.node.name: Tap(
                        (
                            ("pruned", use.data),
                            ("float", use.total),
                            *(("pruned", name) for name in use.beside),
                        ),
                        Moments(use.unfolding, positions, ctx.seed),
                    )
                    for one in mended
                    for use in one.uses
                }
                moments = at.observe(taps)
                for one in mended:
                    figures |= mender.mend(one, [moments.pop(u.node.name) for u in one.uses])
        return PassResult(modified=True, stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def _affordable(self, stop: Stop, skipped: dict[str, str]) -> Stop:
        """The stop without the weights whose moments are too large."""
        rounds = []
        for mended in stop.rounds:
            rounds.append([])
            for one in mended:
                way = one.uses[0].unfolding
                needed = _COPIES * 8 * way.groups * way.columns * (way.columns + way.outputs)
                if needed <= self.moments_limit:
                    rounds[-1].append(one)
                    continue
                why = f"its moments take {needed / 1e9:.1f} GB, more than moments_limit"
                skipped |= dict.fromkeys((use.node.name for use in one.uses), why)
        return Stop(stop.cut, [mended for mended in rounds if mended])


def _own_biases(model: Model, stops: list[Stop]) -> dict[str, str]:
    """{layer: its bias, that nobody else reads}."""
    biases = Biases(model)
    uses = (u for stop in stops for mended in stop.rounds for one in mended for u in one.uses)
    return {
        use.node.name: biases.own(use.bias.holder, use.bias.place, use.bias.outputs)
        for use in uses
        if use.bias is not None
    }


class _Mender:
    """Fits weights one by one; the model has them at once."""

    def __init__(
        self, model: Model, ctx: PassContext, biases: dict[str, str], ridge: float
    ) -> None:
        self.model, self.masks, self.ridge = model, ctx.masks, ridge
        self.biases, self.held = biases, model.tensors()

    def mend(self, one: Mended, moments: list[MomentStats]) -> dict[str, dict[str, float]]:
        """Fit one weight, to the moments of each of its layers; the figures of these."""
        weight = self.model.weight(one.weight)
        mask = self.masks.get(one.weight.name)
        way = one.uses[0].unfolding
        matrix = way.matrix(weight)
        keep = matrix != 0 if mask is None else way.matrix(mask.keep)
        before = [self._error(u, m, matrix) for u, m in zip(one.uses, moments, strict=True)]
        centred = [
            m.centred() if u.bias is not None else m for u, m in zip(one.uses, moments, strict=True)
        ]
        fitted = fit(matrix, keep, joined(centred), ridge=self.ridge).matrix
        self.model.set_weight(one.weight, way.weight(fitted))
        figures = {}
        for use, stats, error in zip(one.uses, moments, before, strict=True):
            self._set_bias(use, stats, fitted)
            power = float(stats.centred().tt.sum()) or 1.0
            after = self._error(use, stats, fitted)
            figures[use.node.name] = {
                "before": float(error.sum()) / power,
                "after": float(after.sum()) / power,
            }
        return figures

    def _error(self, use: Use, stats: MomentStats, matrix: Array) -> Array:
        bias: Array | float = 0.0
        if use.bias is not None:
            values = self.model.weight(self.held_bias(use))
            bias = values.astype(np.float64).reshape(matrix.shape[:2])
        return stats.error(matrix, bias)

    def _set_bias(self, use: Use, stats: MomentStats, matrix: Array) -> None:
        """The best bias for the weights."""
        if use.bias is None:
            return
        tensor = self.held_bias(use)
        old = self.model.weight(tensor)
        best = stats.t - np.einsum("gmk,gk->gm", np.asarray(matrix, np.float64), stats.x)
        best /= max(stats.count, 1)
        self.model.set_weight(tensor, best.reshape(old.shape).astype(old.dtype))

    def held_bias(self, use: Use) -> Any:
        return self.held[self.biases[use.node.name]]
