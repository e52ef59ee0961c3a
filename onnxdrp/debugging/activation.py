"""One tensor on some samples: as the float model has it, and as the model at a pass has it.

Of a quantized activation three things are told apart: what goes into the QuantizeLinear, by which
saturation is counted; the grid; and what comes out of the DequantizeLinear, which is what readers
see and what is compared with the float model. A value saturates where

    round(x / scale) + zero_point

lies outside of the type. Between calibrating and inserting there is no grid yet, and what lies
outside of the calibrated range is counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import DataError, OptionError
from onnxdrp.fidelity import Error, ErrorStats
from onnxdrp.grids import find_rounding, saturated, stored_values
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Histogram
from onnxdrp.pictures import histogram
from onnxdrp.quantization import QuantParams, Range
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model
    from onnxdrp.pipeline import PassContext

__all__ = ["Activation", "find_activation"]

Array = npt.NDArray[Any]

_BINS = 32  # on each side of zero
_WIDE = 40  # letters of the longest bar


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Tabular):
    """A tensor in two models.

    Attributes:
        name: of the tensor.
        at: the name of the pass after which the model is looked at.
        samples: the numbers of the samples; empty for a stored tensor.
        original: its values in the model that came in, samples along the first axis; None if that
            model has no such tensor.
        values: in the model at the pass, as readers see them; None if it has none.
        unrounded: what is quantized to give them; None where nothing is quantized.
        grid: what it is quantized to.
        calibrated: the range that was calibrated for it.
        error: of `values` against `original`; None where one of them is missing, or of another
            shape.
    """

    name: str
    at: str
    samples: tuple[int, ...]
    original: Array | None
    values: Array | None
    unrounded: Array | None = None
    grid: QuantParams | None = None
    calibrated: Range | None = None
    error: ErrorStats | None = None

    @property
    def range(self) -> Range | None:
        """The extremes of the values at the pass."""
        return _extremes(self.values)

    @property
    def original_range(self) -> Range | None:
        """The extremes of the values in the model that came in."""
        return _extremes(self.original)

    @property
    def saturated(self) -> tuple[int, int] | None:
        """How many values are clipped (below, above); None without a grid, or a calibrated range.

        Where a Relu was folded into the grid, those below are what it would have cut as well.
        """
        if self.grid is not None and self.grid.axis is None and self.unrounded is not None:
            return saturated(self.unrounded, self.grid)
        if self.grid is None and self.calibrated is not None and self.values is not None:
            low, high = self.calibrated.low, self.calibrated.high
            below, above = self.values < low, self.values > high
            return int(np.count_nonzero(below)), int(np.count_nonzero(above))
        return None

    def histogram(self, bins: int = _BINS) -> "dict[str, Histogram]":
        """{"original": ..., "values": ...} of those there are, with bins of one width.

        Args:
            bins: on each side of zero; a power of two.
        """
        found = {}
        sides = {"original": self.original, "values": self.values}
        both = [array for array in sides.values() if array is not None]
        for side, array in sides.items():
            if array is not None and array.dtype.kind == "f":
                histogram = Histogram(bins)
                histogram.update(*both)  # so wide are its bins
                found[side] = Histogram(bins, exponent=histogram.exponent)
                found[side].update(array)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything but the values, as JSON can hold it."""
        return {
            "name": self.name,
            "at": self.at,
            "samples": list(self.samples),
            "original": _figures(self.original),
            "values": _figures(self.values),
            "grid": None if self.grid is None else _grid(self.grid),
            "calibrated": _ends(self.calibrated),
            "saturated": self.saturated,
            "sqnr_db": None if self.error is None else _finite(self.error.sqnr_db),
            "max_abs_error": None if self.error is None else self.error.max_abs_error,
            "histogram": {
                side: {"width": h.width, "edges": h.edges.tolist(), "counts": h.counts.tolist()}
                for side, h in self.histogram().items()
            },
        }

    def table(self) -> Text:
        """Figures of both models, the grid, the error, and the histograms as bars."""
        return Shown(*self._parts(), *self._bars())

    def _repr_html_(self) -> str:
        before, after = (
            side if side is not None and side.dtype.kind == "f" else None
            for side in (self.original, self.values)
        )
        if before is None and after is None:
            return Shown(*self._parts())._repr_html_()
        grid = self.grid.interval if self.grid is not None else self.calibrated
        ends = () if grid is None else (grid.low, grid.high)
        names = "float", f"after {self.at}"
        return Shown(*self._parts(), histogram(before, after, names, ends))._repr_html_()

    def _parts(self) -> list[Any]:
        head = ("", "shape", "type", "lowest", "highest", "mean", "deviation")
        sides = (("float", self.original), (f"after {self.at}", self.values))
        rows = [_row(side, values) for side, values in sides if values is not None]
        of = f"on {len(self.samples)} samples" if self.samples else "stored"
        lines: list[Any] = [f"{self.name!r}, {of}", "", Table(head, rows), ""]
        if self.grid is not None:
            lines.append(_say_grid(self.grid))
        if self.calibrated is not None:
            lines.append(f"calibrated: {self.calibrated.low:.4g} to {self.calibrated.high:.4g}")
        clipped = self.unrounded if self.unrounded is not None else self.values
        if self.saturated is not None and clipped is not None and clipped.size:
            below, above = self.saturated
            folded = below and self.original is not None and self.original.min(initial=0) >= 0
            why = " (as the float model cuts them)" if folded else ""
            lines.append(
                f"saturated: {below:,} below{why}, {above:,} above, of {clipped.size:,} values"
            )
        if self.error is not None:
            error = self.error
            lines.append(f"SQNR {error.sqnr_db:.1f} dB, largest error {error.max_abs_error:.4g}")
        else:
            lines.append("not comparable: only one model has it, or the shapes differ")
        return lines

    def _bars(self) -> list[Any]:
        found = self.histogram(8)
        if not found:
            return []
        edges = next(iter(found.values())).edges
        counts = [h.counts for h in found.values()]
        used = np.flatnonzero(sum(c.astype(np.int64) for c in counts))
        if not used.size:
            return []
        most = max(int(c.max()) for c in counts)
        rows = [
            (f"{edges[i]:.3g}", *("#" * math.ceil(_WIDE * int(c[i]) / most) for c in counts))
            for i in range(used[0], used[-1] + 1)
        ]
        names = {"original": "float", "values": f"after {self.at}"}
        return ["", Table(("from", *(names[side] for side in found)), rows)]


