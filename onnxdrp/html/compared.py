"""Two models side by side: the error of each tensor along the graph, and the worst of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxdrp.html.charts import Mark, columns, figure
from onnxdrp.html.markup import Markup, breakable, element, join
from onnxdrp.html.tables import Cell, Column, Row, table
from onnxdrp.html.words import number

__all__ = ["compared"]

Report = Mapping[str, Any]

_FIGURES = (
    Column("SQNR dB", figures=True, title="Signal over error"),
    Column("Cosine", figures=True),
    Column("Largest error", figures=True),
)


def compared(report: Report) -> Markup | None:
    """The verdict, a column a tensor in graph order, then all of them, the worst first."""
    found = report.get("compared")
    if not found:
        return None
    parts = [_verdict(found)]
    if rows := found["layers"]:
        parts += [_chart(rows, found.get("first_jump")), _tensors(rows)]
    return join([*parts, _outputs(found["outputs"])])


def _verdict(found: Report) -> Markup:
    said = found.get("verdict")
    text = f"{said[0].upper()}{said[1:]}." if said else "Only the outputs were compared; compare "
    more = None if said else join([element("code", "--layers"), " finds where the error begins."])
    return element("p", text, more, class_="lead")


def _chart(rows: Sequence[Report], jump: Report | None) -> Markup:
    place = None if jump is None else jump["tensor"]
    marks = [
        Mark(
            i,
            _decibels(r),
            f"{i}. {r['op']} {r['name']}: {_words(r)}",
            style="jump" if r["tensor"] == place else "",
            link=f"compared-{i}",
            label="jump" if r["tensor"] == place else "",
        )
        for i, r in enumerate(rows, 1)
    ]
    finite = [mark.y for mark in marks if math.isfinite(mark.y)]
    span = f", from {min(finite):.1f} to {max(finite):.1f} dB" if finite else ", all without error"
    note = "Higher is better. Pale, up to the edge: no error."
    return figure(
        "SQNR of each tensor against the reference, in dB",
        columns(
            marks, f"SQNR of {len(rows)} tensors{span}", "tensor, in the order of the graph", "dB"
        ),
        note + (f" Marked: the jump at {jump['name']}." if jump else ""),
    )


def _tensors(rows: Sequence[Report]) -> Markup:
    heads = (Column("#", figures=True, title="Place in the graph"), Column("Node"),
             Column("Operator"), *_FIGURES, Column("Tensor"))  # fmt: skip
    worst = sorted(enumerate(rows, 1), key=lambda item: _decibels(item[1]))
    body: list[Row] = [
        (f"compared-{i}", (Cell(str(i), i), breakable(r["name"]), r["op"], *_cells(r),
                           breakable(r["tensor"])))
        for i, r in worst
    ]  # fmt: skip
    return table(heads, body, "Tensors of both models, the worst first", search="Find tensors")


def _outputs(outputs: Mapping[str, Report]) -> Markup:
    worst = sorted(outputs.items(), key=lambda item: _decibels(item[1]))
    body: list[Row] = [("", (breakable(name), *_cells(r))) for name, r in worst]
    return table((Column("Output"), *_FIGURES), body, "Outputs, the worst first")


def _cells(row: Report) -> tuple[Cell, ...]:
    decibels, cosine, most = _decibels(row), row["cosine"], row["max_abs_error"]
    shown = f"{decibels:.1f}".replace("-", "−") if math.isfinite(decibels) else number(decibels)
    order = min(max(decibels, -1e9), 1e9)
    return Cell(shown, order), Cell(number(cosine, 6), cosine), Cell(number(most, 3), most)


def _decibels(row: Report) -> float:
    """JSON has no infinity: none is without error, or without signal."""
    value: float | None = row["sqnr_db"]
    if value is not None:
        return value
    return -math.inf if row["max_abs_error"] else math.inf


def _words(row: Report) -> str:
    decibels = _decibels(row)
    if math.isfinite(decibels):
        return f"{decibels:.1f} dB"
    return "no error" if decibels > 0 else "error where the reference is zero"
