"""The graph: what the script needs to draw it, scopes open or closed, coloured by a choice.

The script lays out what is open at the time; which scopes there are, how many boxes one holds at
most, and what is said of each is decided here. A scope with more than 60 parts, such as the graph
itself where names have no scopes, gets parts of 40 each, in graph order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxdrp.colours import LEGENDS, By, of_figure
from onnxdrp.html.markup import Markup, Node, element, join

__all__ = ["graph"]

Report = Mapping[str, Any]

_MOST, _PART = 60, 40  # parts of a scope; of what is put together where there are more
_AT_FIRST = 50  # boxes, as far as scopes are that small
_TITLES: dict[By, str] = {"sparsity": "Sparsity", "sqnr": "SQNR", "precision": "Precision"}


def graph(report: Report) -> Markup | None:
    """What can be chosen, and the place where the script draws."""
    found: Report = report.get("graph") or {}
    if why_not := found.get("why_not"):
        return element("p", f"The graph is not drawn: {why_not}.", class_="lead")
    if not found.get("nodes"):
        return None
    items = _items(found["nodes"])
    said = {by: [_said(by, item) for item in items] for by in _TITLES}
    choices: list[By] = [by for by in _TITLES if any(said[by])]
    data = {
        "items": [_told(item, i, said, choices) for i, item in enumerate(items)],
        "links": _links(found, items),
        "legends": {by: LEGENDS[by] for by in choices},
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    note = (
        "A box with a thick edge is a scope: click it, or press Enter, to open it. Arrow keys go "
        "along links and sideways, Backspace closes the scope that a box is in. Numbers of the "
        "table of layers lead here. Rounding stands on the links, and is not drawn."
    )
    buttons = [
        element("button", words, type="button", data_do=what)
        for what, words in (("open", "Open more"), ("close", "Close all"), ("out", "Smaller"),
                            ("in", "Larger"))
    ]  # fmt: skip
    chosen = element(
        "fieldset", element("legend", "Colours"), *map(_choice, choices, range(len(choices)))
    )
    sheet = element("svg", role="img", aria_label="The graph")  # the script draws another one
    parts = [
        element("p", note, class_="lead"),
        element("div", chosen if choices else None, *buttons, class_="tools"),
        element("ul", class_="swatches"),
        element("div", sheet, class_="scroll sheet"),
        element("div", class_="chosen"),
    ]
    without = "The graph is drawn by a script, which does not run here."
    return join(
        [
            element("p", without, class_="unscripted"),
            element("div", *parts, class_="graph", data_graph=text),
        ]
    )


def _choice(by: By, place: int) -> Node:
    field_ = element("input", type="radio", name="colours", value=by, checked=place == 0)
    return element("label", field_, " ", _TITLES[by])


@dataclass
class _Item:
    """A scope with its parts, or what has a row in the report."""

    name: str
    row: Report | None = None
    place: int = 0
    parts: list["_Item"] = field(default_factory=list)
    parent: int = -1
    open: bool = False

    @property
    def rows(self) -> list[Report]:
        if self.row is not None:
            return [self.row]
        return [row for part in self.parts for row in part.rows]


def _items(nodes: Sequence[Report]) -> list[_Item]:
    """All scopes and nodes, each behind the scope that it is in; without the whole."""
    whole = _Item("")
    mark = "/" if any("/" in row["name"] for row in nodes) else "."
    scopes: dict[tuple[str, ...], _Item] = {(): whole}
    for place, row in enumerate(nodes):
        inner = row.get("kind") not in ("input", "output")
        path = tuple(row["name"].strip(mark).split(mark)[:-1]) if inner else ()
        for depth in range(1, len(path) + 1):
            if path[:depth] not in scopes:
                scope = scopes[path[:depth]] = _Item(mark.join(path[:depth]))
                scopes[path[: depth - 1]].parts.append(scope)
        scopes[path].parts.append(_Item(row["name"], row, place))
    _shorten(whole)
    _open(whole)
    found: list[_Item] = []

    def walk(item: _Item, parent: int) -> None:
        for part in item.parts:
            part.parent = parent
            found.append(part)
            walk(part, len(found) - 1)

    walk(whole, -1)
    return found


def _shorten(item: _Item) -> None:
    """Take out scopes that hold one thing alone; put together what are too many."""
    for i, part in enumerate(item.parts):
        while len(part.parts) == 1:
            (part,) = part.parts
        item.parts[i] = part
        _shorten(part)
    while len(item.parts) > _MOST:
        cut = [item.parts[i : i + _PART] for i in range(0, len(item.parts), _PART)]
        item.parts = [
            _Item(f"{some[0].name} … {some[-1].name}", parts=some) if len(some) > 1 else some[0]
            for some in cut
        ]


def _open(whole: _Item) -> None:
    """The largest scopes first, as long as there is room."""
    shown = [part for part in whole.parts if part.parts]
    count = len(whole.parts)
    for item in shown:  # it grows
        if count - 1 + len(item.parts) <= _AT_FIRST:
            item.open = True
            count += len(item.parts) - 1
            shown += [part for part in item.parts if part.parts]


def _said(by: By, item: _Item) -> tuple[str, str] | None:
    """Colour and words; of a scope those of all its nodes."""
    if by == "sparsity":
        zeros, weights = (sum(row.get(key, 0) for row in item.rows) for key in ("zeros", "weights"))
        return of_figure(by, zeros / weights) if weights else None
    if by == "sqnr":
        errors = [float(row["sqnr_db"]) for row in item.rows if "sqnr_db" in row]
        return of_figure(by, min(errors)) if errors else None
    kinds = {row["precision"] for row in item.rows if "precision" in row}
    return of_figure(by, "mixed" if len(kinds) > 1 else kinds.pop()) if kinds else None


def _told(
    item: _Item, i: int, said: Mapping[By, Sequence[tuple[str, str] | None]], choices: list[By]
) -> dict[str, Any]:
    """What the script is told of a box."""
    row = item.row or {}
    kind = row.get("kind", "scope" if item.row is None else "node")
    told: dict[str, Any] = {"name": item.name, "kind": kind, "parent": item.parent}
    told |= {"op": row["op"]} if "op" in row else {}
    told |= {"layer": row["layer"]} if "layer" in row else {}
    if kind == "scope":
        told["count"] = sum(r.get("nodes", 1) for r in item.rows)
    told |= {"parts": len(item.parts)} if item.parts else {}
    told |= {"open": True} if item.open else {}
    return told | {"said": {by: said[by][i] for by in choices if said[by][i]}}


def _links(found: Report, items: Sequence[_Item]) -> list[list[int]]:
    places = {item.place: i for i, item in enumerate(items) if item.row is not None}
    return [[places[a], places[b]] for a, b in found["links"]]
