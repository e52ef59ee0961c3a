"""Decoders: each must undo what the heads do, and refuse what is none of theirs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.detection import get_decoder, yolov8, yolox
from onnxdrp.errors import ModelError, OptionError

SIZE = (64, 96)  # height, width: not square, so that a swap shows
CLASSES = 3


def grid(size: tuple[int, int], strides: tuple[int, ...] = (8, 16, 32)) -> np.ndarray:
    """Column, row and stride of each anchor, written out plainly."""
    return np.array(
        [
            (column, row, stride)
            for stride in strides
            for row in range(size[0] // stride)
            for column in range(size[1] // stride)
        ],
        np.float64,
    )


def head(rng: np.random.Generator, anchors: int, images: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cx cy w h in pixels, and scores (objectness and classes)."""
    centre = rng.uniform(0, 1, (images, anchors, 2)) * [SIZE[1], SIZE[0]]
    side = rng.uniform(2, 60, (images, anchors, 2))
    return np.concatenate([centre, side], -1), rng.uniform(0, 1, (images, anchors, 1 + CLASSES))


def encode(boxes: np.ndarray, size: tuple[int, int], strides: tuple[int, ...]) -> np.ndarray:
    cells = grid(size, strides)
    xy = boxes[..., :2] / cells[:, 2:] - cells[:, :2]
    return np.concatenate([xy, np.log(boxes[..., 2:] / cells[:, 2:])], -1)


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1
    )


@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32)])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_yolox_undoes_the_encoding(strides: tuple[int, ...], seed: int) -> None:
    size = (64, 128)
    boxes, scores = head(np.random.default_rng(seed), len(grid(size, strides)))
    raw = np.concatenate([encode(boxes, size, strides), scores], -1)
    found = yolox({"output": raw}, size)
    assert len(found) == 2
    for item, box, row in zip(found, boxes, scores, strict=True):
        np.testing.assert_allclose(item.boxes, corners(box), rtol=1e-9, atol=1e-9)
        joint = row[:, :1] * row[:, 1:]
        best = joint.argmax(1)
        np.testing.assert_array_equal(item.scores.argmax(1), best)
        np.testing.assert_allclose(item.scores.max(1), joint.max(1))
        assert np.count_nonzero(item.scores) == len(box)  # best class only


def test_yolox_takes_boxes_that_the_model_decoded() -> None:
    anchors = len(grid(SIZE))
    boxes, scores = head(np.random.default_rng(0), anchors)
    raw = yolox({"o": np.concatenate([encode(boxes, SIZE, (8, 16, 32)), scores], -1)}, SIZE)
    done = yolox({"o": np.concatenate([boxes, scores], -1)}, SIZE)
    for a, b in zip(raw, done, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_one_decoded_object_among_empty_anchors() -> None:
    """No real head is so clean, but a test's is: zeros elsewhere must not turn pixels to cells."""
    raw = np.zeros((1, len(grid(SIZE)), 5 + CLASSES), np.float32)
    raw[0, 5] = [50, 30, 20, 10, 1, 0, 0.9, 0]
    (found,) = yolox({"o": raw}, SIZE)
    np.testing.assert_allclose(found.boxes[5], [40, 25, 60, 35])


def test_yolox_broken_sizes_do_not_overflow() -> None:
    raw = np.zeros((1, len(grid(SIZE)), 5 + CLASSES), np.float32)
    raw[0, :, 2:4] = np.where(np.arange(raw.shape[1]) % 2, 1e30, -1e30)[:, None]
    (found,) = yolox({"o": raw}, SIZE)
    assert np.isfinite(found.boxes).all()


@pytest.mark.parametrize("turned", [False, True])
def test_yolov8_both_ways_round(turned: bool) -> None:
    boxes, scores = head(np.random.default_rng(1), len(grid(SIZE)))
    values = np.concatenate([boxes, scores], -1).astype(np.float32)
    found = yolov8({"output0": values.transpose(0, 2, 1) if turned else values}, SIZE)
    assert len(found) == 2
    for item, box, row in zip(found, boxes, scores, strict=True):
        np.testing.assert_allclose(item.boxes, corners(box), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(item.scores, row, rtol=1e-6)


def test_yolov8_with_as_many_columns_as_anchors_is_the_export_of_the_makers() -> None:
    values = np.random.default_rng(2).uniform(0, 1, (1, 84, 84))  # 64x64: 84 anchors; 80 classes
    (found,) = yolov8({"output0": values}, (64, 64))
    np.testing.assert_allclose(found.scores, values[0, 4:].T)


def test_other_outputs_are_passed_over() -> None:
    values = np.random.default_rng(3).uniform(0, 1, (1, 4 + CLASSES, len(grid(SIZE))))
    outputs = {"protos": np.zeros((1, 32, 16, 24)), "output0": values, "n": np.zeros((1, 2))}
    np.testing.assert_allclose(yolov8(outputs, SIZE)[0].scores, values[0, 4:].T)


ANCHORS = len(grid(SIZE))


@pytest.mark.parametrize("decoder", [yolox, yolov8])
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"o": np.zeros((1, 300, 6))}, r"A = 126 .*input of 64x96; the model gives 'o' \[1, 300"),
        ({"o": np.zeros((ANCHORS, 8))}, "wants one output"),
        ({"o": np.zeros((1, ANCHORS, 4))}, "wants one output"),
        ({"o": np.zeros((1, ANCHORS, 8)), "p": np.zeros((1, ANCHORS, 9))}, "wants one output"),
        ({"o": np.full((1, ANCHORS, 8), np.nan)}, "'o' holds NaN"),
        ({"o": np.full((1, ANCHORS, 8), 3.0)}, r"scores run from 3 to 3, not 0\.\.1"),
        ({"o": np.full((1, ANCHORS, 8), -1.5)}, r"not 0\.\.1"),
    ],
)
def test_what_is_no_head_is_refused(decoder, outputs, message) -> None:
    with pytest.raises(ModelError, match=message):
        decoder(outputs, SIZE)


