"""Recipes: a TOML file that names passes and their options, in the order they run.

    target = "drp-ai3"

    [[pass]]
    name = "select-layers"
    rate = 0.7

    [[pass]]
    name = "prune-blocks"

A pass of your own is named by where Python finds it: `name = "my_module:MyPass"`. Options that are
left out have their defaults; so have `target`, `activation_zeropoint` and `seed`, the settings of
the run.
"""

import dataclasses
import inspect
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from onnxdrp import __version__, passes
from onnxdrp.errors import OptionError
from onnxdrp.options import convert, imported, in_words, near
from onnxdrp.pipeline import Pass

__all__ = ["PASSES", "Recipe", "describe_passes", "dump_recipe", "load_recipe"]

PASSES: dict[str, type[Pass]] = {
    p.name: p
    for p in (
        passes.FreezeShapes,
        passes.Cut,
        passes.InferShapes,
        passes.Optimize,
        passes.FoldConstants,
        passes.FuseBatchNorm,
        passes.Clean,
        passes.EqualizeGates,
        passes.CrossLayerEqualize,
        passes.ScoreChannels,
        passes.MeasureChannels,
        passes.SelectChannels,
        passes.SearchChannels,
        passes.ApplyChannels,
        passes.AutoSlim,
        passes.MaskChannels,
        passes.RemoveChannels,
        passes.SelectLayers,
        passes.AllocateRates,
        passes.PruneBlocks,
        passes.ApplyMasks,
        passes.RefitWeights,
        passes.MatchMoments,
        passes.Distill,
        passes.ConvertOpset,
        passes.Calibrate,
        passes.MeasureSensitivity,
        passes.KeepFloat,
        passes.QuantizeWeights,
        passes.RoundWeights,
        passes.CorrectBias,
        passes.InsertQdq,
        passes.Check,
    )
}
"""Every pass that comes along by its name, in the order of the pipeline."""

_SETTINGS: dict[str, type] = {"target": str, "activation_zeropoint": bool, "seed": int}


class Recipe(list[Pass]):
    """The passes of a recipe, in order, with the settings it names.

    Attributes:
        target: a profile's name or path, or None if the recipe leaves it open.
        activation_zeropoint: activations have zero points whatever the target says; or None.
        seed: of everything random, or None.
    """

    target: str | None = None
    activation_zeropoint: bool | None = None
    seed: int | None = None


# ------------------------------------------------------------------------------------------ reading


def load_recipe(recipe: str | Path) -> Recipe:
    """The passes of a recipe: of a file, or of TOML text (anything of more than one line).

    Raises:
        OptionError: the file cannot be read or is no TOML; an unknown pass or option, with the
            nearest right name; a value of the wrong type or out of range. The message names file,
            pass and option.
    """
    text, where = _read(recipe)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise OptionError(f"{where}: not TOML ({e})") from e
    for key in table.keys() - {"pass", *_SETTINGS}:
        raise OptionError(f"{where}: no key {key!r} at the top{near(key, ['pass', *_SETTINGS])}")
    entries = table.get("pass", [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise OptionError(f"{where}: passes are tables; head each with [[pass]]")
    if not entries:
        raise OptionError(f"{where}: names no pass; head each with [[pass]]")
    steps = Recipe(_build(entry, f"{where}: pass {i}") for i, entry in enumerate(entries, 1))
    for key, kind in _SETTINGS.items():
        if key in table:
            setattr(steps, key, convert(table[key], kind, f"{where}: {key}"))
    return steps


def _read(recipe: str | Path) -> tuple[str, str]:
    if isinstance(recipe, str) and "\n" in recipe:
        return recipe, "recipe"
    try:
        return Path(recipe).read_text(encoding="utf-8"), str(recipe)
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise OptionError(f"{recipe}: the recipe cannot be read ({reason})") from e


def _build(entry: Mapping[str, Any], where: str) -> Pass:
    options = dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise OptionError(f'{where}: has no name; give name = "{next(iter(PASSES))}" or another')
    kind = PASSES.get(name) or _imported(name, where)
    where = f"{where} ({name})"
    hints = _options(kind)
    for key in options.keys() - hints.keys():
        raise OptionError(f"{where}: no option {key!r}{near(key, hints)}")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in options and _required(field):
            raise OptionError(f"{where}: lacks the option {field.name!r}, which has no default")
    values = {key: convert(v, hints[key], f"{where}: {key}") for key, v in options.items()}
    try:
        return kind(**values)
    except OptionError as e:
        raise OptionError(f"{where}: {e}") from e


def _imported(name: str, where: str) -> type[Pass]:
    """The class behind "module:Class"."""
    if ":" not in name:
        raise OptionError(f"{where}: no pass is called {name!r}{near(name, PASSES)}")
    try:
        kind = imported(name, "pass")
    except OptionError as e:
        raise OptionError(f"{where}: {e}") from e
    if isinstance(kind, type) and issubclass(kind, Pass) and hasattr(kind, "__dataclass_fields__"):
        return kind
    raise OptionError(f"{where}: {name!r} is no pass; give a dataclass derived from Pass")


# ------------------------------------------------------------------------------------------ writing


def dump_recipe(
    steps: Sequence[Pass],
    *,
    target: str | None = None,
    activation_zeropoint: bool | None = None,
    seed: int | None = None,
) -> str:
    """The recipe of these passes: options that differ from their defaults, and these settings.

    Raises:
        OptionError: a pass of your own cannot be imported by name, since it was defined inside a
            function.
    """
    parts = [f"# onnxdrp {__version__}; options that are not named have their defaults\n"]
    settings = dict(zip(_SETTINGS, (target, activation_zeropoint, seed), strict=True))
    parts += [f"{key} = {_toml(value)}\n" for key, value in settings.items() if value is not None]
    for step in steps:
        lines = [f"{_key(key)} = {_toml(value)}\n" for key, value in _entry(step).items()]
        parts.append("".join(["[[pass]]\n", *lines]))
    return "\n".join(parts)


def _entry(step: Pass) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": _name(type(step))}
    for field in dataclasses.fields(step):  # type: ignore[arg-type]
        value = getattr(step, field.name)
        if not _required(field) and repr(value) == repr(_default(field)):
            continue
        if value is None:
            raise OptionError(f"{step.name}: {field.name}=None cannot be written to a recipe")
        entry[field.name] = _plain(value)
    return entry


def _toml(value: Any) -> str:
    """A value on one line of TOML, whose strings are those of JSON but for one character."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _name(kind: type[Pass]) -> str:
    if PASSES.get(kind.name) is kind:
        return kind.name
    if "<locals>" in kind.__qualname__:
        raise OptionError(
            f"{kind.name}: a class defined inside a function cannot be named in a recipe; "
            "move it to a module"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------- descriptions


def describe_passes() -> list[dict[str, Any]]:
    """Every pass: {"name", "summary", "options": [{"name", "type", "default", "required"}]}."""
    return [
        {"name": name, "summary": _summary(kind), "options": _described(kind)}
        for name, kind in PASSES.items()
    ]


def _summary(kind: type[Pass]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _described(kind: type[Pass]) -> list[dict[str, Any]]:
    hints = _options(kind)
    return [
        {
            "name": field.name,
            "type": in_words(hints[field.name]),
            "default": None if _required(field) else _plain(_default(field)),
            "required": _required(field),
        }
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    ]


def _options(kind: type[Pass]) -> dict[str, Any]:
    """{option: type} of a pass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _required(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
