"""Elements of HTML and SVG, in which every str is text: no name is ever taken for markup."""

import re
from collections.abc import Iterable
from html import escape
from typing import Any

__all__ = ["Markup", "Node", "breakable", "element", "join"]

_VOID = frozenset({"input", "img", "meta"})
_NAME = re.compile(r"[a-zA-Z][\w-]*")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]"
)  # HTML has no place for them


class Markup(str):
    """Text that is markup already; only `element` and `join` make it."""

    __slots__ = ()


Node = Markup | str | int | float | None


def _text(value: Node) -> str:
    if isinstance(value, Markup):
        return value
    return "" if value is None else escape(_CONTROL.sub("\ufffd", str(value)))


def breakable(text: str) -> Markup:
    """A name, which may go on in the next line behind its slashes and dots."""
    return Markup(re.sub(r"(?<=[/.])(?=[^/.])", "<wbr>", _text(text)))


def join(nodes: Iterable[Node]) -> Markup:
    """One after the other; a str is escaped, None is nothing."""
    return Markup("".join(map(_text, nodes)))


def element(name: str, /, *children: Node, **attributes: Any) -> Markup:
    """An element with its children.

    Args:
        name: of the element.
        children: markup is taken as it is, a str is escaped, None is nothing.
        attributes: `class_` is class, `data_tip` is data-tip; True gives the name alone, None and
            False nothing.
    """
    told = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if not _NAME.fullmatch(key):
            raise ValueError(f"no attribute {key!r}")
        if value is True:
            told.append(f" {key}")
        elif value is not None and value is not False:
            told.append(f' {key}="{_text(value)}"')
    head = f"<{name}{''.join(told)}>"
    return Markup(head if name in _VOID else f"{head}{join(children)}</{name}>")
