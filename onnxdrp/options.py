"""Values from TOML as the types of options, things by name, and names that are nearly right."""

import difflib
import importlib
import types
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from onnxdrp.errors import OptionError

__all__ = ["check_choice", "convert", "imported", "in_words", "near"]


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse what is none of a Literal's values.

    Raises:
        OptionError: names the option and what there is.
    """
    known = get_args(choices)
    if value not in known:
        raise OptionError(f"{name} is {value!r}{near(str(value), known)}")


def convert(value: Any, hint: Any, where: str) -> Any:
    """A TOML value (str, int, float, bool, list, dict) as the type of a field."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, [a for a in args if a is not types.NoneType], where)
    if origin is Literal:
        if value in args and type(value) in map(type, args):
            return value
        raise OptionError(f"{where} is {value!r}; give one of {', '.join(map(repr, args))}")
    if origin in (tuple, Sequence) and isinstance(value, list):
        kinds = args[:1] * len(value) if _any_length(origin, args) else args
        if len(kinds) != len(value):
            raise OptionError(f"{where} has {len(value)} values; give {len(kinds)}")
        return tuple(
            convert(v, k, f"{where}[{i}]")
            for i, (v, k) in enumerate(zip(value, kinds, strict=True))
        )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {k: convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin is None and type(value) is hint:
        return value
    raise OptionError(f"{where} is {value!r}; give {in_words(hint)}")


def imported(name: str, what: str) -> Any:
    """What Python finds as "module:Name".

    Args:
        name: of the module, a colon, and what is in it.
        what: it is meant to be, for the message.

    Raises:
        OptionError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as e:
        raise OptionError(f"{what} {name!r} cannot be imported ({e})") from e


def _first_that_fits(value: Any, hints: Sequence[Any], where: str) -> Any:
    for hint in hints:
        try:
            return convert(value, hint, where)
        except OptionError:
            if len(hints) == 1:
                raise
    raise OptionError(f"{where} is {value!r}; give {' or '.join(map(in_words, hints))}")


def in_words(hint: Any) -> str:
    """A type as a reader of TOML would call it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(a) for a in args if a is not types.NoneType)
    if origin in (tuple, Sequence):
        inner = args[:1] if _any_length(origin, args) else args
        return f"list of {', '.join(map(in_words, inner))}"
    if origin in (dict, Mapping):
        return f"table of {in_words(args[1])}"
    words = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return words.get(hint, str(hint))


# ------------------------------------------------------------------------------------------ options


def _any_length(origin: Any, args: tuple[Any, ...]) -> bool:
    return origin is Sequence or args[-1] is Ellipsis


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error on an unknown name: the nearest right one, or all there are."""
    known = list(known)
    found = difflib.get_close_matches(name, known, 1)
    if found:
        return f"; is {found[0]!r} meant?"
    return f"; there are {', '.join(known)}" if known else "; it has none"
