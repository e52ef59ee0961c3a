"""What was measured and searched: sensitivities, fronts, and the rounds under a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxdrp.html.charts import Mark, Series, columns, figure, lines
from onnxdrp.html.markup import Markup, breakable, element, join
from onnxdrp.html.tables import Cell, Column, Row, bar, table
from onnxdrp.html.words import number

__all__ = ["channels", "front", "search", "sensitivity"]

Report = Mapping[str, Any]

_NAMED = 5  # lines with a colour of their own
_BY = {
    "agreement": ("agreement with the whole model (%)", 100.0),
    "top-1": ("top-1 accuracy (%)", 1.0),
    "sqnr": ("SQNR (dB)", 1.0),
}
_SCORES = {
    "agreement": ("agreement with the whole model (%)", 100.0),
    "top-1": ("top-1 accuracy (%)", 100.0),
    "signal": ("signal / (signal + noise)", 1.0),
    "moments": ("power left to the layers behind (%)", 100.0),
}


def sensitivity(report: Report) -> Markup | None:
    """What quantizing each unit alone costs."""
    found = report.get("sensitivity") or {}
    units: Sequence[Report] = found.get("units") or ()
    if not units:
        return None
    finite = [u["sqnr_db"] for u in units if not isinstance(u["sqnr_db"], str)]
    marks = [
        Mark(i, d, f"{u['name']}: {d:.1f} dB, {100 * (u['share'] or 0):.1f} % of the multiply-adds")
        for i, (u, d) in enumerate(
            (u, u["sqnr_db"]) for u in units if u["sqnr_db"] not in ("inf", "-inf")
        )
    ]
    heads = (
        Column("#", figures=True),
        Column("Unit"),
        Column("Operator"),
        Column("SQNR dB", figures=True, title="Of the worst output, with it alone quantized"),
        Column("Weights alone", figures=True),
        Column("Output alone", figures=True),
        Column("MAC", figures=True),
        Column("Share of MAC", figures=True),
    )
    rows: list[Row] = []
    for i, u in enumerate(units, 1):
        cells = (
            Cell(str(i), i),
            breakable(u["name"]),
            u["op"],
            _decibels(u["sqnr_db"]),
            _decibels(u["weights_db"]),
            _decibels(u["output_db"]),
            Cell(number(u["macs"]), u["macs"]),
            Cell(bar(f"{100 * (u['share'] or 0):.1f} %", u["share"] or 0), u["share"]),
        )
        rows.append(("", cells))
    caption = (
        "SQNR of the worst output with one unit alone quantized, costliest first; "
        f"target {found['target']}, {found['samples']:,} samples"
    )
    label = f"SQNR of {len(finite)} units, costliest first" if finite else ""
    chart = (
        figure(
            "What quantizing one unit alone leaves, in dB",
            columns(marks, label, "unit, the costliest first", "dB"),
            "Lower costs more.",
        )
        if marks
        else None
    )
    return join([chart, table(heads, rows, caption, search="Find units")])


def _decibels(value: Any) -> Cell:
    order = {"inf": 1e9, "-inf": -1e9}.get(value, value) if isinstance(value, str) else value
    return Cell(number(value, 3), order)


def channels(report: Report) -> Markup | None:
    """What removing channels of one group alone costs: a line a group, then the figures."""
    found = report.get("sensitivity") or {}
    curves: Mapping[str, Mapping[str, float]] = found.get("curves") or {}
    if not curves:
        return None
    what, unit = _SCORES.get(found["score"], (f"score ({found['score']})", 1.0))
    base = found["baseline"]
    lost = {name: sum(base - s for s in c.values()) / max(len(c), 1) for name, c in curves.items()}
    costliest = sorted(lost, key=lambda name: -lost[name])
    series = []
    for place, name in reversed(list(enumerate(costliest))):
        named = place < _NAMED
        points = [(0.0, base), *((float(r), s) for r, s in curves[name].items())]
        marks = [Mark(100 * r, unit * s, f"{name}: {number(unit * s)} at {100 * r:g} %")
                 for r, s in points]  # fmt: skip
        if named:
            marks[-1] = replace(marks[-1], label=str(place + 1))
        series.append(Series(marks, f"named-{place}" if named else "others", dots=named))
    legend = element(
        "ul",
        *(
            element("li", element("span", class_=f"key named-{i}", aria_hidden="true"),
                    f"{i + 1} ", breakable(name))
            for i, name in enumerate(costliest[:_NAMED])
        ),
        class_="legend",
    )  # fmt: skip
    label = f"{what} of {len(curves)} groups as their channels are removed"
    chart = lines(series, label, "channels of the group removed (%)", what)
    rates = sorted({float(r) for c in curves.values() for r in c})
    heads = [
        Column("#", figures=True),
        Column("Group"),
        *(Column(f"{100 * r:g} %", figures=True) for r in rates),
    ]
    rows: list[Row] = []
    for i, name in enumerate(costliest, 1):
        by_rate = {float(r): s for r, s in curves[name].items()}
        scores = [by_rate.get(r) for r in rates]
        cells = [Cell("" if s is None else number(unit * s), s) for s in scores]
        rows.append(("", (Cell(str(i), i), breakable(name), *cells)))
    caption = (
        f"{what[0].upper()}{what[1:]} by the share of a group's channels removed, costliest first; "
        f"whole model {number(unit * base)}; {found['samples']:,} samples"
    )
    note = "The costliest are named, and numbered at their ends as in the table."
    shown = figure("Channels of one group alone removed", chart, note, legend)
    return join([shown, table(heads, rows, caption, search="Find groups")])


def front(report: Report) -> Markup | None:
    """Sub-networks by cost and score."""
    found = report.get("front") or {}
    points: Sequence[Report] = found.get("points") or ()
    if not points:
        return None
    what, unit = _BY.get(found["by"], (f"score ({found['by']})", 1.0))
    whole, latency = found["whole"] or 1, found["cost"] == "latency"
    marks = []
    for p in points:
        cost = 100 * p["latency"] if latency else 100 * p["macs"] / whole
        if isinstance(p["score"], int | float) and abs(p["score"]) < float("inf"):
            tip = f"index {p['net_id']}: {number(unit * p['score'])}, cost {cost:.1f} %"
            marks.append(Mark(cost, unit * p["score"], tip, label=str(p["net_id"])))
    axis = (
        "latency (% of the whole model's)" if latency else "multiply-adds (% of the whole model's)"
    )
    chart = lines(
        [Series(marks, "named-0")], f"{len(marks)} sub-networks by cost and score", axis, what
    )
    heads = [
        Column("Index", figures=True),
        Column("MAC", figures=True),
        Column("Share", figures=True),
        Column("Params", figures=True),
        Column(what[0].upper() + what[1:], figures=True),
    ]
    heads += [Column("Latency share", figures=True)] if latency else []
    rows: list[Row] = []
    for p in points:
        share = p["macs"] / whole
        cells = [
            Cell(str(p["net_id"]), p["net_id"]),
            Cell(number(p["macs"]), p["macs"]),
            Cell(bar(f"{100 * share:.1f} %", share), share),
            Cell(number(p["params"]), p["params"]),
            Cell(number(unit * p["score"]), p["score"]),
        ]
        cells += [Cell(f"{100 * p['latency']:.1f} %", p["latency"])] if latency else []
        rows.append(("", cells))
    caption = (
        "Sub-networks, none of which is worse than another; slim takes one by --spec and --index"
    )
    return join(
        [figure("Pareto front", chart, "Numbers are of slim --index."), table(heads, rows, caption)]
    )


def search(report: Report) -> Markup | None:
    """What searches under a budget tried: sparsities, then rounds of channels."""
    parts = [_sparsities(report.get("curve")), _rounds(report.get("search"))]
    return join(parts) if any(parts) else None


def _sparsities(curve: Report | None) -> Markup | None:
    if not curve or not curve.get("points"):
        return None
    points, budget = curve["points"], curve["max_drop"]
    marks = [
        Mark(
            100 * p["sparsity"],
            p["lost"],
            f"sparsity {p['sparsity']:.3f}: {p['lost']:.2f} points lost, "
            f"95 % interval {p['low']:.2f} to {p['high']:.2f}",
            p["low"],
            p["high"],
            "taken" if p["rate"] == curve["rate"] else "",
        )
        for p in points
    ]
    chart = lines(
        [Series(marks, "named-0")],
        f"Points of {curve['what']} lost at {len(points)} sparsities",
        "sparsity (%)",
        "points lost",
        limit=(budget, f"budget {budget:g}"),
    )
    heads = [
        Column(n, figures=True)
        for n in ("Rate", "Sparsity", "MAC", "Left %", "Points lost", "95 % interval", "Seconds")
    ]
    rows: list[Row] = [
        (
            "",
            (
                Cell(number(p["rate"]), p["rate"]),
                Cell(f"{p['sparsity']:.3f}", p["sparsity"]),
                Cell(number(p["macs"]), p["macs"]),
                Cell(f"{p['top1']:.2f}", p["top1"]),
                Cell(f"{p['lost']:.2f}", p["lost"]),
                Cell(f"{p['low']:.2f} to {p['high']:.2f}", p["low"]),
                Cell(f"{p['seconds']:.1f}", p["seconds"]),
            ),
        )
        for p in points
    ]
    caption = f"Sparsities tried, by {curve['what']} on {curve['samples']:,} samples"
    note = "Bars: 95 % intervals. Filled: the one that was taken."
    return join(
        [
            figure(f"What sparsity costs, in points of {curve['what']}", chart, note),
            table(heads, rows, caption),
        ]
    )


def _rounds(found: Report | None) -> Markup | None:
    if not found or not found.get("rounds"):
        return None
    rounds, budget = found["rounds"], found["max_drop"]
    whole = (found.get("macs") or [None])[0]
    counted = [r for r in rounds if r["macs"] is not None and whole]
    marks = [
        Mark(
            100 * r["macs"] / whole,
            r["lost"],
            f"round {r['number']}: {r['lost']:.2f} points lost, "
            f"95 % interval {r['low']:.2f} to {r['high']:.2f}",
            r["low"],
            r["high"],
            "taken" if r["accepted"] else "",
            label=str(r["number"]),
        )
        for r in counted
    ]
    chart = lines(
        [Series([m], "alone") for m in marks],
        f"Points of {found['what']} lost in {len(marks)} rounds",
        "multiply-adds left (%)",
        "points lost",
        limit=(budget, f"budget {budget:g}"),
    )
    names = ("Round", "Channels", "MAC", "Points lost", "95 % interval", "Seconds")
    heads = [*(Column(n, figures=True) for n in names), Column("Repair"), Column("Verdict")]
    rows: list[Row] = [
        (
            "",
            (
                Cell(str(r["number"]), r["number"]),
                Cell(number(r["channels"]), r["channels"]),
                Cell(number(r["macs"]), r["macs"]),
                Cell(f"{r['lost']:.2f}", r["lost"]),
                Cell(f"{r['low']:.2f} to {r['high']:.2f}", r["low"]),
                Cell(f"{r['seconds']:.1f}", r["seconds"]),
                r["recovered"],
                "accepted" if r["accepted"] else "loses too much",
            ),
        )
        for r in rounds
    ]
    caption = (
        f"Rounds of removing channels, by {found['what']} on {found['samples']:,} samples; "
        f"ended because {found['stopped']}"
    )
    shown = (
        figure(
            f"What removing channels costs, in points of {found['what']}",
            chart,
            "Bars: 95 % intervals. Filled: accepted.",
        )
        if marks
        else None
    )
    return join([shown, table(heads, rows, caption)])
