"""From candidates to detections: threshold, non-maximum suppression, the image's own pixels.

Greedy, as every YOLO does it: the best-scored box stays, boxes of its class that overlap it by more
than the threshold (intersection over union) go, and so on down. At most 30,000 candidates an image
are looked at, best first.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxdrp.detection.decode import Candidates

__all__ = ["Detections", "Placement", "suppress", "to_image"]

Array = npt.NDArray[Any]

_MOST_CANDIDATES = 30_000


class Placement(Protocol):
    """Where a reader put an image in the model's input: x_model = x_image * scale_x + left."""

    @property
    def scale_x(self) -> float: ...  # noqa: D102
    @property
    def scale_y(self) -> float: ...  # noqa: D102
    @property
    def left(self) -> float: ...  # noqa: D102
    @property
    def top(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best score first.

    Attributes:
        boxes: float64 [n, 4], left, top, right, bottom.
        scores: float64 [n].
        classes: int64 [n].
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]


def suppress(
    candidates: Candidates, *, conf: float = 0.001, nms: float = 0.65, limit: int = 300
) -> Detections:
    """The candidates scored above `conf` that no better one of their class overlaps too much.

    Args:
        candidates: Of one image.
        conf: Scores must be above it.
        nms: Largest intersection over union of two boxes of one class that both stay.
        limit: Most detections returned, the best ones.
    """
    if candidates.classes is None:
        rows, classes = np.nonzero(candidates.scores > conf)
        scores = candidates.scores[rows, classes]
    else:
        rows = np.flatnonzero(candidates.scores > conf)
        scores, classes = candidates.scores[rows], candidates.classes[rows]
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    found = Detections(
        candidates.boxes[rows[order]].astype(np.float64),
        scores[order].astype(np.float64),
        classes[order].astype(np.int64),
    )
    keep = _greedy(found, nms, limit)
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep])


def _greedy(found: Detections, threshold: float, limit: int) -> npt.NDArray[np.intp]:
    """Indices that stay; scores are sorted, so the search ends with the `limit`-th."""
    boxes, classes = found.boxes, found.classes
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left = np.arange(len(boxes))
    keep: list[int] = []
    while left.size and len(keep) < limit:
        best, left = left[0], left[1:]
        keep.append(int(best))
        corner = np.minimum(boxes[left, 2:], boxes[best, 2:])
        overlap = np.prod(
            np.maximum(corner - np.maximum(boxes[left, :2], boxes[best, :2]), 0.0), axis=1
        )
        # overlap / union > threshold, written so that boxes without an area divide nothing by zero
        same = overlap > threshold * (areas[left] + areas[best] - overlap)
        left = left[~(same & (classes[left] == classes[best]))]
    return np.array(keep, np.intp)


def to_image(found: Detections, placement: Placement, width: int, height: int) -> Detections:
    """Detections in the model's input -> in pixels of the image, clipped to it."""
    offset = np.array([placement.left, placement.top] * 2)
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    boxes = np.clip((found.boxes - offset) / scale, 0.0, np.array([width, height] * 2, np.float64))
    return Detections(boxes, found.scores, found.classes)
