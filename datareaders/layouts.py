"""Where the channels stand: read off a shape when that is unambiguous, converted at the edge."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import numpy as np

from onnxdrp.datareaders.base import Array, Dim, InputInfo
from onnxdrp.errors import DataError, OptionError

__all__ = ["AxisOrder", "fits", "infer_layout", "layout_of", "parse_layout", "spec", "to_layout"]

AxisOrder: TypeAlias = Literal["NCHW", "NHWC"]
CHANNELS = (1, 3, 4)


def layout_of(shape: Sequence[Dim] | None) -> AxisOrder | None:
    """Return the layout that a shape shows, or None if it shows none or both."""
    if shape is None or len(shape) != 4:
        return None
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        return None
    return "NCHW" if first else "NHWC"


def infer_layout(shape: Sequence[Dim] | None, name: str = "input") -> AxisOrder:
    """Return "NCHW" or "NHWC": the one of axes 1 and 3 that has 1, 3 or 4 entries is the channels.

    Raises:
        DataError: if both have, or neither.
    """
    layout = layout_of(shape)
    if layout is None:
        raise DataError(
            f"{name}: the shape {format_shape(shape)} does not show where its channels are; "
            "pass --layout nchw or --layout nhwc"
        )
    return layout


def parse_layout(layout: str | None) -> AxisOrder | None:
    """Return the layout in capitals; None stays None (to be read off the shapes)."""
    if layout is None:
        return None
    if layout.upper() not in ("NCHW", "NHWC"):
        raise OptionError(f"layout {layout!r} is not known; it is nchw or nhwc")
    return cast("AxisOrder", layout.upper())


def to_layout(images: Array, have: AxisOrder, want: AxisOrder) -> Array:
    """Turn a batch of images [N, ...] from one layout into the other (a view)."""
    if have == want:
        return images
    source, target = (3, 1) if want == "NCHW" else (1, 3)
    return np.moveaxis(images, source, target)


def fits(shape: Sequence[int], wanted: Sequence[Dim] | None) -> bool:
    """Say if data of this shape can be fed where `wanted` is declared; batch sizes may differ."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or have == want
        for have, want in zip(shape[1:], wanted[1:], strict=True)
    )


def format_shape(shape: Sequence[Dim] | None) -> str:
    """Write a shape as users read it: [N, 3, ?, ?]."""
    if shape is None:
        return "[unknown]"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def spec(info: InputInfo) -> str:
    """Say what an input wants: "input 'x' wants [N, 3, 224, 224] float32 (NCHW)"."""
    layout = layout_of(info.shape)
    suffix = f" ({layout})" if layout else ""
    return f"input {info.name!r} wants {format_shape(info.shape)} {info.dtype}{suffix}"
