"""What quantizing each unit alone costs at the outputs, without labels, on some samples.

    SQNR of an output = 10 log10(sum y^2 / sum (y' - y)^2)       y' with one unit quantized, y float

A unit (onnxdrp.units) is quantized with the parameters that it has in the whole quantized model,
so ranges that it must share count against it. The float model is walked (onnxdrp.walk) from unit to
unit; at each one its output is replaced by what it is quantized, and what lies behind it runs: on
average half a model, with one session for each unit. Errors of several units nearly add up in power
as long as they are small, so damage = 10^(-SQNR / 10) ranks units by what they cost together too.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdrp.batches import static_batch
from onnxdrp.checkpoint import add_samples
from onnxdrp.datareaders.batching import count, split
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.fidelity import Error
from onnxdrp.files import atomic_write, read_json
from onnxdrp.layers import layers
from onnxdrp.pipeline import PassContext
from onnxdrp.report import Text
from onnxdrp.segments import Segment, Segments
from onnxdrp.units import Part, Runner, Unit, Units
from onnxdrp.walk import walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model
    from onnxdrp.quantization import Range
    from onnxdrp.targets import Target

__all__ = [
    "Sensitivity",
    "UnitSensitivity",
    "few",
    "load_sensitivity",
    "noise_power",
    "quantization_sensitivity",
]

Feeds = tuple[tuple[int, ...], Mapping[str, Mapping[str, Any]]]  # of a batch, as walk gives them
Errors = dict[tuple[Part, str], Error]  # by part of a unit and output

_FORMAT, _VERSION = "onnxdrp-sensitivity", 1
_HEAD = ("node", "op", "SQNR dB", "weights dB", "output dB", "MACs", "share %")


@dataclass(frozen=True)
class UnitSensitivity:
    """What one unit costs.

    Attributes:
        name: of its first node.
        op: its operator.
        nodes: the names of all its nodes.
        inputs: the tensors that it reads rounded.
        output: the tensor that it gives.
        macs: multiply-adds for one image; 0 of an elementwise operator, None where unknown.
        share: of all multiply-adds of the model, in [0, 1].
        sqnr_db: of the worst output with the unit quantized: weights, inputs and output; inf where
            nothing changes.
        outputs: {output: its SQNR in dB}.
        weights_db: of the worst output with its stored tensors alone quantized; None without any.
        output_db: with the tensor that it gives alone; None where that stays float.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    macs: int | None
    share: float
    sqnr_db: float
    outputs: dict[str, float]
    weights_db: float | None
    output_db: float | None

    @property
    def damage(self) -> float:
        """Noise power over signal power at the worst output."""
        return noise_power(self.sqnr_db)


def noise_power(decibels: float | None) -> float:
    """Noise over signal of an SQNR; 0 of None."""
    return 0.0 if decibels is None else float(10 ** (-decibels / 10))


@dataclass(repr=False)
class Sensitivity(Tabular):
    """What each unit costs.

    Attributes:
        units: the one that costs most first; equal ones in graph order.
        target: name of the profile.
        samples: how many it was measured on.
        model: file name of the model, or "".
        identity: hash of all that the figures depend on.
        complete: False while units are missing, after an interruption.
    """

    units: list[UnitSensitivity] = field(default_factory=list)
    target: str = ""
    samples: int = 0
    model: str = ""
    identity: str = ""
    complete: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it; an SQNR without noise is "inf"."""
        return {"format": _FORMAT, "version": _VERSION, **_named(asdict(self))}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises ModelError if it cannot be written."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.as_dict(), indent=1).encode() + b"\n")

    def table(self) -> Text:
        """A line a unit, then what it is of."""
        rows = [
            (u.name, u.op, _db(u.sqnr_db), _db(u.weights_db), _db(u.output_db), _macs(u.macs),
             f"{100 * u.share:.1f}")
            for u in self.units
        ]  # fmt: skip
        note = (
            f"SQNR of the worst output with this node (and its activation) alone quantized, target "
            f"{self.target}, {self.samples} samples"
        )
        more = [] if self.complete else ["interrupted: units are missing; the same call goes on"]
        return Shown(Table(_HEAD, rows), "", note, *more)


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if math.isfinite(value) else str(value)


def _macs(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _named(value: Any) -> Any:
    """JSON has no infinity: it stands there as a word."""
    if isinstance(value, dict):
        return {key: _named(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_named(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read what `Sensitivity.save` wrote.

    Raises:
        OptionError: the file cannot be read, or is none.
    """
    with read_json(path, "sensitivity", _FORMAT, _VERSION) as table:
        units = [_unit(row) for row in table.pop("units")]
        return Sensitivity(units, **table)


