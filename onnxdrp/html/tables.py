"""Tables that sort by any column and filter by text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxdrp.html.markup import Markup, Node, element, join

__all__ = ["Cell", "Column", "Row", "bar", "table"]


@dataclass(frozen=True)
class Column:
    """A column: its head, whether it holds figures, and what they are in full."""

    name: str
    figures: bool = False
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and by what it sorts; None sorts last."""

    shown: Node
    order: float | str | None = None


Row = tuple[str, Sequence[Cell | Node]]
"""The id of a row, or "", and its cells."""


def bar(shown: str, share: float) -> Markup:
    """A figure over a bar of its share of the whole."""
    width = f"--share:{round(100 * min(max(share, 0), 1), 1):g}%"
    return element("span", shown, class_="share", style=width)


def table(
    columns: Sequence[Column],
    rows: Iterable[Row],
    caption: str,
    *,
    search: str = "",
) -> Markup:
    """A table.

    Args:
        columns: the second one is the head of its row if the first is a number, else the first.
        rows: (id, cells); an id may be "".
        caption: what it shows.
        search: name of the field that filters it; "" for none.
    """
    lead = 1 if columns[0].name == "#" else 0
    head = element("tr", *map(_head, columns))
    body = [
        element(
            "tr", *(_cell(c, columns[i], i == lead) for i, c in enumerate(cells)), id=name or None
        )
        for name, cells in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
        class_="sortable",
    )
    narrow = all(column.figures for column in columns[1:])
    style = "scroll narrow" if narrow else "scroll"
    scroll = element("div", whole, class_=style, tabindex=0, role="region", aria_label=caption)
    return join([_search(search, len(body)) if search else None, scroll])


def _head(column: Column) -> Markup:
    button = element("button", column.name, type="button", title=column.title or None)
    return element("th", button, scope="col", class_="figures" if column.figures else None)


def _cell(cell: "Cell | Node", column: Column, lead: bool) -> Markup:
    shown: Any = cell
    order: float | str | None = None
    if isinstance(cell, Cell):
        shown, order = cell.shown, cell.order
        if order is None:
            order = ""
    style = "figures" if column.figures else None
    if lead:
        return element("th", shown, scope="row", data_order=order, class_=style)
    return element("td", shown, data_order=order, class_=style)


def _search(name: str, rows: int) -> Markup:
    field = element("input", type="search", autocomplete="off", spellcheck="false")
    count = element("output", f"{rows:,} of {rows:,}", aria_live="polite")
    return element("div", element("label", element("span", name), field), count, class_="search")
