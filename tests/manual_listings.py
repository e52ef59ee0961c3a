"""The listings of DRP-AI Extension Pack's manual, read out of its text where that is at hand.

A figure's listing is what stands in fences above its caption; fences that only a page break parts
are one. Numbers of lines go, and `drpai_compaction_tool` becomes onnxdrp's. Nothing else is
changed but by `mended`, which says each mistake of the manual that it corrects.
"""

import re
from pathlib import Path

import pytest

__all__ = ["listing", "mended"]

MANUAL = "drp_ai_extension_pack_manual.txt"
IMPORT = "onnxdrp.compat.drpai_compaction_tool"


def listing(shared: Path, figure: str) -> str:
    """The code of a figure, "3-2" for instance."""
    manual = shared / "seeds" / MANUAL
    if not manual.is_file():
        pytest.skip(f"the shared folder has no {MANUAL}")
    lines = manual.read_text().splitlines()
    fences = [i for i, line in enumerate(lines) if line.strip() == "```"]
    end = next(
        i
        for i, line in enumerate(lines)
        if line.startswith(f"Figure {figure} ") and i - 2 in fences
    )
    fences = fences[: fences.index(end - 2) + 1]
    start = fences[-2]
    for opened, closed in zip(fences[-4::-2], fences[-3::-2], strict=False):
        if any(line.strip() for line in lines[closed + 1 : start]):
            break
        start = opened
    code = [line for line in lines[start:end] if line.strip() != "```"]
    text = "\n".join(re.sub(r"^\s*\d+\+?( *)", _indent, line) for line in code)
    return re.sub(r"\bdrpai_compaction_tool\b", IMPORT, text)


def _indent(number: re.Match[str]) -> str:
    """The manual parts numbers and code by no, one or two spaces; its indents are four."""
    spaces = len(number[1])
    return " " * (spaces - spaces % 4)


def mended(code: str, *mistakes: tuple[str, str]) -> str:
    """The listing with mistakes of the manual corrected; each has to be there."""
    for wrong, right in mistakes:
        assert wrong in code, f"the manual does not say {wrong!r}"
        code = code.replace(wrong, right)
    return code
