"""Light changes of images that leave what they show: mirrored, and moved by a few pixels.

Half of the images are mirrored left to right; each is moved by up to an eighth of its height and of
its width, and what comes into view repeats the edge.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["augmented"]

Array = npt.NDArray[Any]


def augmented(images: Array, layout: Literal["NCHW", "NHWC"], rng: np.random.Generator) -> Array:
    """A changed copy of images [N, C, H, W] or [N, H, W, C], of the same type."""
    down = 2 if layout == "NCHW" else 1  # the axis of rows
    height, width = images.shape[down], images.shape[down + 1]
    changed = np.empty_like(images)
    mirrored = rng.random(len(images)) < 0.5
    ys = rng.integers(-(height // 8), height // 8 + 1, len(images))
    xs = rng.integers(-(width // 8), width // 8 + 1, len(images))
    for i, image in enumerate(images):
        rows = np.clip(np.arange(height) + ys[i], 0, height - 1)
        columns = np.clip(np.arange(width) + xs[i], 0, width - 1)
        columns = columns[::-1] if mirrored[i] else columns
        changed[i] = image.take(rows, down - 1).take(columns, down)
    return changed
