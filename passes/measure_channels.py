"""Measure what removing channels of each group alone costs, at each rate.

Channels go by the scores of score-channels, or if it has not run by the sizes of the weights that
make them (onnxdrp.channels.choosing); the order is kept with what it costs. Either the outputs of
the model are looked at, with what reads those channels masked (lone_channels), or what is lost to
the layers that read them, when these are re-fitted: that is what second-order scores say, which are
computed here if score-channels has not run. Fills ctx.channel_curves; the model is not touched.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from onnxdrp.channels import Channels, Removed, channels_of
from onnxdrp.channels.choosing import at_rates, scores_of
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.output_scores import score_of
from onnxdrp.channels.sensitivity import (
    ChannelSensitivity,
    graph_print,
    load_channel_sensitivity,
)
from onnxdrp.checkpoint import add_samples
from onnxdrp.datareaders.batching import count
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.lone_channels import LoneChannels
from onnxdrp.passes.score_channels import ScoreChannels
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.unit_sensitivity import few

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["MeasureChannels"]

_WORST = 5
_SAMPLES = 500
Choices = dict[str, dict[float, Removed]]


@dataclass(frozen=True)
class MeasureChannels(Pass):
    """Remove channels of one group at a time, and score what is left.

    Stats: `groups`, how many there are; `samples`; `score`, `baseline`; `worst`, the groups whose
    score drops most at the middle rate, and by which share; `skipped` {layer: why its group is not
    measured}; `warnings`, which layers are scored by activation, if that is done here.

    Attributes:
        mode: "outputs", scores of the model's outputs, or "moments", 1 less the shares of variance
            that are lost to the layers which read the channels, which takes one walk whatever the
            number of rates.
        rates: shares of a group's channels, rising.
        score: of outputs: "agreement", "top-1", "signal" or "FILE.py:function"
            (onnxdrp.channels.output_scores); default: top-1 where there are classes and labels,
            agreement where there are classes, else signal.
        samples: of the calibration data, spread over it, of which outputs are looked at; default
            500. Moments are of all.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        file: where the scores are kept, of outputs as the work goes on, and gone on from if it is
            there; "": of outputs ctx.checkpoint with ".channels" behind its name, if there is one,
            which is deleted at the end.
        memory_limit: bytes of activations held in memory, by each process of an executor; more go
            to temporary files.
    """

    name: ClassVar[str] = "measure-channels"
    keeps_results: ClassVar[bool] = True

    mode: Literal["outputs", "moments"] = "outputs"
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    score: str | None = None
    samples: int | None = None
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True
    file: str = ""
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.mode not in ("outputs", "moments"):
            raise OptionError(f"mode {self.mode!r}: there are outputs, moments")
        for name in ("score", "samples"):
            if self.mode == "moments" and (value := getattr(self, name)) is not None:
                raise OptionError(f"{name} {value!r} belongs to the mode outputs")
        rates = np.array(self.rates, np.float64)
        if not (len(rates) and np.all(np.diff(rates) > 0) and rates[0] > 0 and rates[-1] < 1):
            raise OptionError(f"rates {self.rates}: give some between 0 and 1, rising")
        for name in ("samples", "memory_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"{name} {value}: give 1 or more")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, and no channels are chosen yet."""
        if ctx.reader is None:
            raise DataError(f"{self.name} needs data; give some hundred images or arrays (--calib)")
        if ctx.removed:
            raise ModelError(f"channels are chosen already; run {self.name} before that")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing can be removed, DataError where onnxruntime fails."""
        assert ctx.reader is not None  # see requires
        reader, warnings = ctx.reader, list[str]()
        if self.mode == "outputs":
            reader = few(reader, self.samples or _SAMPLES, ctx.seed)
        elif ctx.channel_scores is None:
            scored = ScoreChannels(memory_limit=self.memory_limit).run(model, ctx)
            warnings = scored.stats["warnings"]
        task, path = self._task(model, ctx, reader), self._path(ctx)
        found = task.found
        if self.mode == "moments":
            self._moments(task, path)
        else:
            for _ in self._outputs(task, path):
                if path is not None:
                    found.save(path)
        if not found.curves:
            raise ModelError(f"no group can be measured: {next(iter(found.skipped.values()), '')}")
        measured = [name for name in task.choices if name in found.curves]
        found.curves = {name: found.curves[name] for name in measured}
        found.order = {name: found.order[name] for name in measured}
        found.complete = True
        if self.file:
            found.save(self.file)
        elif path is not None:
            path.unlink(missing_ok=True)
        ctx.channel_curves = found
        return PassResult(modified=False, stats=self._stats(found) | {"warnings": warnings})

    def _task(self, model: Model, ctx: PassContext, reader: "DataReader") -> "_Task":
        """What is to be tried. Raises ModelError if nothing can be removed."""
        channels = channels_of(model)
        groups, skipped = removable(model, channels, self.exclude, self.auto_excludes)
        for group in (channels.group(name) for name in groups):
            if not group.readers:
                skipped |= dict.fromkeys(group.makers, "no layer reads its channels")
        groups = [name for name in groups if channels.group(name).readers]
        if not groups:
            raise ModelError(f"no channels can be removed: {next(iter(skipped.values()), '')}")
        scores = scores_of(model, channels, groups, ctx.channel_scores)
        choices: Choices = {
            name: {rate: at_rates(channels, scores, {name: rate}, 1) for rate in self.rates}
            for name in groups
        }
        found = ChannelSensitivity(
            order={name: scores[name].tolist() for name in groups},
            samples=count(reader),
            seed=ctx.seed,
            model="" if model.path is None else model.path.name,
            graph=graph_print(model, channels),
            skipped=skipped,
            complete=False,
        )
        return _Task(model, channels, reader, ctx, choices, found)

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
        elif ctx.checkpoint is not None and self.mode == "outputs":
            path = ctx.checkpoint.with_name(f"{ctx.checkpoint.name}.channels")
        else:
            return None
        if not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        return path

    def _outputs(self, task: "_Task", path: Path | None) -> Iterator[None]:
        """Fill in scores of outputs; yields when there is something new."""
        found, reader = task.found, task.reader
        found.score, score = score_of(task.model, self.score, reader.labels)
        task.go_on(path, found.score)
        wanted = {
            (name, rate)
            for name, of in task.choices.items()
            for rate in of
            if rate not in found.curves.get(name, {})
        }
        if not wanted:
            return
        with TemporaryDirectory(prefix="onnxdrp-channels-") as folder:
            trials = LoneChannels(
                task.model,
                task.channels,
                task.choices,
                reader,
                score,
                memory_limit=self.memory_limit,
                folder=Path(folder),
            )
            for name, rate, value in trials.measure(wanted, task.ctx):
                if name:
                    found.curves.setdefault(name, {})[rate] = value
                else:
                    found.baseline = value
                yield

    def _moments(self, task: "_Task", path: Path | None) -> None:
        """Fill in what is lost by moments.

        Raises:
            OptionError: score-channels went by something else.
        """
        found, scores = task.found, task.ctx.channel_scores
        assert scores is not None  # see run
        if scores.by != "second-order":
            raise OptionError(
                f"channels are scored by {scores.by}, which does not say what their readers lose; "
                "mode moments needs second-order"
            )
        found.score = "moments"
        task.go_on(path, found.score)
        for group in map(task.channels.group, task.choices):
            if unknown := scores.unscored.keys() & group.readers:
                why = f"what {min(unknown)!r} loses is not known: {scores.unscored[min(unknown)]}"
                found.skipped |= dict.fromkeys(group.makers, why)
                continue
            of = scores[group.name]
            found.curves[group.name] = {
                rate: 1 - float(of[removed.get(group.name, [])].max(initial=0.0))
                for rate, removed in task.choices[group.name].items()
            }


@dataclass(frozen=True, eq=False)
class _Task:
    """Choices to be tried, and what is found."""

    model: Model
    channels: Channels
    reader: "DataReader"
    ctx: PassContext
    choices: Choices
    found: ChannelSensitivity

    def go_on(self, path: Path | None, score: str) -> None:
        """Take over what is in a file, if it belongs to the same work. Raises OptionError."""
        if path is None:
            return
        self.found.identity = self._identity(score)
        if path.exists() and path.stat().st_size:
            before = load_channel_sensitivity(path)
            if before.identity == self.found.identity:
                self.found.curves, self.found.baseline = before.curves, before.baseline

    def _identity(self, score: str) -> str:
        """A hash of the model, the samples and what is measured."""
        what = f"{self.model.fingerprint()}{score}{self.choices!r}"
        digest = hashlib.blake2b(what.encode(), digest_size=16)
        add_samples(digest, self.reader)
        if self.reader.labels is not None:
            digest.update(np.ascontiguousarray(self.reader.labels).tobytes())
        return digest.hexdigest()
