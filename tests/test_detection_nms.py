"""Suppression against a plain loop, its limits, and the way back to the image."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.detection import Candidates, Detections, suppress, to_image


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union if union else 0.0


def candidates(seed: int, anchors: int = 60, classes: int = 3) -> Candidates:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (anchors, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (anchors, 2))], 1)
    return Candidates(boxes, rng.permutation(anchors * classes).reshape(anchors, -1) / 200)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.3, 0.5, 0.65, 1.0]))
def test_same_as_a_plain_loop(seed: int, threshold: float) -> None:
    given_ = candidates(seed)
    found = suppress(given_, conf=0.1, nms=threshold)
    rows = [
        (given_.scores[a, c], given_.boxes[a], c)
        for a in range(60)
        for c in range(3)
        if given_.scores[a, c] > 0.1
    ]
    kept: list = []
    for score, box, kind in sorted(rows, key=lambda row: -row[0]):
        if all(other[2] != kind or iou(box, other[1]) <= threshold for other in kept):
            kept.append((score, box, kind))
    assert len(rows) > 100
    assert len(kept) < len(rows) or threshold == 1
    np.testing.assert_array_equal(found.scores, [row[0] for row in kept])
    np.testing.assert_array_equal(found.boxes, [row[1] for row in kept])
    np.testing.assert_array_equal(found.classes, [row[2] for row in kept])


def test_limit_takes_the_best() -> None:
    every = suppress(candidates(0), conf=0.0, nms=0.5)
    some = suppress(candidates(0), conf=0.0, nms=0.5, limit=7)
    assert len(every.scores) > 20
    np.testing.assert_array_equal(some.scores, every.scores[:7])
    np.testing.assert_array_equal(some.classes, every.classes[:7])


def test_conf_is_a_strict_bound_and_classes_may_be_named() -> None:
    boxes = np.array([[0, 0, 4, 4], [10, 0, 14, 4], [20, 0, 24, 4]])
    found = suppress(Candidates(boxes, np.array([0.5, 0.9, 0.25]), np.array([4, 2, 4])), conf=0.25)
    assert found.scores.tolist() == [0.9, 0.5]
    assert found.classes.tolist() == [2, 4]


def test_the_overlap_itself_stays() -> None:
    boxes = np.array([[0, 0, 4, 1], [0, 0, 2, 1]], np.float64)  # overlap 1/2 exactly
    scores = np.array([[0.9], [0.8]])
    assert len(suppress(Candidates(boxes, scores), nms=0.5).scores) == 2
    assert len(suppress(Candidates(boxes, scores), nms=0.49).scores) == 1


def test_boxes_without_an_area() -> None:
    boxes = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2]], np.float64)
    found = suppress(Candidates(boxes, np.array([[0.9], [0.8], [0.7]])))
    assert np.isfinite(found.boxes).all()
    assert 0.7 in found.scores


def test_nothing_found() -> None:
    found = suppress(Candidates(np.zeros((3, 4)), np.zeros((3, 2))))
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.classes.shape == (0,)


@dataclass(frozen=True)
class Place:
    scale_x: float
    scale_y: float
    left: float
    top: float


def test_back_to_the_image() -> None:
    boxes = np.array([[30.0, 20, 50, 60], [-100, -100, 900, 900]])
    found = Detections(boxes, np.array([0.5, 0.4]), np.array([1, 2]))
    back = to_image(found, Place(2.0, 4.0, 10.0, 8.0), 100, 50)
    np.testing.assert_allclose(back.boxes, [[10, 3, 20, 13], [0, 0, 100, 50]])
    assert back.scores is found.scores


@pytest.mark.parametrize("extra", [1, 5000])
def test_far_more_candidates_than_are_looked_at(extra: int) -> None:
    anchors = 30_000 + extra
    boxes = np.tile([0.0, 0, 4, 4], (anchors, 1))
    boxes[-1] = [10, 10, 14, 14]  # the worst-scored one stands alone, yet is not looked at
    found = suppress(Candidates(boxes, np.linspace(0.9, 0.1, anchors)[:, None]))
    assert found.boxes.tolist() == [[0, 0, 4, 4]]
