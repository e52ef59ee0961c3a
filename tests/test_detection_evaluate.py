"""The whole way: a real session, labels on disk, boxes back in the image's pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxdrp.detection import evaluate_detection
from onnxdrp.errors import DataError, ModelError, OptionError

pytest.importorskip("pycocotools")

SIDE, ANCHORS, CLASSES = 64, 84, 3
COLUMNS = 5 + CLASSES


class Reshaper:
    """A model whose input pixels are the head's values: what the reader writes is what is found."""

    def session(self) -> ort.InferenceSession:
        used = ANCHORS * COLUMNS
        constants = {"shape": [0, -1], "zero": [0], "used": [used], "axis": [1]}
        constants["head"] = [0, ANCHORS, COLUMNS]
        stored = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
        nodes = [
            helper.make_node("Reshape", ["images", "shape"], ["flat"]),
            helper.make_node("Slice", ["flat", "zero", "used", "axis"], ["part"]),
            helper.make_node("Reshape", ["part", "head"], ["output"]),
        ]
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "reshaper",
            [helper.make_tensor_value_info("images", floats, ["N", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("output", floats, ["N", ANCHORS, COLUMNS])],
            stored,
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 13)])
        return ort.InferenceSession(model.SerializeToString())


@dataclass(frozen=True)
class Place:
    scale_x: float
    scale_y: float
    left: float = 0.0
    top: float = 4.0


@dataclass
class Reader:
    """Stretches images to 64 x 60 below four empty rows, and shows `heads` instead of them."""

    files: list[Path]
    heads: list[np.ndarray]
    batch: int = 2
    layout: str = "NCHW"
    skipped: int = field(default=0)

    def placement(self, width: int, height: int) -> Place:
        return Place(SIDE / width, (SIDE - 4) / height)

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        shown = self.heads[self.skipped :]
        for start in range(0, len(shown), self.batch):
            rows = shown[start : start + self.batch]
            values = np.zeros((len(rows), 3 * SIDE * SIDE), np.float32)
            values[:, : ANCHORS * COLUMNS] = [row.ravel() for row in rows]
            yield {"images": values.reshape(-1, 3, SIDE, SIDE)}


# in pixels of each image: class and box
OBJECTS = [
    ((160, 120), [(0, (20, 30, 80, 90)), (2, (100, 10, 150, 60))]),
    ((96, 200), [(1, (8, 40, 72, 160))]),
    ((64, 60), [(2, (3, 5, 40, 50)), (0, (30, 2, 60, 30))]),
]


def head(size: tuple[int, int], objects: list) -> np.ndarray:
    """What YOLOX says, boxes decoded, for these objects; the other anchors see nothing."""
    values = np.zeros((ANCHORS, COLUMNS), np.float32)
    scale = np.array([SIDE / size[0], (SIDE - 4) / size[1]] * 2)
    for row, (kind, box) in enumerate(objects):
        x1, y1, x2, y2 = np.array(box) * scale + [0, 4, 0, 4]
        values[7 * row, :5] = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.9]
        values[7 * row, 5 + kind] = 0.8
    return values


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    files = []
    for number, (size, objects) in enumerate(OBJECTS):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)
        files.append(path)
        lines = []
        for kind, box in objects:
            x1, y1, x2, y2 = np.array(box) / np.array([*size, *size])
            lines.append(f"{kind} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}")
        label = tmp_path / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("\n".join(lines), encoding="utf-8")
    return Reader(files, [head(*item) for item in OBJECTS])


def test_boxes_come_back_to_their_images(reader: Reader) -> None:
    done: list[int] = []
    result = evaluate_detection(Reshaper(), reader, progress=lambda n, _: done.append(n))
    assert (result.map_50, result.map_5095) == pytest.approx((1.0, 1.0))
    assert (result.samples, result.objects, result.detections) == (3, 5, 5)
    assert done == [2, 3]


def test_heads_of_other_images_find_nothing(reader: Reader) -> None:
    reader.heads = [reader.heads[1], reader.heads[2], reader.heads[0]]
    assert evaluate_detection(Reshaper(), reader).map_5095 < 0.2


def test_conf_and_decoder_take_effect(reader: Reader) -> None:
    assert evaluate_detection(Reshaper(), reader, conf=0.73).detections == 0  # 0.9 * 0.8 = 0.72
    boxes = np.tile([0.0, 4, 64, 64], (1, 1))

    def whole(outputs, size):
        assert size == (SIDE, SIDE)
        images = len(outputs["output"])
        return [boxes] * images, [np.full((1, 3), 0.5)] * images

    assert evaluate_detection(Reshaper(), reader, decoder=whole).detections == 9


def test_a_class_that_the_model_lacks(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "labels" / "1.txt").write_text("3 0.5 0.5 1 1", encoding="utf-8")
    with pytest.raises(DataError, match=r"1\.png: label class 3, but the model has 3 classes"):
        evaluate_detection(Reshaper(), reader)


def test_labels_of_another_set_of_classes(reader: Reader) -> None:
    with pytest.raises(DataError, match="labels name 2 classes, the model has 3"):
        evaluate_detection(Reshaper(), reader, names=("a", "b"))


def test_a_reader_that_gives_other_images_than_it_says(reader: Reader) -> None:
    reader.skipped = 1
    with pytest.raises(DataError, match="has 3 files but gave 2 images"):
        evaluate_detection(Reshaper(), reader)
    reader.skipped, reader.heads = 0, [*reader.heads, reader.heads[0]]
    with pytest.raises(DataError, match="more images than its 3 files"):
        evaluate_detection(Reshaper(), reader)


def test_what_cannot_be_evaluated(reader: Reader) -> None:
    with pytest.raises(DataError, match="dict has no files and placement"):
        evaluate_detection(Reshaper(), {})  # type: ignore[arg-type]
    reader.layout = "NHWC"  # 3 x 64 to the decoder, whose anchors then do not fit
    with pytest.raises(ModelError, match=r"yolov8 wants one output.*'output' \[2, 84, 8\]"):
        evaluate_detection(Reshaper(), reader, decoder="yolov8")
    reader.layout = "any"
    with pytest.raises(DataError, match="one image input, NCHW or NHWC"):
        evaluate_detection(Reshaper(), reader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": -0.1}, "--conf -0.1 is outside"),
        ({"conf": 1}, "--conf 1 is outside"),
        ({"conf": float("nan")}, "--conf nan is outside"),
        ({"nms": 0}, "--nms 0 is outside"),
        ({"nms": 1.5}, "--nms 1.5 is outside"),
        ({"limit": 0}, "limit 0"),
    ],
)
def test_options_out_of_range(reader: Reader, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        evaluate_detection(Reshaper(), reader, **options)


@pytest.mark.slow
def test_yolox_nano_on_coco(shared: Path) -> None:
    from onnxdrp.datareaders import NCHWDataReader
    from onnxdrp.model import Model

    model = Model.load(shared / "models" / "yolox_nano_416.onnx")
    reader = NCHWDataReader(
        shared / "data" / "coco" / "val2017",
        model=model,
        scale=1,
        color="bgr",
        resize="letterbox",
        pad_place="top-left",
    )
    result = evaluate_detection(model, reader)
    assert result.samples == 64
    assert result.map_50 == pytest.approx(0.53, abs=0.01)
    assert result.map_5095 == pytest.approx(0.35, abs=0.01)
