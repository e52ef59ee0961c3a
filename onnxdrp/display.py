"""What notebooks show: text as it is printed, and the same figures as HTML.

A table is sorted by a click on its head, or Enter, where scripts may run; without them it is the
same table. Colours are those of the notebook's theme (Jupyter's and VS Code's variables), else
light or dark as the system has it, on a ground of their own. Nothing is loaded from anywhere.
Whatever comes from a model is escaped here: this file alone knows HTML.
"""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from onnxdrp.report import Text
from onnxdrp.tables import text_table

__all__ = ["Details", "Picture", "Shown", "Table", "Tabular", "escaped", "facts"]

_MOST_ROWS = 500  # of a table in HTML; the text has all
_LONG = 80  # letters
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%)?|-?inf|-|")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escaped(value: Any) -> str:
    """As text and attributes of HTML and XML may hold it, whatever it is."""
    return html.escape(_NOT_XML.sub("\ufffd", str(value)))


@dataclass(frozen=True)
class Table:
    """Rows under a head; those of the foot are not sorted with the others.

    Attributes:
        head: a name for each column.
        rows: a cell for each column.
        foot: totals.
        spare: columns that the text leaves out first where there is no room (onnxdrp.tables).
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    foot: Sequence[Sequence[Any]] = ()
    spare: Sequence[str] = ()

    def __str__(self) -> str:
        return text_table(self.head, [*self.rows, *self.foot], self.spare)

    def html(self) -> str:
        """The first rows, and how many more there are."""
        shown, rest = self.rows[:_MOST_ROWS], len(self.rows) - _MOST_ROWS
        foot = list(self.foot)
        if rest > 0:
            foot.append([f"{rest:,} more rows: print() shows all", *[""] * (len(self.head) - 1)])
        kinds = [_kind(column) for column in zip(*shown, strict=True)] or [""] * len(self.head)
        parts = [("thead", "th", [self.head]), ("tbody", "td", shown), ("tfoot", "td", foot)]
        inner = "".join(_rows(tag, cell, rows, kinds) for tag, cell, rows in parts if rows)
        return f"<div class='scrolls'><table>{inner}</table></div>"


def _kind(column: Sequence[Any]) -> str:
    """Figures stand to the right, sentences are broken into lines, names are not."""
    texts = [str(value) for value in column]
    if all(map(_NUMBER.fullmatch, texts)):
        return " class='number'"
    return " class='long'" if max(map(len, texts)) > _LONG else ""


def _rows(tag: str, cell: str, rows: Sequence[Sequence[Any]], kinds: Sequence[str]) -> str:
    lines = [
        "".join(f"<{cell}{k}>{escaped(v)}</{cell}>" for v, k in zip(row, kinds, strict=True))
        for row in rows
    ]
    return f"<{tag}>{''.join(f'<tr>{line}</tr>' for line in lines)}</{tag}>"


@dataclass(frozen=True, repr=False)
class Picture:
    """An image of its own bytes.

    Attributes:
        uri: a data URI.
        text: what is to be seen, in words; stands for it where there are no pictures.
        size: width and height in pixels, as shown.
    """

    uri: str
    text: str
    size: tuple[int, int]

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def html(self) -> str:
        """The image, its words under it."""
        width, height = self.size
        alt = escaped(self.text)
        image = f"<img src='{escaped(self.uri)}' width='{width}' height='{height}' alt='{alt}'>"
        return f"<figure>{image}<figcaption>{alt}</figcaption></figure>"

    def _repr_html_(self) -> str:
        return _page(self.html())


@dataclass(frozen=True)
class Details:
    """A part that is closed until somebody opens it; the text has it whole."""

    title: str
    part: "Table | Picture | Shown"

    def __str__(self) -> str:
        return f"{self.title}\n{self.part}"

    def html(self) -> str:
        """The title, which opens it."""
        inner = self.part.html()
        return f"<details><summary>{escaped(self.title)}</summary>{inner}</details>"


class Shown(Text):
    """Parts one under another: strings are lines, the others show themselves."""

    __slots__ = ("parts",)

    parts: tuple[Any, ...]

    def __new__(cls, *parts: Any) -> Self:
        """The text of the parts, line by line; what was put together before is taken apart."""
        self = super().__new__(cls, "\n".join(map(str, parts)))
        self.parts = tuple(p for part in parts for p in getattr(part, "parts", (part,)))
        return self

    def html(self) -> str:
        """The parts, without the style that they need."""
        return "".join(
            part.html() if hasattr(part, "html") else f"<p>{escaped(part)}</p>"
            for part in self.parts
            if not isinstance(part, str) or part.strip()
        )

    def _repr_html_(self) -> str:
        return _page(self.html())


class Tabular(ABC):
    """Whatever has a `table` shows it: as text, and in notebooks as HTML."""

    @abstractmethod
    def table(self) -> Text:
        """All of it as text."""

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return Shown(self.table())._repr_html_()


def facts(figures: Mapping[str, Any], head: Sequence[str] = ("figure", "value")) -> list[Any]:
    """Figures by name as parts: plain ones in one table, each table among them by itself.

    Entries of a table that have the same figures have a column for each. What is empty is left out.
    """
    tables = {name: v for name, v in figures.items() if isinstance(v, Mapping) and v}
    plain = [(k, v) for k, v in figures.items() if k not in tables and v not in ({}, [], ())]
    parts: list[Any] = [Table(head, [(k, _cell(v)) for k, v in plain])] if plain else []
    parts += [Details(f"{name} ({len(table)})", _inner(table)) for name, table in tables.items()]
    return parts


def _inner(table: Mapping[str, Any]) -> Table:
    """A row an entry; where all have the same figures, a column each."""
    first, *others = (list(v) if isinstance(v, Mapping) else None for v in table.values())
    if not first or any(other != first for other in others):
        return Table(("name", "value"), [(k, _cell(v)) for k, v in table.items()])
    return Table(("name", *first), [(k, *map(_cell, v.values())) for k, v in table.items()])


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _page(inner: str) -> str:
    """What a notebook takes: with the style, and the script that sorts."""
    # MathJax would take dollars in names for formulas
    classes = "onnxdrp tex2jax_ignore mathjax_ignore"
    style, script = f"<style>{_STYLE}</style>", f"<script>{_SCRIPT}</script>"
    return f"<div class='{classes}'>{style}{inner}{script if '<table>' in inner else ''}</div>"


_STYLE = """
.onnxdrp { --ink: #1f2328; --paper: #ffffff; --line: #d5d9de;
  color: var(--jp-content-font-color1, var(--vscode-editor-foreground, var(--ink)));
  background: var(--jp-layout-color0, var(--vscode-editor-background, var(--paper)));
  font: 13px/1.45 system-ui, sans-serif; padding: 4px }
