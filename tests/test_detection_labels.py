"""Ground truth: the three formats, where they are looked for, and what is wrong with bad ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxdrp.detection import read_labels, read_names
from onnxdrp.errors import DataError, OptionError

NAMES = ("cat", "dog", "owl")


def image(path: Path, width: int = 80, height: int = 40, exif: Image.Exif | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, exif=exif or Image.Exif())
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def voc(objects: str, width: int = 80, height: int = 40) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def voc_object(name: str, box: tuple[float, ...], extra: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def coco(annotations: list[dict], images: list[dict] | None = None) -> str:
    categories = [{"id": 90, "name": "owl"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    default = [{"id": 7, "file_name": "a.png", "width": 80, "height": 40}]
    return json.dumps(
        {"images": images or default, "annotations": annotations, "categories": categories}
    )


def mark(category: int, box: list[float], image_id: int = 7, **more: object) -> dict:
    return {"id": 1, "image_id": image_id, "category_id": category, "bbox": box, **more}


# --- the same objects in the three formats -------------------------------------------------------


def test_the_three_formats_agree(tmp_path: Path) -> None:
    files = [image(tmp_path / "images" / "a.png")]
    write(tmp_path / "labels" / "a.txt", "2 0.25 0.5 0.25 0.5\n\n0 0.75 0.25 0.5 0.5\n")
    objects = voc_object("owl", (10, 10, 30, 30)) + voc_object("cat", (40, 0, 80, 20))
    write(tmp_path / "voc" / "a.xml", voc(objects + voc_object("dog", (0, 0, 1, 1))))
    marks = [mark(90, [10, 10, 20, 20]), mark(1, [40, 0, 40, 20]), mark(3, [0, 0, 1, 1])]
    write(tmp_path / "coco.json", coco(marks))

    yolo = read_labels(None, files)
    assert yolo.images == (("a.png", 80, 40),)
    np.testing.assert_array_equal(yolo.objects[0].boxes, [[10, 10, 30, 30], [40, 0, 80, 20]])
    np.testing.assert_array_equal(yolo.objects[0].classes, [2, 0])
    assert not yolo.objects[0].ignored.any()
    assert yolo.names is None
    assert yolo.count == 2
    for path in ("voc", "coco.json"):
        other = read_labels(tmp_path / path, files)
        assert other.names == NAMES
        np.testing.assert_array_equal(other.objects[0].boxes[:2], yolo.objects[0].boxes)
        np.testing.assert_array_equal(other.objects[0].classes, [2, 0, 1])


# --- where labels are looked for -----------------------------------------------------------------


def test_labels_beside_the_image(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png"), image(tmp_path / "b.png")]
    write(tmp_path / "b.txt", "1 0.5 0.5 1 1")
    truth = read_labels(None, files)
    assert [len(item.classes) for item in truth.objects] == [0, 1]  # a missing file: no objects


def test_the_last_folder_called_images_counts(tmp_path: Path) -> None:
    files = [image(tmp_path / "images" / "set" / "images" / "val" / "a.png")]
    write(tmp_path / "images" / "set" / "labels" / "val" / "a.txt", "1 0.5 0.5 1 1")
    write(tmp_path / "labels" / "set" / "images" / "val" / "a.txt", "0 0.5 0.5 1 1")
    np.testing.assert_array_equal(read_labels(None, files).objects[0].classes, [1])


def test_in_a_given_folder_the_longest_path_wins(tmp_path: Path) -> None:
    files = [image(tmp_path / "i" / name / "a.png") for name in ("one", "two", "three")]
    write(tmp_path / "given" / "one" / "a.txt", "1 0.5 0.5 1 1")
    write(tmp_path / "given" / "two" / "a.txt", "2 0.5 0.5 1 1")
    write(tmp_path / "given" / "a.txt", "3 0.5 0.5 1 1")
    truth = read_labels(tmp_path / "given", files)
    assert [item.classes.tolist() for item in truth.objects] == [[1], [2], [3]]


def test_voc_layout_without_a_path(tmp_path: Path) -> None:
    files = [image(tmp_path / "JPEGImages" / "a.png")]
    write(tmp_path / "Annotations" / "a.xml", voc(voc_object("dog", (0, 0, 8, 8))))
    # numbers come from the whole folder, not only from the images that are read
    write(tmp_path / "Annotations" / "z.xml", voc(voc_object("cat", (0, 0, 8, 8))))
    for labels in (None, tmp_path / "Annotations"):
        truth = read_labels(labels, files)
        assert truth.names == ("cat", "dog")
        np.testing.assert_array_equal(truth.objects[0].classes, [1])


def test_two_kinds_in_one_folder_need_the_kind(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1")
    write(tmp_path / "a.xml", voc(voc_object("dog", (0, 0, 8, 8))))
    with pytest.raises(DataError, match="side by side; say which kind"):
        read_labels(tmp_path, files)
    assert read_labels(tmp_path, files, kind="voc").names == ("dog",)
    assert read_labels(tmp_path, files, kind="yolo").names is None


def test_a_folder_with_one_json(tmp_path: Path) -> None:
    files = [image(tmp_path / "images" / "a.png")]
    write(tmp_path / "ann" / "val.json", coco([mark(3, [0, 0, 4, 4])]))
    np.testing.assert_array_equal(read_labels(tmp_path / "ann", files).objects[0].classes, [1])
    write(tmp_path / "ann" / "train.json", "{}")
    with pytest.raises(DataError, match=r"several \.json files \(train\.json, val\.json\)"):
        read_labels(tmp_path / "ann", files)


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    with pytest.raises(DataError, match=r"no label file found for a\.png"):
        read_labels(None, files)
    with pytest.raises(DataError, match="no such file or folder"):
        read_labels(tmp_path / "nowhere", files)
    with pytest.raises(DataError, match=r"a COCO \.json file, or a folder"):
        read_labels(write(tmp_path / "labels.csv", "file,class_index\n"), files)
    with pytest.raises(DataError, match="no images"):
        read_labels(None, [])
    with pytest.raises(OptionError, match="'vco' is unknown"):
        read_labels(None, files, kind="vco")  # type: ignore[arg-type]
    write(tmp_path / "a.txt", "")
    with pytest.raises(DataError, match="hold no object"):
        read_labels(None, files)


def test_size_is_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [image(tmp_path / "a.jpg", 80, 40, exif)]
    write(tmp_path / "a.txt", "0 0.5 0.5 1 0.5")
    truth = read_labels(None, files)
    assert truth.images == (("a.jpg", 40, 80),)
    np.testing.assert_array_equal(truth.objects[0].boxes, [[0, 20, 40, 60]])


def test_a_broken_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", "no image")
    write(tmp_path / "a.txt", "0 0.5 0.5 1 1")
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_labels(None, [path])


# --- YOLO ----------------------------------------------------------------------------------------


def test_a_polygon_counts_as_its_box(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.txt", "1 0.5 0.25 0.75 0.5 0.25 1.0")
    np.testing.assert_array_equal(read_labels(None, files).objects[0].boxes, [[20, 10, 60, 40]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat 0.5 0.5 1 1", "could not convert"),
        ("0 0.5 0.5 1", "4 values"),
        ("0 0.5 0.5 1 1 0.9", "6 values"),
        ("0.5 0.5 0.5 1 1", "not a whole number"),
        ("-1 0.5 0.5 1 1", "not a whole number"),
        ("nan 0.5 0.5 1 1", "not a whole number"),
        ("inf 0.5 0.5 1 1", "not a whole number"),
        ("0 0.5 nan 1 1", r"outside 0\.\.1"),
        ("0 40 20 80 40", r"outside 0\.\.1"),
        ("0 0.5 0.5 -0.005 1", "negative side"),
    ],
)
def test_a_bad_yolo_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.txt", f"0 0.5 0.5 1 1\n\n{line}\n")
    with pytest.raises(DataError, match=rf"a\.txt:3: .*{message}"):
        read_labels(None, files)


def test_a_binary_label_file(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(DataError, match=r"a\.txt: labels cannot be read"):
        read_labels(None, files)


# --- VOC -----------------------------------------------------------------------------------------


def test_voc_difficult_objects_are_ignored(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>99</xmin></bndbox></part>"
    hard = voc_object("dog", (1, 2, 3, 4), "<difficult>1</difficult>" + part)
    easy = voc_object("cat", (5, 6, 7, 8), "<difficult>0</difficult>")
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.xml", voc(hard + easy))
    truth = read_labels(tmp_path, files)
    np.testing.assert_array_equal(truth.objects[0].boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(truth.objects[0].ignored, [True, False])
    assert truth.count == 1
    assert truth.names == ("cat", "dog")


def test_given_names_number_the_classes(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.xml", voc(voc_object("dog", (1, 2, 3, 4))))
    write(tmp_path / "a.json", coco([mark(3, [1, 2, 2, 2])]))
    names = ("owl", "fox", "dog", "cat")
    for labels in (tmp_path / "a.json", tmp_path):
        truth = read_labels(labels, files, names=names)
        assert truth.names == names
        np.testing.assert_array_equal(truth.objects[0].classes, [2])
        with pytest.raises(DataError, match="'dog' is not among the given class names"):
            read_labels(labels, files, names=("owl", "cat"))


def test_voc_names_that_are_numbers_are_the_indices(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    objects = "".join(voc_object(name, (0, 0, 8, 8)) for name in ("10", "2", "79"))
    write(tmp_path / "a.xml", voc(objects))
    truth = read_labels(tmp_path, files)
    np.testing.assert_array_equal(truth.objects[0].classes, [10, 2, 79])
    assert truth.names is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object>", r"a\.xml:2: not valid XML"),
        (voc("<object><name>dog</name></object>"), r"a\.xml: object 'dog' has no readable bndbox"),
        (voc(voc_object("", (1, 2, 3, 4))), r"a\.xml: class '' is not among"),
        (voc(voc_object("dog", (1, 2, 3, 4)), 40, 80), "labels are for 40x80 pixels.*80x40"),
        (voc(voc_object("dog", (1, 2, 3, 4))).replace(">80<", ">w<"), "are not numbers"),
    ],
)
def test_a_bad_voc_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.xml", text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path, files)


def test_every_voc_image_needs_its_file(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png"), image(tmp_path / "b.png")]
    write(tmp_path / "a.xml", voc(voc_object("dog", (1, 2, 3, 4))))
    with pytest.raises(DataError, match=r"no VOC \.xml file for b\.png"):
        read_labels(tmp_path, files)


def test_boxes_follow_a_resized_image(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png", 80, 40)]
    write(tmp_path / "a.xml", voc(voc_object("dog", (20, 40, 60, 81)), 160, 81))
    (box,) = read_labels(tmp_path, files).objects[0].boxes
    np.testing.assert_allclose(box, [10, 40 * 40 / 81, 30, 40], rtol=1e-12)


def test_labels_without_a_size_are_for_the_image(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    write(tmp_path / "a.xml", f"<annotation>{voc_object('dog', (1, 2, 3, 4))}</annotation>")
    np.testing.assert_array_equal(read_labels(tmp_path, files).objects[0].boxes, [[1, 2, 3, 4]])


# --- COCO ----------------------------------------------------------------------------------------


def test_coco_crowds_are_ignored(tmp_path: Path) -> None:
    files = [image(tmp_path / "a.png")]
    marks = [mark(1, [0, 0, 4, 4], iscrowd=1), mark(3, [1, 1, 2, 2], iscrowd=0)]
    truth = read_labels(write(tmp_path / "c.json", coco(marks)), files)
    np.testing.assert_array_equal(truth.objects[0].ignored, [True, False])


def test_coco_images_are_found_by_their_folders(tmp_path: Path) -> None:
    files = [image(tmp_path / name / "a.png") for name in ("two", "one")]
    images = [{"id": n, "file_name": f"{name}/a.png"} for n, name in enumerate(("one", "two"))]
    marks = [mark(1, [0, 0, 1, 1], 0), mark(3, [0, 0, 2, 2], 1)]
    path = write(tmp_path / "c.json", coco(marks, images))
    assert [item.classes.tolist() for item in read_labels(path, files).objects] == [[1], [0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n,', r"c\.json:2: not valid JSON"),
        ("[]", "not COCO labels"),
        ('{"images": []}', "not COCO detection labels.*categories"),
        (coco([], [{"file_name": "a.png"}]), "not COCO detection labels.*'id'"),
        (coco([], ["a.png"]), "not COCO detection labels"),  # type: ignore[list-item]
        (coco([mark(2, [0, 0, 1, 1])]), r"annotation 1 has no usable bbox or category_id"),
        (coco([mark(1, [0, 0, 1])]), r"annotation 1 has no usable bbox"),
        (coco([mark(1, [0, 0, 1, 1])], [{"id": 7, "file_name": "b.png"}]), "no entry for image a"),
        (coco([], [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]), "several"),
    ],
)
def test_a_bad_coco_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    files = [image(tmp_path / "images" / "a.png")]
    with pytest.raises(DataError, match=message):
        read_labels(write(tmp_path / "c.json", text), files)


# --- names ---------------------------------------------------------------------------------------


def test_names_file(tmp_path: Path) -> None:
    assert read_names(write(tmp_path / "n.txt", "cat\n\n traffic light \n")) == (
        "cat",
        "traffic light",
    )
    with pytest.raises(DataError, match="'cat' is named twice"):
        read_names(write(tmp_path / "n.txt", "cat\ncat\n"))
    with pytest.raises(DataError, match="no class names"):
        read_names(write(tmp_path / "n.txt", "\n"))
    with pytest.raises(DataError, match="cannot be read"):
        read_names(tmp_path / "none.txt")
