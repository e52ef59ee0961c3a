"""How an image of any size becomes the size that the model wants, and where its pixels land."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from onnxdrp.datareaders.base import Array
from onnxdrp.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Fit", "PadColor", "PadPlace", "Placement", "Resize"]

Resize: TypeAlias = Literal["stretch", "crop", "letterbox"]
PadPlace: TypeAlias = Literal["centre", "top-left"]
PadColor: TypeAlias = int | Sequence[int]


@dataclass(frozen=True)
class Placement:
    """Where pixels of the (upright) image land: x * scale_x + left, y * scale_y + top."""

    scale_x: float
    scale_y: float
    left: float
    top: float

    def to_model(self, points: Array) -> Array:
        """Map x, y (or x1, y1, x2, y2, ...) on the last axis from the image to the model."""
        scale, shift = self._axes(points)
        return np.asarray(points) * scale + shift

    def to_image(self, points: Array) -> Array:
        """Map x, y (or x1, y1, x2, y2, ...) on the last axis from the model to the image."""
        scale, shift = self._axes(points)
        return (np.asarray(points) - shift) / scale

    def _axes(self, points: Array) -> tuple[Array, Array]:
        pairs = np.shape(points)[-1] // 2
        return (
            np.tile([self.scale_x, self.scale_y], pairs),
            np.tile([self.left, self.top], pairs),
        )


@dataclass(frozen=True)
class Fit:
    """Bilinear resizing of images to height x width.

    stretch: both sides to the target, whatever the aspect ratio.
    crop: the shorter side to the target, then the centre.
    letterbox: the longer side to the target; the rest is `pad_color` (R, G, B or one value), the
        image in the centre or at the top left.
    """

    height: int
    width: int
    resize: Resize = "stretch"
    pad_color: PadColor = 114
    pad_place: PadPlace = "centre"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise OptionError(f"size {self.height}x{self.width}: both sides must be at least 1")
        if self.resize not in get_args(Resize):
            raise OptionError(
                f"resize {self.resize!r} is not known; it is {', '.join(get_args(Resize))}"
            )
        if self.pad_place not in get_args(PadPlace):
            raise OptionError(
                f"pad_place {self.pad_place!r} is not known; it is {', '.join(get_args(PadPlace))}"
            )
        if self.resize != "letterbox" and (self.pad_color != 114 or self.pad_place != "centre"):
            raise OptionError(
                f"pad_color and pad_place belong to resize letterbox, not {self.resize}"
            )
        values = self._pad_values()
        if len(values) not in (1, 3) or not all(0 <= value <= 255 for value in values):
            raise OptionError(f"pad_color {self.pad_color!r} is not one or three values of 0..255")

    def check(self, channels: int) -> None:
        """Refuse a pad colour that images of so many channels cannot have."""
        if channels == 1 and len(self._pad_values()) != 1:
            raise OptionError(f"pad_color {self.pad_color!r}: a grey image takes one value")

    def placement(self, width: int, height: int) -> Placement:
        """Say where an image of this size (after its EXIF orientation) lands."""
        scale_x, scale_y = self.width / width, self.height / height
        if self.resize == "stretch":
            return Placement(scale_x, scale_y, 0.0, 0.0)
        if self.resize == "crop":
            scale = max(scale_x, scale_y)
            left, top = (self.width - width * scale) / 2, (self.height - height * scale) / 2
            return Placement(scale, scale, left, top)
        wide, high = self._letterbox(width, height)
        centred = self.pad_place == "centre"
        left, top = ((self.width - wide) // 2, (self.height - high) // 2) if centred else (0, 0)
        return Placement(wide / width, high / height, float(left), float(top))

    def apply(self, image: "Image") -> "Image":
        """Return the image at the wanted size."""
        from PIL import Image

        bilinear = Image.Resampling.BILINEAR
        target = (self.width, self.height)
        if self.resize == "stretch":
            return image.resize(target, bilinear)
        place = self.placement(image.width, image.height)
        if self.resize == "crop":
            corners = place.to_image(np.array([0.0, 0.0, self.width, self.height]))
            x1, y1, x2, y2 = (float(corner) for corner in corners)
            box = (max(x1, 0.0), max(y1, 0.0), min(x2, image.width), min(y2, image.height))
            return image.resize(target, bilinear, box=box)
        canvas = Image.new(image.mode, target, self._pad(image.mode))
        small = image.resize(self._letterbox(image.width, image.height), bilinear)
        canvas.paste(small, (int(place.left), int(place.top)))
        return canvas

    def _letterbox(self, width: int, height: int) -> tuple[int, int]:
        scale = min(self.width / width, self.height / height)
        wide, high = int(width * scale + 0.5), int(height * scale + 0.5)
        return min(max(wide, 1), self.width), min(max(high, 1), self.height)

    def _pad(self, mode: str) -> int | tuple[int, ...]:
        values = self._pad_values()
        if mode == "L":
            return values[0]
        return values if len(values) == 3 else values * 3

    def _pad_values(self) -> tuple[int, ...]:
        color = self.pad_color
        return (color,) if isinstance(color, int) else tuple(color)