@dataclass
class _Values:
    """The values of each sample, by its number."""

    each_sample: ClassVar[bool] = True

    sample: int = 0
    held: dict[int, Array] = field(default_factory=dict)
    nonfinite: int = 0  # NaN and infinity are shown, too

    def update(self, *arrays: Array) -> None:
        """Takes in a sample."""
        self.held[self.sample] = np.array(arrays[0])

    def merge(self, other: Self) -> None:
        """Takes in the other's samples."""
        self.held.update(other.held)

    def result(self) -> dict[int, Array]:
        """All that was seen."""
        return self.held


def find_activation(
    name: str,
    original: "Model",
    model: "Model",
    ctx: "PassContext",
    reader: "DataReader",
    samples: int | Sequence[int] = 8,
    at: str = "",
) -> Activation:
    """A tensor in the model that came in, and in the model at a pass.

    Args:
        name: of the tensor.
        original: the model that came in.
        model: at the pass.
        ctx: at the pass; its ranges are shown.
        reader: the data.
        samples: how many, the first, or their numbers.
        at: the name of the pass.

    Raises:
        DataError: the reader gives no sample, or has none of these numbers.
        ModelError: neither model has the tensor; names the nearest.
    """
    known = original.tensors(), model.tensors()
    if not any(name in tensors for tensors in known):
        original.tensor(name)  # raises, with the nearest names
    calibrated = ctx.ranges.get(name)
    present = [m for m, t in zip((original, model), known, strict=True) if name in t]
    if all(m.constant(m.tensor(name)) is not None for m in present):
        return _stored(name, present, original, model, at)
    rounding = find_rounding(model, name)
    taps: dict[str, Tap] = {}
    if name in known[0]:
        taps["original"] = Tap((("original", name),), _Values())
    if rounding is not None:
        taps["unrounded"] = Tap((("model", rounding.before),), _Values())
    if rounding is not None and rounding.after is not None:
        taps["values"] = Tap((("model", rounding.after),), _Values())
    elif name in known[1]:
        taps["values"] = Tap((("model", name),), _Values())
    chosen, numbers = _chosen(reader, samples)
    found = observe({"original": original, "model": model}, chosen, taps, workers=1)
    arrays = {key: _joined(held) for key, held in found.items()}
    before, after = arrays.get("original"), arrays.get("values")
    return Activation(
        name,
        at,
        numbers,
        before,
        after,
        arrays.get("unrounded"),
        None if rounding is None else rounding.params,
        calibrated,
        _error(before, after),
    )


