"""Profiles as TOML files: those that come along, and a user's own."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from onnxdrp.errors import OnnxDrpError, OptionError
from onnxdrp.options import convert, near
from onnxdrp.targets.profile import Operators, Target

__all__ = ["list_targets", "load_target"]


def list_targets() -> list[str]:
    """The names of the profiles that come along."""
    files = resources.files(__package__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_target(name: str | Path) -> Target:
    """The profile of this name, or in this file (anything that ends in .toml is a file).

    Its key `base` names another, or a file beside it, from which it takes all keys that it has not.

    Raises:
        OptionError: no such profile or file, no TOML, an unknown key (with the nearest right one),
            a key missing, or a value of the wrong type.
    """
    text, where, stem = _read(name)
    try:
        table = _inherit(_parse(text), Path(where).parent, (where,))
        operators = _build(Operators, table.pop("operators"), "[operators] ")
        target: Target = _build(Target, {"name": stem, **table, "operators": operators}, "")
    except OnnxDrpError as e:
        raise OptionError(f"target {where}: {e}") from e
    return target


def _inherit(table: dict[str, Any], folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """A table on top of the one that its `base` names, key by key, of [operators] too."""
    operators = _pop_table(table)
    base = table.pop("base", None)
    if base is None:
        return {**table, "operators": operators}
    if not isinstance(base, str):
        raise OptionError(f"base is {base!r}; give the name of a profile or a .toml file")
    text, where, _ = _read(folder / base if base.endswith(".toml") else base)
    if where in seen:
        raise OptionError(f"base {base!r}: the profiles are built on each other in a circle")
    below = _inherit(_parse(text), Path(where).parent, (*seen, where))
    below.pop("name", None)
    return {**below, **table, "operators": {**below["operators"], **operators}}


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise OptionError(f"not TOML ({e})") from e


def _read(name: str | Path) -> tuple[str, str, str]:
    """The text of a profile, what errors call it, and its name."""
    if isinstance(name, Path) or name.endswith(".toml"):
        path = Path(name)
        try:
            return path.read_text(encoding="utf-8"), str(path), path.stem
        except (OSError, UnicodeDecodeError) as e:
            raise OptionError(f"target {path}: cannot be read ({e})") from e
    known = list_targets()
    if name not in known:
        raise OptionError(
            f"no target is called {name!r}{near(name, known)}; there are {', '.join(known)}, "
            "and any .toml file of your own"
        )
    return (resources.files(__package__) / f"{name}.toml").read_text(encoding="utf-8"), name, name


def _pop_table(table: dict[str, Any]) -> dict[str, Any]:
    operators = table.pop("operators", {})
    if not isinstance(operators, dict):
        raise OptionError("operators is a table: [operators]")
    return operators


def _build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table, with every key and type checked."""
    hints = get_type_hints(cls)
    for key in table.keys() - hints.keys():
        raise OptionError(f"{where}has no key {key!r}{near(key, hints)}")
    for f in fields(cls):
        if f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise OptionError(f"{where}lacks the key {f.name!r}")
    return cls(**{key: convert(value, hints[key], f"{where}{key}") for key, value in table.items()})
