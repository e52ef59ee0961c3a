"""Mean average precision of detections, by pycocotools: the figure that everyone reports.

map_50 counts a detection as right when it overlaps an object of its class by half (intersection
over union 0.5); map_5095 is the mean over the thresholds 0.50, 0.55, ..., 0.95. Objects of all
sizes, the best 100 detections of each class in an image. An ignored object is handed over as a
crowd, the way in which pycocotools leaves objects out.

The 95 % interval is a delete-a-group jackknife over the images: the figure is taken again without
each of G groups, and sqrt((G - 1) / G * sum((figure_g - mean)^2)) is its standard error. Two
results on the same images leave out the same groups, so `difference` is paired.
"""

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.detection.labels import GroundTruth
from onnxdrp.detection.nms import Detections
from onnxdrp.errors import DataError, OptionError

__all__ = ["ClassScore", "DetectionScore", "Estimate", "average_precision", "difference"]

_GROUPS = 20
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """How well the objects of one class were found.

    Attributes:
        index: Of the class, as the model numbers it.
        name: "" where the labels name none.
        objects: That were to be found.
        map_50: Average precision at an overlap of 0.5.
        map_5095: Its mean over overlaps from 0.5 to 0.95.
    """

    index: int
    name: str
    objects: int
    map_50: float
    map_5095: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {"class": self.index, "objects": self.objects}
        named = {"name": self.name} if self.name else {}
        return found | named | {"map_50": self.map_50, "map_5095": self.map_5095}


