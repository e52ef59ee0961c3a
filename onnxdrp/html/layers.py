"""Layers: charts over them in graph order, the table of all, and what lost channels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxdrp.html.charts import Mark, columns, figure
from onnxdrp.html.markup import Markup, Node, breakable, element, join
from onnxdrp.html.tables import Cell, Column, Row, bar, table
from onnxdrp.html.words import amount, number, shape

__all__ = ["layers", "widths"]

Report = Mapping[str, Any]

_SPARSE = 20.0  # percent: below, the chart of all 100 is empty


def layers(report: Report) -> Markup | None:
    """Charts over the layers in graph order, then the table of all of them."""
    rows: Sequence[Report] = report.get("layers") or ()
    if not rows:
        return None
    return join([*_layer_charts(report, rows), _layer_table(rows)])


def _layer_charts(report: Report, rows: Sequence[Report]) -> Iterable[Markup]:
    axis = "layer, in the order of the graph"

    def marks(values: Iterable[tuple[float, str, float | None]]) -> list[Mark]:
        return [
            Mark(i, value, f"{i + 1}. {row['name']}: {text}", link=f"layer-{i + 1}", behind=behind)
            for i, (row, (value, text, behind)) in enumerate(zip(rows, values, strict=True))
        ]

    macs = [(r.get("mac_before") or 0, r.get("mac_after") or 0) for r in rows]
    if any(before for before, _ in macs):
        found = marks(
            (after / 1e6, f"{amount(after)} multiply-adds, from {amount(before)}", before / 1e6)
            for before, after in macs
        )
        saved = sum(a for _, a in macs) / (sum(b for b, _ in macs) or 1)
        label = f"Multiply-adds of {len(rows)} layers; {100 * saved:.1f} % of them are left"
        yield figure(
            "Multiply-adds, in millions",
            columns(found, label, axis, "million"),
            "Pale: before. Full: after, without weights that are zero.",
        )
    cycles = [[r.get(k) or 0 for k in ("mac_before", "cycles_b", "cycles_c")] for r in rows]
    if any(0 < min(b, c) < dense for dense, b, c in cycles):
        found = marks(
            (b / 1e6, f"{amount(b)} in reading B, {amount(c)} in C, {amount(d)} dense", d / 1e6)
            for d, b, c in cycles
        )
        saved = sum(b for _, b, _ in cycles) / sum(dense for dense, _, _ in cycles)
        label = f"Modelled cycles of {len(rows)} layers, {100 * saved:.1f} % of the dense model's"
        yield figure(
            "Modelled cycles, in millions",
            columns(found, label, axis, "million"),
            "Pale: dense. Full: reading B of how hardware skips zeros; a model, no measurement.",
        )
    zeros = [r.get("sparsity") for r in rows]
    if any(zeros):
        found = marks((100 * (z or 0), f"{100 * (z or 0):.1f} % zeros", None) for z in zeros)
        label = (
            f"Sparsity of {len(rows)} layers, from 0 to {100 * max(z or 0 for z in zeros):.1f} %"
        )
        top = 100.0 if max(mark.y for mark in found) > _SPARSE else None
        chart = columns(found, label, axis, "% zeros", top=top)
        yield figure("Sparsity, in percent of the weights", chart)
    told = report.get("layer_errors") or {}
    if why_not := told.get("why_not"):
        yield element("p", f"There is no SQNR of layers: {why_not}", class_="lead")
    decibels = [r.get("sqnr_db") for r in rows]
    finite = [d for d in decibels if isinstance(d, int | float)]
    if finite:
        found = marks(
            (d, f"{d:.1f} dB", None)
            if isinstance(d, int | float)
            else (math.inf, "no error", None)
            if d == "inf"
            else (0.0, "no figure", None)
            for d in decibels
        )
        note = f"Higher is better; measured on {told.get('samples')} samples. " if told else ""
        note += "Of the channels that are left. " if told and report.get("channels") else ""
        verdict = told.get("verdict", "")
        label = f"SQNR of {len(finite)} layers, from {min(finite):.1f} to {max(finite):.1f} dB"
        yield figure(
            "SQNR: signal over error at each layer's output, in dB",
            columns(found, label, axis, "dB"),
            note + _sentence(verdict),
        )
    yield from _refitted(report, axis)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _refitted(report: Report, axis: str) -> Iterable[Markup]:
    for record in report.get("passes") or ():
        fits = record["stats"].get("layers") if record["name"] == "refit-weights" else None
        if fits:
            found = [
                Mark(
                    i,
                    100 * f["after"],
                    f"{name}: {100 * f['before']:.3g} % → {100 * f['after']:.3g} %",
                    behind=100 * f["before"],
                )
                for i, (name, f) in enumerate(fits.items())
            ]
            label = f"Error of {len(fits)} layers before and after their weights were re-fitted"
            yield figure(
                "Error of pruned layers, in percent of their power",
                columns(found, label, axis.replace("layer", "re-fitted layer"), "%"),
                "Pale: with the weights they had. Full: re-fitted.",
            )


def _layer_table(rows: Sequence[Report]) -> Markup:
    heads: list[tuple[str, Column]] = [
        ("", Column("#", figures=True)),
        ("", Column("Layer")),
        ("", Column("Operator")),
        ("input_shape", Column("Input")),
        ("output_shape", Column("Output")),
        ("params", Column("Params", figures=True, title="Weights and biases")),
        ("sparsity", Column("Sparsity", figures=True, title="Share of the weights that are zero")),
        ("mac_before", Column("MAC before", figures=True, title="Multiply-adds for one image")),
        ("mac_after", Column("MAC after", figures=True, title="Without weights that are zero")),
        ("cycles_b", Column("Cycles B", figures=True, title="A model of hardware, reading B")),
        ("cycles_c", Column("Cycles C", figures=True, title="A model of hardware, reading C")),
        ("sqnr_db", Column("SQNR dB", figures=True, title="At its output, against what came in")),
        ("range", Column("Range", title="Of its activation, as quantized")),
        ("precision", Column("Precision", title="Types of what it multiplies")),
        ("why", Column("Why not", title="Why it is not pruned, or not quantized")),
    ]
    pruned = any(r.get("sparsity") for r in rows)
    told = [{**r, "why": _why(r, pruned)} for r in rows]
    there = {key for r in told for key in r if r[key] not in (None, "", {})} | {""}
    shown = [(key, column) for key, column in heads if key in there]
    body: list[Row] = []
    for i, row in enumerate(told, 1):
        first = (Cell(str(i), i), breakable(row["name"]), row["op"])
        cells = [*first, *(_layer_cell(key, row.get(key)) for key, _ in shown[3:])]
        body.append((f"layer-{i}", cells))
    columns_ = [column for _, column in shown]
    return table(columns_, body, "Layers, in the order of the graph", search="Find layers")


def _why(row: Report, pruned: bool) -> str:
    parts = [f"not pruned: {row['why_not']}"] if pruned and row.get("why_not") else []
    parts += [f"float: {row['why_float']}"] if row.get("why_float") else []
    return "; ".join(parts)


def _layer_cell(key: str, value: Any) -> Cell | Node:
    if value is None:
        return Cell("", "" if key in ("input_shape", "output_shape", "why") else None)
    if key in ("input_shape", "output_shape"):
        return element("span", shape(value), class_="shape")
    if key == "sparsity":
        return Cell(bar(f"{100 * value:.1f} %", value), value)
    if key == "sqnr_db":
        return Cell(number(value, 3), {"inf": 1e9, "-inf": -1e9}.get(value, value))
    if key == "range":
        ends = element("span", " … ".join(number(end, 3) for end in value), class_="shape")
        return Cell(ends, value[1] - value[0])
    if key == "precision":
        return " × ".join(dict.fromkeys(value))
    return Cell(number(value), value) if isinstance(value, int | float) else str(value)


def widths(report: Report) -> Markup | None:
    """What lost channels, and why the others stay whole."""
    lost: Mapping[str, Sequence[int]] = report.get("channels") or {}
    whole = {**(report.get("kept_whole") or {}), **(report.get("pinned") or {})}
    if not lost:
        return None
    rows: list[Row] = []
    for name, (before, after) in lost.items():
        share = after / (before or 1)
        left = Cell(bar(f"{100 * share:.1f} %", share), share)
        rows.append(
            ("", (name, Cell(number(before), before), Cell(number(after), after), left, ""))
        )
    rows += [("", (name, Cell(""), Cell(""), Cell(""), str(why))) for name, why in whole.items()]
    heads = [
        Column("Layer"),
        *(Column(n, figures=True) for n in ("Channels", "Left", "Share")),
        Column("Why all stay"),
    ]
    return table(heads, rows, "Channels, before and after", search="Find layers")
