"""From the raw outputs of a detector to candidate boxes: the heads of YOLOX and YOLOv8.

A decoder is a function of all outputs and the (height, width) of the model's input; it returns the
candidates of each image, boxes in pixels of that input. Which grid cell an anchor belongs to
follows from the strides, finest first and row by row, as both families lay them out:

    YOLOX   [N, A, 5 + C]: x = (tx + column) * stride, w = exp(tw) * stride, or both in pixels;
            score = objectness * class, of the best class of an anchor
    YOLOv8  [N, 4 + C, A] or [N, A, 4 + C]: centre and size in pixels, scores as they are, of every
            class of an anchor
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError

__all__ = ["DECODERS", "Candidates", "Decoder", "yolov8", "yolox"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Candidate boxes of one image, before any is suppressed.

    Attributes:
        boxes: [A, 4], left, top, right, bottom in pixels of the model's input.
        scores: [A, C], one for each class; or [A], the score of the class that `classes` names.
        classes: [A], or None where `scores` has a column for each class.
    """

    boxes: Array
    scores: Array
    classes: Array | None = None


Decoder = Callable[[Mapping[str, Array], tuple[int, int]], Sequence[Candidates]]

# YOLOX and YOLOv8 detect at three scales; large models add a coarse one, models for small objects
# a fine one.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
# exp() of a broken head overflows; a box this wide covers any image and is clipped to it later.
_LARGEST_LOG_SIZE = 20.0
# Sigmoid outputs stay in 0..1, give or take a quantization step; logits do not.
_SCORE_SLACK = 0.05
# Sides in pixels are not negative, give or take rounding; logarithms of sides are.
_SMALLEST_SIDE = -1.0


def yolox(outputs: Mapping[str, Array], size: tuple[int, int]) -> list[Candidates]:
    """Candidates of a YOLOX head, whether the model decodes its boxes or leaves them in grid units.

    Raises:
        ModelError: No output, or more than one, has the shape of a YOLOX head, or its values cannot
            be one.
    """
    name, head, grid = _head(outputs, size, "yolox", "[N, A, 5 + C]", columns=6, either_way=False)
    boxes, scores = head[..., :4], head[..., 4:]
    _check_scores(name, scores)
    if not _is_decoded(boxes, size):
        cells, stride = grid
        centre = (boxes[..., :2] + cells) * stride
        side = np.exp(np.minimum(boxes[..., 2:], _LARGEST_LOG_SIZE)) * stride
        boxes = np.concatenate([centre, side], axis=-1)
    joint = scores[..., :1] * scores[..., 1:]  # objectness times class: [N, A, C]
    best = joint.argmax(axis=-1)[..., None]
    only = np.zeros_like(joint)
    np.put_along_axis(only, best, np.take_along_axis(joint, best, axis=-1), axis=-1)
    return [Candidates(*row) for row in zip(_corners(boxes), only, strict=True)]


def yolov8(outputs: Mapping[str, Array], size: tuple[int, int]) -> list[Candidates]:
    """Candidates of a YOLOv8 or YOLO11 head: boxes already in pixels, no objectness.

    Raises:
        ModelError: No output, or more than one, has the shape of a YOLOv8 head, or its values
            cannot be one.
    """
    wanted = "[N, 4 + C, A] or [N, A, 4 + C]"
    name, head, _ = _head(outputs, size, "yolov8", wanted, columns=5, either_way=True)
    _check_scores(name, head[..., 4:])
    if head[..., 2:4].min() < _SMALLEST_SIDE:
        raise ModelError(
            f"output {name!r}: boxes have negative sides, so that they are not in pixels; "
            "is it a YOLOX head (--decoder yolox)?"
        )
    return [Candidates(*row) for row in zip(_corners(head[..., :4]), head[..., 4:], strict=True)]


DECODERS: dict[str, Decoder] = {"yolox": yolox, "yolov8": yolov8}


def _head(
    outputs: Mapping[str, Array],
    size: tuple[int, int],
    decoder: str,
    wanted: str,
    *,
    columns: int,
    either_way: bool,
) -> tuple[str, Float, tuple[Float, Float]]:
    """The one output that has an anchor for each grid cell: name, values [N, A, columns], grid."""
    grids = {len(grid[0]): grid for grid in (_grid(size, strides) for strides in _STRIDES)}
    fits = {}
    for name, value in outputs.items():
        if value.ndim != 3:
            continue
        if either_way and value.shape[2] in grids and value.shape[1] >= columns:
            fits[name] = value.transpose(0, 2, 1)
        elif value.shape[1] in grids and value.shape[2] >= columns:
            fits[name] = value
    if len(fits) != 1:
        came = ", ".join(f"{name!r} {list(value.shape)}" for name, value in outputs.items())
        anchors = " or ".join(str(count) for count in grids)
        raise ModelError(
            f"decoder {decoder} wants one output {wanted}, A = {anchors} anchors for an input of "
            f"{size[0]}x{size[1]}; the model gives {came}; use the decoder that fits, "
            "or your own: --decoder FILE.py"
        )
    name, value = next(iter(fits.items()))
    if not np.isfinite(value).all():
        raise ModelError(f"output {name!r} holds NaN or infinite values; the model is broken")
    return name, value.astype(np.float64), grids[value.shape[1]]


def _grid(size: tuple[int, int], strides: Sequence[int]) -> tuple[Float, Float]:
    """Column and row of each anchor's cell [A, 2], and its stride [A, 1]."""
    cells, steps = [], []
    for stride in strides:
        rows, columns = (-(-side // stride) for side in size)
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64))
        steps.append(np.full((rows * columns, 1), float(stride)))
    return np.concatenate(cells), np.concatenate(steps)


def _is_decoded(boxes: Float, size: tuple[int, int]) -> bool:
    """Whether centres and sizes are in pixels.

    In grid units the logarithms of some sizes are negative and centres lie within a few cells of
    their own; in pixels no size is negative and the centres reach across the input, far beyond the
    number of cells along it.
    """
    return bool((boxes[..., 2:] >= 0).all() and boxes[..., :2].max() > max(size) / _STRIDES[0][0])


def _check_scores(name: str, scores: Float) -> None:
    low, high = float(scores.min()), float(scores.max())
    if low < -_SCORE_SLACK or high > 1 + _SCORE_SLACK:
        raise ModelError(
            f"output {name!r}: scores run from {low:.3g} to {high:.3g}, not 0..1; the head must "
            "end in its sigmoid, and the decoder must be the one of the model's family"
        )


def _corners(boxes: Float) -> Float:
    """[..., cx, cy, w, h] -> [..., left, top, right, bottom]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)
