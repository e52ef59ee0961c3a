"""Image files as upright 8-bit pixels."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxdrp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decode"]


def decode(path: Path, channels: int) -> "Image":
    """Return the image, turned as its EXIF data says: mode L for 1 channel, RGB for 3.

    Grey becomes three equal channels, colours become their luma, alpha is dropped, and 16-bit
    grey becomes the nearest 8-bit value.

    Raises:
        DataError: if the file is no image, or a broken one; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return _to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise DataError(f"{path}: cannot read this image: {error}") from error


def _to_mode(image: "Image", mode: str) -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow clips 16-bit values above 255 when it converts them
        deep = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct conversion
    return image if image.mode == mode else image.convert(mode)
