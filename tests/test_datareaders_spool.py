import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datareaders_fakes import Array, OneShot, fake, gathered
from onnxruntime.quantization import CalibrationDataReader

from onnxdrp.datareaders import ArrayReader, SpooledReader, first_batch, wrap
from onnxdrp.errors import DataError, OptionError


def made(count: int = 5) -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(2, 3)).astype(np.float32), "n": np.full((2, 1), number)}
        for number in range(count)
    ]


def same(reader: Any, want: list[dict[str, Array]]) -> None:
    got = list(reader.batches())
    assert len(got) == len(want)
    for batch, expected in zip(got, want, strict=True):
        assert list(batch) == list(expected)
        for name, array in expected.items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


def test_a_reader_that_can_be_read_once_is_read_often() -> None:
    source = OneShot(made())
    reader = wrap(source)
    for _ in range(3):
        same(reader, made())
    assert source.calls == 6  # five batches and the end, asked for once


def test_samples_are_known_after_the_end() -> None:
    reader = wrap(OneShot(made()))
    assert reader.samples is None
    gathered(reader)
    assert reader.samples == 10


def test_nothing_is_asked_before_it_is_needed_and_nothing_lost_by_a_look() -> None:
    source = OneShot(made())
    reader = wrap(source)
    assert source.calls == 0
    for _ in range(2):
        batch = first_batch(reader)
        assert batch is not None
        np.testing.assert_array_equal(batch["x"], made()[0]["x"])
    assert source.calls == 1
    same(reader, made())


def test_passes_may_interleave() -> None:
    reader = wrap(OneShot(made(6)))
    one, two = reader.batches(), reader.batches()
    firsts = [next(one), next(one), next(two), next(one), next(two), next(two), next(two)]
    assert [int(batch["n"][0, 0]) for batch in firsts] == [0, 1, 0, 2, 1, 2, 3]


def test_threads_may_read_at_once() -> None:
    reader = wrap(OneShot(made(40)))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: gathered(reader, "n")[:, 0].tolist(), range(4)))
    assert results == [[number for number in range(40) for _ in range(2)]] * 4


def test_a_working_rewind_is_not_used() -> None:
    class Drifting(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.passes = 0
            self.rewind()

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self.passes += 1
            self._left = iter([{"x": np.full((1, 1), self.passes, np.float32)}])

    source = Drifting()
    reader = wrap(source)
    assert gathered(reader).tolist() == gathered(reader).tolist() == [[1.0]]
    assert source.passes == 1


def test_the_file_is_mapped_and_goes_with_the_reader() -> None:
    reader = SpooledReader(OneShot(made()))
    batch = first_batch(reader)
    assert batch is not None
    assert not batch["x"].flags.writeable
    assert not batch["x"].flags.owndata
    folder = reader._file.parent
    assert folder.is_dir()
    del reader, batch
    gc.collect()
    assert not folder.exists()


def test_non_contiguous_and_list_batches() -> None:
    turned = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(0, 2, 1)
    reader = wrap(OneShot([{"x": turned, "l": [[1, 2], [3, 4]]}]))  # type: ignore[dict-item]
    for _ in range(2):
        np.testing.assert_array_equal(gathered(reader), turned)
        np.testing.assert_array_equal(gathered(reader, "l"), [[1, 2], [3, 4]])


def test_never_silently_empty() -> None:
    for _ in range(2):
        reader = wrap(OneShot([]))
        with pytest.raises(DataError, match="OneShot: its first get_next gave nothing"):
            next(reader.batches())
    used = OneShot(made())
    while used.get_next():
        pass
    with pytest.raises(DataError, match="it may have been used up"):
        gathered(wrap(used))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([np.zeros((1, 1))], "get_next gave a list; it must give arrays by input name"),
        ({"x": np.float32(1)}, r"input 'x' of batch 0 is float32 of shape \(\); it must be numb"),
        ({"x": np.zeros((0, 3))}, r"is float64 of shape \(0, 3\)"),
        ({"x": np.array([None])}, "is object of"),
    ],
)
def test_refuses_what_is_no_batch(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gathered(wrap(OneShot([batch])))


def test_an_exception_is_named_with_its_line() -> None:
    class Broken:
        def get_next(self) -> None:
            raise KeyError("oops")

    line = Broken.get_next.__code__.co_firstlineno + 1
    want = rf"{Path(__file__).name}:{line}: Broken\.get_next: KeyError: 'oops'"
    with pytest.raises(DataError, match=want) as caught:
        gathered(wrap(Broken()))
    assert isinstance(caught.value.__cause__, KeyError)


def test_data_readers_stay_what_they_are() -> None:
    reader = ArrayReader(np.zeros((1, 3, 6, 6), np.float32), fake("N", 3, 6, 6))
    assert wrap(reader) is reader
    assert wrap(reader, "NCHW") is reader
    with pytest.raises(OptionError, match="layout NHWC: ArrayReader gives NCHW"):
        wrap(reader, "NHWC")


def test_layout_is_declared_by_reader_or_caller() -> None:
    class Declared(OneShot):
        layout = "NHWC"

    assert wrap(Declared([])).layout == "NHWC"
    assert wrap(OneShot([])).layout == "any"
    assert wrap(OneShot([]), "NCHW").layout == "NCHW"
