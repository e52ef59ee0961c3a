"""Choose the channels to remove: the best of random sub-networks of the wanted multiply-adds.

Fills ctx.removed {group: units that go}; the model is not touched. What is drawn, and how, is in
onnxdrp.channels.subnets; how each is repaired and compared, in onnxdrp.passes.slim_trials. Which
channels of a group go, score-channels says, or if it has not run, the sizes of weights. No label is
looked at, unless top-1 is asked for.
"""

import dataclasses
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from onnxdrp.channels import channels_of
from onnxdrp.channels.candidates import Known
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.search import search_channels
from onnxdrp.channels.subnets import Subnets, rates_of
from onnxdrp.checkpoint import data_identity
from onnxdrp.datareaders import split
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.select_channels import widths
from onnxdrp.passes.slim_trials import SlimTrials
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["SearchChannels"]


@dataclass(frozen=True)
class SearchChannels(Pass):
    """Choose channels by trying.

    A checkpoint (ctx.checkpoint with ".channels" behind its name) keeps the scores, and is deleted
    when the search is done.

    Stats: `search`, what was tried (onnxdrp.channels.search.Search.as_dict); `index` of what was
    taken; `macs` before and after; `groups` {group: [units before, after]}; `skipped` {layer: why
    its channels stay}.

    Attributes:
        ratio: share of the multiply-adds that go, to 0.01, or as near as the multiple allows.
        tries: how many sub-networks.
        index: take this one, whatever its score; None: the best.
        by: what counts: the share of samples of the same top-1 as in float, dB, or top-1 accuracy.
        samples: most that moments are taken from.
        judged: most that sub-networks are compared on, which are held back from the former.
        held_out: the share of the samples to hold back, where ctx.held_out has none.
        multiple: that the channels which stay are of; default: the target's.
        ratios: the shares of a group's channels that may stay, before that; (): any.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        memory_limit: bytes of activations held in memory by each try at a time.
    """

    name: ClassVar[str] = "search-channels"
    keeps_results: ClassVar[bool] = True

    ratio: float = 0.5
    tries: int = 200
    index: int | None = None
    by: Literal["agreement", "sqnr", "top-1"] = "sqnr"
    samples: int = 128
    judged: int = 256
    held_out: float = 0.25
    multiple: int | None = None
    ratios: tuple[float, ...] = ()
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise OptionError(f"ratio {self.ratio} is outside (0, 1); 0.5 removes half")
        for name in ("tries", "samples", "judged", "memory_limit"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: give 1 or more")
        if self.index is not None and not 0 <= self.index < self.tries:
            raise OptionError(f"index {self.index} is outside 0 to {self.tries - 1}, the tries")
        if self.by not in ("agreement", "sqnr", "top-1"):
            raise OptionError(f"by {self.by!r}: give agreement, sqnr or top-1")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out {self.held_out} is outside (0, 1); 0.25 is usual")
        if self.multiple is not None and self.multiple < 1:
            raise OptionError(f"multiple {self.multiple}: give 1 or more")
        rates_of(self.ratios)

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data."""
        if ctx.reader is None:
            raise DataError("a search needs data; give some hundred images or arrays (--calib)")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing can be removed, OptionError where so much cannot go."""
        assert ctx.reader is not None  # see requires
        channels = channels_of(model)
        groups, skipped = removable(model, channels, self.exclude, self.auto_excludes)
        multiple = self.multiple or ctx.target.channel_multiple
        subnets = Subnets(model, channels, groups, multiple, ctx.channel_scores, self.ratios)
        reader, held = ctx.reader, ctx.held_out
        if held is None:
            reader, held = split(reader, self.held_out, ctx.seed)
        known = self._known(model, ctx, subnets)
        with tempfile.TemporaryDirectory(prefix="onnxdrp-search-") as folder:
            judge = SlimTrials(
                model,
                reader,
                held,
                by=self.by,
                samples=self.samples,
                judged=self.judged,
                seed=ctx.seed,
                memory_limit=self.memory_limit,
                folder=Path(folder),
            )
            found = search_channels(
                subnets,
                judge,
                self.ratio,
                tries=self.tries,
                index=self.index,
                by=self.by,
                seed=ctx.seed,
                known=known,
                executor=ctx.executor,
                workers=ctx.workers,
                progress=ctx.progress,
            )
        known.remove()
        best = found.best
        ctx.removed = subnets.removed(best.subnet)
        stats = {
            "index": best.index,
            "macs": [subnets.whole, round(subnets.whole * (1 - best.subnet.share))],
            "groups": widths(channels, ctx),
            "search": found.as_dict(),
            "skipped": skipped,
        }
        return PassResult(modified=False, stats=stats)

    def as_run(self, stats: dict[str, Any]) -> Pass:
        """With the sub-network that it took."""
        return self if "index" not in stats else dataclasses.replace(self, index=stats["index"])

    def _known(self, model: Model, ctx: PassContext, subnets: Subnets) -> Known:
        """Scores of an earlier call for this model, these options and this data."""
        if ctx.checkpoint is None:
            return Known()
        assert ctx.reader is not None
        own = self.samples, self.judged, self.held_out, self.by, subnets.groups, subnets.order
        readers = [ctx.reader, *([] if ctx.held_out is None else [ctx.held_out])]
        key = repr((model.fingerprint(), *own, ctx.seed, *map(data_identity, readers)))
        path = ctx.checkpoint.with_name(f"{ctx.checkpoint.name}.channels")
        return Known(path, hashlib.blake2b(key.encode(), digest_size=16).hexdigest())
