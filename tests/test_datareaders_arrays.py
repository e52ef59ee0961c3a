import logging
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datareaders_fakes import Array, Fake, Info, fake, gathered, pixels, sizes
from PIL import Image

from onnxdrp.datareaders import ArrayReader, check_reader
from onnxdrp.errors import DataError, OptionError


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_floats_are_taken_as_they_are() -> None:
    x = floats(5, 3, 6, 6)
    reader = ArrayReader(x, fake("N", 3, 6, 6), batch=2)
    assert sizes(reader) == [2, 2, 1]
    np.testing.assert_array_equal(gathered(reader), x)
    np.testing.assert_array_equal(gathered(reader), x)
    assert (reader.samples, reader.layout, reader.labels) == (5, "NCHW", None)


def test_floats_take_the_models_width() -> None:
    x = floats(2, 3, dtype=np.float64)
    for dtype in (np.float16, np.float32):
        got = gathered(ArrayReader(x, fake("N", 3, dtype=dtype)))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, x.astype(dtype))


def test_pixels_are_scaled_and_turned() -> None:
    x = pixels(4, 6, 6, 3)
    for model, axes in ((fake("N", 3, 6, 6), (0, 3, 1, 2)), (fake("N", 6, 6, 3), (0, 1, 2, 3))):
        got = gathered(ArrayReader(x, model, batch=3, mean=[0.4, 0.5, 0.6], std=0.2))
        want = ((x / 255 - [0.4, 0.5, 0.6]) / 0.2).transpose(axes)
        assert got.flags.c_contiguous
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    back = ArrayReader(x.transpose(0, 3, 1, 2), fake("N", 6, 6, 3), scale=1)
    np.testing.assert_array_equal(gathered(back), x)
    assert back.layout == "NHWC"


def test_pixels_are_resized_as_images_are() -> None:
    x = pixels(2, 12, 20, 3)
    reader = ArrayReader(x, fake("N", 3, 6, 6), scale=1)
    want = [np.asarray(Image.fromarray(im).resize((6, 6), Image.Resampling.BILINEAR)) for im in x]
    np.testing.assert_array_equal(gathered(reader).transpose(0, 2, 3, 1), want)
    boxed = gathered(ArrayReader(x, fake("N", 3, 20, 20), resize="letterbox", scale=1))
    assert (boxed[:, :, :4] == 114).all()
    np.testing.assert_array_equal(boxed[:, :, 4:16].transpose(0, 2, 3, 1), x)
    wide = gathered(ArrayReader(x, fake("N", "c", None, None), size=(5, 7), layout="nhwc"))
    assert wide.shape == (2, 5, 7, 3)
    own = gathered(ArrayReader(x, fake("N", 3, None, None)))
    assert own.shape == (2, 3, 12, 20)


def test_pixels_of_any_number_of_channels_are_resized() -> None:
    x = pixels(1, 8, 8, 4)
    got = gathered(ArrayReader(x, fake("N", 4, 6, 6), scale=1))
    bands = [
        np.asarray(Image.fromarray(x[0, ..., c]).resize((6, 6), Image.Resampling.BILINEAR))
        for c in range(4)
    ]
    np.testing.assert_array_equal(got[0], bands)


def test_grey_pixels_get_their_channel_axis() -> None:
    x = pixels(3, 8, 8)
    for model, shape in ((fake("N", 1, 8, 8), (3, 1, 8, 8)), (fake("N", 8, 8, 1), (3, 8, 8, 1))):
        got = gathered(ArrayReader(x, model, scale=1))
        np.testing.assert_array_equal(got, x.reshape(shape))


def test_vectors_of_pixels_are_scaled() -> None:
    x = pixels(3, 784)
    got = gathered(ArrayReader(x, fake("N", 784), mean=0.5, std=0.5))
    np.testing.assert_allclose(got, (x / 255 - 0.5) / 0.5, rtol=1e-5, atol=1e-6)
    with pytest.raises(OptionError, match="mean has 3 values but input 'x' has no channel axis"):
        ArrayReader(x, fake("N", 784), mean=[1, 2, 3])
    with pytest.raises(DataError, match=r"the shape \[3, 784\] cannot be resized"):
        ArrayReader(x, fake("N", 784), size=(4, 4))


