"""Folders of image files, for models that want channels first (NCHW) or last (NHWC)."""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxdrp.datareaders.base import (
    Array,
    Batch,
    DataReader,
    Dim,
    InputInfo,
    ModelLike,
    inputs_of,
)
from onnxdrp.datareaders.decode import decode
from onnxdrp.datareaders.files import IMAGES, existing_folder, find_files, spread
from onnxdrp.datareaders.geometry import Fit, PadColor, PadPlace, Placement, Resize
from onnxdrp.datareaders.labels import read_labels
from onnxdrp.datareaders.layouts import AxisOrder, layout_of, spec
from onnxdrp.datareaders.pixels import ChannelValues, Color, Pixels
from onnxdrp.datareaders.prefetch import prefetch
from onnxdrp.errors import DataError, OptionError

__all__ = ["ImageReader", "NCHWDataReader", "NHWCDataReader"]


class ImageReader(DataReader):
    """Reads the images of a folder; use `NCHWDataReader` or `NHWCDataReader`.

    JPEG, PNG, BMP and WebP files, nested folders too, sorted by their relative path, are turned
    upright (EXIF), converted to RGB (grey for a model with one channel), resized bilinearly, and
    become (pixel * scale - mean) / std in the type that the model wants. They are decoded one or
    two batches ahead on a thread. To prepare images in a way of your own, override `read`.

    Args:
        folder: where the images are.
        norm_mean: mean after scaling, one value or one a channel; default 0.
        norm_std: standard deviation after scaling, one value or one a channel; default 1.
        model: the model, or its file: tells the input's name, type, size and channels. Without
            one, give `size` and `input_name`; the input is then float32 with three channels.
        size: (height, width); default the model's. Needed where the model leaves it open.
        resize: "stretch", "crop" (shorter side to the size, then the centre) or "letterbox".
        pad_color: what letterbox fills with: one value, or R, G, B.
        pad_place: where letterbox puts the image: "centre" or "top-left".
        color: "rgb" or "bgr", as the model wants it.
        scale: what pixels are multiplied with first; default 1/255. 1 keeps 0..255.
        limit: read only so many images, drawn evenly over the sub-folders.
        batch: samples a batch.
        seed: draws the images for `limit`.
        input_name: the input to feed, where the model has several.
        labels: "folders" (class = index of the sorted sub-folder), or a CSV file with the columns
            file,class_index.

    Attributes:
        files: the image files, one a sample, in order.
    """

    _order: ClassVar[AxisOrder | None] = None

    def __init__(
        self,
        folder: str | os.PathLike[str],
        norm_mean: ChannelValues | None = None,
        norm_std: ChannelValues | None = None,
        model: ModelLike | None = None,
        *,
        size: tuple[int, int] | None = None,
        resize: Resize = "stretch",
        pad_color: PadColor = 114,
        pad_place: PadPlace = "centre",
        color: Color = "rgb",
        scale: float | None = None,
        limit: int | None = None,
        batch: int = 1,
        seed: int = 0,
        input_name: str | None = None,
        labels: str | os.PathLike[str] | None = None,
    ) -> None:
        if self._order is None:
            raise TypeError("use NCHWDataReader or NHWCDataReader")
        if batch < 1:
            raise OptionError(f"batch {batch}: at least one sample a batch is needed")
        self.layout = self._order
        self.batch = batch
        self._target = _target(model, self._order, size, input_name)
        self._fit = Fit(self._target.height, self._target.width, resize, pad_color, pad_place)
        self._pixels = Pixels(scale, norm_mean, norm_std, color)
        self._pixels.check(self._target.name, self._target.dtype, self._target.channels)
        self._fit.check(self._target.channels)

        top = existing_folder(folder)
        names = find_files(top, IMAGES)
        if not names:
            raise DataError(f"{top}: holds no image ({', '.join(IMAGES)})")
        chosen = spread(names, limit, seed)
        self.files: list[Path] = [top / names[index] for index in chosen]
        self.samples = len(self.files)
        self.labels = None if labels is None else read_labels(labels, top, names)[chosen]

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass over the images."""
        # of a copy: were this reader held by the thread, dropping it would not end its `get_next`
        return prefetch(copy.copy(self)._decoded())

    def read(self, path: Path) -> Array:
        """Return one sample as the model wants it, without the batch axis."""
        image = self._fit.apply(decode(path, self._target.channels))
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        values = self._pixels.apply(pixels, self._target.dtype)
        return values if self.layout == "NHWC" else np.moveaxis(values, -1, 0).copy()

    def placement(self, width: int, height: int) -> Placement:
        """Say where the pixels of an image of this (upright) size land in the model's input."""
        return self._fit.placement(width, height)

    def pick(self, indices: NDArray[np.int64]) -> "ImageReader":
        """Return a reader of these images alone."""
        chosen = copy.copy(self)
        chosen.files = [self.files[index] for index in indices]
        chosen.samples = len(chosen.files)
        chosen.labels = None if self.labels is None else self.labels[indices]
        return chosen

    def _decoded(self) -> Iterator[Batch]:
        for start in range(0, len(self.files), self.batch):
            samples = [self.read(path) for path in self.files[start : start + self.batch]]
            yield {self._target.name: np.ascontiguousarray(np.stack(samples))}


