import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from datareaders_fakes import Fake, fake, gathered, images

from onnxdrp.datareaders import DataReader, ImageReader, SpooledReader, load_reader
from onnxdrp.errors import DataError, OptionError

MODEL = fake("N", 2)

# as the users of the vendor's quantizer have written theirs
MANUAL = """
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    class NCHWDataReader(CalibrationDataReader):
        def __init__(self, calibration_image_folder, norm_mean, norm_std, augmented_model_path):
            self.arguments = (calibration_image_folder, norm_mean, norm_std, augmented_model_path)
            self.data = iter([{"x": np.full((1, 2), n, np.float32)} for n in range(3)])

        def get_next(self):
            return next(self.data, None)
"""


class OnDisk(Fake):
    path = Path("models/m.onnx")


def write(path: Path, text: str) -> Path:
    path.write_text(dedent(text))
    return path


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def test_loads_what_the_manuals_users_have(tmp_path: Path) -> None:
    file = write(tmp_path / "nchw_datareader.py", MANUAL)
    model = OnDisk(MODEL.inputs)
    reader = load_reader(str(file), model, "images", mean=[0.1], std=[0.2])
    assert isinstance(reader, SpooledReader)
    source: Any = reader._source
    assert source.arguments == ("images", [0.1], [0.2], str(Path("models/m.onnx")))
    for _ in range(2):
        assert gathered(reader)[:, 0].tolist() == [0, 1, 2]


def test_a_class_of_ours_is_constructed_and_stays_one(tmp_path: Path) -> None:
    images(tmp_path / "data", 2)
    file = write(
        tmp_path / "r.py",
        """
        from onnxdrp.datareaders import NCHWDataReader

        class Mine(NCHWDataReader):
            def read(self, path):
                return 1 - super().read(path)
        """,
    )
    model = fake("N", 3, 8, 8)
    reader = load_reader(file, model, tmp_path / "data", size=(8, 8), batch=2, mean=0.5)
    assert isinstance(reader, ImageReader)
    assert type(reader).__name__ == "Mine"
    plain = load_reader(f"{file}:NCHWDataReader", model, tmp_path / "data", mean=0.5)
    np.testing.assert_array_equal(gathered(reader), 1 - gathered(plain))
    np.testing.assert_array_equal(gathered(reader.pick(np.array([1]))), gathered(reader)[1:])


def test_a_class_that_knows_its_data(tmp_path: Path) -> None:
    file = write(
        tmp_path / "r.py",
        """
        import numpy as np
        from neighbour import VALUE
        from onnxdrp.datareaders import DataReader

        class Base(DataReader):
            pass

        class Mine(Base):
            samples = 4
            def batches(self):
                for n in range(4):
                    yield {"x": np.full((1, 2), VALUE + n, np.float32)}
        """,
    )
    write(tmp_path / "neighbour.py", "VALUE = 5")
    reader = load_reader(file, MODEL)
    assert isinstance(reader, DataReader)
    assert gathered(reader)[:, 0].tolist() == [5, 6, 7, 8]
    assert str(tmp_path) not in sys.path
    limited = load_reader(file, MODEL, limit=3)
    assert gathered(limited)[:, 0].tolist() == [5, 6, 7]
    assert limited.samples == 3


def test_options_under_their_own_names(tmp_path: Path) -> None:
    file = write(
        tmp_path / "r.py",
        """
        class Mine:
            def __init__(self, data_path, model, size_limit=0, batch_size=1, color="", *, other=7):
                self.got = (data_path, model, size_limit, batch_size, color, other)
            def get_next(self):
                return None
        """,
    )
    reader = load_reader(file, MODEL, "d", limit=9, batch=4, color="bgr", seed=3, labels=None)
    assert isinstance(reader, SpooledReader)
    source: Any = reader._source
    assert source.got == ("d", MODEL, 9, 4, "bgr", 7)


def test_a_layout_declares_the_data(tmp_path: Path) -> None:
    file = write(tmp_path / "r.py", "class R:\n    def get_next(self): return None")
    assert load_reader(file, MODEL, layout="nhwc").layout == "NHWC"
    assert load_reader(file, MODEL).layout == "any"


def refusal(file: Path, spec: str | None = None, **options: Any) -> str:
    with pytest.raises((DataError, OptionError)) as caught:
        gathered(load_reader(spec or file, MODEL, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_options_that_the_class_does_not_take_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "r.py", "class R:\n    def get_next(self): return None")
    message = refusal(file, data="d", mean=1.0)
    assert message == f"{file}: R takes no parameter for data, mean; add one, or drop the option"


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("norm_mean", "R wants 'norm_mean': give --mean"),
        ("folder", "R wants 'folder': give --calib"),
        ("model_path", "R wants 'model_path': the model has no file; save it, and give the file"),
        ("flavour", "R wants 'flavour': give the parameter a default"),
    ],
)
def test_parameters_that_nothing_gives(tmp_path: Path, parameter: str, message: str) -> None:
    file = write(
        tmp_path / "r.py",
        f"""
        class R:
            def __init__(self, {parameter}, *args, **kwargs): pass
            def get_next(self): return None
        """,
    )
    assert refusal(file) == f"{file}: {message}"


def test_the_class_must_be_clear(tmp_path: Path) -> None:
    two = "class A:\n    def get_next(self): return None\nclass B(object):\n    get_next = 1"
    file = write(tmp_path / "r.py", two)
    assert refusal(file) == f"{file}: has several readers (A, B); pass {file}:Class"
    assert "used up" in refusal(file, f"{file}:A")
    assert "has no class 'C' that is a reader" in refusal(file, f"{file}:C")
    empty = write(tmp_path / "e.py", "from onnxdrp.datareaders import NCHWDataReader\nx = 1")
    assert "has no reader: a class with get_next, or a DataReader with batches" in refusal(empty)


def test_files_must_be_python(tmp_path: Path) -> None:
    assert "no such reader file" in refusal(tmp_path / "none.py")
    assert "must be FILE.py or FILE.py:Class" in refusal(tmp_path / "r.txt")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\nimport not_there_at_all", 2, "ModuleNotFoundError: No module named"),
        ("def f(:\n  pass", 1, "SyntaxError: "),
        ("import sys\n\nsys.exit('usage: ...')", 3, "cannot import this reader: SystemExit: usage"),
        (
            "class R:\n def __init__(self):\n  1/0\n def get_next(self): return None",
            3,
            "cannot construct R: ZeroDivisionError: division by zero",
        ),
        (
            "class R:\n def get_next(self):\n  return self.missing\n",
            3,
            "R.get_next: AttributeError: 'R' object has no attribute 'missing'",
        ),
        (
            (
                "from onnxdrp.datareaders import DataReader\nclass R(DataReader):\n"
                " def batches(self):\n  yield {}['x']\n"
            ),
            4,
            "R.batches: KeyError: 'x'",
        ),
        (
            "class R:\n def get_next(self):\n  raise ValueError('two\\nlines')",
            3,
            "ValueError: two lines",
        ),
    ],
)
def test_what_a_file_raises_is_told_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    file = tmp_path / "r.py"
    file.write_text(text)
    told = refusal(file)
    assert told.startswith(f"{file}:{line}: ")
    assert message in told


def test_the_line_is_the_users_even_if_a_library_raised(tmp_path: Path) -> None:
    file = tmp_path / "r.py"
    file.write_text(
        "import json\nclass R:\n def get_next(self):\n  return json.loads('not json')\n"
    )
    assert refusal(file).startswith(f"{file}:4: R.get_next: JSONDecodeError: ")
