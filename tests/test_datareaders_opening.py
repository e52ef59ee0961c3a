from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datareaders_fakes import Fake, Info, OneShot, fake, gathered, images, pixels, sizes

from onnxdrp.datareaders import (
    ArrayReader,
    NCHWDataReader,
    NHWCDataReader,
    RecordedReader,
    SpooledReader,
    open_reader,
)
from onnxdrp.errors import DataError, OptionError

MODEL = fake("N", 3, 8, 8)


def test_images_in_the_layout_that_the_model_shows(tmp_path: Path) -> None:
    images(tmp_path, 3)
    first = open_reader(tmp_path, MODEL)
    last = open_reader(str(tmp_path), fake("N", 8, 8, 3))
    assert type(first) is NCHWDataReader
    assert type(last) is NHWCDataReader
    np.testing.assert_array_equal(gathered(first).transpose(0, 2, 3, 1), gathered(last))


def test_images_in_the_layout_that_is_declared(tmp_path: Path) -> None:
    images(tmp_path, 1)
    model = fake("N", None, None, None)
    assert type(open_reader(tmp_path, model, layout="nhwc", size=(4, 4))) is NHWCDataReader
    assert type(open_reader(tmp_path, model, layout="nchw", size=(4, 4))) is NCHWDataReader
    with pytest.raises(DataError, match="does not show where its channels are; pass --layout"):
        open_reader(tmp_path, model, size=(4, 4))
    with pytest.raises(DataError, match="but NHWCDataReader gives NHWC; use NCHWDataReader"):
        open_reader(tmp_path, MODEL, layout="nhwc")


def test_all_options_reach_the_images(tmp_path: Path) -> None:
    for group in "ab":
        images(tmp_path / group, 4, 10, 20)
    options: dict[str, Any] = {
        "size": (16, 16),
        "resize": "letterbox",
        "pad_color": 7,
        "pad_place": "top-left",
        "color": "bgr",
        "scale": 1.0,
        "limit": 6,
        "batch": 4,
        "seed": 3,
        "labels": "folders",
    }
    model = fake("N", 3, None, None)
    opened = open_reader(tmp_path, model, mean=[1, 2, 3], std=2.0, **options)
    direct = NCHWDataReader(tmp_path, [1, 2, 3], 2.0, model, **options)
    assert sizes(opened) == [4, 2]
    np.testing.assert_array_equal(gathered(opened), gathered(direct))
    assert opened.labels is not None
    np.testing.assert_array_equal(opened.labels, direct.labels)


def test_array_files_and_folders_of_such(tmp_path: Path) -> None:
    x = pixels(4, 8, 8, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4))
    for data in (tmp_path / "a.npz", x, {"x": x}):
        reader = open_reader(data, MODEL, scale=1, batch=3)
        assert type(reader) is ArrayReader
        np.testing.assert_array_equal(gathered(reader), x.transpose(0, 3, 1, 2))
    reader = open_reader(tmp_path, MODEL, limit=2)
    assert type(reader) is RecordedReader
    assert reader.samples == 2
    with pytest.raises(OptionError, match="labels belong to a folder of images"):
        open_reader(tmp_path / "a.npz", MODEL, labels="l.csv")
    with pytest.raises(OptionError, match="labels belong to a folder of images"):
        open_reader(tmp_path, MODEL, labels="l.csv")


def test_readers_that_exist() -> None:
    x = np.zeros((6, 3, 8, 8), np.float32)
    reader = ArrayReader(x, MODEL)
    assert open_reader(reader, MODEL) is reader
    assert open_reader(reader, MODEL, limit=4).samples == 4
    spooled = open_reader(OneShot([{"x": x}]), MODEL, layout="nchw")
    assert isinstance(spooled, SpooledReader)
    assert spooled.layout == "NCHW"
    limited = open_reader(OneShot([{"x": x}]), MODEL, limit=4)
    assert len(gathered(limited)) == len(gathered(limited)) == 4
    with pytest.raises(OptionError, match="ArrayReader is a reader already; it cannot take mean"):
        open_reader(reader, MODEL, mean=1.0)


def test_readers_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text(
        "import numpy as np\n"
        "class R:\n"
        " def __init__(self, folder='none', scale=2.0):\n"
        "  self.data = [{'x': np.full((1, 3, 8, 8), scale, np.float32)}] * 3\n"
        " def get_next(self):\n"
        "  return self.data.pop() if self.data else None\n"
    )
    reader = open_reader(tmp_path, MODEL, reader=file, scale=0.5, limit=2)
    assert gathered(reader)[:, 0, 0, 0].tolist() == [0.5, 0.5]
    assert len(gathered(open_reader(None, MODEL, reader=f"{file}:R"))) == 3
    with pytest.raises(OptionError, match="takes its data from a path, or knows it itself"):
        open_reader({"x": np.zeros(1)}, MODEL, reader=file)


@pytest.mark.parametrize("data", [None, 7, [1, 2]])
def test_refuses_what_it_does_not_understand(data: Any) -> None:
    with pytest.raises(DataError, match=r"cannot read data from a .*; give a folder of images"):
        open_reader(data, MODEL)


def test_paths_that_do_not_do(tmp_path: Path) -> None:
    accepted = r"give a folder of images \(.*\), a \.npz or \.npy file, or a folder of such"
    with pytest.raises(DataError, match=f"none: no such file or folder; {accepted}"):
        open_reader(tmp_path / "none", MODEL)
    with pytest.raises(DataError, match=f"holds nothing that can be read; {accepted}"):
        open_reader(tmp_path, MODEL)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=f"a.txt: cannot read this as data; {accepted}"):
        open_reader(tmp_path / "a.txt", MODEL)
    images(tmp_path, 1)
    np.save(tmp_path / "a.npy", np.zeros(1))
    with pytest.raises(DataError, match="holds images and arrays; give the folder of one or"):
        open_reader(tmp_path, MODEL)


def test_models_that_images_cannot_feed(tmp_path: Path) -> None:
    images(tmp_path, 1)
    two = Fake([*MODEL.inputs, Info("z", np.dtype("f4"), ("N", 2))])
    with pytest.raises(DataError, match=r"a folder of images feeds one: give \.npz files"):
        open_reader(tmp_path, two)
    with pytest.raises(DataError, match="images have four axes"):
        open_reader(tmp_path, fake("N", 784))
    with pytest.raises(OptionError, match="layout 'chw' is not known"):
        open_reader(tmp_path, MODEL, layout="chw")