def test_uint8_models_get_raw_pixels() -> None:
    x = pixels(2, 6, 6, 3)
    got = gathered(ArrayReader(x, fake("N", 3, 6, 6, dtype=np.uint8)))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, x.transpose(0, 3, 1, 2))
    with pytest.raises(OptionError, match="so it gets the raw pixels; drop scale, mean and std"):
        ArrayReader(x, fake("N", 3, 6, 6, dtype=np.uint8), mean=1)


def test_channels_that_nothing_depends_on_need_no_layout() -> None:
    x = pixels(2, 13, 6, 6)
    model = fake("N", 13, 6, 6)
    np.testing.assert_array_equal(gathered(ArrayReader(x, model, scale=1)), x)
    with pytest.raises(OptionError, match="mean has 13 values but input 'x' has no channel axis"):
        ArrayReader(x, model, mean=[1.0] * 13)
    got = gathered(ArrayReader(x, model, mean=list(range(13)), scale=1, layout="nchw"))
    np.testing.assert_array_equal(got, x - np.arange(13, dtype=np.float32)[:, None, None])


def test_declared_layout_turns_floats() -> None:
    x = floats(2, 6, 6, 3)
    got = gathered(ArrayReader(x, fake("N", 3, 6, 6), layout="NHWC"))
    np.testing.assert_array_equal(got, x.transpose(0, 3, 1, 2))
    assert got.flags.c_contiguous
    untold = ArrayReader(x, fake("N", 3, 6, 6))
    with pytest.raises(DataError, match="which is NHWC: use NCHWDataReader for images, --layout"):
        check_reader(untold, fake("N", 3, 6, 6))


@pytest.mark.parametrize(
    ("shape", "model", "options", "message"),
    [
        ((2, 3, 8, 3), fake("N", 3, 6, 6), {}, "the array: the shape .* does not show where"),
        ((2, 6, 6, 3), fake("N", None, None, None), {}, "input 'x': the shape .* does not show"),
        ((2, 6, 6), fake("N", None, None, None), {}, "input 'x': the shape .* does not show"),
        ((2, 6, 6), fake("N", 3, 6, 6), {}, "wants .*: 3 channels, but the array has 1"),
        ((2, 6, 6, 1), fake("N", 3, 6, 6), {}, "wants .*: 3 channels, but the array has 1"),
        ((2, 3, 6, 6), fake("N", 3, 6, 6), {"layout": "nhwc"}, "3 channels, but the array has 6"),
        ((2, 6, 6, 3), fake("N", 3, 6, 6), {"size": (4, 4)}, r"the size \(4, 4\) \(H, W\) does n"),
    ],
)
def test_refuses_pixels(
    shape: tuple[int, ...], model: Fake, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ArrayReader(pixels(*shape), model, **options)


def test_declaring_the_layout_helps_where_shapes_do_not() -> None:
    x = pixels(2, 3, 8, 3)
    got = gathered(ArrayReader(x, fake("N", 3, 8, 3), layout="nchw", scale=1))
    np.testing.assert_array_equal(got, x)
    got = gathered(ArrayReader(x, fake("N", None, None, None), layout="nhwc", scale=1))
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize(
    "options", [{"scale": 1}, {"mean": 0.5}, {"std": 2}, {"color": "bgr"}, {"resize": "crop"}]
)
def test_options_for_pixels_are_refused_for_floats(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="are for uint8 arrays; others are taken as they are"):
        ArrayReader(floats(2, 3, 6, 6), fake("N", 3, 6, 6), **options)


def test_integers_keep_their_values() -> None:
    tokens = np.array([[1, 2], [3, 70000]])
    got = gathered(ArrayReader(tokens, fake("N", 2, dtype=np.int32)))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, tokens)
    with pytest.raises(DataError, match=r"wants .* int16 but the array holds 3\.\.70000, which"):
        gathered(ArrayReader(tokens, fake("N", 2, dtype=np.int16)))
    flags = np.array([[0, 1], [1, 1]], np.uint8)
    assert gathered(ArrayReader(flags, fake("N", 2, dtype=np.bool_))).dtype == np.bool_


