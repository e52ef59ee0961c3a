"""Mean average precision: by hand, against a plain implementation, and by pycocotools' own way."""

import contextlib
import io
import sys

import numpy as np
import pytest

from onnxdrp.detection import (
    Detections,
    GroundTruth,
    Objects,
    average_precision,
    difference,
)
from onnxdrp.errors import DataError, OptionError

pytest.importorskip("pycocotools")

BOX = [10.0, 10.0, 110.0, 60.0]


def truth(*objects: Objects) -> GroundTruth:
    images = tuple((f"{number}.png", 640, 480) for number in range(len(objects)))
    return GroundTruth(images, objects)


def found(boxes=(), scores=(), classes=None) -> Detections:
    count = len(scores)
    kinds = np.zeros(count) if classes is None else np.asarray(classes)
    return Detections(
        np.asarray(boxes, np.float64).reshape(count, 4),
        np.asarray(scores, np.float64),
        kinds.astype(np.int64),
    )


def at_overlap(overlap: float) -> list[float]:
    """A box inside BOX with that intersection over union."""
    return [BOX[0], BOX[1], BOX[0] + (BOX[2] - BOX[0]) * overlap, BOX[3]]


def figures(labels: GroundTruth, detections: list[Detections]) -> tuple[float, float]:
    result = average_precision(labels, detections)
    return result.map_50, result.map_5095


# --- by hand -------------------------------------------------------------------------------------


def test_all_found_is_one() -> None:
    labels = truth(Objects.of([BOX, BOX], [0, 5]), Objects.of(), Objects.of([BOX], [5]))
    detections = [found([BOX, BOX], [0.9, 0.2], [0, 5]), found(), found([BOX], [0.1], [5])]
    assert figures(labels, detections) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_nothing_found_is_zero() -> None:
    labels = truth(Objects.of([BOX], [0]))
    assert figures(labels, [found()]) == (0.0, 0.0)
    assert figures(labels, [found([BOX], [0.9], [1])]) == (0.0, 0.0)  # the wrong class


def test_half_found() -> None:
    """Precision is 1 up to recall 0.5, 0 beyond: 51 of the 101 recall points."""
    labels = truth(Objects.of([BOX], [0]), Objects.of([BOX], [0]))
    assert figures(labels, [found([BOX], [0.9]), found()]) == pytest.approx((51 / 101,) * 2)


def test_a_better_scored_mistake_halves_precision() -> None:
    labels = truth(Objects.of([BOX], [0]))
    wrong = [300.0, 300, 400, 400]
    assert figures(labels, [found([wrong, BOX], [0.9, 0.8])]) == pytest.approx((0.5, 0.5))
    assert figures(labels, [found([wrong, BOX], [0.7, 0.8])]) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("overlap", "passed"), [(0.49, 0), (0.52, 1), (0.72, 5), (0.86, 8), (0.96, 10)]
)
def test_each_threshold_counts_a_tenth(overlap: float, passed: int) -> None:
    labels = truth(Objects.of([BOX], [0]))
    expected = (float(passed > 0), passed / 10)
    assert figures(labels, [found([at_overlap(overlap)], [0.9])]) == pytest.approx(expected)


def test_an_object_is_found_once() -> None:
    labels = truth(Objects.of([BOX], [0]), Objects.of([BOX], [0]))
    twice = found([BOX, BOX], [0.9, 0.8])
    # recall 1/2 at precision 1, then a mistake, then recall 1 at precision 2/3
    expected = (51 + 50 * 2 / 3) / 101
    assert figures(labels, [twice, found([BOX], [0.7])]) == pytest.approx((expected,) * 2)


def test_ignored_objects_count_neither_way() -> None:
    other = [300.0, 300, 400, 400]
    labels = truth(Objects.of([BOX, other], [0, 0], [False, True]))
    assert labels.count == 1
    result = average_precision(labels, [found([other, BOX], [0.9, 0.8])])
    assert (result.map_50, result.map_5095) == pytest.approx((1.0, 1.0))
    assert result.objects == 1
    assert result.detections == 2
    assert figures(labels, [found([BOX], [0.8])]) == pytest.approx((1.0, 1.0))


