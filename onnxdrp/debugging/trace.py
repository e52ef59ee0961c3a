"""A run of passes that goes forth, back, and another way.

After each pass model and context are kept. Models share all weights that are still the same, so
that a run of n passes holds the weights that the passes have replaced, and n small graphs. What is
kept is never edited: a pass runs on a copy. So to go back is to look at what was kept; to run a
pass again, with other options, begins another trace, which shares all that is before that pass.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import DataError, OptionError
from onnxdrp.instruments import Snapshots
from onnxdrp.options import near
from onnxdrp.pipeline import Instrument, Pass, PassContext, PassManager, PassRecord
from onnxdrp.report import Report, Text

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.debugging.activation import Activation
    from onnxdrp.debugging.bisection import Bisection
    from onnxdrp.debugging.inputs import Inputs
    from onnxdrp.model import Model

__all__ = ["Trace", "Where"]

Where = int | str | None
"""The number of a pass, its name (the first of that name), "start", or None: where one is."""

_START = "start"


@dataclasses.dataclass(frozen=True)
class _State:
    """What there is between two passes; `record` is of the pass before, None at the start."""

    model: "Model"
    ctx: PassContext
    record: PassRecord | None = None

    def copies(self) -> tuple["Model", PassContext]:
        """Model and context that may be edited; weights are shared."""
        return self.model.clone(), self.ctx.copy()


class Trace(Tabular):
    """Passes one at a time, back and forth.

    Nothing has run as yet. A place is named by the pass that was the last to run: by its number, as
    in the table, or by its name (the first of that name); "start" is before all.

    Args:
        passes: in the order they run.
        model: stays as it is.
        ctx: as the first pass is to find it.
        reader: the data by which errors are measured; None: that of the context.
        instruments: called around each pass that runs.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        model: "Model",
        ctx: PassContext | None = None,
        *,
        reader: "DataReader | None" = None,
        instruments: Sequence[Instrument] = (),
    ) -> None:
        if not passes:
            raise OptionError("there is no pass to run; name one at least")
        ctx = ctx if ctx is not None else PassContext()
        self._reader = reader if reader is not None else ctx.reader
        self._instruments = tuple(instruments)
        self._manager = PassManager(passes, [*instruments, Snapshots()])
        self._states = [_State(model.clone(), ctx.copy())]
        self._at = 0
        self._running: tuple[Model, PassContext, Iterator[PassRecord]] | None = None

    # ------------------------------------------------------------------------------- where one is

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes, those too that have not run."""
        return self._manager.passes

    @property
    def records(self) -> list[PassRecord]:
        """Of all passes that have run, those after the present place too."""
        return [state.record for state in self._states if state.record is not None]

    @property
    def record(self) -> PassRecord | None:
        """Of the last pass before the present place; None at the start."""
        return self._states[self._at].record

    @property
    def model(self) -> "Model":
        """A copy of the model as it is here; weights are shared."""
        return self.model_at()

    @property
    def ctx(self) -> PassContext:
        """A copy of the context as it is here."""
        return self._states[self._at].ctx.copy()

    def model_at(self, where: Where = None) -> "Model":
        """A copy of the model after a pass, which is run if it has not been; weights are shared."""
        return self._state(where).model.clone()

    # ------------------------------------------------------------------------------------- going

    def step(self) -> PassRecord:
        """Go over the next pass, which is run if it has not been.

        Raises:
            OptionError: there is none.
            PassError: it failed; the trace stays where it is.
        """
        if self._at == len(self.passes):
            raise OptionError("the last pass has run; go back, or rerun one with other options")
        self._reach(self._at + 1)
        self._at += 1
        return self.records[self._at - 1]

    def back(self) -> PassRecord | None:
        """Go back over the last pass; the record of the one before it, None at the start."""
        if self._at == 0:
            raise OptionError("this is the start, with the model that came in")
        self._at -= 1
        return self.record

    def jump(self, where: int | str) -> PassRecord | None:
        """Go to after a pass, back or forth, over passes that are run if they have not been."""
        place = self._place(where)
        self._reach(place)
        self._at = place
        return self.record

    def run(self) -> Report:
        """Go to the end; the records of all passes."""
        self._reach(len(self.passes))
        self._at = len(self.passes)
        seconds = sum(record.seconds for record in self.records)
        return Report(model=self.model, records=self.records, seconds=seconds)

    def rerun(self, which: int | str, **options: Any) -> "Trace":
        """Another trace, in which a pass has other options; this one stays as it is.

        What is before the pass is shared; the pass, and all after it, run again. The new trace
        stands at its end.

        Args:
            which: the number or name of the pass.
            options: of the pass, in place of those that it had.
        """
        place = self._place(which)
        if not place:
            raise OptionError("there is no pass before the start; name the pass to run again")
        step = self.passes[place - 1]
        known = [f.name for f in dataclasses.fields(step)]  # type: ignore[arg-type]
        for name in options.keys() - set(known):
            raise OptionError(f"{step.name}: no option {name!r}{near(name, known)}")
        self._reach(place - 1)
        changed = dataclasses.replace(step, **options)  # type: ignore[type-var]
        passes = [*self.passes[: place - 1], changed, *self.passes[place:]]
        start = self._states[0]
        other = Trace(
            passes, start.model, start.ctx, reader=self._reader, instruments=self._instruments
        )
        other._states = self._states[:place]
        self._running = None  # instruments begin anew here, too
        other.run()
        return other

    # ----------------------------------------------------------------------------------- looking

    def bisect(
        self,
        limit: float,
        what: Literal["sqnr", "agreement"] = "sqnr",
        *,
        samples: int | None = 64,
    ) -> "Bisection":
        """The pass, then the tensor, at which the error of the outputs passes a limit.

        All passes are run that have not been; the place stays the same. See
        `onnxdrp.debugging.bisection` for what is named.

        Args:
            limit: in dB for "sqnr", a share in [0, 1] for "agreement".
            what: the worst output's SQNR, or the share of samples with the same largest class.
            samples: that are measured, the first; None: all.

        Raises:
            DataError: there is no data.
            ModelError: the model shares no output with the one that came in.
            OptionError: the limit, or `what`, cannot be honoured.
        """
        from onnxdrp.debugging.bisection import find_pass

        self._reach(len(self.passes))
        ends = [(state.record, state.model) for state in self._states]
        return find_pass(ends, self._data(samples), limit, what)

    def tensor(self, name: str, at: Where = None, samples: int | Sequence[int] = 8) -> "Activation":
        """The values of a tensor on some samples: in the float model, and in the model at a pass.

        Args:
            name: of an activation, an input or a stored tensor.
            at: a pass; None: where the trace stands.
            samples: how many, the first, or which.

        Raises:
            DataError: there is no data, or not that many samples.
            ModelError: neither model has it; names the nearest.
        """
        from onnxdrp.debugging.activation import find_activation

        state = self._state(at)
        return find_activation(
            name,
            self._states[0].model,
            state.model,
            state.ctx,
            self._data(None),
            samples,
            at=_START if state.record is None else state.record.name,
        )

    def inputs(self, samples: int | None = 64, against: "DataReader | None" = None) -> "Inputs":
        """What the passes' data is, and what the model that came in makes of it.

        See `onnxdrp.debugging.inputs` for what is told, and how far it can be trusted.

        Args:
            samples: that are looked at, the first; None: all.
            against: another reader, to be held beside it.
        """
        from onnxdrp.debugging.inputs import find_inputs

        reader = self._states[0].ctx.reader
        reader = reader if reader is not None else self._reader
        if reader is None:
            raise DataError("the trace has no data; give a reader to debug")
        return find_inputs(self._states[0].model, reader, samples, against)

    def table(self) -> Text:
        """A line a pass; an arrow where the trace stands."""
        rows = []
        for number, step in enumerate(self.passes):
            arrow = "->" if number == self._at - 1 else ""
            if number + 1 >= len(self._states):
                rows.append((arrow, f"{number:03d}", step.name, "", "", "", ""))
                continue
            record = self.records[number]
            nodes = f"{record.nodes[0]} -> {record.nodes[1]}"
            weights = ", ".join(f"{n} {what}" for what, n in record.weights.items() if n)
            figures = (nodes, weights or "-", f"{record.bytes[1]:,}", f"{record.seconds:.2f}")
            rows.append((arrow, f"{number:03d}", step.name, *figures))
        head = ("", "#", "pass", "nodes", "weights", "bytes", "seconds")
        return Shown(Table(head, rows))

    # ------------------------------------------------------------------------------------ running

    def _state(self, where: Where) -> _State:
        place = self._at if where is None else self._place(where)
        self._reach(place)
        return self._states[place]

    def _reach(self, place: int) -> None:
        """Run passes until there is a state after so many of them."""
        while len(self._states) <= place:
            done = len(self._states) - 1
            if self._running is None:
                model, ctx = self._states[done].copies()
                self._running = model, ctx, self._manager.steps(model, ctx, first=done)
            model, ctx, steps = self._running
            try:
                record = next(steps)
            except BaseException:
                self._running = None  # half edited; what was kept is whole
                raise
            assert record.ends is not None  # Snapshots has run
            self._states.append(_State(record.ends.after, ctx.copy(), record))

    def _place(self, where: int | str) -> int:
        """How many passes have run there."""
        names = [step.name for step in self.passes]
        if where == _START:
            return 0
        if isinstance(where, str):
            if where not in names:
                raise OptionError(f"no pass {where!r} in the trace{near(where, names)}")
            return names.index(where) + 1
        if not 0 <= where < len(names):
            raise OptionError(f"no pass {where}: they are numbered 0 to {len(names) - 1}")
        return where + 1

    def _data(self, samples: int | None) -> "DataReader":
        from onnxdrp.datareaders import take

        if self._reader is None:
            raise DataError("the trace has no data; give a reader to debug")
        return self._reader if samples is None else take(self._reader, samples)
