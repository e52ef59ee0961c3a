"""Execute the notebooks of this folder, each in a clean kernel, and write them back.

    python notebooks/execute.py [--to FOLDER] [NAME ...]

A notebook runs in a copy of its folder (with models/ beside it), so that whatever it writes is gone
afterwards. It is written only if nothing failed and `faults` finds nothing: it must read well where
it is shown without scripts and styles, and be the same when it is executed again. So styles,
scripts, times and versions are left out of what is written.
"""

import argparse
import base64
import html
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
LARGEST = 400_000  # bytes of a file
SECONDS = 600  # of a cell

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_NEEDS_BROWSER = re.compile(r"<(style|script)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
# what must not be in an output, and why
_UNWANTED = {
    r"(?i:<(script|style|iframe|link)\b)": "needs what the project's page leaves out",
    r"(?<![\w/])/(home|root|tmp|Users|usr|opt|mnt|private)/\w|\b[A-Z]:\\\w": "an absolute path",
    r"\b\w*Warning\b|Traceback \(most recent": "a warning or an error",
    r"\bat 0x[0-9a-f]{6,}": "an address in memory: give it a __repr__",
}


def execute(notebook: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in `folder`, tidied."""
    from nbclient import NotebookClient

    found = nbformat.read(notebook, 4)
    for cell in found.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        found,
        timeout=SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # it speaks with this process alone
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(cwd=str(folder))
    return _tidied(found)


def _tidied(notebook: Any) -> Any:
    notebook.metadata = nbformat.from_dict(_METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = _NEEDS_BROWSER.sub("", data["text/html"])
            if "image/svg+xml" in data:
                data["text/html"] = _as_image(data.pop("image/svg+xml"), data["text/plain"])
    return notebook


def _as_image(svg: str, words: str) -> str:
    """What keeps its style where pages take styles out of SVG, and leave black boxes."""
    uri = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return f"<img src='{uri}' alt='{html.escape(words)}'>"


def faults(notebook: Any) -> Iterator[str]:
    """Why an executed notebook must not be published, a line each."""
    code = [c for c in notebook.cells if c.cell_type == "code"]
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "it begins with no title"
    elif "needs" not in first.source.lower():
        yield "its first cell does not say what it needs"
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        yield "its cells were not all executed, once each and in order"
    if dict(notebook.metadata) != _METADATA:
        yield "its metadata tells of a machine; execute it with notebooks/execute.py"
    for number, cell in enumerate(code, 1):
        if not cell.source.strip():
            yield f"cell {number} is empty"
        for output in cell.outputs:
            yield from (f"cell {number}: {fault}" for fault in _faults_of(output))


def _faults_of(output: Any) -> Iterator[str]:
    if output.output_type == "error" or output.get("name") == "stderr":
        yield f"an error, or a line to stderr: {output.get('text', output.get('evalue', ''))[:200]}"
    data = output.get("data", {})
    if "text/plain" not in data and output.output_type != "stream":
        yield "it has no plain text"
    for kind in data.keys() - {*_TEXTS, "image/png"}:
        yield f"{kind} is not shown on every page"
    for text in [output.get("text", ""), *(data.get(kind, "") for kind in _TEXTS)]:
        for pattern, why in _UNWANTED.items():
            if match := re.search(pattern, text):
                yield f"{why}: ...{text[max(0, match.start() - 30) : match.end() + 50]!r}"
        names = {str(HERE.parent), str(Path.home()), tempfile.gettempdir(), platform.node()}
        for name in sorted(n for n in names if len(n) > 3 and n in text):
            yield f"a name of this machine: {name}"


_TEXTS = ("text/plain", "text/html", "text/markdown")


def _workshop(folder: Path) -> Path:
    """Copies of this folder and of models/ under `folder`; where notebooks are to run."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for source in (HERE, HERE.parent / "models"):
        shutil.copytree(source, folder / source.name, ignore=ignored, ignore_dangling_symlinks=True)
    return folder / HERE.name


def main(names: list[str], target: Path) -> int:
    """Execute those notebooks whose names begin so, or all; 1 if one must not be published."""
    chosen = [p for p in sorted(HERE.glob("*.ipynb")) if p.name.startswith(tuple(names) or "")]
    if not chosen:
        sys.exit(f"no notebook begins with {' or '.join(names)}")
    bad = 0
    for path in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["IPYTHONDIR"] = f"{folder}/.ipython"  # nobody's own startup files
            notebook = execute(path, _workshop(Path(folder)))
        text = nbformat.writes(notebook) + "\n"
        found = list(faults(notebook))
        if len(text.encode()) > LARGEST:
            found.append(f"{len(text.encode()):,} bytes are more than {LARGEST:,}")
        for fault in found:
            print(f"{path.name}: {fault}", file=sys.stderr)
        if not found:
            (target / path.name).write_text(text, encoding="utf-8")
        bad += bool(found)
    return int(bad > 0)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("names", nargs="*", help="how their names begin; all without")
    options.add_argument("--to", type=Path, default=HERE, help="write them there")
    given = options.parse_args()
    sys.exit(main(given.names, given.to))
