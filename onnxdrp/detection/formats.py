"""Readers of the three label formats: YOLO text, Pascal VOC XML and COCO JSON.

YOLO: `class cx cy w h`, normalised to 0..1, one object a line; a polygon (`class x1 y1 x2 y2 x3 y3
...`) counts as its bounding box; an image without a file, or with an empty one, has no objects.
VOC: coordinates are taken as written; difficult objects are ignored. COCO: category ids are
numbered in their order; crowds are ignored. VOC and COCO boxes follow their image when it was
resized; one of another shape is refused.
"""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from onnxdrp.detection.labels import (
    GroundTruth,
    Objects,
    find_kind,
    image_size,
    sidecar,
)
from onnxdrp.errors import DataError

__all__ = ["read_labels"]

Size = tuple[int, int]


def read_labels(
    labels: str | Path | None,
    files: Sequence[Path],
    *,
    kind: Literal["auto", "yolo", "voc", "coco"] = "auto",
    names: Sequence[str] | None = None,
) -> GroundTruth:
    """Read the ground truth of some images.

    Args:
        labels: A COCO JSON file, a folder of YOLO or VOC files, or None for labels that lie with
            the images.
        files: The images, in the order in which detections will come.
        kind: Which kind of labels, where the path leaves it open.
        names: Class names in the model's order: VOC and COCO classes are then matched by name.
            Without it VOC names are numbered as they sort (or, where all are numbers, are the
            indices), and COCO categories by their id.

    Raises:
        DataError: Labels are missing, unreadable, or do not fit the images; the message names file
            and line.
        OptionError: `kind` is unknown.
    """
    if not files:
        raise DataError("no images to evaluate; name a folder that holds some")
    found, source = find_kind(Path(labels) if labels is not None else None, files, kind)
    sizes = [image_size(path) for path in files]
    known = tuple(names) if names is not None else None
    if found == "yolo":
        objects = _read_yolo(source, files, sizes)
    elif found == "voc":
        objects, known = _read_voc(source, files, sizes, known)
    else:
        objects, known = _read_coco(source or Path(), files, sizes, known)
    images = tuple((path.name, *size) for path, size in zip(files, sizes, strict=True))
    truth = GroundTruth(images, tuple(objects), known)
    if not truth.count:
        raise DataError(f"{source or files[0].parent}: the labels hold no object for these images")
    return truth


def _read_yolo(folder: Path | None, files: Sequence[Path], sizes: Sequence[Size]) -> list[Objects]:
    objects = []
    for image, size in zip(files, sizes, strict=True):
        path = sidecar(image, folder, "yolo")
        rows = [] if path is None else _yolo_rows(path)
        boxes = np.array([row[1:] for row in rows]).reshape(-1, 4) * np.array([*size, *size])
        objects.append(Objects.of(boxes, [row[0] for row in rows]))
    return objects


def _yolo_rows(path: Path) -> list[list[float]]:
    """[class, left, top, right, bottom] of each line, normalised."""
    lines = enumerate(_read_text(path).splitlines(), 1)
    return [_yolo_row(line.split(), f"{path}:{number}") for number, line in lines if line.strip()]