class NCHWDataReader(ImageReader):
    """A folder of images for a model that wants [N, channels, height, width] (as PyTorch exports).

    All options are those of `ImageReader`.

    Example:
        >>> NCHWDataReader("calibrate_images", [0.49, 0.48, 0.45], [0.2, 0.2, 0.2], "modA.onnx")
        ... # doctest: +SKIP
    """

    _order = "NCHW"


class NHWCDataReader(ImageReader):
    """A folder of images for a model that wants [N, height, width, channels] (as Keras exports).

    All options are those of `ImageReader`.
    """

    _order = "NHWC"


@dataclass(frozen=True)
class _Target:
    """What each image becomes."""

    name: str
    dtype: np.dtype[Any]
    channels: int
    height: int
    width: int


def _target(
    model: ModelLike | None, order: AxisOrder, size: tuple[int, int] | None, name: str | None
) -> _Target:
    if model is None:
        if size is None or name is None:
            raise OptionError("without a model, an image reader needs size=(H, W) and input_name")
        return _Target(name, np.dtype(np.float32), 3, *size)
    info = _choose(inputs_of(model), name)
    shape = (None,) * 4 if info.shape is None else info.shape
    if len(shape) != 4:
        raise DataError(f"{spec(info)}: images have four axes; give it arrays (.npy or .npz)")
    if (seen := layout_of(shape)) not in (None, order):
        raise DataError(
            f"{spec(info)}, but {order}DataReader gives {order}; "
            f"use {seen}DataReader (--layout {str(seen).lower()})"
        )
    channels = shape[1 if order == "NCHW" else 3]
    if channels not in (1, 3) and isinstance(channels, int):
        raise DataError(
            f"{spec(info)}: as {order} that is {channels} channels, but images have 1 or 3; "
            "use the other layout, or give it arrays (.npy or .npz)"
        )
    sides = shape[2:4] if order == "NCHW" else shape[1:3]
    height, width = _size(info, sides, size)
    return _Target(
        info.name, info.dtype, channels if isinstance(channels, int) else 3, height, width
    )


def _choose(inputs: Sequence[InputInfo], name: str | None) -> InputInfo:
    names = [info.name for info in inputs]
    if name is None:
        if len(names) != 1:
            raise DataError(
                f"the model has the inputs {', '.join(names)}; a folder of images feeds one: "
                "give .npz files with an array for each input"
            )
        return inputs[0]
    if name not in names:
        raise OptionError(f"the model has no input {name!r}; it has {', '.join(names)}")
    return inputs[names.index(name)]


def _size(info: InputInfo, sides: tuple[Dim, ...], size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        height, width = sides
        if not isinstance(height, int) or not isinstance(width, int):
            raise DataError(f"{spec(info)}: the model leaves the image size open; pass --size HxW")
        return height, width
    for have, want in zip(size, sides, strict=True):
        if isinstance(want, int) and have != want:
            raise DataError(f"{spec(info)}, which size {size[0]}x{size[1]} (HxW) does not fit")
    return size
