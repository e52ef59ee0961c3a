"""Ground truth of object detection: which files hold it, and what every reader of them returns.

Three kinds of labels are known: YOLO text (one .txt an image), Pascal VOC XML (one .xml an image)
and COCO JSON (one file for all). The kind is read off the path given. All end in one `GroundTruth`,
its boxes in pixels of the images as they are viewed (EXIF orientation applied).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, OptionError

__all__ = [
    "GroundTruth",
    "LabelKind",
    "Objects",
    "find_kind",
    "image_size",
    "read_names",
    "sidecar",
]

LabelKind = Literal["yolo", "voc", "coco"]

_SUFFIX = {"yolo": ".txt", "voc": ".xml"}
_SIBLINGS = {"yolo": ("images", "labels"), "voc": ("JPEGImages", "Annotations")}
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: float64 [n, 4], left, top, right, bottom in pixels of the image.
        classes: int64 [n], indices as the model numbers them.
        ignored: bool [n], crowds and difficult objects: found or not, they count neither for nor
            against.
    """

    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, boxes: Any = (), classes: Any = (), ignored: Any = None) -> "Objects":
        """From anything numpy reads; nothing is ignored unless told."""
        kinds = np.asarray(classes, np.int64).reshape(-1)
        flags = np.zeros(len(kinds)) if ignored is None else ignored
        return cls(
            np.asarray(boxes, np.float64).reshape(len(kinds), 4),
            kinds,
            np.asarray(flags, np.bool_).reshape(len(kinds)),
        )


@dataclass(frozen=True)
class GroundTruth:
    """The labels of an image set, in the order of its files.

    Attributes:
        images: (file name, width, height) of each image.
        objects: what each image shows.
        names: the class names in the order of the class indices; None where labels hold indices
            only.
    """

    images: tuple[tuple[str, int, int], ...]
    objects: tuple[Objects, ...]
    names: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        """How many objects are to be found: the ignored ones are not counted."""
        return int(sum(np.count_nonzero(~found.ignored) for found in self.objects))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as it is viewed, from its header alone.

    Raises:
        DataError: The file is no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _QUARTER_TURNS
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from error
    return (height, width) if turned else (width, height)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of the model's class indices.

    Raises:
        DataError: The file is missing, empty, or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: class names cannot be read ({error})") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{path}: no class names in it; write one a line, in the model's order")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: class {twice!r} is named twice; each name stands for one index")
    return names


def sidecar(image: Path, folder: Path | None, kind: Literal["yolo", "voc"]) -> Path | None:
    """The label file of an image, or None if there is none.

    In `folder` the file with the longest matching relative path wins (`val/a.jpg` -> `val/a.txt`,
    then `a.txt`). Without a folder: `labels/` beside `images/` (VOC: `Annotations/` beside
    `JPEGImages/`), then beside the image.
    """
    target = image.with_suffix(_SUFFIX[kind])
    if folder is not None:
        parts = target.relative_to(target.anchor).parts
        candidates = [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    else:
        candidates = [*_sibling(target, *_SIBLINGS[kind]), target]
    return next((path for path in candidates if path.is_file()), None)


def _sibling(path: Path, here: str, there: str) -> list[Path]:
    """`path` with its last folder called `here` replaced by `there`."""
    parts = list(path.parts)
    spots = [index for index, part in enumerate(parts[:-1]) if part == here]
    if not spots:
        return []
    parts[spots[-1]] = there
    return [Path(*parts)]


def find_kind(
    labels: Path | None, files: Sequence[Path], kind: str = "auto"
) -> tuple[LabelKind, Path | None]:
    """What kind of labels a path holds, and the file or folder to read.

    Args:
        labels: A COCO JSON file, a folder, or None for labels that lie with the images.
        files: The images.
        kind: `auto`, or the kind itself where a folder holds more than one.

    Raises:
        OptionError: `kind` is none of the known ones.
        DataError: There are no labels, or they could be read in two ways.
    """
    if kind not in ("auto", *get_args(LabelKind)):
        raise OptionError(f"label kind {kind!r} is unknown; choose auto, yolo, voc or coco")
    if labels is not None and not labels.exists():
        raise DataError(f"{labels}: no such file or folder; --labels names the ground truth")
    if labels is not None and labels.is_file():
        if labels.suffix.lower() != ".json" or kind not in ("auto", "coco"):
            raise DataError(
                f"{labels}: detection labels are a COCO .json file, or a folder of YOLO .txt "
                "or VOC .xml files"
            )
        return "coco", labels
    found: dict[LabelKind, Path | None] = {
        known: labels
        for known in ("yolo", "voc")
        if kind in ("auto", known) and any(sidecar(image, labels, known) for image in files)
    }
    if kind in ("auto", "coco") and not found and (only := _only_json(labels)):
        found = {"coco": only}
    return _one_kind(found, labels, kind, files)


def _only_json(folder: Path | None) -> Path | None:
    """The JSON file of a folder that has one."""
    files = sorted(folder.glob("*.json")) if folder is not None else []
    if len(files) > 1:
        listed = ", ".join(path.name for path in files[:5])
        raise DataError(f"{folder}: holds several .json files ({listed}); name the one to read")
    return files[0] if files else None


def _one_kind(
    found: dict[LabelKind, Path | None], labels: Path | None, kind: str, files: Sequence[Path]
) -> tuple[LabelKind, Path | None]:
    """The only kind found, or an error that says where labels were looked for."""
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise DataError(
            f"{labels or files[0].parent}: YOLO .txt and VOC .xml labels lie side by side; "
            "say which kind to read"
        )
    wanted = "label" if kind == "auto" else f"{kind} label"
    place = labels if labels is not None else "'labels/' beside 'images/', or beside the images"
    example = files[0].name if files else "the images"
    raise DataError(f"no {wanted} file found for {example} and the others: looked in {place}")