def _chosen(
    reader: "DataReader", samples: int | Sequence[int]
) -> "tuple[DataReader, tuple[int, ...]]":
    """The samples, and their numbers."""
    from onnxdrp.datareaders import count, subset

    total = count(reader)
    if isinstance(samples, int) and samples < 1:
        raise OptionError(f"samples {samples}: ask for one at least")
    wanted = range(min(samples, total)) if isinstance(samples, int) else sorted(set(samples))
    if not wanted or not 0 <= wanted[0] <= wanted[-1] < total:
        raise DataError(f"the data has the samples 0 to {total - 1}; ask for some of these")
    return subset(reader, np.array(wanted, np.int64)), tuple(wanted)


def _stored(
    name: str, present: "Sequence[Model]", original: "Model", model: "Model", at: str
) -> Activation:
    """A tensor that is stored in each model that has it."""
    found = {id(m): stored_values(m, _read(m, name)) for m in present}
    before = found.get(id(original), (None, None))[0]
    after, grid = found.get(id(model), (None, None))
    return Activation(name, at, (), before, after, grid=grid, error=_error(before, after))


def _read(model: "Model", name: str) -> Any:
    """The tensor, or what a DequantizeLinear makes of it."""
    tensor = model.tensor(name)
    readers = (n for n in tensor.outputs if n.op == "DequantizeLinear" and n.inputs[0] is tensor)
    return next((n.outputs[0] for n in readers), tensor)


def _joined(held: Mapping[int, Array]) -> Array:
    """The samples in order, along the first axis."""
    arrays = [held[sample] for sample in sorted(held)]
    if arrays[0].ndim and len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate(arrays)
    return np.concatenate([a.ravel() for a in arrays])  # shapes that go by the sample


def _error(before: Array | None, after: Array | None) -> ErrorStats | None:
    if before is None or after is None or before.shape != after.shape:
        return None
    if before.dtype.kind != "f" or after.dtype.kind != "f":
        return None
    error = Error()
    error.update(before, after)
    return error.result()


def _extremes(values: Array | None) -> Range | None:
    if values is None or not values.size or values.dtype.kind not in "fiu":
        return None
    return Range(float(values.min()), float(values.max()))


def _figures(values: Array | None) -> dict[str, Any] | None:
    if values is None:
        return None
    figures: dict[str, Any] = {"shape": list(values.shape), "dtype": values.dtype.name}
    if values.size and values.dtype.kind in "fiu":
        wide = values.astype(np.float64)
        for key, value in (
            ("low", wide.min()),
            ("high", wide.max()),
            ("mean", wide.mean()),
            ("std", wide.std()),
        ):
            figures[key] = _finite(float(value))
    return figures


def _row(side: str, values: Array) -> tuple[str, ...]:
    figures = _figures(values) or {}
    shape = "x".join(map(str, figures["shape"])) or "1"
    numbers = (figures.get(key) for key in ("low", "high", "mean", "std"))
    return (side, shape, figures["dtype"], *("" if n is None else f"{n:.4g}" for n in numbers))


def _grid(grid: QuantParams) -> dict[str, Any]:
    return {
        "dtype": grid.dtype,
        "axis": grid.axis,
        "scale": grid.scale.tolist(),
        "zero_point": grid.zero_point.tolist(),
        "low": grid.interval.low,
        "high": grid.interval.high,
    }


def _say_grid(grid: QuantParams) -> str:
    low, high = grid.interval.low, grid.interval.high
    if grid.axis is None:
        zero = int(grid.zero_point)
        text = f"scale {float(grid.scale):.4g}, zero point {zero}"
    else:
        scales = f"{float(grid.scale.min()):.4g} to {float(grid.scale.max()):.4g}"
        text = f"{grid.scale.size} scales along axis {grid.axis}, {scales}"
    return f"grid: {grid.dtype}, {text}: {low:.4g} to {high:.4g}"


def _ends(of: Range | None) -> list[float] | None:
    return None if of is None else [of.low, of.high]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity
