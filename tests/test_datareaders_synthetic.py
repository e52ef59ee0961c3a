import numpy as np
import pytest
from datareaders_fakes import Fake, Info, fake, gathered, sizes

from onnxdrp.datareaders import SyntheticReader, check_reader
from onnxdrp.errors import DataError, OptionError


def test_has_the_models_shape_and_type() -> None:
    model = Fake(
        [
            Info("image", np.dtype("f4"), ("N", 3, 8, 9)),
            Info("half", np.dtype("f2"), (None, 5)),
            Info("mask", np.dtype("bool"), (1, 4)),
            Info("tokens", np.dtype("i8"), (1, 4)),
        ]
    )
    reader = SyntheticReader(model, 5, batch=2)
    check_reader(reader, model)
    assert sizes(reader, "image") == [2, 2, 1]
    assert gathered(reader, "image").shape == (5, 3, 8, 9)
    assert gathered(reader, "half").dtype == np.float16
    assert set(gathered(reader, "tokens").ravel()) == {0, 1}
    assert reader.layout == "NCHW"
    assert reader.samples == 5


def test_is_seeded_and_free_of_the_batch_size() -> None:
    model = fake("N", 50)
    first = gathered(SyntheticReader(model, 6, batch=4))
    np.testing.assert_array_equal(gathered(SyntheticReader(model, 6)), first)
    assert (gathered(SyntheticReader(model, 6, seed=1)) != first).all()
    assert len(np.unique(first)) == first.size
    reader = SyntheticReader(model, 6)
    np.testing.assert_array_equal(gathered(reader.pick(np.array([1, 5]))), first[[1, 5]])


def test_distributions() -> None:
    model = fake("N", 10000)
    normal = gathered(SyntheticReader(model, 4))
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05
    uniform = gathered(SyntheticReader(model, 4, distribution="uniform"))
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    raw = gathered(SyntheticReader(fake("N", 10000, dtype=np.uint8), 2))
    assert (raw.min(), raw.max()) == (0, 255)
    tokens = gathered(SyntheticReader(fake("N", 1000, dtype=np.int64), 2, integers=(5, 9)))
    assert set(tokens.ravel()) == {5, 6, 7, 8}


def test_open_sizes_are_given() -> None:
    reader = SyntheticReader(fake("N", 3, "h", "w"), 1, size=(4, 6))
    assert gathered(reader).shape == (1, 3, 4, 6)
    reader = SyntheticReader(fake("N", None, None, 3), 1, size=(4, 6))
    assert gathered(reader).shape == (1, 4, 6, 3)
    reader = SyntheticReader(fake("N", "t"), 2, shapes={"x": (7,)})
    assert gathered(reader).shape == (2, 7)
    model = Fake([Info("x", np.dtype("f4"), None)])
    assert gathered(SyntheticReader(model, 2, shapes={"x": (7,)})).shape == (2, 7)


def test_refuses() -> None:
    model = fake("N", 3, "h", "w")
    with pytest.raises(DataError, match=r"give size=\(H, W\), or shapes="):
        SyntheticReader(model)
    with pytest.raises(DataError, match=r"the sample shape \(1, 4, 4\) does not fit"):
        SyntheticReader(model, shapes={"x": (1, 4, 4)})
    with pytest.raises(DataError, match="give shapes="):
        SyntheticReader(Fake([Info("x", np.dtype("f4"), None)]))
    with pytest.raises(OptionError, match="the model has no input q"):
        SyntheticReader(model, shapes={"q": (1,)})
    with pytest.raises(OptionError, match="no input of the model has four axes"):
        SyntheticReader(fake("N", 2), size=(4, 4))
    with pytest.raises(OptionError, match="samples and batch must be at least 1"):
        SyntheticReader(fake("N", 2), 0)
    with pytest.raises(OptionError, match="distribution 'cauchy' is not known"):
        SyntheticReader(fake("N", 2), distribution="cauchy")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"which the integers 0\.\.299 do not fit"):
        SyntheticReader(fake("N", 2, dtype=np.uint8), integers=(0, 300))
    with pytest.raises(DataError, match="random data of that type cannot be made"):
        SyntheticReader(fake("N", 2, dtype=np.complex64))
