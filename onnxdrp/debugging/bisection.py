"""The pass, then the tensor, at which the error against the model that came in passes a limit.

Every pass that changed the model is measured. A search by halves would measure fewer, and could
name the wrong one: repair makes errors fall again. Named is the pass from which on the outputs are
beyond the limit to the end; where they come back to within it, the first pass that was beyond.

Within that pass, with e(t) the SQNR of tensor t against the model that came in, the tensor is

    sqnr        the first in the order of the graph with  e_after(t) < limit <= e_before(t), of
                which an output is made that is below the limit, too
    agreement   where the error that the pass makes jumps, or grows most (onnxdrp.jumps)

Tensors are compared by name: those that only one of two models has (inside of what was fused, say)
cannot be. Where a tensor is quantized, what its readers see is compared.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from onnxdrp.display import Details, Shown, Table, Tabular
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.evaluation import Comparison, compare_models
from onnxdrp.fidelity import ErrorStats
from onnxdrp.jumps import Jump, outputs_behind
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model
    from onnxdrp.pipeline import PassRecord

__all__ = ["Bisection", "PassFigure", "TensorFigure", "What", "find_pass"]

What = Literal["sqnr", "agreement"]

_FIGURES = {"sqnr": "SQNR of the outputs", "agreement": "top-1 agreement"}


@dataclass(frozen=True)
class PassFigure:
    """What the outputs are after a pass, against those of the model that came in.

    Attributes:
        index: the number of the pass.
        name: of the pass.
        modified: whether it changed the model; if not, the figure is that before it.
        value: in dB, inf without error; or a share in [0, 1].
    """

    index: int
    name: str
    modified: bool
    value: float


@dataclass(frozen=True)
class TensorFigure:
    """What the pass made of a tensor; SQNR in dB, None where one of two models has not the tensor.

    Attributes:
        node: that gives the tensor, in the model before the pass.
        op: its operator.
        tensor: its name.
        pass_db: after the pass against before it.
        before_db: before the pass against the model that came in.
        after_db: after the pass against the model that came in.
    """

    node: str
    op: str
    tensor: str
    pass_db: float
    before_db: float | None
    after_db: float | None


@dataclass(frozen=True, repr=False)
class Bisection(Tabular):
    """Where the error comes from.

    Attributes:
        what: "sqnr" or "agreement".
        limit: that was given.
        passes: all, in order, with their figures.
        found: the pass that is named; None if the outputs stay within the limit.
        repaired: the name of the pass that brought the outputs back to within the limit; "" if none
            did.
        tensors: that the models before and after the named pass share, in the order of the graph,
            outputs last.
        tensor: the one that is named.
        jump: where the error that the pass makes jumps, or grows most, with what is known of it.
        alone: how many activations only one of the two models has, so that they are not compared.
    """

    what: What
    limit: float
    passes: tuple[PassFigure, ...]
    found: PassFigure | None = None
    repaired: str = ""
    tensors: tuple[TensorFigure, ...] = ()
    tensor: TensorFigure | None = None
    jump: Jump | None = None
    alone: int = 0

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        if self.found is None:
            worst = self._say(min((p.value for p in self.passes), default=math.inf))
            return f"no pass: {_FIGURES[self.what]} stays at {worst} or better"
        before = self.passes[self.found.index - 1].value if self.found.index else None
        start = {"sqnr": "no error", "agreement": "all"}[self.what]
        since = start if before is None else self._say(before)
        text = (
            f"pass {self.found.index:03d} {self.found.name}: {_FIGURES[self.what]} goes from "
            f"{since} to {self._say(self.found.value)}, beyond {self._say(self.limit)}"
        )
        back = f" (and {self.repaired} brings it back)" if self.repaired else ""
        parts = [text + back]
        if self.tensor is not None:
            place = self.tensors.index(self.tensor) + 1
            parts.append(
                f"tensor {self.tensor.tensor!r} of {self.tensor.op} {self.tensor.node!r}, "
                f"{place} of {len(self.tensors)}: {_decibels(self.tensor.before_db)} dB before "
                f"the pass, {_decibels(self.tensor.after_db)} dB after"
            )
        if self.jump is not None:
            parts.append(f"of the error that the pass makes: {self.jump}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; infinite figures are None."""
        found = asdict(self) | {"jump": None if self.jump is None else self.jump.as_dict()}
        return {**_plain(found), "verdict": self.verdict}

    def table(self, most: int | None = None) -> Text:
        """A line a pass, a line a tensor, and the verdict.

        Args:
            most: lines of tensors, around the one that is named; None: all.
        """
        head = ("", "#", "pass", _FIGURES[self.what])
        rows = [
            ("->" if p == self.found else "", f"{p.index:03d}", p.name,
             self._say(p.value) if p.modified else "-")
            for p in self.passes
        ]  # fmt: skip
        parts: list[Any] = [Table(head, rows)]
        if self.tensors:
            named = self.tensors.index(self.tensor) if self.tensor in self.tensors else 0
            first = 0 if most is None else max(0, min(named - most // 3, len(self.tensors) - most))
            shown = self.tensors[first:][:most]
            parts += ["", self._lines(shown)]
            left = len(self.tensors) - len(shown)
            parts += ["", f"{left} more tensors are in table()"] if left else []
            alone = f"{self.alone} activations that only one of the models has are not compared"
            parts += ["", alone] if self.alone else []
        return Shown(*parts, "", *self.verdict.splitlines())

    def __str__(self) -> str:
        return self.table(_MOST)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        whole = Details(f"all {len(self.tensors)} tensors", self._lines(self.tensors))
        more = [whole] if len(self.tensors) > _MOST else []
        return Shown(self.table(_MOST), *more)._repr_html_()

    def _lines(self, tensors: "Sequence[TensorFigure]") -> Table:
        lines = [
            ("->" if t == self.tensor else "", t.node, t.op, t.tensor,
             *map(_decibels, (t.pass_db, t.before_db, t.after_db)))
            for t in tensors
        ]  # fmt: skip
        return Table(("", "node", "op", "tensor", *_COLUMNS), lines)

    def _say(self, value: float) -> str:
        return f"{value:.1f} dB" if self.what == "sqnr" else f"{100 * value:.2f} %"


_COLUMNS = ("dB to before", "before to first", "after to first")
_MOST = 12


def find_pass(
    ends: "Sequence[tuple[PassRecord | None, Model]]",
    reader: "DataReader",
    limit: float,
    what: What = "sqnr",
) -> Bisection:
    """Which pass, and which tensor in it, takes the outputs beyond a limit.

    Args:
        ends: (record, model after the pass) of each pass in order; first (None, model that came
            in).
        reader: the data.
        limit: in dB for "sqnr", a share in [0, 1] for "agreement"; figures below it are beyond.
        what: is measured of the outputs.

    Raises:
        DataError: a tensor has NaN or infinity; a note names the pass.
        ModelError: a model shares no output with the first; or has no classes, for "agreement".
        OptionError: limit or `what` cannot be honoured.
    """
    if what not in get_args(What):
        raise OptionError(f"what {what!r}: there are {', '.join(get_args(What))}")
    if math.isnan(limit) or (what == "agreement" and not 0 <= limit <= 1):
        raise OptionError(f"limit {limit}: give a share between 0 and 1 for the agreement")
    original = ends[0][1]
    figures: list[PassFigure] = []
    value = math.inf if what == "sqnr" else 1.0
    last = original.fingerprint()
    for record, model in ends[1:]:
        assert record is not None  # only the first has none
        now = model.fingerprint()
        modified, last = now != last, now
        if modified:
            value = _measured(original, model, reader, what, record.name)
        figures.append(PassFigure(record.index, record.name, modified, value))
    beyond = [p.value < limit for p in figures]
    if not any(beyond):
        return Bisection(what, limit, tuple(figures))
    place = _named(beyond)
    repaired = next((p.name for p in figures[place:] if p.value >= limit), "")
    before, after = ends[place][1], ends[place + 1][1]
    return _within(
        Bisection(what, limit, tuple(figures), figures[place], repaired),
        *(original, before, after),
        reader,
    )


def _measured(
    original: "Model", model: "Model", reader: "DataReader", what: What, name: str
) -> float:
    try:
        found = compare_models(original, model, reader)
    except DataError as error:
        error.add_note(f"in the model after the pass {name}")
        raise
    if what == "sqnr":
        return found.sqnr_db
    if found.top1_agreement is None:
        raise ModelError("no output has scores of classes; ask for the limit of sqnr")
    return found.top1_agreement


def _named(beyond: Sequence[bool]) -> int:
    """The pass after which all are beyond; the first that is, where the last is not."""
    if not beyond[-1]:
        return list(beyond).index(True)
    return len(beyond) - list(beyond[::-1]).index(False) if False in beyond else 0


def _within(
    known: Bisection, original: "Model", before: "Model", after: "Model", reader: "DataReader"
) -> Bisection:
    """The same with the tensors of the named pass."""
    made = compare_models(before, after, reader, layers=True)
    old = _errors(compare_models(original, before, reader, layers=True))
    new = _errors(compare_models(original, after, reader, layers=True))
    lines = [*made.layers, *_outputs(before, made)]
    tensors = tuple(
        TensorFigure(node, op, t, error.sqnr_db, _of(old, t), _of(new, t))
        for node, op, t, error in lines
    )
    behind = outputs_behind(after, new)
    if known.what == "sqnr":
        named = next((t for t in tensors if _passes(t, behind, known.limit)), None)
    else:
        jump = made.step
        named = next((t for t in tensors if jump is not None and t.tensor == jump.tensor), None)
    shared = {t.tensor for t in tensors}
    alone = sum(len(_activations(m) - shared) for m in (before, after))
    return Bisection(
        *(known.what, known.limit, known.passes, known.found, known.repaired),
        *(tensors, named, made.step, alone),
    )


def _passes(tensor: TensorFigure, behind: dict[str, float], limit: float) -> bool:
    """Whether this is where the limit is passed."""
    if tensor.after_db is None or tensor.before_db is None:
        return False
    reached = behind.get(tensor.tensor, math.inf)
    return tensor.after_db < limit <= tensor.before_db and reached < limit


def _errors(found: Comparison) -> dict[str, ErrorStats]:
    return {t: error for _, _, t, error in found.layers} | found.outputs


def _of(errors: dict[str, ErrorStats], tensor: str) -> float | None:
    return errors[tensor].sqnr_db if tensor in errors else None


def _outputs(model: "Model", found: Comparison) -> list[tuple[str, str, str, ErrorStats]]:
    makers = {t.name: node for node in model.nodes() for t in node.outputs}
    return [
        (str(makers[name].name), str(makers[name].op), name, error)
        for name, error in found.outputs.items()
        if name in makers  # else it is an input as well
    ]


def _activations(model: "Model") -> set[str]:
    """What floats are computed, but for what only undoes a rounding."""
    return {
        str(t.name)
        for node in model.nodes()
        for t in node.outputs
        if node.op not in ("QuantizeLinear", "DequantizeLinear") and t.name
    }


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
