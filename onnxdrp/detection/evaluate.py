"""The detection task of `onnxdrp evaluate`: run a model over labelled images and score it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnxdrp.detection.custom import UserDecoder, get_decoder
from onnxdrp.detection.decode import Candidates, Decoder
from onnxdrp.detection.formats import read_labels
from onnxdrp.detection.labels import GroundTruth
from onnxdrp.detection.nms import Detections, Placement, suppress, to_image
from onnxdrp.detection.score import DetectionScore, average_precision
from onnxdrp.errors import DataError, OptionError

__all__ = ["detect", "evaluate_detection"]

Array = npt.NDArray[Any]


class HasSession(Protocol):
    """A model that onnxruntime can run."""

    def session(self) -> Any:
        """An onnxruntime InferenceSession."""


@runtime_checkable
class PlacingReader(Protocol):
    """A reader that knows the files of its images and where it put them."""

    @property
    def files(self) -> Sequence[Path]:
        """The images, in the order of the batches."""

    @property
    def layout(self) -> str:
        """NCHW or NHWC."""

    def placement(self, width: int, height: int) -> Placement:
        """Where an image of that size lies in the model's input."""

    def batches(self) -> Iterator[Mapping[str, Array]]:
        """Input name -> array."""


def evaluate_detection(
    model: HasSession,
    reader: PlacingReader,
    labels: str | Path | None = None,
    *,
    decoder: str | UserDecoder = "yolox",
    conf: float = 0.001,
    nms: float = 0.65,
    limit: int = 300,
    kind: Literal["auto", "yolo", "voc", "coco"] = "auto",
    names: Sequence[str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> DetectionScore:
    """map_50 and map_5095 of a detector on labelled images.

    Args:
        model: The model.
        reader: An image-folder reader set up as the model wants its input.
        labels: A COCO JSON file, a folder of YOLO or VOC files, or None for labels that lie with
            the images.
        decoder: `yolox`, `yolov8`, `FILE.py[:function]`, or a function.
        conf: Candidates scored at or below it are dropped.
        nms: Largest overlap of two detections of one class.
        limit: Most detections of an image.
        kind: Which kind of labels, where the path leaves it open.
        names: Class names in the model's order, by which VOC and COCO classes are matched.
        progress: Called with (images done, images in all) after each batch.

    Raises:
        DataError: Images or labels are unusable or do not fit the model.
        ModelError: The outputs are not what the decoder wants.
        OptionError: An option is out of range, a decoder fails, or pycocotools is not installed.
    """
    _check_options(conf, nms, limit)
    decode = get_decoder(decoder)
    if not isinstance(reader, PlacingReader):
        raise DataError(
            f"detection needs a reader of image files, to place boxes in them; "
            f"{type(reader).__name__} has no files and placement"
        )
    truth = read_labels(labels, reader.files, kind=kind, names=names)
    found: list[Detections] = []
    for candidates in detect(model, reader, decode):
        for item in candidates:
            found.append(_finish(item, truth, len(found), reader, (conf, nms, limit)))
        if progress is not None:
            progress(len(found), len(reader.files))
    return average_precision(truth, found)


def detect(
    model: HasSession, reader: PlacingReader, decode: Decoder
) -> Iterator[Sequence[Candidates]]:
    """The candidates of each batch.

    Raises:
        DataError: The reader gives another number of images than it has files.
    """
    session = model.session()
    outputs = [output.name for output in session.get_outputs()]
    done = 0
    for batch in reader.batches():
        size, samples = _input_size(batch, reader.layout)
        values = session.run(outputs, dict(batch))
        candidates = decode(dict(zip(outputs, values, strict=True)), size)
        if len(candidates) != samples:
            raise DataError(f"the decoder gave {len(candidates)} images for a batch of {samples}")
        done += samples
        yield candidates
    if done != len(reader.files):
        raise DataError(f"the reader has {len(reader.files)} files but gave {done} images")


def _finish(
    item: Candidates,
    truth: GroundTruth,
    index: int,
    reader: PlacingReader,
    options: tuple[float, float, int],
) -> Detections:
    """The detections of image `index`, in its own pixels."""
    if index >= len(truth.images):
        raise DataError(f"the reader gave more images than its {len(truth.images)} files")
    _check_classes(item, truth, index)
    conf, nms, limit = options
    _, width, height = truth.images[index]
    kept = suppress(item, conf=conf, nms=nms, limit=limit)
    return to_image(kept, reader.placement(width, height), width, height)


def _check_options(conf: float, nms: float, limit: int) -> None:
    if not 0 <= conf < 1:
        raise OptionError(f"--conf {conf} is outside 0..1; 0.001 is the usual choice for mAP")
    if not 0 < nms <= 1:
        raise OptionError(f"--nms {nms} is outside 0..1; 0.65 is the usual choice for mAP")
    if limit < 1:
        raise OptionError(f"limit {limit}: at least one detection an image must be allowed")


def _check_classes(item: Candidates, truth: GroundTruth, index: int) -> None:
    """Labels and model must number the same classes: else only a poor score would tell."""
    if item.classes is not None:
        return  # a decoder that names the best class does not say how many there are
    classes = item.scores.shape[1]
    if truth.names is not None and len(truth.names) != classes:
        raise DataError(
            f"the labels name {len(truth.names)} classes, the model has {classes}; "
            "give the class names in the model's order"
        )
    highest = int(truth.objects[index].classes.max(initial=-1))
    if highest >= classes:
        raise DataError(
            f"{truth.images[index][0]}: label class {highest}, but the model has {classes} classes"
        )


def _input_size(batch: Mapping[str, Array], layout: str) -> tuple[tuple[int, int], int]:
    """((height, width), samples) of the image input of a batch."""
    images = [array for array in batch.values() if np.ndim(array) == 4]
    if len(images) != 1 or layout not in ("NCHW", "NHWC"):
        came = ", ".join(f"{name!r} {list(np.shape(array))}" for name, array in batch.items())
        raise DataError(f"detection wants one image input, NCHW or NHWC; the reader gives {came}")
    shape = images[0].shape
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    return (int(height), int(width)), int(shape[0])
