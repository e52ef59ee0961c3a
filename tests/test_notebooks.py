"""The notebooks run from a clean kernel, and are published as they ran.

The rules are those of notebooks/execute.py, which writes them: see `faults` there.
"""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

import onnxdrp

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTE = ROOT / "notebooks" / "execute.py"


def by_path(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = by_path(EXECUTE)
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def kinds(notebook: Any) -> list[list[str]]:
    """What each cell gives: a name for each of its outputs."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    return [
        [" ".join(sorted(o.get("data", {}))) or o.output_type for o in cell.outputs]
        for cell in cells
    ]


@each
def test_a_notebook_is_published_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert list(execute.faults(notebook)) == []
    assert any(kinds(notebook))
    assert path.stat().st_size <= execute.LARGEST
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@pytest.mark.slow
@each
def test_a_notebook_runs_from_a_clean_kernel(path: Path, tmp_path: Path) -> None:
    # the package that is tested, wherever it is installed
    env = os.environ | {"PYTHONPATH": str(Path(onnxdrp.__file__).parents[1])}
    command = [sys.executable, EXECUTE, "--to", tmp_path, path.name]
    run = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    fresh = nbformat.read(tmp_path / path.name, 4)
    published = nbformat.read(path, 4)
    assert [c.source for c in fresh.cells] == [c.source for c in published.cells]
    assert kinds(fresh) == kinds(published)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def notebook(*outputs: dict[str, Any], **changes: Any) -> Any:
    code = {
        "cell_type": "code", "id": "b", "metadata": {}, "source": "1", "execution_count": 1,
        "outputs": list(outputs),
    }  # fmt: skip
    title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Title\nNeeds none."}
    whole = {
        "cells": [title | changes.pop("title", {}), code | changes],
        "metadata": execute._METADATA,
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return nbformat.reads(json.dumps(whole), 4)


def shown(text: str, kind: str = "text/html") -> dict[str, Any]:
    data = {"text/plain": "a table", kind: text}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def test_what_must_not_be_published_is_named() -> None:
    stderr = {"output_type": "stream", "name": "stderr", "text": "UserWarning: no"}
    error = {"output_type": "error", "ename": "E", "evalue": "no", "traceback": []}
    for fine in (
        (),
        (shown("<table></table>"),),
        (shown("/stage1/conv/Conv at 0x", "text/plain"),),
    ):
        assert list(execute.faults(notebook(*fine))) == []
    for bad in (
        notebook(stderr),
        notebook(error),
        notebook(shown("<script>1</script>")),
        notebook(shown("<STYLE>a</STYLE>")),
        notebook(shown("kept in /tmp/it")),
        notebook(shown(f"kept in {ROOT / 'it'}", "text/plain")),
        notebook(shown("<Mask object at 0x7f1234567890>", "text/plain")),
        notebook(shown("DeprecationWarning: old", "text/plain")),
        notebook(shown("1", "application/javascript")),
        notebook(shown("<svg></svg>", "image/svg+xml")),
        notebook(execution_count=2),
        notebook(source=" "),
        notebook(title={"source": "No title"}),
        notebook(title={"source": "# Title"}),
    ):
        assert len(list(execute.faults(bad))) >= 1, bad


def test_tables_are_left_without_styles_and_scripts_and_kernels_without_versions() -> None:
    html = "<div><style>td { color: red }</style><table>1</table><script>\n2\n</script></div>"
    given = notebook(shown(html))
    given.metadata = nbformat.from_dict({"language_info": {"name": "python", "version": "3.12.1"}})
    tidied = execute._tidied(given)
    assert tidied.cells[1].outputs[0].data["text/html"] == "<div><table>1</table></div>"
    assert list(execute.faults(tidied)) == []


def test_drawings_become_images_that_keep_their_style() -> None:
    svg = "<svg xmlns='http://www.w3.org/2000/svg'><style>rect { fill: red }</style></svg>"
    tidied = execute._tidied(notebook(shown(svg, "image/svg+xml")))
    (data,) = (output.data for output in tidied.cells[1].outputs)
    assert set(data) == {"text/plain", "text/html"}
    uri, alt = re.fullmatch(r"<img src='([^']*)' alt='([^']*)'>", data["text/html"]).groups()
    assert base64.b64decode(uri.partition("base64,")[2]).decode() == svg
    assert alt == "a table"
    assert list(execute.faults(tidied)) == []
