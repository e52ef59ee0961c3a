"""Measure what removing channels of each group alone costs, at each rate.

Channels go by the L1 norm of the weights that make them (onnxdrp.channels.choosing). Either the
outputs of the model are looked at, with what reads those channels masked (lone_channels), or what
is lost to the layers that read them, when these are fitted (lost_channels), which takes one walk
whatever the number of rates. Fills ctx.channel_curves; the model is not touched.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from onnxdrp.channels import Channels, Removed, channels_of
from onnxdrp.channels.choosing import at_rates, unit_scores
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.output_scores import score_of
from onnxdrp.channels.sensitivity import (
    ChannelSensitivity,
    graph_print,
    load_channel_sensitivity,
)
from onnxdrp.datareaders.batching import count
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.lone_channels import LoneChannels, readers_of
from onnxdrp.passes.lost_channels import LostChannels
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.unit_sensitivity import few

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["MeasureChannels"]

_WORST = 5
Choices = dict[str, dict[float, Removed]]


@dataclass(frozen=True)
class MeasureChannels(Pass):
    """Remove channels of one group at a time, and score what is left.

    Stats: `groups`, how many there are; `samples`; `score`, `baseline`; `worst`, the groups that
    lose most at the middle rate, and what; `skipped` {layer: why its group is not measured}.

    Attributes:
        mode: "outputs", scores of the model's outputs, or "moments", 1 less the share of power
            that is lost to the layers which read the channels.
        rates: shares of a group's channels, rising.
        score: of outputs: "agreement", "top-1", "signal" or "FILE.py:function"
            (onnxdrp.channels.output_scores); default: top-1 where there are classes and labels,
            agreement where there are classes, else signal.
        samples: of the calibration data, spread over it.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        file: where the scores are kept as the work goes on, and gone on from if it is there; "":
            ctx.checkpoint with ".channels" behind its name, if there is one, which is deleted at
            the end.
        rows: for moments, of a layer's input, if there are more: output positions of samples.
        memory_limit: bytes of activations held in memory; more go to temporary files.
        moments_limit: a layer whose X'X takes more bytes than this, in six copies, is passed over.
    """

    name: ClassVar[str] = "measure-channels"
    keeps_results: ClassVar[bool] = True

    mode: Literal["outputs", "moments"] = "outputs"
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    score: str | None = None
    samples: int = 500
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True
    file: str = ""
    rows: int = 20_000
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if self.mode not in ("outputs", "moments"):
            raise OptionError(f"mode {self.mode!r}: there are outputs, moments")
        if self.mode == "moments" and self.score is not None:
            raise OptionError(f"score {self.score!r} belongs to the mode outputs")
        rates = np.array(self.rates, np.float64)
        if not (len(rates) and np.all(np.diff(rates) > 0) and rates[0] > 0 and rates[-1] < 1):
            raise OptionError(f"rates {self.rates}: give some between 0 and 1, rising")
        for name in ("samples", "rows", "memory_limit", "moments_limit"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: give 1 or more")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, and no channels are chosen yet."""
        if ctx.reader is None:
            raise DataError(f"{self.name} needs data; give some hundred images or arrays (--calib)")
        if ctx.removed:
            raise ModelError(f"channels are chosen already; run {self.name} before that")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing can be removed, DataError where onnxruntime fails."""
        assert ctx.reader is not None  # see requires
        channels = channels_of(model)
        groups, skipped = removable(model, channels, self.exclude, self.auto_excludes)
        reader = few(ctx.reader, self.samples, ctx.seed)
        work = self._outputs if self.mode == "outputs" else self._moments
        read = readers_of(model, channels)
        scores = unit_scores(model, channels)
        choices: Choices = {
            name: {rate: at_rates(channels, scores, {name: rate}, 1) for rate in self.rates}
            for name in groups
            if name in read
        }
        if not choices:
            raise ModelError(f"no channels can be removed: {next(iter(skipped.values()), '')}")
        for name in groups:
            if name not in read:
                skipped |= dict.fromkeys(channels.group(name).makers, "no layer reads its channels")
        found = ChannelSensitivity(
            samples=count(reader),
            seed=ctx.seed,
            model="" if model.path is None else model.path.name,
            graph=graph_print(model, channels),
            skipped=skipped,
            complete=False,
        )
        path = self._path(ctx)
        for _ in work(model, channels, reader, ctx, choices, found, path):
            if path is not None:
                found.save(path)
        found.curves = {name: found.curves[name] for name in choices if name in found.curves}
        if not found.curves:
            raise ModelError(f"no group can be measured: {next(iter(found.skipped.values()), '')}")
        found.complete = True
        if self.file:
            found.save(self.file)
        elif path is not None:
            path.unlink(missing_ok=True)
        ctx.channel_curves = found
        return PassResult(modified=False, stats=self._stats(found))

    def _stats(self, found: ChannelSensitivity) -> dict[str, object]:
        middle = self.rates[len(self.rates) // 2]
        drops = {}
        for name in found.curves:
            rates, lost = found.drops(name)
            drops[name] = round(float(np.interp(middle, rates, lost)), 6)
        worst = sorted(drops, key=lambda name: -drops[name])[:_WORST]
        return {
            "groups": len(found.curves),
            "samples": found.samples,
            "score": found.score,
            "baseline": found.baseline,
            "worst": {name: drops[name] for name in worst},
            "skipped": found.skipped,
        }

    def _path(self, ctx: PassContext) -> Path | None:
        """Where what is done is kept."""
        if self.file:
            path = Path(self.file)
        elif ctx.checkpoint is not None:
            path = ctx.checkpoint.with_name(f"{ctx.checkpoint.name}.channels")
        else:
            return None
        if not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        return path

    def _outputs(
        self,
        model: Model,
        channels: Channels,
        reader: "DataReader",
        ctx: PassContext,
        choices: Choices,
        found: ChannelSensitivity,
        path: Path | None,
    ) -> Iterator[None]:
        """Fill in scores of outputs; yields when there is something new."""
        found.score, score = score_of(model, self.score, reader.labels)
        if path is not None:
            found.identity = self._identity(model, reader, found.score, choices)
            _go_on(found, path)
        done = {(name, rate) for name, curve in found.curves.items() for rate in curve}
        if len(done) == sum(map(len, choices.values())):
            return
        trials = LoneChannels(model, channels, reader, score, ctx, self.memory_limit)
        for name, rate, value in trials.measure(choices, done):
            if name:
                found.curves.setdefault(name, {})[rate] = value
            else:
                found.baseline = value
            yield

    def _moments(
        self,
        model: Model,
        channels: Channels,
        reader: "DataReader",
        ctx: PassContext,
        choices: Choices,
        found: ChannelSensitivity,
        path: Path | None,
    ) -> Iterator[None]:
        """Fill in what is lost by moments; yields when there is something new."""
        found.score = "moments"
        if path is not None:
            found.identity = self._identity(model, reader, found.score, choices)
            _go_on(found, path)
        limits = {"memory_limit": self.memory_limit, "moments_limit": self.moments_limit}
        lost = LostChannels(model, channels, reader, ctx, rows=self.rows, **limits)
        found.skipped |= lost.skipped
        known = {name: of for name, of in choices.items() if name in lost.groups}
        if not known.keys() - found.curves.keys():
            return
        for name, shares in lost.measure(known, set(found.curves)):
            found.curves[name] = {rate: 1 - share for rate, share in shares.items()}
            yield

    def _identity(self, model: Model, reader: "DataReader", score: str, choices: Choices) -> str:
        """A hash of the model, the samples and what is measured."""
        measured = score, self.rows if self.mode == "moments" else 0, choices
        digest = hashlib.blake2b(f"{model.fingerprint()}{measured!r}".encode(), digest_size=16)
        for batch in reader.batches():
            for name, array in batch.items():
                digest.update(f"{name}{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        if reader.labels is not None:
            digest.update(np.ascontiguousarray(reader.labels).tobytes())
        return digest.hexdigest()


def _go_on(found: ChannelSensitivity, path: Path) -> None:
    """Take over what is in a file, if it belongs to the same work."""
    if not path.exists() or not path.stat().st_size:
        return
    before = load_channel_sensitivity(path)
    if before.identity == found.identity:
        found.curves, found.baseline = before.curves, before.baseline
