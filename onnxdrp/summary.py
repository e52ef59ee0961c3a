"""The table of a model's layers: shapes, parameters, sparsity, multiply-adds.

Multiply-adds are for one image; the current ones leave out those with a weight of zero. Modelled
cycles are MODELS of how hardware might use the zeros, not measurements (see onnxdrp.cycles), scaled
so that a dense layer takes as many cycles as it has multiply-adds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.cycles import cycles_b, cycles_c
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.geometry import to_slabs
from onnxdrp.layers import Layer, layers
from onnxdrp.macs import Shape, shape_text
from onnxdrp.model import Model
from onnxdrp.patterns import parse_pattern
from onnxdrp.pipeline import PassContext
from onnxdrp.refusals import refusals
from onnxdrp.report import Text

__all__ = ["LayerSummary", "Summary", "summarize", "summarize_layers"]

_HEAD = (
    "module name",
    "op",
    "input shape",
    "output shape",
    "params",
    "sparsity",
    "Baseline MAC",
    "Current MAC",
    "cycles B (model)",
    "cycles C (model)",
    "not pruned because",
)
_SPARE = ("cycles C (model)", "cycles B (model)")  # left out where a terminal is narrow
_NOTE = "cycles B, C: models of two readings of the hardware, not measurements; dense: Baseline MAC"


@dataclass(frozen=True)
class LayerSummary:
    """A row: figures are None where the graph does not tell; `why_no_mac` says what is missing."""

    name: str
    op: str
    input_shape: Shape
    output_shape: Shape
    params: int
    weights: int
    zeros: int | None
    baseline_mac: int | None
    current_mac: int | None
    cycles_b: int | None
    cycles_c: int | None
    why_not: str
    why_no_mac: str
    weight: str | None

    @property
    def sparsity(self) -> float | None:
        """Zeros / weights, without the bias; None where the weight is not stored."""
        return None if self.zeros is None or not self.weights else self.zeros / self.weights

    @property
    def prunable(self) -> bool:
        """Whether the pattern prunes it by default."""
        return not self.why_not

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return {
            "name": self.name,
            "op": self.op,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "output_shape": None if self.output_shape is None else list(self.output_shape),
            "params": self.params,
            "sparsity": self.sparsity,
            "baseline_mac": self.baseline_mac,
            "current_mac": self.current_mac,
            "cycles_b": self.cycles_b,
            "cycles_c": self.cycles_c,
            "prunable": self.prunable,
            "why_not": self.why_not,
        }


@dataclass(frozen=True, repr=False)
class Summary(Tabular):
    """The layers of a model and their totals.

    Attributes:
        layers: in the order of the graph.
        pattern: whose rules say what is prunable.
    """

    layers: list[LayerSummary]
    pattern: str

    @property
    def params(self) -> int:
        """Weights and biases; a weight that layers share counts once."""
        return sum(r.params - r.weights for r in self.layers) + sum(
            r.weights for r in self._once(self.layers)
        )

    @property
    def sparsity(self) -> float:
        """Zeros / weights of all stored weights; 0 where there are none."""
        stored = [row for row in self._once(self.layers) if row.zeros is not None]
        weights = sum(row.weights for row in stored)
        return sum(row.zeros or 0 for row in stored) / weights if weights else 0.0

    @property
    def baseline_mac(self) -> int:
        """Of the layers where it is known."""
        return sum(row.baseline_mac or 0 for row in self.layers)

    @property
    def current_mac(self) -> int:
        """Of the layers where it is known."""
        return sum(row.current_mac or 0 for row in self.layers)

    @property
    def prunable(self) -> list[str]:
        """The names of the layers that the pattern prunes."""
        return [row.name for row in self.layers if row.prunable]

    @property
    def uncounted(self) -> dict[str, str]:
        """{layer: why} of those whose multiply-adds are not in the totals."""
        return {row.name: row.why_no_mac for row in self.layers if row.why_no_mac}

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        total = {
            "params": self.params,
            "sparsity": self.sparsity,
            "baseline_mac": self.baseline_mac,
            "current_mac": self.current_mac,
            "cycles_b": sum(row.cycles_b or 0 for row in self.layers),
            "cycles_c": sum(row.cycles_c or 0 for row in self.layers),
            "uncounted": self.uncounted,
        }
        note = {"pattern": self.pattern, "note": _NOTE}
        return {"layers": [row.as_dict() for row in self.layers], "total": total, **note}

    def table(self) -> Text:
        """The table as text: a line a layer, then the total."""
        total = self.as_dict()["total"]
        rows = [_cells(row.as_dict()) for row in self.layers]
        foot = [_cells({**total, "name": "total"})]
        lines: list[Any] = [Table(_HEAD, rows, foot, _SPARE), "", _NOTE]
        if self.uncounted:
            name, why = next(iter(self.uncounted.items()))
            lines.append(
                f"multiply-adds of {len(self.uncounted)} layers are not counted ({name}: {why}); "
                "give the inputs fixed shapes"
            )
        return Shown(*lines)

    @staticmethod
    def _once(rows: Iterable[LayerSummary]) -> Iterable[LayerSummary]:
        """One row for each stored weight, and every row without one."""
        return {("weight", r.weight) if r.weight else ("", r.name): r for r in rows}.values()


def summarize_layers(model: Model, pattern: str | None = None) -> Summary:
    """The summary of a model, which is not changed; shapes that it does not state are inferred.

    Args:
        model: float or quantized.
        pattern: whose rules say what is prunable by default: block unless told.
    """
    rules = parse_pattern(pattern or "block")
    found = layers(model, rules.block)
    if any(None in (row.baseline_mac, row.input_shape, row.output_shape) for row in found):
        model = _with_shapes(model)
        found = layers(model, rules.block)
    why_not = refusals(found, rules)
    rows = [summarize(x, x.nonzero(model), why_not.get(x.name, "")) for x in found]
    return Summary(rows, rules.name)


def _with_shapes(model: Model) -> Model:
    from onnxdrp.passes.infer_shapes import InferShapes

    inferred = model.clone()
    InferShapes().run(inferred, PassContext())
    return inferred


def summarize(layer: Layer, nonzero: npt.NDArray[np.bool_] | None, why_not: str) -> LayerSummary:
    """The row of a layer.

    Args:
        layer: what the graph tells of it.
        nonzero: where its weight is not zero; None where it is not stored.
        why_not: why it is not pruned, or "".
    """
    slots = _slots(layer, nonzero)
    return LayerSummary(
        name=layer.name,
        op=layer.op,
        input_shape=layer.input_shape,
        output_shape=layer.output_shape,
        params=layer.params,
        weights=layer.weights,
        zeros=None if nonzero is None else nonzero.size - int(np.count_nonzero(nonzero)),
        baseline_mac=layer.baseline_mac,
        current_mac=layer.mac(slots[0]),
        cycles_b=layer.mac(slots[1]),
        cycles_c=layer.mac(slots[2]),
        why_not=why_not,
        why_no_mac=layer.why_no_mac,
        weight=layer.weight,
    )


def _slots(layer: Layer, nonzero: npt.NDArray[np.bool_] | None) -> tuple[int, int, int]:
    """How many weights count: those not zero, and under readings B and C; all where not told."""
    if nonzero is None:
        return (layer.weights,) * 3
    count = int(np.count_nonzero(nonzero))
    if layer.geometry is None or not layer.geometry.aligned:
        return count, layer.weights, layer.weights
    keep = to_slabs(nonzero, layer.geometry)
    return count, cycles_b(keep), cycles_c(keep)


def _cells(row: dict[str, Any]) -> list[str]:
    sparsity = row["sparsity"]
    figures = ("baseline_mac", "current_mac", "cycles_b", "cycles_c")
    return [
        row["name"],
        row.get("op", ""),
        shape_text(row["input_shape"]) if "input_shape" in row else "",
        shape_text(row["output_shape"]) if "output_shape" in row else "",
        f"{row['params']:,}",
        "-" if sparsity is None else f"{sparsity:.3f}",
        *("-" if row[name] is None else f"{row[name]:,}" for name in figures),
        row.get("why_not", ""),
    ]
