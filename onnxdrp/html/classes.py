"""Accuracy by class: which are found worst, and what is taken for what."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnxdrp.html.charts import Mark, columns, figure
from onnxdrp.html.markup import Markup, element, join
from onnxdrp.html.tables import Cell, Column, Row, bar, table
from onnxdrp.html.words import number

__all__ = ["classes"]

Report = Mapping[str, Any]

_FEW = 20  # classes whose confusion is shown as a square


def classes(report: Report) -> Markup | None:
    """A chart and a table of classes, the worst first; the mistakes of a classifier."""
    found = report.get("evaluated") or {}
    rows: Sequence[Report] = found.get("classes") or ()
    if not rows:
        return None
    if "map_5095" in found:
        return join(_boxes(rows))
    confused = found.get("confused") or ()
    return join([*_labels(rows), _square(rows, confused), _mistakes(rows, confused)])


def _labels(rows: Sequence[Report]) -> tuple[Markup, Markup]:
    worst = sorted(rows, key=lambda r: (r["top1"], -r["samples"]))
    marks = [
        Mark(i, r["top1"], f"class {r['class']}: {r['top1']:.1f} % of {r['samples']:,}, "
             f"95 % interval {_interval(r)}", low=r["top1_interval"][0],
             high=r["top1_interval"][1], link=f"class-{r['class']}")
        for i, r in enumerate(worst)
    ]  # fmt: skip
    label = (
        f"Top-1 of {len(rows)} classes, from {worst[0]['top1']:.1f} to {worst[-1]['top1']:.1f} %"
    )
    chart = columns(marks, label, "class, the worst first", "% right", top=100.0,
                    names=[str(r["class"]) for r in worst])  # fmt: skip
    heads = (Column("Class"), *(Column(n, figures=True) for n in (
        "Samples", "Top-1", "95 % interval")))  # fmt: skip
    body: list[Row] = [
        (
            f"class-{r['class']}",
            (
                Cell(str(r["class"]), r["class"]),
                Cell(number(r["samples"]), r["samples"]),
                Cell(bar(f"{r['top1']:.1f} %", r["top1"] / 100), r["top1"]),
                Cell(_interval(r), r["top1_interval"][0]),
            ),
        )
        for r in worst
    ]
    return (
        figure("Top-1 by class, in percent", chart, "Lines: 95 % intervals."),
        table(heads, body, "Classes, the worst first", search="Find classes"),
    )


def _interval(row: Report) -> str:
    low, high = row["top1_interval"]
    return f"{low:.1f} to {high:.1f}"


def _square(rows: Sequence[Report], confused: Sequence[Report]) -> Markup | None:
    """The confusion matrix, where there are few classes and all mistakes are told."""
    right = {r["class"]: round(r["samples"] * r["top1"] / 100) for r in rows}
    missed = sum(r["samples"] for r in rows) - sum(right.values())
    names = sorted({*right, *(c["taken_for"] for c in confused)})
    if len(names) > _FEW or missed != sum(c["samples"] for c in confused):
        return None
    counts = {(c["label"], c["taken_for"]): c["samples"] for c in confused}
    counts |= {(label, label): count for label, count in right.items()}
    whole = {r["class"]: r["samples"] for r in rows}
    head = element("tr", element("td", "label"), *(element("th", n, scope="col") for n in names))
    body = [
        element("tr", element("th", label, scope="row"), *(
            _shaded(counts.get((label, given), 0), whole[label], label != given)
            for given in names))
        for label in whole
    ]  # fmt: skip
    caption = "How many samples of a label (row) are taken for which class (column)"
    square = element("table", element("caption", caption), element("thead", head),
                     element("tbody", *body), class_="confusion")  # fmt: skip
    return element("div", square, class_="scroll fitted", tabindex=0, role="region",
                   aria_label=caption)  # fmt: skip


def _shaded(count: int, whole: int, wrong: bool) -> Markup:
    if not count:
        return element("td")
    share = f"--share:{round(100 * count / whole)}%"
    return element("td", number(count), style=share, class_="wrong" if wrong else None)


def _mistakes(rows: Sequence[Report], confused: Sequence[Report]) -> Markup | None:
    if not confused:
        return None
    whole = {r["class"]: r["samples"] for r in rows}
    names = ("Label", "Taken for", "Samples", "Of the label's")
    heads = [Column(n, figures=True) for n in names]
    body: list[Row] = []
    for c in confused:
        share = c["samples"] / whole[c["label"]]
        cells = [Cell(number(c[k]), c[k]) for k in ("label", "taken_for", "samples")]
        body.append(("", [*cells, Cell(bar(f"{100 * share:.1f} %", share), share)]))
    return table(heads, body, "What is taken for what, the most frequent first")


def _boxes(rows: Sequence[Report]) -> tuple[Markup, Markup]:
    worst = sorted(rows, key=lambda r: (r["map_5095"], -r["objects"]))
    marks = [
        Mark(i, r["map_5095"], f"{_name(r)}: mAP50-95 {r['map_5095']:.3f}, mAP50 "
             f"{r['map_50']:.3f}, {r['objects']:,} objects", behind=r["map_50"],
             link=f"class-{r['class']}")
        for i, r in enumerate(worst)
    ]  # fmt: skip
    label = f"mAP of {len(rows)} classes, from {marks[0].y:.3f} to {marks[-1].y:.3f}"
    chart = columns(marks, label, "class, the worst first", "mAP", top=1.0,
                    names=[r.get("name") or str(r["class"]) for r in worst])  # fmt: skip
    heads = (Column("Class"), *(Column(n, figures=True) for n in (
        "Objects", "mAP50", "mAP50-95")))  # fmt: skip
    body: list[Row] = [
        (
            f"class-{r['class']}",
            (
                Cell(_name(r), r["class"]),
                Cell(number(r["objects"]), r["objects"]),
                Cell(f"{r['map_50']:.3f}", r["map_50"]),
                Cell(bar(f"{r['map_5095']:.3f}", r["map_5095"]), r["map_5095"]),
            ),
        )
        for r in worst
    ]
    note = "Full: mAP50-95. Pale: mAP50. Classes without objects are not there."
    return (
        figure("Mean average precision by class", chart, note),
        table(heads, body, "Classes, the worst first", search="Find classes"),
    )


def _name(row: Report) -> str:
    return f"{row['class']} {row['name']}" if row.get("name") else f"class {row['class']}"
