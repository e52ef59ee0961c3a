from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datareaders_fakes import Array, Fake, Info, fake

from onnxdrp.datareaders import DataReader, check_reader
from onnxdrp.errors import DataError

MODEL = fake("N", 3, 8, 8)


class Gives(DataReader):
    def __init__(self, layout: Any = "any", **arrays: Array) -> None:
        self.layout = layout
        self.passes = 0
        self._arrays = arrays

    def batches(self) -> Iterator[dict[str, Array]]:
        self.passes += 1
        if self._arrays:
            yield self._arrays
            raise AssertionError("the check read on")


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize("model", [MODEL, fake(1, 3, 8, 8), fake(None, 3, "h", None)])
def test_accepts_any_batch_of_the_right_kind(model: Fake) -> None:
    for rows in (1, 8):
        reader = Gives(x=zeros(rows, 3, 8, 8))
        check_reader(reader, model)
        assert reader.passes == 1


def test_accepts_several_inputs_and_unknown_shapes() -> None:
    model = Fake([Info("a", np.dtype("f4"), None), Info("b", np.dtype("i8"), ("N", 2))])
    check_reader(Gives(a=zeros(2, 9), b=zeros(2, 2, dtype=np.int64)), model)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (Gives(), "Gives gives no data: not one batch"),
        (Gives(q=zeros(1, 3, 8, 8)), "the model wants the inputs x, but Gives gives q"),
        (
            Gives(x=zeros(1, 3, 8, 8), z=zeros(1)),
            "the model wants the inputs x, but Gives gives x, z",
        ),
        (
            Gives(x=zeros(1, 8, 8, 3)),
            (
                "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives [1, 8, 8, 3], "
                "which is NHWC: use NCHWDataReader for images, --layout nhwc for arrays, "
                "or turn the axes in the reader"
            ),
        ),
        (
            Gives(x=zeros(1, 1, 8, 8)),
            "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives [1, 1, 8, 8]",
        ),
        (
            Gives("NCHW", x=zeros(1, 3, 9, 8)),
            (
                "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives [1, 3, 9, 8]; "
                "--size sets the size of images"
            ),
        ),
        (
            Gives(x=zeros(3, 8, 8)),
            "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives [3, 8, 8]",
        ),
        (
            Gives(x=zeros(1, 3, 8, 8, dtype=np.float64)),
            (
                "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives [1, 3, 8, 8] float64; "
                "give it as float32"
            ),
        ),
        (
            Gives(x=zeros(0, 3, 8, 8)),
            "Gives: all inputs need equally many samples, at least 1; got x 0",
        ),
        (
            Gives("NHWC", x=zeros(1, 3, 8, 8)),
            (
                "input 'x' wants [N, 3, 8, 8] float32 (NCHW) but Gives gives NHWC; "
                "use a reader of NCHW"
            ),
        ),
    ],
)
def test_says_what_is_wanted_and_what_came(reader: DataReader, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_reader(reader, MODEL)
    assert str(caught.value) == message


def test_the_other_way_round() -> None:
    with pytest.raises(DataError, match="which is NCHW: use NHWCDataReader for images"):
        check_reader(Gives(x=zeros(1, 3, 8, 8)), fake("N", 8, 8, 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    x = zeros(4, 3, 8, 8)
    x[2, 1, 0, 0] = bad
    with pytest.raises(DataError, match=r"Gives: sample 2 of 'x' holds (NaN|infinity)"):
        check_reader(Gives(x=x), MODEL)


def test_inputs_must_have_equally_many_samples() -> None:
    model = Fake([Info("a", np.dtype("f4"), ("N", 2)), Info("b", np.dtype("f4"), ("N", 2))])
    with pytest.raises(DataError, match="at least 1; got a 2, b 3"):
        check_reader(Gives(a=zeros(2, 2), b=zeros(3, 2)), model)
    with pytest.raises(DataError, match="the first axis must count the samples"):
        check_reader(Gives(x=np.array(0, np.float32)), fake())
