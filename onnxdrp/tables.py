"""Tables of plain text, as wide as they need to be or as a terminal is.

`text_table` gives every cell in full. Within `fitting(width)` it keeps to that width:

1. Heads break at their blanks.
2. Columns of text are shortened, the widest first, down to 16 characters. They lose their middle:
   the names of layers differ at both ends. Figures are never shortened.
3. Columns are left out, `spare` ones first, then from the right; a last line names them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

__all__ = ["fitting", "text_table"]

_GAP = "  "
_LEAST = 16  # no text is shortened below this


@dataclass(frozen=True)
class _Look:
    width: int | None = None
    bold: bool = False


_PLAIN = _Look()
_look = ContextVar("_look", default=_PLAIN)


@contextmanager
def fitting(width: int | None, *, bold: bool = False) -> Iterator[None]:
    """All tables that are made meanwhile keep to `width`; None: as wide as they are.

    Args:
        width: characters of a line.
        bold: heads are bold, by an escape sequence.
    """
    token = _look.set(_Look(width, bold))
    try:
        yield
    finally:
        _look.reset(token)


@dataclass
class _Column:
    head: str
    cells: list[str]

    def __post_init__(self) -> None:
        self.heads = [self.head]
        self.right = bool(self.cells) and all(map(_is_number, self.cells))

    @property
    def width(self) -> int:
        return max(map(len, (*self.heads, *self.cells)))

    def break_head(self) -> None:
        self.heads = self.head.split() or [""]

    def shorten(self, width: int) -> None:
        self.cells = [_without_middle(cell, width) for cell in self.cells]

    def lines(self, height: int) -> list[str]:
        heads = [""] * (height - len(self.heads)) + self.heads
        align = str.rjust if self.right else str.ljust
        return [align(text, self.width) for text in (*heads, *self.cells)]


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], spare: Sequence[str] = ()
) -> str:
    """Aligned columns of text: words to the left, figures to the right.

    Args:
        head: a name for each column.
        rows: the cells, as many in each row.
        spare: the columns that are left out first where there is no room for all.
    """
    look = _look.get()
    columns = [_Column(name, [str(row[i]) for row in rows]) for i, name in enumerate(head)]
    left_out = [] if look.width is None else _fit(columns, look.width, spare)
    height = max((len(column.heads) for column in columns), default=0)
    lines = [
        _GAP.join(line).rstrip()
        for line in zip(*(column.lines(height) for column in columns), strict=True)
    ]
    if look.bold:
        lines[:height] = [f"\x1b[1m{line}\x1b[0m" for line in lines[:height]]
    if left_out:
        lines.append(f"(too narrow for: {', '.join(left_out)})")
    return "\n".join(lines)


def _fit(columns: list[_Column], width: int, spare: Sequence[str]) -> list[str]:
    """Bring columns to a width; the names of those that are left out."""

    def excess() -> int:
        return sum(c.width for c in columns) + len(_GAP) * (len(columns) - 1) - width

    if excess() <= 0:
        return []
    for column in columns:
        column.break_head()
    left_out = []
    while (over := excess()) > 0:
        texts = [c for c in columns if not c.right and c.width > _LEAST]
        room = sum(c.width - _LEAST for c in texts)
        if over <= room:
            _share_out(texts, over)
        elif len(columns) == 1:
            columns[0].shorten(width)
            break
        else:
            gone = next((c for c in columns if c.head in spare), columns[-1])
            columns.remove(gone)
            left_out.append(gone.head)
    return left_out


def _share_out(columns: list[_Column], over: int) -> None:
    """Take `over` characters from columns, always from the widest."""
    widths = [column.width for column in columns]
    for _ in range(over):
        widths[widths.index(max(widths))] -= 1
    for column, width in zip(columns, widths, strict=True):
        column.shorten(width)


def _without_middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    front = (width - 1) // 2
    return f"{text[:front]}…{text[len(text) - (width - 1 - front) :]}"


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").strip(
        "-+ "
    ).isdigit() or text in ("", "-")
