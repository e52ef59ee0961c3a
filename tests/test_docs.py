"""Every block of code in the documentation runs, every link leads somewhere, the site builds.

The blocks of a page run in their order, in a folder with small stand-ins for the files that pages
speak of. A comment before a block says what else is meant:

    <!-- file: NAME -->             the block is this file; written, and read by what follows
    <!-- checked only: REASON -->   Python must compile, a command's options must parse
"""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import conv_net, deep_net, value
from click.testing import CliRunner
from onnx import helper
from PIL import Image

from onnxdrp.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/README.md")
ALL_PAGES = [*PAGES, *(ROOT / name for name in OTHERS)]
LANGUAGES = {"python", "console", "toml", "text"}
_FENCE = re.compile(r"(?:<!-- (.*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
# what stands in the pages indented, as commands without a fence
_INDENTED = re.compile(r"(?m)^    (onnxdrp .+)$")
SLOW = {"demo"}  # a job of minutes: tests/test_cli.py runs it


@dataclass
class Block:
    """A block of a page: what the comment before it says, its language, its text."""

    mark: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("checked only: ")


def blocks(page: Path) -> list[Block]:
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(*map(str, block)) for block in found]


def indented(page: Path) -> Iterator[list[str]]:
    """The arguments of each command that stands indented, without what is said beside it."""
    for line in _INDENTED.findall(page.read_text(encoding="utf-8")):
        yield from commands(re.sub(r"  +[-#(].*", "", line) if "  " in line else line)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `$ onnxdrp ...` line; a line that ends in a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words and words[0] == "onnxdrp":
            yield words[1:]


def parsed(arguments: list[str]) -> None:
    """The options of a command are those it has; nothing runs."""
    where = next(i for i, word in enumerate(arguments) if word in cli.commands)
    cli.make_context("onnxdrp", arguments[: where + 1]).close()
    name = arguments[where]
    cli.commands[name].make_context(name, arguments[where + 1 :]).close()


def nhwc_net() -> onnx.ModelProto:
    """A small classifier behind a Transpose, as tf2onnx leaves it."""
    proto = conv_net()
    proto.graph.input[0].CopyFrom(value("image", ["N", 8, 8, 3]))
    turn = helper.make_node("Transpose", ["image"], ["x"], "turn", perm=[0, 3, 1, 2])
    proto.graph.node.insert(0, turn)
    return proto


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages speak of, in which we then stand."""
    (tmp_path / "model.onnx").write_bytes(deep_net().SerializeToString())
    (tmp_path / "keras.onnx").write_bytes(nhwc_net().SerializeToString())
    rng = np.random.default_rng(0)
    for folder in ("images", "calibrate_images", "test_images"):
        (tmp_path / folder).mkdir()
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    rows = "".join(f"{i}.png,{i % 10}\n" for i in range(20))
    (tmp_path / "labels.csv").write_text(f"file,class_index\n{rows}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


# what other tests run with the things that these pages need
ELSEWHERE = {"calibrate-on-a-cluster.md", "debugging.md", "migrating.md", "training.md"}
LONG = {"cac.md"}  # a search in rounds
FENCED = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG))
    for page in (*PAGES, ROOT / "README.md")
    if page.name not in ELSEWHERE and blocks(page)
]


@pytest.mark.parametrize("page", FENCED)
def test_every_block_of_a_page_runs(page: Path, workshop: Path) -> None:
    before = set(sys.modules)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        assert block.language in LANGUAGES, block.text
        if block.mark.startswith("file: "):
            (workshop / block.mark.removeprefix("file: ")).write_text(block.text, "utf-8")
        elif block.language == "python":
            code = compile(block.text, str(page), "exec")
            if block.runs:
                exec(code, names)
        elif block.language == "console":
            for arguments in commands(block.text):
                parsed(arguments)
                if block.runs and arguments[0] not in SLOW:
                    result = CliRunner().invoke(cli, arguments)
                    assert result.exit_code == 0, f"{arguments}: {result.output}"
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(workshop / f"{name}.py"):
            del sys.modules[name]


INDENTED = [page for page in (*PAGES, ROOT / "README.md") if list(indented(page))]


# of options a search of many seconds, and what needs wider layers; what opens a browser
NOT_RUN = {"--max-drop", "--slim"}, ["view", "model.onnx"]


@pytest.mark.parametrize("page", INDENTED, ids=lambda p: p.name)
def test_indented_commands_run(page: Path, workshop: Path) -> None:
    (workshop / "net.onnx").write_bytes((workshop / "model.onnx").read_bytes())
    (workshop / "report.json").write_text('{"seconds": 1.0}', "utf-8")
    reader = next(b.text for b in blocks(DOCS / "readers.md") if b.mark == "file: my_reader.py")
    reader = reader.replace("folder: str, model", 'model, folder="images"')
    (workshop / "my_reader.py").write_text(reader, "utf-8")
    for arguments in indented(page):
        if NOT_RUN[0].isdisjoint(arguments) and arguments != NOT_RUN[1]:
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == 0, f"{arguments}: {result.output}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda p: p.name)
def test_every_block_is_what_it_says_it_is(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "console":
            assert list(commands(block.text)) or not block.text.strip().startswith("$ onnxdrp")
    for arguments in indented(page):
        parsed(arguments)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path == "api.md":
            continue  # its anchors are made of docstrings: the site's build knows them
        if path in ("cli.md", "index.md"):
            continue  # written when the site is built
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_the_picture_of_the_patterns_is_what_the_patterns_do(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DOCS / "pictures.py", tmp_path], check=True, cwd=ROOT,
                   env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    drawn, kept = (folder / "patterns.svg" for folder in (tmp_path, DOCS / "img"))
    assert drawn.read_bytes() == kept.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None, reason="the extra docs is not installed"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "cli.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in cli.commands)
    assert 'id="onnxdrp.targets.Target"' in (tmp_path / "api.html").read_text(encoding="utf-8")
    fetched = re.findall(
        r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', (tmp_path / "index.html").read_text()
    )
    assert fetched == []
