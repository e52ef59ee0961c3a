"""Tensors: ranges with their histograms, and pictures of masks."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from onnxdrp.html.charts import histogram
from onnxdrp.html.markup import Markup, Node, breakable, element, join
from onnxdrp.html.tables import Cell, Column, Row, table
from onnxdrp.html.words import number, shape

__all__ = ["masks", "ranges"]

Report = Mapping[str, Any]


def ranges(report: Report) -> Markup | None:
    """A row a tensor: its histogram, with the range that it is quantized with."""
    found = report.get("ranges") or {}
    tensors: Mapping[str, Report] = found.get("tensors") or {}
    if not tensors:
        return None
    all_heads: list[tuple[str, Column]] = [
        ("", Column("#", figures=True)),
        ("", Column("Tensor")),
        (
            "histogram",
            Column("Values", title="Logarithms of counts, from the least to the largest"),
        ),
        ("low", Column("Low", figures=True)),
        ("high", Column("High", figures=True)),
        ("min", Column("Least seen", figures=True)),
        ("max", Column("Largest seen", figures=True)),
        ("outside", Column("Outside", figures=True, title="Share of the values beyond the range")),
        ("dtype", Column("Type")),
        ("scale", Column("Scale", figures=True)),
        ("zero_point", Column("Zero point", figures=True)),
    ]
    there = {key for row in tensors.values() for key in row} | {""}
    heads = [(key, column) for key, column in all_heads if key in there]
    rows: list[Row] = []
    for i, (name, row) in enumerate(tensors.items(), 1):
        cells = [_range_cell(key, row) for key, _ in heads[2:]]
        rows.append(("", (Cell(str(i), i), breakable(name), *cells)))
    caption = "Ranges of activations"
    if method := found.get("method"):
        said = ", ".join(str(v) if k == "name" else f"{k} {v}" for k, v in method.items())
        caption += f", method {said}"
    if samples := found.get("samples"):
        caption += f", {samples:,} samples"
    note = (
        element(
            "p",
            "Counts are drawn as logarithms, so that single values are seen. What is shaded "
            "lies outside of the range, and is clipped to its ends.",
            class_="lead",
        )
        if "histogram" in there
        else None
    )
    return join([note, table([c for _, c in heads], rows, caption, search="Find tensors")])


def _range_cell(key: str, row: Report) -> Cell | Node:
    value = row.get(key)
    if key == "histogram":
        if not value:
            return Cell("", None)
        least, most = row["min"], row["max"]
        seen, kept = (
            f"{number(a, 3)} to {number(b, 3)}"
            for a, b in ((least, most), (row["low"], row["high"]))
        )
        label = f"values from {seen}, range {kept}"
        drawn = histogram(value, least, most, row["low"], row["high"], label)
        return Cell(drawn, most - least)
    if key == "outside" and value is not None:
        return Cell(f"{number(100 * value, 2)} %", value)
    return Cell(number(value), value) if isinstance(value, int | float) else value


def masks(report: Report) -> Markup | None:
    """A picture of each mask."""
    pictures = []
    for name, mask in (report.get("masks") or {}).items():
        lines_: list[str] = mask.get("picture") or []
        if not lines_:
            continue
        size = 1
        for side in mask["shape"]:
            size *= side
        kept = f"{100 * mask['kept'] / size:.1f} % kept"
        image = element("img", src=_png(lines_), alt=f"Mask of {name}: {kept}")
        caption = element(
            "figcaption", element("code", breakable(name)), f" {shape(mask['shape'])}, {kept}"
        )
        pictures.append(element("figure", image, caption))
    if not pictures:
        return None
    note = (
        "Blue is kept, empty is zero. Outputs go down; input channels go across, at one kernel "
        "position after the other. Large weights are drawn as shares."
    )
    return join([element("p", note, class_="lead"), element("div", *pictures, class_="masks")])


def _png(lines_: Sequence[str]) -> str:
    """An image of hexadecimal digits, as blue that lets through what is not kept."""
    from PIL import Image

    image = Image.new("P", (len(lines_[0]), len(lines_)))
    image.putdata([int(digit, 16) for line in lines_ for digit in line])
    image.putpalette([0x2F, 0x7D, 0xD1] * 16)
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, transparency=bytes(17 * level for level in range(16)))
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