@dataclass(frozen=True)
class DetectionScore:
    """How well objects were found.

    Attributes:
        map_50: Mean average precision at an overlap of 0.5.
        map_5095: Its mean over overlaps from 0.5 to 0.95.
        samples: Images evaluated.
        objects: Objects that were to be found.
        detections: Detections that were scored.
        replicates: float64 [G, 2], map_50 and map_5095 without each group of images; no rows
            for a single image, or where one group holds all objects.
        classes: Those that have objects, in the model's order.
    """

    map_50: float
    map_5095: float
    samples: int
    objects: int
    detections: int
    replicates: npt.NDArray[np.float64]
    classes: tuple[ClassScore, ...]

    def intervals(self) -> dict[str, Estimate] | None:
        """The 95 % intervals by name, within 0..1; None without replicates."""
        return _estimates(np.array([self.map_50, self.map_5095]), self.replicates, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        result: dict[str, Any] = {"map_50": self.map_50, "map_5095": self.map_5095}
        for name, estimate in (self.intervals() or {}).items():
            result[f"{name}_interval"] = [estimate.low, estimate.high]
        return result | {
            "samples": self.samples,
            "objects": self.objects,
            "detections": self.detections,
            "classes": [one.as_dict() for one in self.classes],
        }

    def __str__(self) -> str:
        intervals = self.intervals() or {}
        texts = [
            f"{name} {value:.4f}"
            + (f" [{i.low:.4f}, {i.high:.4f}]" if (i := intervals.get(name)) else "")
            for name, value in (("map_50", self.map_50), ("map_5095", self.map_5095))
        ]
        return f"{', '.join(texts)} on {self.samples:,} images with {self.objects:,} objects"


def difference(before: DetectionScore, after: DetectionScore) -> dict[str, Estimate] | None:
    """`after` minus `before` on the same images, with paired 95 % intervals.

    None without replicates.

    Raises:
        DataError: The two were not taken on the same number of images.
    """
    if before.samples != after.samples or before.objects != after.objects:
        raise DataError(
            f"results on {before.samples} and {after.samples} images cannot be paired; "
            "evaluate both models on the same images"
        )
    values = np.array([after.map_50 - before.map_50, after.map_5095 - before.map_5095])
    return _estimates(values, after.replicates - before.replicates, -1.0)


def _estimates(
    values: npt.NDArray[np.float64], replicates: npt.NDArray[np.float64], lowest: float
) -> dict[str, Estimate] | None:
    groups = len(replicates)
    if groups < 2:
        return None
    from scipy.stats import t

    spread = np.sum((replicates - replicates.mean(axis=0)) ** 2, axis=0)
    margin = float(t.ppf(0.975, groups - 1)) * np.sqrt((groups - 1) / groups * spread)
    rows = zip(
        values, np.maximum(values - margin, lowest), np.minimum(values + margin, 1.0), strict=True
    )
    return {
        name: Estimate(*(float(item) for item in row))
        for name, row in zip(("map_50", "map_5095"), rows, strict=True)
    }


def average_precision(truth: GroundTruth, found: Sequence[Detections]) -> DetectionScore:
    """Mean average precision of the detections of each image.

    Args:
        truth: The labels.
        found: The detections, one entry an image in the order of `truth.images`, in pixels of the
            image.

    Raises:
        DataError: The two do not belong together, or the labels hold no object.
        OptionError: pycocotools is not installed.
    """
    if len(found) != len(truth.images):
        raise DataError(
            f"{len(found)} images have detections, {len(truth.images)} have labels; they must agree"
        )
    if not truth.count:
        raise DataError("the labels hold no object, so that there is nothing to score")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        evaluation = _evaluation(truth, found)
        evaluation.evaluate()
        whole = _means(evaluation, evaluation.evalImgs)
        classes = tuple(_classes(evaluation, truth))
        parts = [_means(evaluation, part) for part in _parts(evaluation, len(found))]
    replicates = np.array(parts, np.float64).reshape(-1, 2)
    if np.isnan(replicates).any():  # all objects lie in one group of images
        replicates = replicates[:0]
    return DetectionScore(
        map_50=float(whole[0]),
        map_5095=float(whole[1]),
        samples=len(found),
        objects=truth.count,
        detections=sum(len(item.scores) for item in found),
        replicates=replicates,
        classes=classes,
    )


def _evaluation(truth: GroundTruth, found: Sequence[Detections]) -> Any:
    """A COCOeval of the boxes, for objects of any size."""
    try:
        coco: Any = importlib.import_module("pycocotools.coco")
        cocoeval: Any = importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise OptionError(
            f"mean average precision needs pycocotools ({error}): pip install 'onnxdrp[detection]'"
        ) from error
    every = [(item.boxes, item.classes, item.ignored, None) for item in truth.objects]
    labels = _coco(coco, every, range(len(every)))
    rows = [(item.boxes, item.classes, None, item.scores) for item in found]
    evaluation = cocoeval.COCOeval(labels, _coco(coco, rows, range(len(rows))), "bbox")
    evaluation.params.catIds = sorted({int(c) for item in truth.objects for c in item.classes})
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.params.maxDets = [_MOST_DETECTIONS]
    return evaluation


def _coco(coco: Any, rows: Sequence[tuple[Any, Any, Any, Any]], images: Sequence[int]) -> Any:
    """A COCO object of (boxes, classes, ignored, scores) for each image.

    Ids start at 1: pycocotools takes 0 for unmatched.
    """
    marks: list[dict[str, Any]] = []
    for image, (boxes, classes, ignored, scores) in zip(images, rows, strict=True):
        sides = boxes[:, 2:] - boxes[:, :2]
        for number, (corner, side) in enumerate(zip(boxes[:, :2], sides, strict=True)):
            marks.append(
                {
                    "id": len(marks) + 1,
                    "image_id": image,
                    "category_id": int(classes[number]),
                    "bbox": [*corner.tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    "iscrowd": int(ignored is not None and ignored[number]),
                }
            )
            if scores is not None:
                marks[-1]["score"] = float(scores[number])
    dataset = coco.COCO()
    dataset.dataset = {
        "images": [{"id": image} for image in images],
        "annotations": marks,
        "categories": [{"id": category} for category in sorted({m["category_id"] for m in marks})],
    }
    dataset.createIndex()
    return dataset


def _means(evaluation: Any, results: Sequence[Any]) -> tuple[float, float]:
    """map_50 and map_5095 over the given per-image results, by the classes that have an object."""
    saved, evaluation.evalImgs = evaluation.evalImgs, results
    evaluation.accumulate()
    evaluation.evalImgs = saved
    precision = evaluation.eval["precision"]  # [thresholds, recalls, classes, 1, 1]; -1: no object
    known = precision[:, :, (precision > -1).all(axis=(0, 1, 3, 4))]
    if not known.size:
        return float("nan"), float("nan")
    return float(known[0].mean()), float(known.mean())


def _classes(evaluation: Any, truth: GroundTruth) -> Iterator[ClassScore]:
    """Of each class that has an object, what was accumulated last."""
    precision = evaluation.eval["precision"]  # see _means
    counted = [item.classes[~item.ignored] for item in truth.objects]
    objects = np.bincount(np.concatenate(counted))
    for place, index in enumerate(evaluation.params.catIds):
        known = precision[:, :, place]
        if (known > -1).all():
            name = "" if truth.names is None else truth.names[index]
            figures = float(known[0].mean()), float(known.mean())
            yield ClassScore(index, name, int(objects[index]), *figures)


def _parts(evaluation: Any, images: int) -> list[list[Any]]:
    """The per-image results without each of the groups that the images fall in, turn by turn."""
    groups = min(_GROUPS, images)
    if groups < 2:
        return []
    return [
        [
            None if index % images % groups == group else result
            for index, result in enumerate(evaluation.evalImgs)
        ]
        for group in range(groups)
    ]
