"""What watches passes from outside: dumps, checks, timing, reproducers, progress.

    PassManager(passes, [Progress(), Reproducer("failed"), Dump("steps"), Verify(), Timing()])

The last in the list stands nearest to the pass: Timing belongs there, and Reproducer before the
checks whose failures it is to catch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import CheckError, OptionError
from onnxdrp.memory import peak_since_restart_mb, restart_peak
from onnxdrp.pipeline import Ends, Instrument, Pass, PassContext, PassRecord
from onnxdrp.report import Text
from onnxdrp.reproduce import Reproducer, refuse_input_in, replay
from onnxdrp.terminal import Line, Show

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = [
    "Dump",
    "Equivalence",
    "Progress",
    "Reproducer",
    "Snapshots",
    "Timing",
    "Verify",
    "replay",
]

_LIST = ".onnxdrp-dump"  # in a folder of dumps: the names of the files that are ours


class Dump(Instrument):
    """Writes the model after each pass: `003_prune-blocks.onnx` in `folder`.

    A run begins by deleting what an earlier one left there, and nothing else: a folder that holds a
    file which no Dump wrote is refused.

    Args:
        folder: where the models go; made if it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._ours()

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Make the folder, or empty it of earlier dumps."""
        refuse_input_in(self.folder, model)
        for name in self._ours():
            (self.folder / name).unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _LIST).write_text("", encoding="utf-8")

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Write the model."""
        name = f"{index:03d}_{step.name}.onnx"
        with (self.folder / _LIST).open("a", encoding="utf-8") as ours:
            ours.write(f"{name}\n{name}.data\n")
        model.save(self.folder / name)

    def _ours(self) -> list[str]:
        """The names that an earlier Dump noted. Raises OptionError if there are other files."""
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"{self.folder}: is a file; name a folder for the dumps")
        if not self.folder.exists():
            return []
        ours = self.folder / _LIST
        names = ours.read_text(encoding="utf-8").split("\n")[:-1] if ours.is_file() else []
        for path in sorted(self.folder.iterdir()):
            if path.name not in (*names, _LIST) or path.is_dir():
                raise OptionError(
                    f"{self.folder}: holds {path.name!r}, which no dump wrote; name an empty folder"
                )
        return names


class Snapshots(Instrument):
    """Keeps the model before and after each pass, so that `record.diff` can tell what it did.

    Weights are shared: what it costs is the graphs, and the weights that passes have replaced.
    """

    def __init__(self) -> None:
        self._before: Model | None = None

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Keep the model that came in."""
        self._before = model.clone()

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Keep the model, and give both to the record."""
        assert self._before is not None  # `start` was called
        after = model.clone()  # even if the pass says that it did nothing
        record.ends, self._before = Ends(step, self._before, after), after


class Verify(Instrument):
    """Checks after every pass: the model is valid, `modified` is true, pruned weights are zero.

    Valid is what onnx's full checker says. `modified` is held against the fingerprints before and
    after. Each weight in `ctx.masks` must exist and be zero wherever its mask is, in float or
    behind a DequantizeLinear.
    """

    def __init__(self) -> None:
        self._fingerprint = ""

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Note what the model is."""
        self._fingerprint = model.fingerprint()

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Check. Raises CheckError."""
        model.check()
        changed = model.fingerprint() != self._fingerprint
        if changed != record.modified:
            is_not = "differs from" if changed else "is the same as"
            raise CheckError(
                f"modified={record.modified}, but the model {is_not} the one before; "
                "mend what the pass returns"
            )
        if ctx.masks:
            from onnxdrp.masked import check_masks

            check_masks(model, ctx.masks)


