"""What ran: its warnings, its passes, and how to repeat it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxdrp.html.advice import advice
from onnxdrp.html.markup import Markup, Node, element, join
from onnxdrp.html.tables import Cell, Column, Row, bar, table
from onnxdrp.html.words import brief, number, of_bytes

__all__ = ["passes", "versions", "warnings"]

Report = Mapping[str, Any]


def warnings(report: Report) -> Markup | None:
    """Each warning, and what to do about it."""
    items = []
    for text in report.get("warnings") or ():
        told = advice(text)
        todo = element("p", element("strong", "What to do: "), told) if told else None
        items.append(element("li", element("p", text), todo))
    return element("ul", *items, class_="warnings") if items else None


def passes(report: Report) -> Markup | None:
    """A row a pass; its options and figures unfold."""
    records = report.get("passes")
    if not records:
        return None
    longest = max((r["seconds"] for r in records), default=0.0) or 1.0
    heads = (
        Column("#", figures=True),
        Column("Pass"),
        Column("Nodes", figures=True),
        Column("Tensors changed", figures=True),
        Column("Stored", figures=True),
        Column("Seconds", figures=True),
        Column("What it did"),
    )
    rows: list[Row] = []
    for r in records:
        seconds, changed = r["seconds"], r["weights"].get("changed", 0)
        cells = (
            Cell(str(r["index"]), r["index"]),
            r["name"],
            Cell(_arrow(r["nodes"], number), r["nodes"][1]),
            Cell(number(changed), changed),
            Cell(_arrow(r["bytes"], of_bytes), r["bytes"][1]),
            Cell(bar(f"{seconds:.2f}", seconds / longest), seconds),
            _did(r),
        )
        rows.append(("", cells))
    return table(heads, rows, "Passes, in the order in which they ran")


def _arrow(pair: Sequence[Any], words: Callable[[Any], str]) -> str:
    before, after = map(words, pair)
    return after if before == after else f"{before} → {after}"


def _did(record: Report) -> Markup:
    signs = [f"{op} {n:+d}".replace("-", "−") for op, n in sorted(record["operators"].items())]
    summary = ", ".join(signs) or ("changed" if record["modified"] else "left the model as it is")
    figures = {k: v for k, v in record["stats"].items() if v not in ({}, [], None)}
    told = [
        element("div", element("dt", name), element("dd", brief(value)))
        for name, value in (*record["options"].items(), *figures.items())
        if name != "skipped" and brief(value)
    ]
    skipped = record["stats"].get("skipped")
    if isinstance(skipped, Mapping) and skipped:
        told.append(element("div", element("dt", "passed over"), element("dd", _reasons(skipped))))
    if not told:
        return element("span", summary)
    return element("details", element("summary", summary), element("dl", *told))


def _reasons(skipped: Mapping[str, Any]) -> Markup:
    """How many for each reason; the names behind the number."""
    whys: dict[str, list[str]] = {}
    for name, why in skipped.items():
        whys.setdefault(str(why), []).append(name)
    return join(
        element("div", f"{why}: ", names[0] if len(names) == 1 else f"{len(names):,} of them")
        for why, names in whys.items()
    )


def versions(report: Report) -> Markup | None:
    """How to repeat the run: its recipe, and what it ran on."""
    parts: list[Node] = []
    if recipe := report.get("recipe"):
        parts.append(element("h3", "Recipe"))
        parts.append(
            element(
                "p", "Save it as recipe.toml; optimize --recipe repeats the run.", class_="lead"
            )
        )
        parts.append(element("pre", recipe, tabindex=0))
    if found := report.get("versions"):
        parts.append(element("h3", "Versions"))
        items = [element("div", element("dt", k), element("dd", v)) for k, v in found.items()]
        parts.append(element("dl", *items, class_="versions"))
    return join(parts) if parts else None