def _yolo_row(words: Sequence[str], where: str) -> list[float]:
    try:
        label, *values = (float(word) for word in words)
    except ValueError as error:
        raise DataError(f"{where}: {error}; a line reads: class cx cy w h") from error
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(f"{where}: {len(words)} values; a line reads: class cx cy w h")
    if not (label >= 0 and label.is_integer()):
        raise DataError(f"{where}: class {words[0]!r} is not a whole number from 0 up")
    # A few writers round a hair past the edge; pixels instead of fractions are far past it.
    if not all(-0.01 <= value <= 1.01 for value in values):
        raise DataError(
            f"{where}: values outside 0..1; YOLO boxes are fractions of the image's size"
        )
    if len(values) == 4:
        x, y, w, h = values
        if w < 0 or h < 0:
            raise DataError(f"{where}: a box with a negative side")
        return [label, x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    return [label, min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]


def _read_voc(
    folder: Path | None, files: Sequence[Path], sizes: Sequence[Size], names: tuple[str, ...] | None
) -> tuple[list[Objects], tuple[str, ...] | None]:
    paths = [_voc_path(image, folder) for image in files]
    roots = {path: _parse_xml(path) for path in paths}
    if names is None:
        # All files of the folder number the classes: a part of the images sees the same numbers.
        every = sorted(folder.rglob("*.xml")) if folder is not None else _beside(paths)
        listed = _voc_names(roots[path] if path in roots else _parse_xml(path) for path in every)
        if all(name.isdecimal() for name in listed):  # indices already: "10" is not before "2"
            index = {name: int(name) for name in listed}
        else:
            names = tuple(listed)
    if names is not None:
        index = {name: number for number, name in enumerate(names)}
    pairs = zip(paths, sizes, strict=True)
    return [_voc_objects(roots[path], path, size, index) for path, size in pairs], names


def _voc_names(trees: Iterable[ET.Element]) -> list[str]:
    found = {_text(item, "name", "") for tree in trees for item in tree.findall("object")}
    return sorted(found - {""})


def _voc_path(image: Path, folder: Path | None) -> Path:
    path = sidecar(image, folder, "voc")
    if path is None:
        where = folder if folder is not None else image.parent
        raise DataError(f"{where}: no VOC .xml file for {image.name}; each image needs one")
    return path


def _beside(paths: Sequence[Path]) -> list[Path]:
    return [
        path
        for folder in sorted({path.parent for path in paths})
        for path in sorted(folder.glob("*.xml"))
    ]


def _parse_xml(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path}: labels cannot be read ({error})") from error
    except ET.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: not valid XML ({error})") from error


def _voc_objects(root: ET.Element, path: Path, size: Size, index: Mapping[str, int]) -> Objects:
    boxes, classes, difficult = [], [], []
    for item in root.findall("object"):
        name = _text(item, "name", "")
        if name not in index:
            raise DataError(f"{path}: class {name!r} is not among the given class names")
        sides = [_text(item, f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            boxes.append([float(side) for side in sides])
        except ValueError as error:
            raise DataError(f"{path}: object {name!r} has no readable bndbox ({error})") from error
        classes.append(index[name])
        difficult.append(_text(item, "difficult", "0").strip() in ("1", "true", "True"))
    stated = (_text(root, "size/width", "0"), _text(root, "size/height", "0"))
    found = Objects.of(boxes, classes, difficult)
    return _rescale(found, stated, size, str(path))


def _text(element: ET.Element, path: str, default: str) -> str:
    return element.findtext(path, default).strip()


class _Entry(NamedTuple):
    """An image of a COCO file."""

    file: Path
    id: int | str
    stated: tuple[Any, Any]  # width and height


def _read_coco(
    path: Path, files: Sequence[Path], sizes: Sequence[Size], names: tuple[str, ...] | None
) -> tuple[list[Objects], tuple[str, ...]]:
    data = _coco_json(path)
    try:
        index, names = _coco_classes(data["categories"], names, path)
        entries = defaultdict(list)
        for entry in data["images"]:
            stated = (entry.get("width", 0), entry.get("height", 0))
            item = _Entry(Path(entry["file_name"]), entry["id"], stated)
            entries[item.file.name].append(item)
        marks = defaultdict(list)
        for mark in data["annotations"]:
            marks[mark["image_id"]].append(mark)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not COCO detection labels ({error!r} where it was looked up)"
        ) from error
    objects = []
    for image, size in zip(files, sizes, strict=True):
        entry = _coco_entry(entries[image.name], image, path)
        found = _coco_objects(marks[entry.id], index, path)
        objects.append(_rescale(found, entry.stated, size, f"{path}: {image.name}"))
    return objects, names


def _coco_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: not COCO labels: an object with images, annotations, categories is wanted"
        )
    return data


def _coco_classes(
    categories: Sequence[Mapping[str, Any]], names: tuple[str, ...] | None, path: Path
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Category id -> class index, and the names in that order."""
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    listed = tuple(str(category.get("name", category["id"])) for category in ordered)
    if names is None:
        return {category["id"]: number for number, category in enumerate(ordered)}, listed
    strange = sorted(set(listed) - set(names))
    if strange:
        raise DataError(f"{path}: category {strange[0]!r} is not among the given class names")
    index = {name: number for number, name in enumerate(names)}
    return {item["id"]: index[name] for item, name in zip(ordered, listed, strict=True)}, names


def _coco_entry(entries: Sequence[_Entry], image: Path, path: Path) -> _Entry:
    """The entry of an image: by its file name, and by its folders where several share that name."""
    if len(entries) > 1:
        entries = [
            item for item in entries if image.parts[-len(item.file.parts) :] == item.file.parts
        ]
    if len(entries) != 1:
        what = "several entries match" if entries else "no entry for"
        raise DataError(
            f"{path}: {what} image {image.name}; labels and images must belong together"
        )
    return entries[0]


def _coco_objects(
    marks: Sequence[Mapping[str, Any]], index: Mapping[int, int], path: Path
) -> Objects:
    boxes, classes, crowds = [], [], []
    for mark in marks:
        try:
            x, y, w, h = (float(value) for value in mark["bbox"])
            classes.append(index[mark["category_id"]])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: annotation {mark.get('id')} has no usable bbox or category_id ({error!r})"
            ) from error
        boxes.append([x, y, x + w, y + h])
        crowds.append(bool(mark.get("iscrowd", 0)))
    return Objects.of(boxes, classes, crowds)


def _rescale(found: Objects, stated: tuple[Any, Any], size: Size, where: str) -> Objects:
    """Boxes in pixels of the image here, if it is the labelled one or a resized copy of it."""
    try:
        width, height = int(float(stated[0])), int(float(stated[1]))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: width and height are not numbers ({error})") from error
    if (width, height) == size or width <= 0 or height <= 0:
        return found  # some writers leave the size out: the boxes are then taken for this image
    if abs(size[0] * height - size[1] * width) > max(width, height):
        raise DataError(
            f"{where}: labels are for {width}x{height} pixels, the image has {size[0]}x{size[1]}; "
            "they do not belong together"
        )
    factor = np.array([size[0] / width, size[1] / height] * 2)
    return Objects(found.boxes * factor, found.classes, found.ignored)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: labels cannot be read ({error})") from error
