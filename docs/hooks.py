"""What MkDocs builds that is in no file of docs/: the front page, the command line, the API.

- README.md, CONTRIBUTING.md, CHANGELOG.md and the READMEs of models/ and notebooks/ become pages;
  links are turned.
- cli.md is written from click's own commands.
- mkdocstrings reads docstrings without running code, so the package is laid out for it as it is
  installed, passes/ and datareaders/ inside, in a temporary folder.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from onnxdrp.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "models/README.md": "models.md",
    "notebooks/README.md": "examples.md",
}
_LINK = re.compile(r"\[(?P<words>[^\]]*)\]\((?!https?:|#)(?P<target>[^)#]+)(?P<anchor>#[^)]*)?\)")
_laid_out: list[tempfile.TemporaryDirectory[str]] = []


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the package out as it is installed, and point mkdocstrings there."""
    folder = tempfile.TemporaryDirectory(prefix="onnxdrp-docs-")
    _laid_out.append(folder)  # lives until the build is over
    package = Path(folder.name) / "onnxdrp"
    only_code = shutil.ignore_patterns("__pycache__", "*.onnx", "*.npz", "calibrate_images")
    shutil.copytree(ROOT / "onnxdrp", package, ignore=only_code)
    for name in ("passes", "datareaders"):
        shutil.copytree(ROOT / name, package / name, ignore=only_code)
    handlers: dict[str, Any] = config.plugins["mkdocstrings"].config["handlers"]
    handlers["python"]["paths"] = [folder.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere, and the one that click writes."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=moved(text, Path(source).parent)))
    files.append(File.generated(config, "cli.md", content=command_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn what leads out of docs/ to the pages that are made of it."""
    return markdown if page.file.generated_by else moved(markdown, Path("docs"))


def on_post_build(**_: Any) -> None:
    """Take the folders away."""
    while _laid_out:
        _laid_out.pop().cleanup()


def moved(text: str, folder: Path) -> str:
    """A page of `folder` (seen from the root) with links as they are in docs/."""

    def turned(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        path = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        if path in PAGES:
            return f"[{match['words']}]({PAGES[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{match['words']}]({path.removeprefix('docs/')}{anchor})"
        return f"`{path}`"  # no page: a folder or a file of the source

    return _LINK.sub(turned, text)


def command_reference() -> str:
    """The help text of every command, as a page."""
    parts = ["# Command line\n", "What `--help` says, of every command.\n"]
    for name, command in sorted(cli.commands.items()):
        context = click.Context(
            command, info_name=f"onnxdrp {name}", max_content_width=100, terminal_width=100
        )
        parts += [f"## {name}\n", f"```text\n{command.get_help(context)}\n```\n"]
    return "\n".join(parts)
