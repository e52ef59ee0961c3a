"""Small pictures: what a mask keeps, and how the values of a tensor lie, before and after.

Pictures are of bounded size, whatever the tensor's: a mask is pooled to at most 256 cells a side,
or as many as are asked for. A cell is as dark as the share of its weights that is kept; cells are
1, 2, 4, 8, 16, 32 or some 32 weights wide, so that blocks of 32 keep their edges.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.display import Picture, Table, escaped
from onnxdrp.geometry import WeightGeometry, to_slabs
from onnxdrp.masks import Mask

__all__ = ["heat_map", "histogram", "kept_shares", "runs"]

Array = npt.NDArray[Any]

_CELLS = 256
_SHOWN = 256  # pixels of the longer side, about
_RUN = 32
_LIGHT, _DARK = (237, 244, 252), (8, 48, 107)  # nothing kept, all kept: one hue, by lightness
_BINS, _WIDTH, _HEIGHT = 60, 360, 130
_BEFORE, _AFTER = "#0072b2", "#d55e00"  # of Okabe and Ito's palette


def heat_map(mask: Mask, cells: int = _CELLS) -> Picture:
    """What a mask keeps: outputs (axis 0) down, kernel positions by inputs (axis 1) across.

    Args:
        mask: of a weight.
        cells: at most, on each side; 64 of them take 5 kB at most.
    """
    shares = kept_shares(mask.keep, cells=(cells, cells))
    height, width = shares.shape
    zoom = max(1, _SHOWN // max(shares.shape))
    shape = "x".join(map(str, mask.shape))
    text = f"{shape}: {mask.count:,} of {mask.size:,} kept; dark is kept"
    return Picture(_png(shares), text, (zoom * width, max(8, zoom * height)))


def kept_shares(
    keep: npt.NDArray[np.bool_],
    geometry: WeightGeometry | None = None,
    cells: tuple[int, int] = (_CELLS, _CELLS),
) -> npt.NDArray[np.float64]:
    """The share that is kept in each cell, [rows, columns].

    Args:
        keep: bool, of the weight's shape, not empty.
        geometry: of the weight: outputs go down, input channels across at one kernel position after
            the other, as patterns see them; None: axis 0 is of outputs, axis 1 of inputs.
        cells: rows and columns, at most.
    """
    if geometry is not None and geometry.aligned:
        groups, outputs, slabs, block = geometry.view_shape
        matrix = to_slabs(keep, geometry).reshape(groups * outputs, slabs * block)
    elif keep.ndim < 2:
        matrix = keep.reshape(1, -1)
    else:
        matrix = np.moveaxis(keep, 1, -1).reshape(len(keep), -1)
    rows, columns = (_starts(*pair) for pair in zip(matrix.shape, cells, strict=True))
    counts = np.add.reduceat(matrix, rows, axis=0, dtype=np.int64)
    counts = np.add.reduceat(counts, columns, axis=1)
    sizes = np.outer(
        np.diff(rows, append=matrix.shape[0]), np.diff(columns, append=matrix.shape[1])
    )
    shares: npt.NDArray[np.float64] = counts / sizes
    return shares


def _starts(count: int, most: int) -> Array:
    """Where cells begin."""
    wide = -(-count // most)
    step = 1 << (wide - 1).bit_length() if wide <= _RUN else -(-wide // _RUN) * _RUN
    return np.arange(0, count, step)


def _png(shares: Array) -> str:
    from PIL import Image

    light, dark = np.array(_LIGHT), np.array(_DARK)
    steps = np.linspace(0, 1, 256)[:, None]
    image = Image.fromarray(np.rint(255 * shares).astype(np.uint8), "L")
    image.putpalette(np.rint(light + steps * (dark - light)).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def runs(mask: Mask, length: int = _RUN) -> Table:
    """How many runs of weights along an axis are pruned whole, kept whole, or neither."""
    keep, rows = mask.keep, []
    for axis in range(min(2, keep.ndim)):
        if keep.shape[axis] >= length:
            starts = np.arange(0, keep.shape[axis], length)
            whole = np.logical_and.reduceat(keep, starts, axis=axis).mean()
            empty = 1 - np.logical_or.reduceat(keep, starts, axis=axis).mean()
            shares = (empty, whole, 1 - empty - whole)
            rows.append((f"{length} along axis {axis}", *(f"{100 * s:.1f} %" for s in shares)))
    return Table(("blocks of", "pruned whole", "kept whole", "in part"), rows)


def histogram(
    before: Array | None,
    after: Array | None,
    names: tuple[str, str] = ("before", "after"),
    ends: Sequence[float] = (),
) -> Picture:
    """How the values of a tensor lie, before and after; zeros are told, not drawn.

    Args:
        before: filled, in blue; None: there is none.
        after: a line, in orange; None: there is none.
        names: of both sides.
        ends: of a range, drawn as upright lines.
    """
    values = [np.zeros(0) if side is None else np.asarray(side) for side in (before, after)]
    drawn = [side[np.isfinite(side) & (side != 0)] for side in values]
    extremes = [float(end) for side in drawn if side.size for end in (side.min(), side.max())]
    extremes += [float(end) for end in ends]
    low, high = (min(extremes), max(extremes)) if extremes else (0.0, 0.0)
    counts = [np.histogram(side, _BINS, (low, high))[0] for side in drawn]
    text = "; ".join(
        f"{name} ({colour}) {np.mean(side == 0) if side.size else 0:.1%} zeros, "
        f"{side.min() if side.size else 0:.3g} to {side.max() if side.size else 0:.3g}"
        for name, colour, side, given in zip(
            names, ("blue", "orange"), values, (before, after), strict=True
        )
        if given is not None
    )
    places = [(end - low) / (high - low) for end in ends if high > low]
    said = f"; range {' to '.join(f'{end:.4g}' for end in ends)}" if ends else ""
    svg = _histogram_svg(counts, f"{low:.3g}", f"{high:.3g}", places)
    uri = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return Picture(uri, text + said, (_WIDTH, _HEIGHT))


def _histogram_svg(counts: list[Array], low: str, high: str, places: Sequence[float]) -> str:
    top = max(1, *(int(side.max()) for side in counts))
    base = _HEIGHT - 18
    lines = (f"M{min(max(1.0, p * _WIDTH), _WIDTH - 1):.1f} 4V{base}" for p in places)
    parts = [
        f"<path d='{_steps(counts[0] / top, base)}' fill='{_BEFORE}' fill-opacity='.35'/>",
        f"<path d='{_steps(counts[1] / top, base)}' fill='none' stroke='{_AFTER}'/>",
        f"<path d='M0 {base}H{_WIDTH}{''.join(lines)}' stroke='#8b949e'/>",
        f"<text x='2' y='{_HEIGHT - 5}'>{escaped(low)}</text>",
        f"<text x='{_WIDTH - 2}' y='{_HEIGHT - 5}' text-anchor='end'>{escaped(high)}</text>",
    ]
    style = (
        "path{stroke-width:1.6}text{font:11px sans-serif;fill:#1f2328}.g{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{fill:#12161c}}"
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}'>"
        f"<style>{style}</style><rect class='g' width='100%' height='100%'/>{''.join(parts)}</svg>"
    )


def _steps(heights: Array, base: int) -> str:
    """The outline of bars, 0 to 1 high, as a path."""
    xs = np.linspace(0, _WIDTH, len(heights) + 1)
    ys = base - heights * (base - 4)
    tops = "".join(f"V{y:.1f}H{x:.1f}" for y, x in zip(ys, xs[1:], strict=True))
    return f"M0 {base}{tops}V{base}"