def _unit(row: dict[str, Any]) -> UnitSensitivity:
    decibels = {k: v if v is None else float(v) for k, v in row.items() if k.endswith("_db")}
    outputs = {name: float(v) for name, v in row["outputs"].items()}
    names = {key: tuple(row[key]) for key in ("nodes", "inputs")}
    known = {f.name for f in fields(UnitSensitivity)}
    if row.keys() != known:
        raise OptionError(f"a unit has {sorted(row.keys() ^ known)}")
    return UnitSensitivity(**{**row, **names, "outputs": outputs, **decibels})


def few(reader: "DataReader", samples: int, seed: int = 0) -> "DataReader":
    """At most so many samples of a reader, spread evenly over it and drawn by `seed`.

    Raises:
        OptionError: no sample is asked for.
    """
    if samples < 1:
        raise OptionError(f"samples {samples}: give 1 or more")
    there = count(reader)
    return reader if there <= samples else split(reader, samples / there, seed)[1]


def quantization_sensitivity(
    model: "Model",
    reader: "DataReader",
    target: "Target",
    ranges: "Mapping[str, Range]",
    *,
    kept_float: Mapping[str, str] | None = None,
    per_channel: bool | None = None,
    samples: int = 16,
    seed: int = 0,
    memory_limit: int = 1 << 30,
    path: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Sensitivity:
    """What quantizing each unit alone costs at the outputs.

    Args:
        model: float, preprocessed as for `quantize`, types known; is not changed.
        reader: the data; labels are not needed.
        target: the profile.
        ranges: {tensor: range}, of Calibrate for this model and target (ctx.ranges).
        kept_float: {node: why it stays float}, of the same (ctx.kept_float).
        per_channel: weight scales by output channel; None: as the target has it.
        samples: how many to use, spread over the reader; the outputs for all of them are held.
        seed: draws them.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        path: a JSON file that is written as the work goes on; if it is there, of the same model,
            data and options, what it has is not measured again.
        progress: called with (samples times units done, of how many).

    Raises:
        ModelError: a range is missing, nothing is quantized, or no output is float.
        OptionError: `samples` is below 1, per-channel weights need a newer opset, or `path` holds
            something else.
        DataError: the reader gives no samples, or onnxruntime fails on them.
    """
    kept = dict(kept_float or {})
    ctx = PassContext(target=target, ranges=dict(ranges), kept_float=kept)
    units = Units(model, ctx, per_channel)
    chosen = few(reader, samples, seed)
    outputs = [o.name for o in model.outputs if o.dtype is not None and o.dtype.kind == "f"]
    if not units.units:
        raise ModelError("nothing of the model is quantized; run explain to see why")
    if not outputs:
        raise ModelError("no output of the model is float; there is nothing to measure noise at")
    found = Sensitivity(
        target=target.name,
        samples=count(chosen),
        model="" if model.path is None else model.path.name,
        identity=_identity(model, chosen, [target, ctx.ranges, kept, per_channel]),
        complete=False,
    )
    if path is not None and Path(path).exists() and Path(path).stat().st_size:
        before = load_sensitivity(path)
        found.units = before.units if before.identity == found.identity else []
    sweep = _Sweep(units, outputs, static_batch([model]))
    done = {unit.name for unit in found.units}
    todo = [unit for unit in units.units if unit.name not in done]
    for unit in sweep.measure(todo, chosen, memory_limit, progress):
        found.units.append(unit)
        if path is not None:
            found.save(path)
    order = {unit.name: i for i, unit in enumerate(units.units)}
    found.units.sort(key=lambda u: (u.sqnr_db, order[u.name]))
    found.complete = True
    if path is not None:
        found.save(path)
    return found


def _identity(model: "Model", reader: "DataReader", options: list[Any]) -> str:
    """A hash of the model, the samples and the options."""
    digest = hashlib.blake2b(f"{model.fingerprint()}{options!r}".encode(), digest_size=16)
    add_samples(digest, reader)
    return digest.hexdigest()


class _Sweep:
    """Goes over the units; what the model gives in float is held from the first one on."""

    def __init__(self, units: Units, outputs: list[str], batch: int | None) -> None:
        self.model, self.outputs, self.batch = units.model, outputs, batch
        found = {layer.name: layer.baseline_mac for layer in layers(units.model)}
        self.macs = {u.name: found.get(u.name, 0) for u in units.units}
        self.total = sum(mac or 0 for mac in found.values())
        self.wanted: list[dict[str, Any]] = []  # of each batch

    def measure(
        self,
        units: list[Unit],
        reader: "DataReader",
        memory_limit: int,
        progress: Callable[[int, int | None], None] | None,
    ) -> Iterator[UnitSensitivity]:
        """Yield what each unit costs, in order."""
        if not units:
            return
        cuts = [tuple(dict.fromkeys((*unit.reads, unit.output))) for unit in units]
        rest, count = Segments(self.model, cuts, self.outputs), available_cores()
        stops = walk(self.model, reader, cuts, memory_limit=memory_limit, keep=self.outputs)
        with own_or_threads(None, count) as pool:
            for stop, unit in zip(stops, units, strict=True):
                suffix = rest.span(stop.index + 1, len(cuts), self.outputs, threads=1)
                if not self.wanted:
                    float_ = partial(self._float, suffix)
                    self.wanted += in_order(pool, float_, stop.batches(), count + 1)
                work = partial(self._noisy, unit, unit.runner(), suffix)
                parts = in_order(pool, work, enumerate(stop.batches()), count + 1)
                yield self._row(unit, self._merged(unit, parts))
                if progress is not None:
                    progress(stop.samples * (stop.index + 1), stop.samples * len(units))

    def _float(self, suffix: Segment, batch: Feeds) -> dict[str, Any]:
        """The outputs for a batch, with nothing quantized."""
        numbers, feeds = batch
        return self._valid(suffix.run(feeds[""]), len(numbers))

    def _noisy(
        self, unit: Unit, runner: Runner, suffix: Segment, item: tuple[int, Feeds]
    ) -> Errors:
        """The errors of a batch with each part of a unit rounded."""
        i, (numbers, feeds) = item
        errors: Errors = {}
        for part in unit.parts:
            changed = {**feeds[""], unit.output: runner.run(feeds[""], part)}
            for name, value in self._valid(suffix.run(changed), len(numbers)).items():
                errors[part, name] = Error()
                errors[part, name].update(self.wanted[i][name], value)
        return errors

    def _merged(self, unit: Unit, batches: Iterable[Errors]) -> dict[Part, dict[str, float]]:
        """{part: {output: SQNR}} over all batches."""
        sums: Errors = {(part, name): Error() for part in unit.parts for name in self.outputs}
        for errors in batches:
            for key, error in errors.items():
                sums[key].merge(error)
        return {
            part: {name: sums[part, name].result().sqnr_db for name in self.outputs}
            for part in unit.parts
        }

    def _valid(self, values: Mapping[str, Any], samples: int) -> dict[str, Any]:
        """Without the rows that are padding, where the model has a fixed batch."""
        size = self.batch or samples
        return {name: v if len(v) % size else v[: len(v) // size * samples]
                for name, v in values.items()}  # fmt: skip

    def _row(self, unit: Unit, errors: Mapping[Part, Mapping[str, float]]) -> UnitSensitivity:
        worst = {part: min(of.values()) for part, of in errors.items()}
        macs = self.macs[unit.name]
        return UnitSensitivity(
            name=unit.name,
            op=unit.op,
            nodes=unit.nodes,
            inputs=tuple(unit.rounded_inputs),
            output=unit.output,
            macs=macs,
            share=(macs or 0) / self.total if self.total else 0.0,
            sqnr_db=worst["whole"],
            outputs=dict(errors["whole"]),
            weights_db=worst.get("weights"),
            output_db=worst.get("output"),
        )
