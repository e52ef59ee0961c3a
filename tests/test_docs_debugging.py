"""The code of docs/debugging.md runs, block after block, on the bundled model and images."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_blocks_of_the_page_on_debugging_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("modA.onnx", "calibrate_images"):
        (tmp_path / name).symlink_to(ROOT / "models" / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "debugging.md", "exec"), names)
    said = capsys.readouterr().out
    assert "fuse-batchnorm" in said
    assert "SQNR" in said
    assert "information" in said
