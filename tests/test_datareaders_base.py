import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, value
from datareaders_fakes import Array, OneShot, fake
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader

from onnxdrp.datareaders import DataReader, first_batch
from onnxdrp.datareaders.base import inputs_of


class Three(DataReader):
    def batches(self) -> Iterator[dict[str, Array]]:
        for number in range(3):
            yield {"x": np.full((1, 2), number, np.float32)}


def test_is_an_onnxruntime_reader() -> None:
    assert isinstance(Three(), CalibrationDataReader)


def test_having_get_next_makes_no_reader_of_ours() -> None:
    assert isinstance(OneShot([]), CalibrationDataReader)
    assert not isinstance(OneShot([]), DataReader)


def test_get_next_gives_each_batch_then_none() -> None:
    reader = Three()
    for number in range(3):
        batch = reader.get_next()
        assert batch is not None
        assert batch["x"][0, 0] == number
    assert reader.get_next() is None


def test_get_next_begins_a_new_pass_after_the_end() -> None:
    reader = Three()
    passes = [[batch["x"][0, 0] for batch in iter(reader.get_next, None)] for _ in range(2)]
    assert passes == [[0, 1, 2], [0, 1, 2]]


def test_rewind_begins_anew() -> None:
    reader = Three()
    reader.get_next()
    reader.get_next()
    reader.rewind()
    batch = reader.get_next()
    assert batch is not None
    assert batch["x"][0, 0] == 0


def test_batches_must_be_written() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DataReader()


def test_works_as_any_iterable_does() -> None:
    reader = Three()
    assert len(list(reader)) == len(list(reader)) == 3
    assert bool(reader)
    with pytest.raises(TypeError, match="samples"):
        len(reader)


def test_a_copy_starts_afresh() -> None:
    reader = Three()
    reader.get_next()
    for other in (copy.copy(reader), copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):
        batch = other.get_next()
        assert batch is not None
        assert batch["x"][0, 0] == 0
    batch = reader.get_next()
    assert batch is not None
    assert batch["x"][0, 0] == 1


def test_first_batch_ends_the_pass() -> None:
    ended = []

    class Watched(DataReader):
        def batches(self) -> Iterator[dict[str, Array]]:
            try:
                yield {"x": np.zeros((1, 1), np.float32)}
                yield {"x": np.ones((1, 1), np.float32)}
            finally:
                ended.append(True)

    batch = first_batch(Watched())
    assert batch is not None
    assert batch["x"][0, 0] == 0
    assert ended == [True]


def test_inputs_of_a_model_or_its_file(tmp_path: Path) -> None:
    proto = make_model(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", ["N", 3, 4, 5])], [value("y", None)]
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    for model in (str(path), path):
        (info,) = inputs_of(model)
        assert (info.name, info.dtype, info.shape) == ("x", np.float32, ("N", 3, 4, 5))
    model = fake(1, 2)
    assert inputs_of(model) is model.inputs


def test_import_loads_no_image_library() -> None:
    code = "import sys, onnxdrp.datareaders; print('PIL' in sys.modules)"
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "False"
