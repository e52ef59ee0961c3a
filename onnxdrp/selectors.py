"""Selectors name things by exact name, by glob, or by regular expression.

"conv1"           the name itself; it wins over a glob of the same text
"*/attention/*"   a glob as the shell has it; * matches / too
"re:.*[13]"       a regular expression that matches the whole name

One that matches nothing is an error: it is a name misspelt.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase

from onnxdrp.errors import OptionError

__all__ = ["check_selector", "matching", "select"]


def check_selector(selector: str) -> None:
    """Raises OptionError if the selector is no text, or no regular expression after `re:`."""
    if not isinstance(selector, str) or not selector:
        raise OptionError(f"{selector!r} is no selector; give a name, a glob or re:REGEX")
    if selector.startswith("re:"):
        _compiled(selector)


def select(selector: str, names: Mapping[str, Collection[str]], what: str) -> list[str]:
    """The keys of `names` of which one of their names matches.

    Args:
        selector: a name, a glob, or `re:` and a regular expression.
        names: {key: the names that the thing goes by}.
        what: what is selected, for the error.

    Raises:
        OptionError: it matches nothing; with the nearest names.
    """
    found = matching(selector, names)
    if found:
        return found
    known = dict.fromkeys(name for own in names.values() for name in own)
    near = difflib.get_close_matches(selector, known, 3, cutoff=0.5)
    hint = f"; near: {', '.join(map(repr, near))}" if near else "; `onnxdrp info` lists the names"
    raise OptionError(f"no {what} matches {selector!r}{hint}")


def matching(selector: str, names: Mapping[str, Collection[str]]) -> list[str]:
    """As `select`, but a selector that matches nothing gives an empty list."""
    exact = [key for key, own in names.items() if selector in own]
    if exact:
        return exact
    matches = _matcher(selector)
    return [key for key, own in names.items() if any(map(matches, own))]


def _matcher(selector: str) -> Callable[[str], object]:
    if selector.startswith("re:"):
        return _compiled(selector).fullmatch
    return lambda name: fnmatchcase(name, selector)


def _compiled(selector: str) -> re.Pattern[str]:
    try:
        return re.compile(selector.removeprefix("re:"))
    except re.error as e:
        raise OptionError(f"selector {selector!r}: not a regular expression ({e})") from e