def test_classes_without_an_object_do_not_count() -> None:
    labels = truth(Objects.of([BOX], [3]))
    detections = [found([BOX, BOX], [0.5, 0.9], [3, 8])]
    assert figures(labels, detections) == pytest.approx((1.0, 1.0))


# --- against others ------------------------------------------------------------------------------


def scene(seed: int, images: int = 12) -> tuple[GroundTruth, list[Detections]]:
    """Objects of three classes; detections near some, elsewhere, twice, or missing."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for _ in range(images):
        count = int(rng.integers(0, 7))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 120, (count, 2))], 1)
        classes = rng.integers(0, 3, count)
        objects.append(Objects.of(boxes, classes, rng.uniform(size=count) < 0.15))
        pick = rng.integers(0, count, 2 * count) if count else np.zeros(0, int)
        near = boxes[pick] + rng.normal(0, 6, (len(pick), 4))
        stray = rng.uniform(0, 300, (3, 2))
        near = np.concatenate([near, np.concatenate([stray, stray + 50], 1)])
        kinds = np.concatenate([classes[pick], rng.integers(0, 3, 3)])
        scores = rng.permutation(len(near)) / 100 + rng.uniform(0, 0.005)
        detections.append(found(near, scores, kinds))
    return truth(*objects), detections


def overlaps(box: np.ndarray, others: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area, areas = np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.where(crowd, area, area + areas - shared)  # of a crowd: the box's own part


def plain_precision(
    labels: GroundTruth, detections: list[Detections], kind: int, threshold: float
) -> float | None:
    """The COCO definition for one class and threshold, written out."""
    rows, total = [], 0
    for objects, item in zip(labels.objects, detections, strict=True):
        mine = objects.classes == kind
        boxes, crowd = objects.boxes[mine], objects.ignored[mine]
        total += np.count_nonzero(~crowd)
        free = np.ones(len(boxes), bool)
        for at in np.argsort(-item.scores, kind="stable"):
            if item.classes[at] != kind:
                continue
            match = np.where(free, overlaps(item.boxes[at], boxes, crowd), -1.0)
            real = np.where(crowd, -1.0, match)
            if real.max(initial=-1) >= threshold:
                free[real.argmax()] = False
                rows.append((item.scores[at], True))
            elif match.max(initial=-1) < threshold:
                rows.append((item.scores[at], False))
    if not total:
        return None
    hits = np.array([hit for _, hit in sorted(rows, key=lambda row: -row[0])], bool)
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    points = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(points))


@pytest.mark.parametrize("seed", range(6))
def test_same_as_the_definition(seed: int) -> None:
    labels, detections = scene(seed)
    table = np.array(
        [
            [plain_precision(labels, detections, kind, 0.5 + 0.05 * step) for kind in range(3)]
            for step in range(10)
        ],
        np.float64,
    )
    got = figures(labels, detections)
    assert got == pytest.approx((table[0].mean(), table.mean()), abs=1e-9)
    assert 0.2 < got[0] < 0.95
    assert got[0] - got[1] > 0.02


def test_same_as_the_usual_way_through_pycocotools() -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels, detections = scene(9, images=30)
    marks = [
        {
            "id": number * 100 + row + 1,
            "image_id": number,
            "category_id": int(objects.classes[row]) + 1,
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "area": float(np.prod(box[2:] - box[:2])),
            "iscrowd": int(objects.ignored[row]),
        }
        for number, objects in enumerate(labels.objects)
        for row, box in enumerate(objects.boxes)
    ]
    results = [
        [number, *box[:2], *(box[2:] - box[:2]), item.scores[row], item.classes[row] + 1]
        for number, item in enumerate(detections)
        for row, box in enumerate(item.boxes)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(30)],
            "annotations": marks,
            "categories": [{"id": number} for number in (1, 2, 3)],
        }
        coco.createIndex()
        usual = COCOeval(coco, coco.loadRes(np.array(results)), "bbox")
        usual.evaluate()
        usual.accumulate()
        usual.summarize()
    assert figures(labels, detections) == pytest.approx((usual.stats[1], usual.stats[0]), abs=1e-12)


# --- intervals -----------------------------------------------------------------------------------


def test_intervals_cover_and_pair() -> None:
    labels, detections = scene(3, images=60)
    before = average_precision(labels, detections)
    intervals = before.intervals()
    assert intervals is not None
    assert before.replicates.shape == (20, 2)
    for name, value in (("map_50", before.map_50), ("map_5095", before.map_5095)):
        estimate = intervals[name]
        assert estimate.value == value
        assert estimate.low < value < estimate.high
        assert 0.02 < estimate.high - estimate.low < 0.4
    assert before.as_dict()["map_50_interval"] == [
        intervals["map_50"].low,
        intervals["map_50"].high,
    ]

    same = difference(before, average_precision(labels, detections))
    assert same is not None
    assert (same["map_50"].low, same["map_50"].value, same["map_50"].high) == (0.0, 0.0, 0.0)

    shifted = [Detections(d.boxes + 4, d.scores, d.classes) for d in detections]
    change = difference(before, average_precision(labels, shifted))
    assert change is not None
    assert change["map_5095"].high < 0  # worse, and known to be
    width = change["map_5095"].high - change["map_5095"].low
    assert width < intervals["map_5095"].high - intervals["map_5095"].low


def test_a_replicate_is_the_figure_without_its_images() -> None:
    labels, detections = scene(5, images=33)
    replicates = average_precision(labels, detections).replicates
    for group in (0, 7, 19):
        rest = [number for number in range(33) if number % 20 != group]
        part = truth(*(labels.objects[number] for number in rest))
        expected = figures(part, [detections[number] for number in rest])
        np.testing.assert_allclose(replicates[group], expected, rtol=0, atol=1e-12)


def test_the_jackknife_of_a_mean() -> None:
    """With one image a group and one class an image, the figure is a mean, whose error is known."""
    labels = truth(*(Objects.of([BOX], [number]) for number in range(20)))
    detections = [found([BOX], [0.9], [n]) if n % 4 else found() for n in range(20)]
    result = average_precision(labels, detections)
    error = np.std([float(bool(n % 4)) for n in range(20)], ddof=1) / np.sqrt(20)
    assert result.map_50 == pytest.approx(0.75)
    intervals = result.intervals()
    assert intervals is not None
    assert intervals["map_50"].low == pytest.approx(0.75 - 2.0930240544 * error, rel=1e-8)


def test_too_little_for_an_interval() -> None:
    one = average_precision(truth(Objects.of([BOX], [0])), [found([BOX], [0.9])])
    assert one.intervals() is None
    assert "map_50_interval" not in one.as_dict()
    only_first = truth(Objects.of([BOX], [0]), Objects.of())
    assert average_precision(only_first, [found([BOX], [0.9]), found()]).intervals() is None


def test_results_on_other_images_do_not_pair() -> None:
    one = average_precision(truth(Objects.of([BOX], [0])), [found()])
    two = average_precision(truth(Objects.of([BOX], [0]), Objects.of()), [found(), found()])
    with pytest.raises(DataError, match="1 and 2 images cannot be paired"):
        difference(one, two)


# --- manners -------------------------------------------------------------------------------------


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    average_precision(*scene(0))
    assert capsys.readouterr() == ("", "")


def test_labels_and_detections_must_belong_together() -> None:
    with pytest.raises(DataError, match="2 images have detections, 1 have labels"):
        average_precision(truth(Objects.of([BOX], [0])), [found(), found()])
    with pytest.raises(DataError, match="hold no object"):
        average_precision(truth(Objects.of([BOX], [0], [True])), [found()])


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(OptionError, match=r"pip install 'onnxdrp\[detection\]'"):
        average_precision(truth(Objects.of([BOX], [0])), [found()])