class Timing(Tabular, Instrument):
    """Measures each pass: fills `record.peak_rss_mb`, and keeps a table of seconds and memory.

    Where the system cannot reset the peak (elsewhere than on Linux) the memory is the peak since
    the process began.

    Attributes:
        records: of the passes of the last run.
    """

    def __init__(self) -> None:
        self.records: list[PassRecord] = []

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Begin a new table."""
        self.records = []

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Let the peak begin anew."""
        restart_peak()

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Note the peak."""
        record.peak_rss_mb = round(peak_since_restart_mb(), 1)
        self.records.append(record)

    def table(self) -> Text:
        """Seconds, their share, and peak memory of each pass, as text."""
        total = sum(r.seconds for r in self.records)
        rows = [
            (r.name, f"{r.seconds:.3f}", f"{r.seconds / (total or 1):.0%}", f"{r.peak_rss_mb:.0f}")
            for r in self.records
        ]
        head, foot = ("pass", "seconds", "share", "peak MB"), [("total", f"{total:.3f}", "", "")]
        return Shown(Table(head, rows, foot))


class Equivalence(Instrument):
    """Runs the model before and after each pass that must keep results, and compares the outputs.

    The rule is that of `onnxdrp.equivalence`. The inputs are the first samples of the context's
    reader; where there is none, seeded random ones.

    Args:
        samples: how many samples both models are run on.
        tolerance: max|a - b| over max|a|, for each float output and each part of it.
    """

    def __init__(self, samples: int = 8, tolerance: float = 1e-4) -> None:
        if samples < 1:
            raise OptionError(f"samples={samples}: give at least 1")
        if not tolerance >= 0:
            raise OptionError(f"tolerance={tolerance}: give 0 or more")
        self.samples = samples
        self.tolerance = tolerance
        self._before: Model | None = None

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Keep the model as it is, its weights shared."""
        self._before = model.clone() if step.keeps_results else None

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Compare. Raises CheckError with the figures of each output that differs."""
        from onnxdrp.equivalence import compare_models

        before, self._before = self._before, None
        if before is None or not record.modified:
            return
        found = compare_models(before, model, self._feeds(before, model, ctx), self.tolerance)
        if found:
            raise CheckError(f"the results are not those before: {'; '.join(found)}")

    def failed(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, error: Exception
    ) -> None:
        """Let go of the model."""
        self._before = None

    def _feeds(
        self, before: "Model", after: "Model", ctx: PassContext
    ) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        from onnxdrp.batches import pieces
        from onnxdrp.datareaders import take
        from onnxdrp.equivalence import example_feeds

        shapes = [info.shape for model in (after, before) for info in model.inputs[:1]]
        batch = next((s[0] for s in shapes if s and isinstance(s[0], int)), None)
        if ctx.reader is None:
            count = -(-self.samples // (batch or 1))
            yield from example_feeds(after, ctx.seed, batch or 1, count)
            return
        names = {info.name for info in before.inputs}
        for feed, _ in pieces(take(ctx.reader, self.samples), batch):
            yield {name: array for name, array in feed.items() if name in names}


class Progress(Instrument):
    """Shows on a terminal which pass runs, how far it is, its rate and the time left.

    The line stands on standard error and vanishes when the pass is done, at the latest with the
    process. Where standard error is no terminal nothing is shown; the pass manager logs each pass
    either way.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._line: Line | None = None

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Note how many passes there are."""
        self._passes = len(passes)

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Show the pass."""
        self._line = Line(f"[{index + 1}/{self._passes}] {step.name}")
        ctx.progress = self._line.show

    def after(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, record: PassRecord
    ) -> None:
        """Take the line away."""
        self._stop(ctx)

    def failed(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, error: Exception
    ) -> None:
        """Take the line away."""
        self._stop(ctx)

    @contextmanager
    def during(self, what: str) -> Iterator[Show | None]:
        """Show work between passes."""
        line = Line(what)
        try:
            yield line.show
        finally:
            line.close()

    def close(self) -> None:
        """Take the line away if an interrupt has left it there."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _stop(self, ctx: PassContext) -> None:
        self.close()
        ctx.progress = None