def test_a_yolox_head_is_no_yolov8_head() -> None:
    boxes, scores = head(np.random.default_rng(4), ANCHORS)
    raw = np.concatenate([encode(boxes, SIZE, (8, 16, 32)), scores], -1)
    with pytest.raises(ModelError, match=r"negative sides.*--decoder yolox"):
        yolov8({"o": raw}, SIZE)


# --- a user's decoder ----------------------------------------------------------------------------

USER = """
import numpy as np

def decode(outputs, size):
    boxes = outputs["o"] * [size[1], size[0], size[1], size[0]]
    return boxes, [np.ones((len(rows), 2)) / 2 for rows in boxes]

def labelled(outputs, size):
    boxes, _ = decode(outputs, size)
    return boxes, [[0.5] * len(rows) for rows in boxes], [[7] * len(rows) for rows in boxes]

def broken(outputs, size):
    return outputs["p"]
"""


def test_a_decoder_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER, encoding="utf-8")
    outputs = {"o": np.array([[[0, 0, 0.5, 1.0]], [[0.25, 0, 1, 1]]])}
    found = get_decoder(str(path))(outputs, SIZE)
    assert [item.boxes.tolist() for item in found] == [[[0, 0, 48, 64]], [[24, 0, 96, 64]]]
    assert found[0].scores.tolist() == [[0.5, 0.5]]
    assert found[0].classes is None
    labelled = get_decoder(f"{path}:labelled")(outputs, SIZE)
    assert labelled[1].classes is not None
    assert labelled[1].classes.tolist() == [7]
    with pytest.raises(OptionError, match=r"mine\.py:broken failed: KeyError: 'p'"):
        get_decoder(f"{path}:broken")(outputs, SIZE)
    with pytest.raises(OptionError, match="no function 'absent'"):
        get_decoder(f"{path}:absent")


def test_decoders_that_cannot_be_had(tmp_path: Path) -> None:
    assert get_decoder("yolox") is yolox
    assert get_decoder("yolov8") is yolov8
    with pytest.raises(OptionError, match=r"'yolo' is unknown; choose yolox, yolov8 or FILE\.py"):
        get_decoder("yolo")
    with pytest.raises(OptionError, match="no such file"):
        get_decoder(str(tmp_path / "none.py"))
    (tmp_path / "bad.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(OptionError, match=r"bad\.py failed to load: ZeroDivisionError"):
        get_decoder(str(tmp_path / "bad.py"))


BOX = np.zeros((1, 2, 4))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "must return .boxes, scores. or .*not NoneType"),
        ((BOX,), "must return"),
        ((BOX, np.zeros((2, 2, 3))), "no usable boxes"),
        ((BOX, 1.0), "no usable boxes"),
        ((BOX, np.zeros((1, 3, 3))), r"an image has \[2, 4\], \[3, 3\]"),
        ((BOX, np.zeros((1, 2))), r"an image has \[2, 4\], \[2\]; wanted"),
        ((np.zeros((1, 2, 5)), np.zeros((1, 2, 3))), "wanted are boxes"),
        ((BOX, np.zeros((1, 2)), np.zeros((1, 3))), "wanted are boxes"),
        ((BOX, np.full((1, 2, 3), np.inf)), "NaN or infinite"),
        (([[[0, 0, 1]], [[0, 0, 1, 1]]], [[[1.0]], [[1.0]]]), "wanted are boxes"),
    ],
)
def test_a_decoder_that_returns_something_else(result, message) -> None:
    def mine(outputs, size):
        return result

    with pytest.raises(OptionError, match=f"decoder mine .*{message}"):
        get_decoder(mine)({}, SIZE)


def test_a_decoder_may_find_nothing() -> None:
    found = get_decoder(lambda outputs, size: ([[], []], [[], []]))({}, SIZE)
    assert [item.boxes.shape for item in found] == [(0, 4), (0, 4)]
