"""What it costs to lose channels, from data: the order in which select-channels takes them.

Fills ctx.channel_scores {group: a number for each unit}; the model is not touched. From data, the
number is what the layers that sum over the group's channels lose with this unit and with all that
go before it, when their weights are re-fitted to what is left (onnxdrp.channels.scoring): the sum
of their shares of the variance of what they give; of the mean square, where a layer has no bias to
fit. So at any rate the lowest are the best to go.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onnxdrp.channels import channels_of
from onnxdrp.channels.choosing import ChannelScores, unit_scores
from onnxdrp.channels.reading import Reader, readers_of
from onnxdrp.channels.scoring import Losses
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, Moments, MomentStats, too_large
from onnxdrp.passes.biases import Biases, BiasPlace
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.segments import default_cuts
from onnxdrp.taps import Tap
from onnxdrp.walk import walk

__all__ = ["ScoreChannels"]

Floats = npt.NDArray[np.float64]

_COPIES = 6  # of X'X, at most at a time
_SAME = "what it reads is the same for all samples"
_TURNED = "a ConvTranspose is no product of a matrix with rows of its input"


@dataclass(frozen=True)
class ScoreChannels(Pass):
    """Score the channels of every group.

    Stats: `losses` {group: what is lost with a quarter, half and three quarters of its units};
    `by_activation` {layer: why it is, although second-order was asked for}; `skipped` {layer that
    reads channels: why it is not scored}.

    Attributes:
        score: "l1", the sum of the absolute weights that make a channel, which needs no data;
            "activation", what its readers lose if inputs do not depend on each other;
            "second-order", what they lose when the others are re-fitted.
        positions: output positions of each sample that are looked at.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a layer is scored by activation if its X'X takes more bytes than this, in six
            copies, or if it does not fit beside what is held of other layers.
    """

    name: ClassVar[str] = "score-channels"
    keeps_results: ClassVar[bool] = True

    score: Literal["l1", "activation", "second-order"] = "second-order"
    positions: int = 64
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.score not in ("l1", "activation", "second-order"):
            raise OptionError(f"score {self.score!r}: there are l1, activation and second-order")
        if self.positions < 1:
            raise OptionError(f"{self.positions} positions of a sample: give 1 or more")
        for limit in ("memory_limit", "moments_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, where the score needs it."""
        if self.score != "l1" and ctx.reader is None:
            raise DataError(
                f"scoring channels by {self.score} needs data; "
                "give some hundred images or arrays (--calib), or take the score l1"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError if an activation is not finite; names tensor, node and sample."""
        channels = channels_of(model)
        if self.score == "l1":
            ctx.channel_scores = ChannelScores(self.score, unit_scores(model, channels))
            return PassResult(modified=False, stats={"score": self.score})
        cuts = [cut for cut in default_cuts(model) if len(cut) == 1]
        order = {tensor: i for i, (tensor,) in enumerate(cuts)}
        every = readers_of(model, channels)
        skipped = {r.name: _SAME for r in every if r.data not in order}
        readers = [reader for reader in every if reader.data in order]
        readers.sort(key=lambda reader: order[reader.data])
        losses = Losses(channels, readers)
        whys = self._by_activation(readers, losses) if self.score == "second-order" else {}
        self._add_all(model, ctx, readers, losses, whys)
        ctx.channel_scores = ChannelScores(self.score, losses.scores, skipped)
        stats = {
            "score": self.score,
            "losses": {name: _at_quarters(found) for name, found in losses.scores.items()},
            "by_activation": whys,
            "skipped": skipped,
            "warnings": [
                f"layer {name!r} is scored by activation: {w}" for name, w in whys.items()
            ],
        }
        return PassResult(modified=False, stats=stats)

    def _add_all(
        self,
        model: Model,
        ctx: PassContext,
        readers: Sequence[Reader],
        losses: Losses,
        whys: Mapping[str, str],
    ) -> None:
        """One walk; the moments of the layers that read one tensor at a time."""
        assert ctx.reader is not None  # `requires` has seen it
        at: dict[str, dict[str, Reader]] = defaultdict(dict)
        for reader in readers:
            at[reader.data][reader.name] = reader
        if not at:
            return
        biases, nodes = Biases(model), {node.name: node for node in model.nodes()}
        stops = walk(
            model,
            ctx.reader,
            list(at),
            memory_limit=self.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        for stop, (tensor, here) in zip(stops, at.items(), strict=True):
            taps = {
                name: Tap(tensor, self._observer(reader, ctx, whys))
                for name, reader in here.items()
            }
            seen = stop.observe(taps)
            for name, reader in here.items():
                biased = isinstance(biases.place(nodes[name]), BiasPlace)
                losses.add(reader, _power(seen.pop(name), reader, biased))

    def _observer(
        self, reader: Reader, ctx: PassContext, whys: Mapping[str, str]
    ) -> Moments | ChannelMoments:
        if self.score == "activation" or reader.name in whys:
            return ChannelMoments(reader.axis)
        assert reader.unfolding is not None  # or it is among these
        return Moments(reader.unfolding, self.positions, ctx.seed)

    def _by_activation(self, readers: Sequence[Reader], losses: Losses) -> dict[str, str]:
        """{layer: why its moments cannot be had}; readers are in the order of the walk."""
        whys: dict[str, str] = {}
        last = {i: reader.name for reader in readers for i in losses.read_by(reader)}
        held: Counter[int] = Counter()
        for reader in readers:
            if reader.unfolding is None:
                whys[reader.name] = _TURNED
            else:
                needed = losses.needed(reader)
                why = too_large(reader.unfolding, self.moments_limit, _COPIES)
                if not why and held.total() + sum(needed.values()) > self.moments_limit:
                    why = "what is held of other layers takes up moments_limit"
                if why:
                    whys[reader.name] = why
                else:
                    held.update(needed)
            for i in losses.read_by(reader):
                if last[i] == reader.name:
                    del held[i]
        return whys


def _power(stats: Any, reader: Reader, biased: bool) -> Floats:
    """Covariance of the columns, [g, k, k], or their variances, [g, k]; without a bias about 0."""
    if isinstance(stats, MomentStats):
        found = stats.centred() if biased else stats
        return found.xx / max(stats.count, 1)
    groups, _, columns = reader.matrix.shape
    power = stats.variance if biased else stats.variance + np.square(stats.mean)
    each = power.reshape(groups, -1)
    return np.tile(each, (1, columns // each.shape[1]))


def _at_quarters(found: Floats) -> list[float]:
    order = np.concatenate([[0.0], np.sort(found)])
    return [float(order[len(found) * i // 4]) for i in (1, 2, 3)]
