"""How a stored array becomes an input of the model.

- uint8 arrays are pixels: turned to the model's layout, resized to its size, and
  (pixel * scale - mean) / std, as images are.
- Float arrays are taken as they are; they are turned if their layout is declared.
- Other integers and booleans must keep their values in the type that the model wants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from onnxdrp.datareaders.base import Array, Dim, InputInfo
from onnxdrp.datareaders.geometry import Fit, PadColor, PadPlace, Resize
from onnxdrp.datareaders.layouts import (
    AxisOrder,
    fits,
    format_shape,
    infer_layout,
    layout_of,
    spec,
    to_layout,
)
from onnxdrp.datareaders.pixels import Pixels
from onnxdrp.errors import DataError

__all__ = ["Adapter", "ArrayOptions", "adapter", "is_pixels"]

Adapter: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True)
class ArrayOptions:
    """What a user may say of arrays; all but the layout concerns uint8 arrays alone."""

    layout: AxisOrder | None = None
    size: tuple[int, int] | None = None
    resize: Resize = "stretch"
    pad_color: PadColor = 114
    pad_place: PadPlace = "centre"
    pixels: Pixels = field(default_factory=Pixels)

    def concerns_pixels(self) -> bool:
        """Say if any option is set that only uint8 arrays can honour."""
        return self != ArrayOptions(layout=self.layout)


def adapter(
    info: InputInfo, dtype: np.dtype[Any], shape: Sequence[int], options: ArrayOptions
) -> Adapter:
    """Return what makes an input of chunks of an array with this type and shape (rows first)."""
    if is_pixels(dtype, info):
        return _pixel_adapter(info, shape, options)
    turn = _declared_turn(info, shape, options.layout)
    if np.issubdtype(dtype, np.floating):
        if not np.issubdtype(info.dtype, np.floating):
            raise DataError(f"{spec(info)} but the array holds {dtype}")
        return lambda chunk: _cast(turn(chunk), info.dtype)
    if dtype.kind not in "iub" or info.dtype.kind not in "iub":
        raise DataError(
            f"{spec(info)} but the array holds {dtype}; give uint8 pixels, or {info.dtype}"
        )
    return lambda chunk: _exact(turn(chunk), info)


def is_pixels(dtype: np.dtype[Any], info: InputInfo) -> bool:
    """Say if an array of this type holds pixels."""
    return bool(dtype == np.uint8 and info.dtype != np.bool_)


def _cast(chunk: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what becomes infinite is refused afterwards, with its sample
        return chunk.astype(dtype, order="C")


def _exact(chunk: Array, info: InputInfo) -> Array:
    values = chunk.astype(info.dtype, order="C")
    if not np.array_equal(values, chunk):
        raise DataError(
            f"{spec(info)} but the array holds {chunk.min()}..{chunk.max()}, which does not fit"
        )
    return values


def _declared_turn(info: InputInfo, shape: Sequence[int], have: AxisOrder | None) -> Adapter:
    want = layout_of(info.shape)
    if have is None or want is None or len(shape) != 4:
        return lambda chunk: chunk
    return lambda chunk: to_layout(chunk, have, want)


def _pixel_adapter(info: InputInfo, shape: Sequence[int], options: ArrayOptions) -> Adapter:
    if info.shape is not None and len(info.shape) == 4 and len(shape) == 3:
        # grey images without a channel axis
        want = layout_of(info.shape) or options.layout
        want = want or infer_layout(info.shape, f"input {info.name!r}")  # raises
        images = _image_adapter(info, (*shape, 1), want, options)
        return lambda chunk: images(chunk[..., np.newaxis])
    if len(shape) == 4:
        have, want = _layouts(info, shape, options.layout)
        if have is not None:
            images = _image_adapter(info, _channels_last(shape, have), want, options)
            return lambda chunk: images(to_layout(chunk, have, "NHWC"))
    # vectors of pixels, or images that fit whichever axis holds the channels
    if options.size is not None:
        raise DataError(
            f"{spec(info)}: arrays of the shape {format_shape(shape)} cannot be resized; "
            "drop --size, or pass --layout if they are images"
        )
    options.pixels.check(info.name, info.dtype, None)
    return lambda chunk: options.pixels.apply(chunk, info.dtype)


def _layouts(
    info: InputInfo, shape: Sequence[int], declared: AxisOrder | None
) -> tuple[AxisOrder | None, AxisOrder]:
    """Return the layouts of data and model; None for data that fits but shows no channel axis."""
    want = layout_of(info.shape) or declared
    if want is None:
        if info.shape is not None and not _is_open(info.shape) and fits(shape, info.shape):
            return None, "NCHW"
        want = infer_layout(info.shape, f"input {info.name!r}")  # raises: nothing can be told
    have = declared or layout_of(shape)
    if have is None:
        have = want if fits(shape, info.shape) else infer_layout(shape, f"{spec(info)}; the array")
    return have, want


def _is_open(shape: Sequence[Dim]) -> bool:
    return not all(isinstance(dim, int) for dim in shape[1:])


def _image_adapter(
    info: InputInfo, shape: Sequence[int], want: AxisOrder, options: ArrayOptions
) -> Adapter:
    """Return what makes an input of uint8 images [n, H, W, C] of this shape."""
    wanted = (None,) * 4 if info.shape is None else info.shape
    channels = wanted[1 if want == "NCHW" else 3]
    if isinstance(channels, int) and channels != shape[3]:
        raise DataError(f"{spec(info)}: {channels} channels, but the array has {shape[3]}")
    options.pixels.check(info.name, info.dtype, shape[3])
    sides = wanted[2:4] if want == "NCHW" else wanted[1:3]
    height, width = (
        side if isinstance(side, int) else have
        for side, have in zip(sides, options.size or shape[1:3], strict=True)
    )
    if options.size not in (None, (height, width)):
        raise DataError(f"{spec(info)}, which the size {options.size} (H, W) does not fit")
    fit = Fit(height, width, options.resize, options.pad_color, options.pad_place)
    fit.check(shape[3])

    def images(chunk: Array) -> Array:
        if chunk.shape[1:3] != (height, width):
            chunk = np.stack([_resized(image, fit) for image in chunk])
        values = options.pixels.apply(chunk, info.dtype)
        return np.ascontiguousarray(to_layout(values, "NHWC", want))

    return images


def _resized(image: Array, fit: Fit) -> Array:
    """Resize [H, W, C] of any number of channels; three are RGB, which the pad colour needs."""
    from PIL import Image

    if image.shape[2] == 3:
        return np.asarray(fit.apply(Image.fromarray(np.ascontiguousarray(image))))
    bands = [
        fit.apply(Image.fromarray(np.ascontiguousarray(image[..., band])))
        for band in range(image.shape[2])
    ]
    return np.stack([np.asarray(band) for band in bands], axis=-1)


def _channels_last(shape: Sequence[int], have: AxisOrder) -> tuple[int, ...]:
    n, *rest = shape
    return (n, *rest) if have == "NHWC" else (n, rest[1], rest[2], rest[0])
