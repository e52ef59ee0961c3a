"""Give the outputs of layers the mean and the variance again that they have in the float model.

    w' = s w,    b' = s (b - m') + m' + d,    s = (v / v')^(strength / 2), within [1 / most, most]

(onnxdrp.passes.matching). What pruning takes out of a sum it takes out of its variance, and layer
after layer that adds up. Zeros stay zero; what is not concerned keeps its bits.

Whether that helps is asked of samples that the moments were not taken from, at the outputs of the
model: several strengths are tried, and nothing. What agrees with the float model on clearly more
samples wins (by more than a standard error of the difference); where that is not clear, what errs
less by half a decibel. A layer's own error could not tell: least squares, which makes variances
smaller, is best for it. Samples to which weights were fitted speak for those weights; so where
ctx.held_out has others, they are asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masked import check_masks, pruned_weights
from onnxdrp.model import Model
from onnxdrp.passes.matching import Matched, matched, why_not
from onnxdrp.passes.sweeps import sweep, without
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import few

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["MatchMoments"]


_STRENGTHS = (1.0, 0.5, 0.25)  # means alone, 0, were never the best of those measured
_JUDGED = 256  # most samples that are held in memory to judge by


@dataclass(frozen=True)
class MatchMoments(Pass):
    """Match means and variances, as far as that helps on samples held back.

    Stats: `strength` that was taken, None for none; `tried` {strength: figures} and `before`, on
    `samples` held back: the share that agrees on the top-1 (None without class scores) and the dB
    of the worst output; `layers`, of each the median and the extremes of s; `skipped` says why
    others were passed over.

    Attributes:
        strength: of variances; None: tried are 1, 0.5, 0.25 and nothing. With a number, nothing
            is held back and nothing asked.
        most: the largest factor, and one over the smallest.
        held_out: the share of the samples to hold back, where ctx.held_out has none.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
    """

    name: ClassVar[str] = "match-moments"

    strength: float | None = None
    most: float = 4.0
    held_out: float = 0.25
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise OptionError(f"strength {self.strength} is outside [0, 1]; 1 matches variances")
        if not 1 <= self.most <= 1000:
            raise OptionError(f"most {self.most} is outside [1, 1000]; 4 is usual")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out {self.held_out} is outside (0, 1); 0.25 is usual")
        if self.memory_limit < 1:
            raise OptionError(f"memory_limit {self.memory_limit}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Something is pruned, the model before that is there, and data."""
        if ctx.reader is None:
            raise DataError(
                "match-moments needs data; give some hundred images or arrays (--calib)"
            )
        if ctx.dense is None:
            raise ModelError("nothing is pruned yet; run prune-blocks or remove-channels first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError if an activation is not finite; names tensor, node and sample."""
        assert ctx.reader is not None
        assert ctx.dense is not None  # `requires` has seen to both
        stops, skipped = sweep(model, {*pruned_weights(ctx.masks), *ctx.shortened})
        stops, unmatchable = without(stops, why_not)
        skipped |= unmatchable
        stats: dict[str, Any] = {"strength": self.strength, "layers": {}, "skipped": skipped}
        if not stops:
            return PassResult(modified=False, stats=stats | {"strength": None})
        reader, trials = ctx.reader, None
        if self.strength is None:
            reader, held = self._parts(ctx, reader)
            trials = Trials(ctx.dense, few(held, _JUDGED, ctx.seed))
        strengths = _STRENGTHS if self.strength is None else (self.strength,)
        walked = matched(
            model,
            ctx,
            stops,
            reader,
            strengths,
            most=self.most,
            memory_limit=self.memory_limit,
        )
        best: Matched | None = walked[0]
        if trials is not None:
            best, judged = _judged(trials, model, walked)
            stats |= judged
        if best is None:
            return PassResult(modified=False, stats=stats)
        stats["layers"] = best.factors
        return PassResult(modified=best.give(model), stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def _parts(self, ctx: PassContext, reader: "DataReader") -> "tuple[DataReader, DataReader]":
        """Samples to take moments from, and samples to judge by."""
        from onnxdrp.datareaders import split

        if ctx.held_out is not None:
            return reader, ctx.held_out
        return split(reader, self.held_out, ctx.seed)


def _judged(
    trials: Trials, model: Model, walked: Sequence[Matched]
) -> tuple[Matched | None, dict[str, Any]]:
    """What is closest to the float model, None for the model as it is; and the figures."""
    before = closest = trials.closeness(model)
    best, tried = None, {}
    for one in walked:
        found = trials.closeness(one.model)
        tried[f"{one.strength:g}"] = found.as_dict()
        if found.is_closer(closest):
            best, closest = one, found
    return best, {
        "strength": None if best is None else best.strength,
        "samples": trials.samples,
        "before": before.as_dict(),
        "tried": tried,
    }
