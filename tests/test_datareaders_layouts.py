import numpy as np
import pytest
from datareaders_fakes import Info

from onnxdrp.datareaders import infer_layout, to_layout
from onnxdrp.datareaders.layouts import fits, parse_layout, spec
from onnxdrp.errors import DataError, OptionError


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (("N", 3, 224, 224), "NCHW"),
        ((1, 1, 28, 28), "NCHW"),
        ((None, 3, None, None), "NCHW"),
        ((None, 4, "h", "w"), "NCHW"),
        (("N", 32, 32, 3), "NHWC"),
        ((1, None, None, 1), "NHWC"),
    ],
)
def test_reads_the_layout_off_a_shape(shape: tuple[int | str | None, ...], layout: str) -> None:
    assert infer_layout(shape) == layout


@pytest.mark.parametrize(
    "shape", [(1, 3, 32, 3), (1, 8, 8, 8), (None,) * 4, (1, 3, 224), (1, 3, 4, 4, 4), None]
)
def test_refuses_what_shows_no_layout_or_two(shape: tuple[int | None, ...] | None) -> None:
    with pytest.raises(DataError, match="does not show where its channels are; pass --layout"):
        infer_layout(shape)


def test_turns_and_turns_back() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    turned = to_layout(x, "NCHW", "NHWC")
    assert turned.shape == (2, 4, 5, 3)
    assert turned[1, 2, 3, 0] == x[1, 0, 2, 3]
    np.testing.assert_array_equal(to_layout(turned, "NHWC", "NCHW"), x)
    assert to_layout(x, "NCHW", "NCHW") is x


def test_fits_compares_all_but_the_batch() -> None:
    assert fits((8, 3, 4, 4), (1, 3, 4, 4))
    assert fits((8, 3, 9, 4), ("N", 3, None, "w"))
    assert not fits((8, 3, 9, 4), (8, 3, 4, 4))
    assert not fits((8, 3), (8, 3, 1))
    assert fits((8, 3), None)


def test_says_what_an_input_wants() -> None:
    info = Info("x", np.dtype(np.float32), ("N", 3, 224, None))
    assert spec(info) == "input 'x' wants [N, 3, 224, ?] float32 (NCHW)"
    assert spec(Info("x", np.dtype(np.int64), None)) == "input 'x' wants [unknown] int64"


def test_parses_what_users_write() -> None:
    assert parse_layout("nhwc") == "NHWC"
    assert parse_layout(None) is None
    with pytest.raises(OptionError, match="layout 'chw' is not known; it is nchw or nhwc"):
        parse_layout("chw")