@pytest.mark.parametrize(
    ("held", "wanted", "message"),
    [
        (np.float32, np.int64, "wants .* int64 but the array holds float32"),
        (np.int16, np.float32, "wants .* float32 but the array holds int16; give uint8 pixels"),
        (np.complex64, np.float32, "but the array holds complex64"),
    ],
)
def test_refuses_types(held: type, wanted: type, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayReader(np.zeros((2, 2), held), fake("N", 2, dtype=wanted))


def test_several_inputs_are_fed_by_name() -> None:
    model = Fake(
        [
            Info("image", np.dtype("f4"), ("N", 3, 6, 6)),
            Info("y", np.dtype("i8"), ("N", 2)),  # an input called y is no label
        ]
    )
    image, y = pixels(3, 6, 6, 3), np.arange(6).reshape(3, 2)
    reader = ArrayReader({"y": y, "image": image, "other": y}, model, batch=2, scale=1)
    np.testing.assert_array_equal(gathered(reader, "image"), image.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(gathered(reader, "y"), y)
    assert reader.labels is None
    with pytest.raises(DataError, match="no array for the input image; it has y"):
        ArrayReader({"y": y}, model)
    with pytest.raises(DataError, match=r"equal for all inputs.*image \[3, 6, 6, 3\], y \[2, 2\]"):
        ArrayReader({"y": y[:2], "image": image}, model)


@pytest.mark.parametrize("key", ["x", "data", "arr_0"])
def test_the_array_of_a_sole_input(key: str) -> None:
    x, y = floats(3, 2), np.array([5, 6, 7], np.int32)
    reader = ArrayReader({key: x, "y": y}, fake("N", 2, name="data"))
    np.testing.assert_array_equal(gathered(reader, "data"), x)
    assert reader.labels is not None
    assert reader.labels.dtype == np.int64
    assert reader.labels.tolist() == [5, 6, 7]


def test_the_inputs_name_goes_before_x() -> None:
    arrays = {"x": floats(3, 2), "data": floats(3, 2, seed=1)}
    reader = ArrayReader(arrays, fake("N", 2, name="data"))
    np.testing.assert_array_equal(gathered(reader, "data"), arrays["data"])
    with pytest.raises(DataError, match="no array for the input other; it has a, b"):
        ArrayReader({"a": arrays["x"], "b": arrays["x"]}, fake("N", 2, name="other"))


def test_labels_must_be_class_indices(caplog: pytest.LogCaptureFixture) -> None:
    x = floats(3, 2)
    with pytest.raises(DataError, match="the arrays: 3 samples but 2 labels"):
        ArrayReader({"x": x, "y": np.array([1, 2])}, fake("N", 2))
    with caplog.at_level(logging.INFO):
        assert ArrayReader({"x": x, "y": floats(3, 10)}, fake("N", 2)).labels is None
    assert "'y' is float32 [3, 10], not class indices" in caplog.text


def test_limit_and_pick_keep_samples_and_labels_together() -> None:
    x, y = floats(40, 2), np.arange(40)
    reader = ArrayReader({"x": x, "y": y}, fake("N", 2), limit=10, batch=4)
    assert reader.samples == 10
    assert reader.labels is not None
    assert reader.labels.tolist() != list(range(10))
    np.testing.assert_array_equal(gathered(reader), x[reader.labels])
    part = reader.pick(np.array([0, 9]))
    np.testing.assert_array_equal(gathered(part), gathered(reader)[[0, 9]])
    assert part.labels is not None
    np.testing.assert_array_equal(part.labels, reader.labels[[0, 9]])
    other = ArrayReader({"x": x, "y": y}, fake("N", 2), limit=10, seed=1)
    assert other.labels is not None
    assert other.labels.tolist() != reader.labels.tolist()


def test_pickles() -> None:
    reader = ArrayReader(pixels(3, 6, 6, 3), fake("N", 3, 6, 6))
    reader.get_next()
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(gathered(again), gathered(reader))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_sample(bad: float) -> None:
    x = floats(10, 2)
    x[7, 1] = bad
    what = "NaN" if np.isnan(bad) else "infinity"
    reader = ArrayReader(x, fake("N", 2), batch=3)
    with pytest.raises(DataError, match=f"the arrays: sample 7 of 'x' holds {what}"):
        gathered(reader)
    with pytest.raises(DataError, match="sample 7 of 'x'"):  # its number in the data
        gathered(reader.pick(np.array([2, 7])))
    double = ArrayReader(x.astype(np.float64), fake("N", 2))
    with pytest.raises(DataError, match=f"sample 7 of 'x' holds {what}"):
        gathered(double)


def test_overflow_of_a_narrow_type_is_refused() -> None:
    x = np.array([[1.0], [1e6]])
    with pytest.raises(DataError, match="sample 1 of 'x' holds infinity"):
        gathered(ArrayReader(x, fake("N", 1, dtype=np.float16), batch=2))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "small.npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_give_what_memory_gives(tmp_path: Path, name: str, order: Any) -> None:
    x = np.asarray(floats(11, 3, 5, 4), order=order)
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, x)
    elif name == "a.npz":
        np.savez(path, x=x, y=np.arange(11))
    else:
        np.savez_compressed(path, x=x, y=np.arange(11))
    reader = ArrayReader(path, fake("N", 3, 5, 4), batch=4)
    np.testing.assert_array_equal(gathered(reader), x)
    assert gathered(reader).tobytes() == x.tobytes()
    part = reader.pick(np.array([1, 2, 9]))
    np.testing.assert_array_equal(gathered(part), x[[1, 2, 9]])
    if name != "a.npy":
        assert reader.labels is not None
        assert reader.labels.tolist() == list(range(11))


def save_large(path: Path) -> int:
    """Write 64 MB in a file of the kind that its name says."""
    x = np.zeros((4096, 4096), np.float32)
    x[:, 0] = np.arange(4096)
    if path.suffix == ".npy":
        np.save(path, x)
    else:
        (np.savez_compressed if path.stem == "compressed" else np.savez)(path, x=x)
    return x.nbytes


@pytest.mark.parametrize("name", ["a.npy", "plain.npz", "compressed.npz"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    size = save_large(tmp_path / name)
    tracemalloc.start()
    try:
        reader = ArrayReader(tmp_path / name, fake("N", 4096), batch=16)
        firsts = [float(batch["x"][-1, 0]) for batch in reader.batches()]
        last = reader.pick(np.array([4095]))
        assert float(gathered(last)[0, 0]) == 4095
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert firsts == list(range(15, 4096, 16))
    assert peak < size / 8


def test_large_gaps_are_skipped_in_bounded_memory(tmp_path: Path) -> None:
    """zipfile reads what it skips, but not at once."""
    size = save_large(tmp_path / "compressed.npz")
    reader = ArrayReader(tmp_path / "compressed.npz", fake("N", 4096)).pick(np.array([0, 4095]))
    tracemalloc.start()
    try:
        assert gathered(reader)[:, 0].tolist() == [0, 4095]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 8


def test_broken_files_are_named(tmp_path: Path) -> None:
    model = fake("N", 64)
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        ArrayReader(tmp_path / "none.npz", model)
    for name in ("bad.npz", "bad.npy"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(DataError, match=rf"{name}: not a readable \.np. file"):
            ArrayReader(tmp_path / name, model)
    np.save(tmp_path / "cut.npy", floats(100, 64))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-5000])
    with pytest.raises(DataError, match=r"cut\.npy: cannot read this array"):
        gathered(ArrayReader(tmp_path / "cut.npy", model))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "rot.npz", x=pixels(200, 64))
        rotten = bytearray((tmp_path / "rot.npz").read_bytes())
        rotten[5000:5100] = bytes(100)
        (tmp_path / "rot.npz").write_bytes(rotten)
        with pytest.raises(DataError, match=r"rot\.npz: cannot read x\.npy: Bad CRC-32"):
            gathered(ArrayReader(tmp_path / "rot.npz", model))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("x.npy", whole[:-5000])
    with pytest.raises(DataError, match=r"short\.npz: x\.npy ends within sample 80"):
        gathered(ArrayReader(tmp_path / "short.npz", model))


def test_objects_and_nothing_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"o\.npz: x\.npy holds object, not plain numbers"):
        ArrayReader(tmp_path / "o.npz", fake("N", 2))
    np.savez(tmp_path / "e.npz")
    with pytest.raises(DataError, match="no array for the input x; it has none"):
        ArrayReader(tmp_path / "e.npz", fake("N", 2))
    with pytest.raises(DataError, match=r"at least 1; it holds x \[0, 2\]"):
        ArrayReader(np.zeros((0, 2), np.float32), fake("N", 2))
    with pytest.raises(DataError, match=r"at least 1; it holds x \[\]"):
        ArrayReader(np.float32(1), fake("N", 2))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch 0"):
        ArrayReader(floats(2, 2), fake("N", 2), batch=0)
