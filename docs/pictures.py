"""Draws docs/img/patterns.svg: what each sparsity pattern keeps of the same random weights.

    python docs/pictures.py [FOLDER]

A row is an output, a column an input channel; lines part the slabs of 32. Coloured is what is kept.
"""

import sys
from pathlib import Path

import numpy as np

from onnxdrp.patterns import parse_pattern

PATTERNS = ("block", "flex-nm", "nm", "row", "unstructured")
OUTPUTS, SLABS, RATE = 16, 3, 0.7
CELL, LEFT, GAP = 5, 92, 14
INK, PAPER, LINE = "#3f6fb5", "#88888826", "#888888"


def drawn(name: str, top: int) -> list[str]:
    """One pattern, its upper edge at `top`."""
    pattern = parse_pattern(name)
    rng = np.random.default_rng(1)
    sizes = rng.gamma(1.0, 1.0, (OUTPUTS, SLABS, 1)) * rng.gamma(1.0, 1.0, (OUTPUTS, SLABS, 32))
    keep = pattern.mask(sizes[np.newaxis], RATE).reshape(OUTPUTS, -1)
    width, height = 32 * SLABS * CELL, OUTPUTS * CELL
    path = []
    for y, row in enumerate(keep):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row, [0]))))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            path.append(f"M{LEFT + CELL * start} {top + CELL * y}h{CELL * (end - start)}v4h-")
            path[-1] += f"{CELL * (end - start)}z"
    lines = "".join(f"M{LEFT + 32 * CELL * s} {top}v{height}" for s in range(1, SLABS))
    return [
        f'<text x="0" y="{top + height // 2 + 4}">{name}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{width}" height="{height}" fill="{PAPER}"/>',
        f'<path d="{"".join(path)}" fill="{INK}"/>',
        f'<path d="{lines}" stroke="{LINE}"/>',
    ]


def picture() -> str:
    """All patterns, one below the other, as SVG."""
    step = OUTPUTS * CELL + GAP
    size = f'viewBox="0 0 {LEFT + 32 * SLABS * CELL} {step * len(PATTERNS) - GAP}"'
    body = [line for i, name in enumerate(PATTERNS) for line in drawn(name, i * step)]
    font = f'font-family="sans-serif" font-size="13" fill="{LINE}"'
    title = f"What each pattern keeps at {RATE:g} of {OUTPUTS} outputs and {32 * SLABS} inputs"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>'
    return "\n".join([head, f"<title>{title}</title>", *body, "</svg>\n"])


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "img"
    (folder / "patterns.svg").write_text(picture(), encoding="utf-8")
