"""Passes and the manager that runs them one after the other.

A pass is a frozen dataclass whose fields are its options; it holds no state. What passes tell each
other stands in the tables of `PassContext`, keyed by tensor name. Whatever watches passes (dumps,
checks, timing) is an `Instrument`, outside of them.
"""

import copy
import dataclasses
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from onnxdrp.errors import OnnxDrpError, OptionError, PassError
from onnxdrp.report import Report

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from onnxdrp.channels.choosing import ChannelScores
    from onnxdrp.channels.rounds import AutoChannels
    from onnxdrp.channels.sensitivity import ChannelSensitivity
    from onnxdrp.datareaders import DataReader
    from onnxdrp.diff import Diff
    from onnxdrp.masks import Mask
    from onnxdrp.model import Model
    from onnxdrp.quantization import QuantParams, Range
    from onnxdrp.ranges import Ranges
    from onnxdrp.targets import Target
    from onnxdrp.unit_sensitivity import Sensitivity

__all__ = [
    "Ends",
    "Instrument",
    "Pass",
    "PassContext",
    "PassManager",
    "PassRecord",
    "PassResult",
    "watched",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassResult:
    """What a pass did: whether the model differs now, and its figures.

    Attributes:
        modified: True only if graph or weights changed; the Verify instrument checks it by
            fingerprint.
        stats: figures that JSON can hold; what was passed over stands under "skipped" as {name:
            reason}.
    """

    modified: bool
    stats: dict[str, Any] = field(default_factory=dict)


@dataclass
class PassContext:
    """What passes share; nothing else is.

    Attributes:
        reader: calibration data, or None where no pass needs any.
        held_out: data that no pass fits anything to, to judge by what passes try; None: those that
            try hold back a part of `reader`.
        target: the hardware profile.
        seed: of everything random.
        rates: {weight name: share to prune}, decided by SelectLayers.
        refused: {node name: why it is not pruned}.
        masks: {weight name: what stays}, of every pruned weight.
        dense: the model before any weight was pruned; shares all weights that are still the same.
            Its tensors have the channels that the pruned model has.
        channel_scores: {group of channels: a number for each unit, the lowest go first}, from
            ScoreChannels; None: channels go by the sizes of weights.
        removed: {group of channels: its units to be removed}, from SelectChannels and the like.
        channel_curves: what removing channels of each group alone costs, from MeasureChannels.
        slim: the model as channels were removed from it, with nothing repaired.
        shortened: weights that lost inputs when channels were removed.
        rounds: what a search for channels under a budget tried, from AutoSlim.
        ranges: {tensor name: low and high}, from Calibrate.
        calibration: the same as a file has them: with extremes, counts, method.
        histograms: {tensor name: {"histogram": counts of its values in equal parts from the least
            to the largest, "outside": share of them outside of its range}}, if they were counted.
        quantization: {tensor name: scale, zero-point, dtype}.
        reference: the float model, tensor by tensor the one whose weights were rounded; shares all
            weights that are still the same.
        kept_float: {node name: why it stays float}.
        wide: {node name: why its outputs get the target's wide type}.
        sensitivity: what quantizing each unit alone costs, from MeasureSensitivity or KeepFloat.
        progress: called by passes that read data with (samples done, samples in all or None);
            the Progress instrument sets it.
        checkpoint: where a calibration keeps what is done, to go on from after an interruption.
        executor: where passes that read data run it; None: threads of this process.
        workers: how many of them at a time; None: as many as there are cores.
    """

    reader: "DataReader | None" = None
    held_out: "DataReader | None" = None
    target: "Target" = field(default_factory=lambda: _generic())
    seed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    masks: "dict[str, Mask]" = field(default_factory=dict)
    dense: "Model | None" = None
    channel_scores: "ChannelScores | None" = None
    removed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channel_curves: "ChannelSensitivity | None" = None
    slim: "Model | None" = None
    shortened: frozenset[str] = frozenset()
    rounds: "AutoChannels | None" = None
    ranges: "dict[str, Range]" = field(default_factory=dict)
    quantization: "dict[str, QuantParams]" = field(default_factory=dict)
    calibration: "Ranges | None" = None
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference: "Model | None" = None
    kept_float: dict[str, str] = field(default_factory=dict)
    wide: dict[str, str] = field(default_factory=dict)
    sensitivity: "Sensitivity | None" = None
    progress: Callable[[int, int | None], None] | None = None
    checkpoint: "Path | None" = None
    executor: "Executor | None" = None
    workers: int | None = None

    def copy(self) -> "PassContext":
        """The context as it is now, whatever passes do next; entries of tables are shared.

        Models in it are cloned, so that their weights are shared, too.
        """
        from onnxdrp.model import Model

        clones: dict[int, Model] = {}
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                found[name] = copy.copy(value)
            elif isinstance(value, Model):
                found[name] = clones.setdefault(id(value), value.clone())
        return dataclasses.replace(self, **found)


def _generic() -> "Target":
    from onnxdrp.targets import load_target

    return load_target("generic")


class Pass(ABC):
    """One transform of a model: a frozen dataclass whose fields are its options.

    Attributes:
        name: what recipes, dumps and the command line call it, in kebab-case.
        keeps_results: True if the outputs of the model must be the same after it; Equivalence
            proves it.
    """

    name: ClassVar[str]
    keeps_results: ClassVar[bool] = False

    def requires(self, model: "Model", ctx: PassContext) -> None:  # noqa: B027 - few need more
        """Raise an OnnxDrpError, before any work, if the pass cannot run here."""

    @abstractmethod
    def run(self, model: "Model", ctx: PassContext) -> PassResult:
        """Edit the model in place and fill tables of the context."""

    def ensures(self, model: "Model", ctx: PassContext) -> None:  # noqa: B027 - most passes promise nothing more
        """Raise a CheckError if what the pass promises does not hold after it."""

    def as_run(self, stats: dict[str, Any]) -> "Pass":  # noqa: ARG002 - most passes need none
        """The pass that repeats a run, of which the figures are given: without budgets of time."""
        return self

    def options(self) -> dict[str, Any]:
        """The values of its fields, as recipes and reports show them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ends:
    """A pass, and the model before and after it; the models share weights, and are not edited."""

    step: Pass
    before: "Model"
    after: "Model"


@dataclass
class PassRecord:
    """What one pass did, for reports and for the cell of a notebook that steps through passes.

    Attributes:
        nodes: number of nodes before and after.
        operators: {operator: change of its count}.
        weights: how many stored tensors were added, removed, changed.
        bytes: of all stored tensors, before and after.
        seconds: of the pass alone, instruments not counted.
        peak_rss_mb: peak resident memory while it ran; filled by the Timing instrument.
        ends: the model before and after it; kept by the Snapshots instrument.
    """

    index: int
    name: str
    options: dict[str, Any]
    modified: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    nodes: tuple[int, int] = (0, 0)
    operators: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    bytes: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    peak_rss_mb: float | None = None
    ends: "Ends | None" = field(default=None, compare=False)

    @cached_property
    def diff(self) -> "Diff":
        """What the pass did to graph and weights, found when it is first asked for.

        Raises OptionError where the models were not kept: they are by the Snapshots instrument, and
        in a trace (onnxdrp.debug).
        """
        from onnxdrp.diff import find_diff

        if self.ends is None:
            raise OptionError(
                f"{self.name}: the models before and after it were not kept; run it under the "
                "instrument Snapshots, or in onnxdrp.debug"
            )
        return find_diff(self.ends.step, self.ends.before, self.ends.after)

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows of it."""
        shown = dataclasses.asdict(dataclasses.replace(self, ends=None))
        del shown["ends"]
        return shown

    def __str__(self) -> str:
        changes = [f"{op} {n:+d}" for op, n in sorted(self.operators.items())]
        changes += [f"{n} weights {what}" for what, n in self.weights.items() if n]
        before, after = self.bytes
        if before != after:
            changes.append(f"{before:,} -> {after:,} bytes")
        figures = [f"{k}: {_brief(v)}" for k, v in self.stats.items()]
        what = ", ".join(changes) or ("modified" if self.modified else "unchanged")
        text = f"{self.index:03d} {self.name} ({self.seconds:.2f} s): {what}"
        return "\n".join([text, *(f"    {line}" for line in figures)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from onnxdrp.display import Shown, facts

        return Shown(str(self).partition("\n")[0], *facts(self.stats))._repr_html_()


class Instrument:
    """Watches passes from outside; the last to see `before` is the first to see `after`.

    Subclass it and write the methods that matter: each does nothing unless written.
    """

    def start(self, passes: "Sequence[Pass]", model: "Model", ctx: PassContext) -> None:
        """Called once, before the first pass of a run, with all its passes."""

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Called before `requires` of each pass."""

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Called after `ensures` of a pass; may raise CheckError, or add to the record."""

    def failed(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, error: Exception
    ) -> None:
        """Called instead of `after` when the pass, or a check of another instrument, raised."""

    def during(
        self,
        what: str,  # noqa: ARG002
    ) -> AbstractContextManager[Callable[[int, int | None], None] | None]:
        """Entered around work between passes; may give what is told of its progress."""
        return nullcontext()


@contextmanager
def watched(
    what: str, instruments: "Sequence[Instrument]"
) -> Iterator[Callable[[int, int | None], None] | None]:
    """Let instruments watch work between passes; gives what one of them wants told of progress.

    Args:
        what: names the work, in a word.
        instruments: of the run.
    """
    with ExitStack() as stack:
        shows = [stack.enter_context(instrument.during(what)) for instrument in instruments]
        yield next(filter(None, shows), None)


class PassManager:
    """Runs passes in order, with instruments around each.

    Args:
        passes: in the order they run.
        instruments: called stack-like around each pass.
    """

    def __init__(self, passes: Sequence[Pass], instruments: Sequence[Instrument] = ()) -> None:
        self.passes = tuple(passes)
        self.instruments = tuple(instruments)

    def steps(
        self, model: "Model", ctx: PassContext | None = None, first: int = 0
    ) -> Iterator[PassRecord]:
        """Run one pass a turn and yield its record.

        Args:
            model: is edited.
            ctx: of the run.
            first: the number of the pass to begin with, where those before it have run already.

        Raises:
            PassError: a pass or a check failed; names it and those that ran before; chained to the
                cause.
        """
        ctx = ctx if ctx is not None else PassContext()
        for instrument in self.instruments:
            instrument.start(self.passes, model, ctx)
        for index, step in enumerate(self.passes[first:], first):
            yield self._step(index, step, model, ctx)

    def run(self, model: "Model", ctx: PassContext | None = None) -> Report:
        """Run all passes on `model`, in place. Raises as `steps`."""
        started = time.perf_counter()
        records = list(self.steps(model, ctx))
        return Report(model=model, records=records, seconds=time.perf_counter() - started)

    def _step(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> PassRecord:
        record = PassRecord(index, step.name, step.options())
        watching: list[Instrument] = []
        try:
            for instrument in self.instruments:
                watching.append(instrument)
                instrument.before(index, step, model, ctx)
            before = _Inventory(model)
            started = time.perf_counter()
            step.requires(model, ctx)
            result = step.run(model, ctx)
            step.ensures(model, ctx)
            record.seconds = time.perf_counter() - started
            record.modified, record.stats = result.modified, result.stats
            _Inventory(model).compare(before, record)
            while watching:
                watching.pop().after(index, step, model, ctx, record)
        except Exception as error:
            for instrument in reversed(watching):
                instrument.failed(index, step, model, ctx, error)
            if isinstance(error, OnnxDrpError):
                raise PassError(f"{step.name}: {error}{self._ran_before(index)}") from error
            raise
        log.info("%s", record)
        return record

    def _ran_before(self, index: int) -> str:
        names = ", ".join(p.name for p in self.passes[:index])
        return f" (after {names})" if names else ""


class _Inventory:
    """What a model has at one moment: operators, stored tensors, bytes."""

    def __init__(self, model: "Model") -> None:
        self.operators = Counter(n.op for n in model.nodes())
        self.digests, self.bytes = model.inventory()

    def compare(self, before: "_Inventory", record: PassRecord) -> None:
        record.nodes = (before.operators.total(), self.operators.total())
        ops = sorted(self.operators | before.operators)
        change = {op: self.operators[op] - before.operators[op] for op in ops}
        record.operators = {op: n for op, n in change.items() if n}
        old, new = before.digests, self.digests
        record.weights = {
            "added": len(new.keys() - old.keys()),
            "removed": len(old.keys() - new.keys()),
            "changed": sum(old[name] != new[name] for name in old.keys() & new.keys()),
        }
        record.bytes = (before.bytes, self.bytes)


def _brief(value: Any, most: int = 4) -> str:
    if isinstance(value, dict) and len(value) > most:
        shown = ", ".join(f"{k}: {v}" for k, v in list(value.items())[:most])
        return f"{shown}, ... ({len(value)})"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
