"""Recipes: what is written is read back the same; what is wrong is refused by name."""

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from builders import conv_net
from hypothesis import assume, given
from hypothesis import strategies as st
from toy_passes import Nothing, Options, Scale

from onnxdrp import __version__, passes
from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassManager
from onnxdrp.recipe import PASSES, describe_passes, dump_recipe, load_recipe

# What the options of this name take beside anything at all, so that not all of it is refused.
KNOWN: dict[str, list[Any]] = {
    "pattern": ["block", "nm:2:4", "flex-nm", "row"],
    "rate": [0.0, 0.5, 0.999],
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def values(name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, the odd ones too."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        found: st.SearchStrategy[Any] = st.sampled_from(args)
    elif origin in (types.UnionType, Union):
        found = st.one_of(values("", a) for a in args)
    elif hint is types.NoneType:
        found = st.none()
    elif origin is tuple and args[-1] is not Ellipsis:
        found = st.tuples(*(values("", a) for a in args))
    elif origin in (tuple, Sequence):
        found = st.lists(values("", args[0]), max_size=4).map(tuple)
    elif origin in (dict, Mapping):
        found = st.dictionaries(TEXT, values("", args[1]), max_size=4)
    else:
        kinds = {
            str: TEXT,
            bool: st.booleans(),
            int: st.integers(-(2**63), 2**63 - 1),
            float: st.floats(allow_nan=False),
        }
        found = kinds[hint]
    return st.sampled_from(KNOWN[name]) | found if name in KNOWN else found


@st.composite
def steps(draw: st.DrawFn) -> Pass:
    """A pass with random options; those that it refuses are left at their defaults."""
    kind = draw(st.sampled_from([*PASSES.values(), Options, Options]))
    hints, options = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if draw(st.booleans()):
            options[field.name] = draw(values(field.name, hints[field.name]))
            try:
                kind(**options)
            except OptionError:
                del options[field.name]
    try:
        return kind(**options)
    except OptionError:
        assume(False)
        raise


@given(st.lists(steps(), min_size=1, max_size=5))
def test_what_is_written_is_read_back_the_same(chosen: list[Pass]) -> None:
    text = dump_recipe(chosen)
    again = load_recipe(text)
    assert again == chosen
    assert [type(p) for p in again] == [type(p) for p in chosen]
    for a, b in zip(again, chosen, strict=True):
        assert repr(a.options()) == repr(
            b.options()
        )  # 1 and 1.0 and True are equal, and not the same
    assert dump_recipe(again) == text


def test_a_recipe_reads_well(tmp_path: Path) -> None:
    step = Options(text='a "b"\n', rates={"conv*": 0.5, "head.0": 0.25}, names=("x", "y"))
    text = dump_recipe([Nothing(), step])
    assert text.startswith(f"# onnxdrp {__version__}")
    assert tomllib.loads(text) == {
        "pass": [
            {"name": "toy_passes:Nothing"},
            {
                "name": "toy_passes:Options",
                "text": 'a "b"\n',
                "names": ["x", "y"],
                "rates": {"conv*": 0.5, "head.0": 0.25},
            },
        ]
    }
    assert text.count("[[pass]]") == 2
    assert 'rates = { "conv*" = 0.5, "head.0" = 0.25 }' in text.splitlines()
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == load_recipe(str(path)) == [Nothing(), step]


def test_passes_that_come_along_have_short_names() -> None:
    text = dump_recipe([passes.InferShapes(), passes.Cut(outputs=("a",))])
    assert [entry["name"] for entry in tomllib.loads(text)["pass"]] == ["infer-shapes", "cut"]


def test_a_recipe_runs() -> None:
    model = Model.from_proto(conv_net())
    before = model.weight("fc.weight").copy()
    recipe = """
    [[pass]]
    name = "toy_passes:Scale"
    weight = "fc.weight"
    factor = 3
    """
    PassManager(load_recipe(recipe)).run(model)
    assert (model.weight("fc.weight") == before * 3).all()


def test_every_pass_is_in_the_table() -> None:
    public = {name for name in passes.__all__ if isinstance(getattr(passes, name), type)}
    kinds = {getattr(passes, n) for n in public if issubclass(getattr(passes, n), Pass)}
    assert set(PASSES.values()) == kinds
    assert len(PASSES) == len(kinds), "two passes of one name"


def test_every_option_can_be_written() -> None:
    """None has no word in TOML, so it must be the default wherever it is allowed."""
    for kind in PASSES.values():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if types.NoneType in get_args(hints[field.name]):
                assert field.default is None, f"{kind.name}.{field.name}"
            values(field.name, hints[field.name])  # a kind of option that recipes know


# ------------------------------------------------------------------------------------------ refused


def one(options: str, name: str = "toy_passes:Options") -> str:
    return f'[[pass]]\nname = "infer-shapes"\n\n[[pass]]\nname = "{name}"\n{options}\n'


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (one("", "infer-shape"), "pass 2: no pass is called 'infer-shape'; is 'infer-shapes'"),
        (one("", "zzz"), "no pass is called 'zzz'; there are .*infer-shapes"),
        (one("cuont = 1"), r"pass 2 \(toy_passes:Options\): no option 'cuont'; is 'count' meant"),
        (one("zzz = 1"), "no option 'zzz'; there are text, number"),
        (one("any = 1", "insert-qdq"), "no option 'any'; it has none"),
        (one("", "toy_passes:Scale"), "lacks the option 'weight'"),
        (one("count = -1"), r"pass 2 \(toy_passes:Options\): count=-1: give 0 or more"),
        (one("count = 1.5"), "count is 1.5; give integer"),
        (one("count = true"), "count is True; give integer"),
        (one("count = '3'"), "count is '3'; give integer"),
        (one("number = 'x'"), "number is 'x'; give number"),
        (one("number = false"), "number is False; give number"),
        (one("flag = 1"), "flag is 1; give true or false"),
        (one("text = 1"), "text is 1; give text"),
        (one("text = 2026-01-01"), "text is .*; give text"),
        (one("choice = 'three'"), "choice is 'three'; give one of 'one', 'two'"),
        (one("maybe = 1"), "maybe is 1; give text"),
        (one("either = 0.5"), "either is 0.5; give integer or text"),
        (one("names = 'x'"), "names is 'x'; give list of text"),
        (one("names = ['x', 1]"), r"names\[1\] is 1; give text"),
        (one("pair = [1.0]"), "pair has 1 values; give 2"),
        (one("rates = 0.5"), "rates is 0.5; give table of number"),
        (one("rates = {a = 'x'}"), "rates.a is 'x'; give number"),
        (one("shapes = {a = [1, 'x']}"), r"shapes.a\[1\] is 'x'; give integer"),
        (one("[pass.text]\na = 1"), "text is .*; give text"),
        ("[[pass]]\nrate = 1\n", "pass 1: has no name"),
        ("[[pass]]\nname = 3\n", "pass 1: has no name"),
        ("[[passes]]\nname = 'x'\n", "no key 'passes' at the top; is 'pass' meant"),
        ("[pass]\nname = 'x'\n", r"head each with \[\[pass\]\]"),
        ("pass = [1]\n", r"head each with \[\[pass\]\]"),
        ("# nothing\n", "names no pass"),
        ("[[pass]\n", "not TOML .*line 1"),
        (one("", "no_such_module:Pass"), "cannot be imported .*no_such_module"),
        (one("", "toy_passes:NoSuch"), "cannot be imported .*NoSuch"),
        (one("", "pathlib:Path"), "is no pass"),
        (one("", ":Options"), "cannot be imported"),
        (one("", "onnxdrp.pipeline:Pass"), "is no pass"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, recipe: str, words: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(recipe, encoding="utf-8")
    with pytest.raises(OptionError, match=words) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match=words):
        load_recipe(recipe)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml: the recipe cannot be read \(No such file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(OptionError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="cannot be read"):
        load_recipe(tmp_path / "bytes.toml")


def test_what_cannot_be_written_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Inner(Nothing):
        name = "inner"

    with pytest.raises(OptionError, match="inner: a class defined inside a function"):
        dump_recipe([Inner()])

    step = Scale("w", None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="scale: factor=None cannot be written"):
        dump_recipe([step])


# ---------------------------------------------------------------------------------------- described


def test_passes_are_described() -> None:
    described = describe_passes()
    assert [entry["name"] for entry in described] == list(PASSES)
    assert json.loads(json.dumps(described)) == described
    for entry in described:
        assert entry["summary"].endswith("."), entry["name"]
        for option in entry["options"]:
            assert set(option) == {"name", "type", "default", "required"}
            assert "<" not in option["type"], f"{entry['name']}.{option['name']}: {option['type']}"
    cut = next(entry for entry in described if entry["name"] == "cut")
    assert [o["type"] for o in cut["options"]] == ["list of text"]
