"""Ranges as a file: `ranges.json`, one line a tensor, to be read, edited, merged and used again.

    {
      "format": "onnxdrp ranges",
      "version": 1,
      "onnxdrp": "0.1.0",
      "model": "net.onnx",
      "weights": "0f...",
      "target": "generic",
      "method": {"name": "percentile", "percentile": 99.999, "tails": "two"},
      "samples": 400,
      "tensors": {
        "x": {"low": -2.1, "high": 2.6, "min": -2.1, "max": 2.64, "count": 1204224}
      }
    }

`low` and `high` are the range; the rest is told, not used. `min`, `max` and `count` say what the
data held, "edited": true that somebody set the range. Tensors stand in graph order; numbers are
written so that they read back as the same float64. A file of one's own needs `format`, `version`
and `tensors` with `low` and `high`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from onnxdrp import __version__
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write
from onnxdrp.options import convert, near
from onnxdrp.quantization import Range
from onnxdrp.report import Text
from onnxdrp.selectors import select

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = [
    "Ranges",
    "TensorRange",
    "load_ranges",
    "merge_ranges",
    "save_ranges",
    "weights_digest",
]

_FORMAT = "onnxdrp ranges"
_VERSION = 1
_LARGEST = 3.4028234663852886e38  # of float32
_HEAD = ("model", "weights", "target", "method", "samples")


@dataclass(frozen=True)
class TensorRange:
    """The range of one tensor, and what the data held.

    Attributes:
        low: lower end of the range, at most `high`.
        high: upper end.
        min: the smallest value that was seen; None where that is not known.
        max: the largest.
        count: how many values were seen; with 0 the range says nothing.
        edited: whether the ends were set by hand.

    Raises:
        OptionError: an end is no finite float32, or the ends are the wrong way round.
    """

    low: float
    high: float
    min: float | None = None
    max: float | None = None
    count: int | None = None
    edited: bool = False

    def __post_init__(self) -> None:
        for key in ("low", "high", "min", "max"):
            value = getattr(self, key)
            if value is not None and not abs(value) <= _LARGEST:
                raise OptionError(f"{key} is {value}; give a finite float32 number")
        if self.low > self.high:
            raise OptionError(f"low {self.low} is above high {self.high}; give low <= high")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise OptionError(f"min {self.min} is above max {self.max}; give min <= max")
        if self.count is not None and self.count < 0:
            raise OptionError(f"count is {self.count}; give 0 or more")

    @property
    def range(self) -> Range:
        """The interval alone."""
        return Range(self.low, self.high)

    def union(self, other: "TensorRange") -> "TensorRange":
        """The widest of both, and what both have seen; one that saw nothing adds nothing."""
        if (self.count == 0) != (other.count == 0):
            return other if self.count == 0 else self
        return TensorRange(
            min(self.low, other.low),
            max(self.high, other.high),
            None if self.min is None or other.min is None else min(self.min, other.min),
            None if self.max is None or other.max is None else max(self.max, other.max),
            None if self.count is None or other.count is None else self.count + other.count,
            self.edited or other.edited,
        )


@dataclass(repr=False)
class Ranges(Tabular):
    """What a `ranges.json` holds.

    Attributes:
        tensors: {tensor name: its range}, in graph order.
        model: file name of the model that was measured, or "".
        weights: digest of its weights (`weights_digest`), or "": says when ranges are stale.
        target: the profile whose plan chose the tensors, or "".
        method: {"name": method} and its options; {} where it is not known or not one.
        samples: how many were measured; None if that is not known.
    """

    tensors: dict[str, TensorRange] = field(default_factory=dict)
    model: str = ""
    weights: str = ""
    target: str = ""
    method: dict[str, str | float] = field(default_factory=dict)
    samples: int | None = None

    def edit(
        self, selector: str, *, low: float | None = None, high: float | None = None
    ) -> list[str]:
        """Set an end, or both, of some tensors; returns their names.

        Args:
            selector: a tensor's name, a glob, or "re:" and a regular expression.
            low: the new lower end; None leaves it.
            high: the new upper end; None leaves it.

        Raises:
            OptionError: nothing matches (with the nearest names), or this makes no range.
        """
        if low is None and high is None:
            raise OptionError(f"edit {selector!r}: give low, high or both")
        names = select(selector, {name: (name,) for name in self.tensors}, "tensor")
        edited = {}
        for name in names:
            old = self.tensors[name]
            ends = (
                old.low if low is None else float(low),
                old.high if high is None else float(high),
            )
            try:
                edited[name] = TensorRange(*ends, old.min, old.max, old.count, edited=True)
            except OptionError as e:
                raise OptionError(f"tensor {name!r}: {e}") from e
        self.tensors |= edited
        return names

    def table(self) -> Text:
        """A line a tensor."""
        head = ("tensor", "low", "high", "min", "max", "values")
        rows = [
            (name, *(_cell(v) for v in (t.low, t.high, t.min, t.max)), _cell(t.count))
            for name, t in self.tensors.items()
        ]
        return Shown(Table(head, rows))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def weights_digest(model: "Model") -> str:
    """A hash of the stored float tensors of rank 2 and more, by name.

    Shapes, names of nodes and the opset have no part in it: what makes ranges stale is that weights
    were pruned, trained or scaled.
    """
    digests, tensors = model.inventory()[0], model.tensors()
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(digests.keys() & tensors.keys()):
        values = model.constant(tensors[name])
        if values is not None and values.ndim >= 2 and values.dtype.kind == "f":
            found.update(f"{name}\0{digests[name]}\0".encode())
    return found.hexdigest()


def merge_ranges(parts: Iterable[Ranges]) -> Ranges:
    """The widest range of each tensor over the parts.

    Of minima and maxima that is what measuring all data at once gives. Of the other methods it is
    not: the percentile of parts is no percentile of all, only a range that holds each of them. (To
    share out one calibration exactly, give `observe` an executor.) What the heads disagree on is
    left open.
    """
    parts = list(parts)
    tensors: dict[str, TensorRange] = {}
    for part in parts:
        for name, found in part.tensors.items():
            tensors[name] = tensors[name].union(found) if name in tensors else found
    same = {
        key: getattr(parts[0], key)
        for key in ("model", "weights", "target", "method")
        if parts and all(getattr(part, key) == getattr(parts[0], key) for part in parts)
    }
    samples = [part.samples for part in parts]
    known = None if None in samples else sum(s for s in samples if s is not None)
    return Ranges(tensors, samples=known, **same)


def save_ranges(path: str | Path, ranges: Ranges) -> Path:
    """Write a `ranges.json`; the same content gives the same bytes.

    The file appears whole or not at all.
    """
    path = Path(path)
    head = {"format": _FORMAT, "version": _VERSION, "onnxdrp": __version__}
    head |= {key: getattr(ranges, key) for key in _HEAD}
    lines = [f"  {_json(key)}: {_json(value)},\n" for key, value in head.items()]
    entries = [f"    {_json(n)}: {_json(_entry(t))}" for n, t in ranges.tensors.items()]
    text = "{\n" + "".join(lines) + '  "tensors": {\n' + ",\n".join(entries) + "\n  }\n}\n"
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _entry(tensor: TensorRange) -> dict[str, Any]:
    entry = dataclasses.asdict(tensor)
    return {k: v for k, v in entry.items() if v is not None and v is not False}


def load_ranges(path: str | Path) -> Ranges:
    """Read a `ranges.json`, also one written by hand.

    Raises:
        OptionError: the file cannot be read, is no JSON, is of another format or version, or an
            entry makes no range; names file, line or tensor, and key.
    """
    table = _read(path)
    if table.get("format") != _FORMAT:
        raise OptionError(f'{path}: is no file of ranges; it needs "format": "{_FORMAT}"')
    if table.get("version") != _VERSION:
        raise OptionError(
            f"{path}: has version {table.get('version')!r}, and this onnxdrp reads {_VERSION}; "
            "measure again"
        )
    known = {"format", "version", "onnxdrp", "tensors", *_HEAD}
    for key in sorted(table.keys() - known):
        raise OptionError(f"{path}: no key {key!r} at the top{near(key, known)}")
    tensors = table.get("tensors")
    if not isinstance(tensors, dict):
        raise OptionError(f'{path}: needs "tensors", a table of {{"low", "high"}} by name')
    hints = get_type_hints(Ranges)
    head = {
        key: convert(table[key], hints[key], f"{path}: {key}")
        for key in _HEAD
        if table.get(key) is not None
    }
    found = {name: _tensor(entry, f"{path}: tensor {name!r}") for name, entry in tensors.items()}
    return Ranges(found, **head)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise OptionError(f"{path}: the ranges cannot be read ({reason})") from e
    try:
        table = json.loads(text, object_pairs_hook=_unique, parse_int=_whole)
    except json.JSONDecodeError as e:
        raise OptionError(f"{path}: line {e.lineno}: not JSON ({e.msg})") from e
    except KeyError as e:
        raise OptionError(f"{path}: {e} stands twice; leave one of them out") from e
    except RecursionError as e:
        raise OptionError(f"{path}: is no file of ranges; tables stand in tables") from e
    if not isinstance(table, dict):
        raise OptionError(f"{path}: is no file of ranges; it needs a table at the top")
    return table


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The table of these pairs. JSON lets a key stand twice, and the second one hide the first."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise KeyError(key)
        table[key] = value
    return table


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 40 else float(digits)  # infinity at worst


def _tensor(entry: Any, where: str) -> TensorRange:
    if not isinstance(entry, dict):
        raise OptionError(f'{where}: is {entry!r}; give {{"low": ..., "high": ...}}')
    hints = get_type_hints(TensorRange)
    for key in sorted(entry.keys() - hints.keys()):
        raise OptionError(f"{where}: no key {key!r}{near(key, hints)}")
    for key in ("low", "high"):
        if key not in entry:
            raise OptionError(f"{where}: has no {key}; give both low and high")
    values: Mapping[str, Any] = {
        key: convert(value, hints[key], f"{where}: {key}") for key, value in entry.items()
    }
    try:
        return TensorRange(**values)
    except OptionError as e:
        raise OptionError(f"{where}: {e}") from e
