"""What becomes of 8-bit pixels on the way into the model: (pixel * scale - mean) / std."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from onnxdrp.datareaders.base import Array
from onnxdrp.errors import DataError, OptionError

__all__ = ["ChannelValues", "Color", "Pixels"]

Color: TypeAlias = Literal["rgb", "bgr"]
ChannelValues: TypeAlias = float | Sequence[float]


@dataclass(frozen=True)
class Pixels:
    """The value that the model gets for a pixel: (pixel * scale - mean) / std.

    Mean and std are in units after the scale, one value or one a channel, in the order in which
    the model gets the channels. A model that wants integers gets the raw pixels.

    Attributes:
        scale: 1/255 if None; 1 for a model that wants raw 0..255.
        mean: 0 if None.
        std: 1 if None.
        color: order of the three colours that the model wants; the images are RGB.
    """

    scale: float | None = None
    mean: ChannelValues | None = None
    std: ChannelValues | None = None
    color: Color = "rgb"

    def __post_init__(self) -> None:
        if self.color not in get_args(Color):
            raise OptionError(f"color {self.color!r} is not known; it is rgb or bgr")
        scale = 1.0 if self.scale is None else self.scale
        if not np.isfinite(scale) or scale == 0:
            raise OptionError(f"scale {self.scale} must be a number other than 0")
        if not np.isfinite(_values(self.mean, 0.0)).all():
            raise OptionError(f"mean {self.mean} must be finite numbers")
        std = _values(self.std, 1.0)
        if not (np.isfinite(std) & (std > 0)).all():
            raise OptionError(f"std {self.std} must be finite numbers above 0")

    def check(self, name: str, dtype: np.dtype[Any], channels: int | None) -> None:
        """Refuse options that do not go with the input (`channels` None: it has no such axis)."""
        for option, value in (("mean", self.mean), ("std", self.std)):
            count = _values(value, 0.0).size
            if count not in (1, channels):
                have = "no channel axis" if channels is None else f"{channels} channels"
                raise OptionError(f"{option} has {count} values but input {name!r} has {have}")
        if self.color == "bgr" and channels != 3:
            raise OptionError(
                f"color bgr needs 3 channels; input {name!r} has {channels or 'none'}"
            )
        if np.issubdtype(dtype, np.floating):
            return
        if not np.issubdtype(dtype, np.integer) or dtype == np.int8:
            raise DataError(
                f"input {name!r} wants {dtype}, which 8-bit pixels do not fit; "
                "give it arrays of that type"
            )
        plain = self.scale in (None, 1) and not _values(self.mean, 0.0).any()
        if not plain or (_values(self.std, 1.0) != 1).any():
            raise OptionError(
                f"input {name!r} wants {dtype}, so it gets the raw pixels; drop scale, mean and std"
            )

    def apply(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        """Map uint8 pixels [..., C] to what the model wants, in its dtype."""
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        if not np.issubdtype(dtype, np.floating):
            return pixels.astype(dtype)
        wide = np.promote_types(dtype, np.float32)  # float16 would round three times
        values = pixels.astype(wide)
        values *= wide.type(1 / 255 if self.scale is None else self.scale)
        values -= _values(self.mean, 0.0).astype(wide)
        values /= _values(self.std, 1.0).astype(wide)
        return values.astype(dtype, copy=False)


def _values(value: ChannelValues | None, default: float) -> Array:
    return np.atleast_1d(np.asarray(default if value is None else value, dtype=np.float64))
