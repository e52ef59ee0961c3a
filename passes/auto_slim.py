"""Remove channels round by round, as long as a budget of accuracy holds, and repair each time.

The search is onnxdrp.channels.auto: Fujitsu's CAC without labels and a training loop. The model
becomes the last candidate that held, weights and all: the very one that was judged. Judged is by
ctx.held_out, by labels where that has any; where there is none, by a fifth of the data, to which
nothing is fitted. Fills what remove-channels does, and ctx.rounds.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onnxdrp.channels.auto import auto_channels
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.remove_channels import RemoveChannels
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["AutoSlim"]


@dataclass(frozen=True)
class AutoSlim(Pass):
    """Remove as many channels as `max_drop` allows.

    A checkpoint (ctx.checkpoint) keeps each round, and is deleted when the search is done.

    Stats: those of remove-channels; `lost`, the points that the result loses, and their 95 %
    `interval`, on `samples` of `what`; `rounds`, how many candidates were tried; `skipped` {layer:
    why its channels stay}.

    Attributes:
        max_drop: points of top-1 that may be lost: of accuracy where ctx.held_out has labels, else
            of agreement with the model as it was.
        sure: hold the upper end of the 95 % interval to that.
        multiple: that the channels which stay are of.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        recover: refit, or distill: candidates that would fail are trained besides.
        distill_minutes: of the training of one candidate; default 5.
        memory_limit: bytes of activations held in memory.
    """

    name: ClassVar[str] = "auto-slim"

    max_drop: float = 1.0
    sure: bool = False
    multiple: int = 1
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True
    recover: Literal["refit", "distill"] = "refit"
    distill_minutes: float | None = None
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise OptionError(f"max_drop {self.max_drop} is outside [0, 100] points; 1 is usual")
        if self.recover not in ("refit", "distill"):
            raise OptionError(f"auto needs a repair; recover {self.recover} is none, take refit")
        if self.recover != "distill" and self.distill_minutes is not None:
            raise OptionError(f"recover {self.recover} does not distill; leave its minutes out")
        for name in ("multiple", "memory_limit"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: give 1 or more")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, and nothing is chosen yet to be pruned."""
        if ctx.reader is None:
            raise DataError("a search needs data; give some hundred images or arrays (--calib)")
        RemoveChannels.refuse_rates(ctx)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises what `auto_channels` does: CheckError where nothing can go."""
        assert ctx.reader is not None  # see requires
        show = ctx.progress
        found = auto_channels(
            model,
            ctx.reader,
            held_out=ctx.held_out,
            target=ctx.target,
            seed=ctx.seed,
            workers=ctx.workers,
            checkpoint=ctx.checkpoint,
            progress=None
            if show is None
            else lambda found, left: show(found.number, found.number + left),
            **self.options(),
        )
        ctx.rounds, ctx.removed = found, found.removed
        removal = RemoveChannels().run(model, ctx)
        model.become(found.model)
        stats = removal.stats | {
            "lost": found.best.lost,
            "interval": [found.best.low, found.best.high],
            "samples": found.samples,
            "what": found.what,
            "rounds": len(found.rounds),
            "skipped": found.skipped,
            "warnings": found.warnings,
        }
        return PassResult(modified=True, stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """As remove-channels."""
        RemoveChannels().ensures(model, ctx)