@media (prefers-color-scheme: dark) {
  .onnxdrp { --ink: #e6edf3; --paper: #12161c; --line: #3d444d } }
.onnxdrp p { margin: 4px 0; white-space: pre-wrap }
.onnxdrp figure { display: inline-block; margin: 4px 12px 4px 0; vertical-align: top }
.onnxdrp figcaption { font-size: 12px }
.onnxdrp img { image-rendering: pixelated; max-width: 100% }
.onnxdrp summary { cursor: pointer }
.onnxdrp .scrolls { max-height: 28em; overflow: auto; width: fit-content; max-width: 100% }
.onnxdrp table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 4px 0 }
.onnxdrp th, .onnxdrp td { padding: 2px 10px; text-align: left; white-space: nowrap;
  border: 0; border-bottom: 1px solid var(--jp-border-color2, var(--line)) }
.onnxdrp td.number, .onnxdrp th.number { text-align: right }
.onnxdrp td.long { white-space: normal; min-width: 30em }
.onnxdrp thead th { position: sticky; top: 0; background: inherit; font-weight: 600 }
.onnxdrp thead, .onnxdrp thead tr, .onnxdrp table, .onnxdrp .scrolls { background: inherit }
.onnxdrp th[tabindex] { cursor: pointer }
.onnxdrp th[aria-sort=ascending]::after { content: " \\2191" }
.onnxdrp th[aria-sort=descending]::after { content: " \\2193" }
.onnxdrp tfoot td { font-weight: 600 }
"""

_SCRIPT = """
for (const table of document.querySelectorAll(".onnxdrp table:not([data-sorts])")) {
  table.dataset.sorts = "";
  const body = table.tBodies[0];
  for (const [i, head] of body ? [...table.tHead.rows[0].cells].entries() : []) {
    const key = row => {
      const text = row.cells[i].textContent.replace(/[, %]/g, "");
      return text === "inf" ? Infinity : text === "" || text === "-" ? -Infinity : Number(text);
    };
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const rows = [...body.rows], numbers = !rows.some(row => Number.isNaN(key(row)));
      const order = numbers ? (a, b) => (key(a) > key(b)) - (key(a) < key(b))
        : (a, b) => a.cells[i].textContent.localeCompare(b.cells[i].textContent);
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.sort((a, b) => up ? order(a, b) : order(b, a)));
    };
    head.tabIndex = 0;
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === "Enter") sort(); };
  }
}
"""
