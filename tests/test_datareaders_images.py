import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_model, value
from datareaders_fakes import Fake, Info, fake, gathered, images, pixels, save, sizes
from onnx import helper
from PIL import Image

from onnxdrp.datareaders import ImageReader, NCHWDataReader, NHWCDataReader, check_reader
from onnxdrp.errors import DataError, OptionError

MODEL = fake("N", 3, 8, 8)


def test_gives_scaled_pixels_channels_first_or_last(tmp_path: Path) -> None:
    want = np.stack(images(tmp_path, 3)) / 255
    reader = NCHWDataReader(tmp_path, model=MODEL)
    first = gathered(reader)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert np.ptp(want) > 0.9
    np.testing.assert_allclose(first, want.transpose(0, 3, 1, 2), rtol=1e-6)
    last = gathered(NHWCDataReader(tmp_path, model=fake("N", 8, 8, 3)))
    np.testing.assert_allclose(last, want, rtol=1e-6)
    assert (reader.layout, reader.samples) == ("NCHW", 3)
    assert [path.name for path in reader.files] == ["000.png", "001.png", "002.png"]


def test_mean_and_std_are_in_units_after_the_scale(tmp_path: Path) -> None:
    (pixel,) = images(tmp_path, 1)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    got = gathered(NHWCDataReader(tmp_path, mean, std, fake(1, 8, 8, 3)))
    np.testing.assert_allclose(got[0], (pixel / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    got = gathered(NHWCDataReader(tmp_path, 127, 128, fake(1, 8, 8, 3), scale=1))
    np.testing.assert_allclose(got[0], (pixel - 127.0) / 128, rtol=1e-6)


def test_bgr_turns_the_colours_and_mean_follows_the_model(tmp_path: Path) -> None:
    (pixel,) = images(tmp_path, 1)
    reader = NHWCDataReader(tmp_path, [1, 2, 3], model=fake(1, 8, 8, 3), scale=1, color="bgr")
    np.testing.assert_array_equal(gathered(reader)[0], pixel[..., ::-1] - np.float32([1, 2, 3]))


def test_takes_the_manuals_positional_arguments_and_a_model_file(tmp_path: Path) -> None:
    images(tmp_path / "calibrate_images", 2)
    proto = make_model(
        [helper.make_node("Relu", ["input"], ["y"])],
        [value("input", [1, 3, 8, 8])],
        [value("y", None)],
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    folder, model = str(tmp_path / "calibrate_images"), str(tmp_path / "m.onnx")
    reader = NCHWDataReader(folder, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2], model)
    batch = reader.get_next()
    assert batch is not None
    assert {name: array.shape for name, array in batch.items()} == {"input": (1, 3, 8, 8)}


def test_without_a_model_name_and_size_are_needed(tmp_path: Path) -> None:
    images(tmp_path, 1)
    reader = NCHWDataReader(tmp_path, size=(4, 6), input_name="in")
    assert gathered(reader, "in").shape == (1, 3, 4, 6)
    with pytest.raises(OptionError, match="needs size=\\(H, W\\) and input_name"):
        NCHWDataReader(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp"])
def test_reads_the_formats(tmp_path: Path, suffix: str) -> None:
    gradient = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
    save(tmp_path / f"a{suffix}", gradient)
    got = gathered(NHWCDataReader(tmp_path, model=fake(1, 32, 32, 3), scale=1))
    np.testing.assert_allclose(got[0], gradient, atol=6)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: a viewer turns it by 90 degrees clockwise
    stored = np.rot90(upright)
    save(tmp_path / "a.jpg", np.ascontiguousarray(stored), exif=exif, quality=95)
    got = gathered(NHWCDataReader(tmp_path, model=fake(1, 16, 24, 3), scale=1))
    np.testing.assert_allclose(got[0], upright, atol=8)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = pixels(8, 8)
    save(tmp_path / "a.png", grey)
    got = gathered(NCHWDataReader(tmp_path, model=MODEL, scale=1))
    np.testing.assert_array_equal(got[0], np.stack([grey] * 3))


def test_colours_become_luma_for_one_channel(tmp_path: Path) -> None:
    (pixel,) = images(tmp_path, 1)
    got = gathered(NCHWDataReader(tmp_path, model=fake(1, 1, 8, 8), scale=1))
    assert got.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(got[0, 0], pixel @ [0.299, 0.587, 0.114], atol=1)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = pixels(8, 8, 4)
    save(tmp_path / "a.png", rgba)
    grey_alpha = pixels(8, 8, 2)
    Image.frombytes("LA", (8, 8), grey_alpha.tobytes()).save(tmp_path / "b.png")
    got = gathered(NHWCDataReader(tmp_path, model=fake(1, 8, 8, 3), scale=1))
    np.testing.assert_array_equal(got[0], rgba[..., :3])
    np.testing.assert_array_equal(got[1], np.repeat(grey_alpha[..., :1], 3, axis=2))


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=bytes([0, 128]))
    got = gathered(NHWCDataReader(tmp_path, model=fake(1, 8, 8, 3), scale=1))
    assert (got == [200, 100, 50]).all()


def test_deep_grey_keeps_its_range(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    save(tmp_path / "a.png", deep)
    for channels in (1, 3):
        got = gathered(NHWCDataReader(tmp_path, model=fake(1, 8, 8, channels), scale=1))
        np.testing.assert_allclose(got[0, ..., 0], deep / 257, atol=0.5)


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    bits = pixels(8, 8) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    got = gathered(NHWCDataReader(tmp_path, model=fake(1, 8, 8, 1), scale=1))
    np.testing.assert_array_equal(got[0, ..., 0], bits * 255)


def test_uint8_models_get_raw_pixels(tmp_path: Path) -> None:
    (pixel,) = images(tmp_path, 1)
    model = fake(1, 8, 8, 3, dtype=np.uint8)
    got = gathered(NHWCDataReader(tmp_path, 0, 1, model, scale=1))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0], pixel)
    for options in ({"norm_mean": 0.5}, {"norm_std": 2.0}, {"scale": 1 / 255}):
        with pytest.raises(OptionError, match="wants uint8, so it gets the raw pixels; drop"):
            NHWCDataReader(tmp_path, model=model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_gives_the_models_float_type(tmp_path: Path, dtype: type) -> None:
    (pixel,) = images(tmp_path, 1)
    got = gathered(NHWCDataReader(tmp_path, 0.5, 0.25, fake(1, 8, 8, 3, dtype=dtype)))
    assert got.dtype == dtype
    np.testing.assert_allclose(got[0], (pixel / 255 - 0.5) / 0.25, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_refuses_types_that_pixels_do_not_fit(tmp_path: Path, dtype: type) -> None:
    images(tmp_path, 1)
    with pytest.raises(DataError, match="which 8-bit pixels do not fit"):
        NHWCDataReader(tmp_path, model=fake(1, 8, 8, 3, dtype=dtype))


def test_batches_and_the_last_smaller_one(tmp_path: Path) -> None:
    images(tmp_path, 7)
    reader = NCHWDataReader(tmp_path, model=MODEL, batch=3)
    assert sizes(reader) == [3, 3, 1]
    one = gathered(NCHWDataReader(tmp_path, model=MODEL))
    np.testing.assert_array_equal(gathered(reader), one)


def test_a_second_pass_gives_the_same_bits(tmp_path: Path) -> None:
    images(tmp_path, 5, 13, 11)
    for resize in ("stretch", "crop", "letterbox"):
        reader = NCHWDataReader(tmp_path, model=MODEL, resize=resize, batch=2)
        first, second = gathered(reader), gathered(reader)
        assert first.tobytes() == second.tobytes()
        assert np.ptp(first) > 0.5


def test_resizing_and_placement_go_together(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((10, 20, 3), 255, np.uint8))
    reader = NCHWDataReader(
        tmp_path, model=fake(1, 3, 40, 40), resize="letterbox", pad_color=0, scale=1
    )
    got = gathered(reader)[0]
    x1, y1, x2, y2 = reader.placement(20, 10).to_model(np.array([0, 0, 20, 10])).astype(int)
    assert (x1, y1, x2, y2) == (0, 10, 40, 30)
    assert (got[:, y1:y2, x1:x2] == 255).all()
    assert got.sum() == 255 * 3 * 20 * 40


def test_size_fills_what_the_model_leaves_open(tmp_path: Path) -> None:
    images(tmp_path, 1)
    model = fake("N", 3, "h", None)
    assert gathered(NCHWDataReader(tmp_path, model=model, size=(5, 6))).shape == (1, 3, 5, 6)
    with pytest.raises(DataError, match="leaves the image size open; pass --size HxW"):
        NCHWDataReader(tmp_path, model=model)
    with pytest.raises(DataError, match=r"which size 5x6 \(HxW\) does not fit"):
        NCHWDataReader(tmp_path, model=MODEL, size=(5, 6))
    half_open = fake(1, 3, 48, None)
    assert gathered(NCHWDataReader(tmp_path, model=half_open, size=(48, 9))).shape[3] == 9


def test_limit_is_even_over_folders_and_seeded(tmp_path: Path) -> None:
    for group in "abc":
        images(tmp_path / group, 6)
    reader = NCHWDataReader(tmp_path, model=MODEL, limit=6)
    assert sorted(path.parent.name for path in reader.files) == list("aabbcc")
    again = NCHWDataReader(tmp_path, model=MODEL, limit=6)
    assert reader.files == again.files
    other = NCHWDataReader(tmp_path, model=MODEL, limit=6, seed=1)
    assert other.files != reader.files
    assert reader.samples == 6


def test_labels_follow_the_limit(tmp_path: Path) -> None:
    for group in "abc":
        images(tmp_path / group, 4)
    reader = NCHWDataReader(tmp_path, model=MODEL, limit=5, labels="folders", batch=2)
    assert reader.labels is not None
    assert [path.parent.name for path in reader.files] == ["abc"[n] for n in reader.labels]
    assert reader.labels.dtype == np.int64


def test_pick_reads_these_alone(tmp_path: Path) -> None:
    for group in "ab":
        images(tmp_path / group, 3)
    reader = NCHWDataReader(tmp_path, model=MODEL, labels="folders", batch=4)
    part = reader.pick(np.array([1, 4]))
    assert isinstance(part, ImageReader)
    np.testing.assert_array_equal(gathered(part), gathered(reader)[[1, 4]])
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1]
    assert (part.samples, reader.samples) == (2, 6)


def test_copies_and_pickles(tmp_path: Path) -> None:
    images(tmp_path, 3)
    reader = NCHWDataReader(tmp_path, model=MODEL)
    reader.get_next()
    for other in (copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):
        np.testing.assert_array_equal(gathered(other), gathered(reader))


def test_decoding_runs_on_a_thread_that_ends(tmp_path: Path) -> None:
    images(tmp_path, 20)
    seen = set()

    class Watched(NCHWDataReader):
        def read(self, path: Path) -> Any:
            seen.add(threading.current_thread().name)
            return super().read(path)

    batches = Watched(tmp_path, model=MODEL).batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert seen == {"onnxdrp-prefetch"}
    assert all(thread.name != "onnxdrp-prefetch" for thread in threading.enumerate())


def test_dropping_a_half_read_reader_ends_its_thread(tmp_path: Path) -> None:
    images(tmp_path, 20)
    reader = NCHWDataReader(tmp_path, model=MODEL)
    assert reader.get_next() is not None
    assert "onnxdrp-prefetch" in {thread.name for thread in threading.enumerate()}
    del reader
    assert "onnxdrp-prefetch" not in {thread.name for thread in threading.enumerate()}


def test_passes_its_own_check(tmp_path: Path) -> None:
    images(tmp_path, 2)
    check_reader(NCHWDataReader(tmp_path, model=MODEL, batch=2), MODEL)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    images(tmp_path, 1)
    (tmp_path / "999.jpg").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"999\.jpg: cannot read this image"):
        gathered(NCHWDataReader(tmp_path, model=MODEL))
    whole = (tmp_path / "000.png").read_bytes()
    (tmp_path / "999.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"999\.jpg: cannot read this image"):
        gathered(NCHWDataReader(tmp_path, model=MODEL))


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        NCHWDataReader(tmp_path / "none", model=MODEL)
    with pytest.raises(DataError, match=r"holds no image \(\.jpg, \.jpeg, \.png, \.bmp, \.webp\)"):
        NCHWDataReader(tmp_path, model=MODEL)
    with pytest.raises(TypeError, match="use NCHWDataReader or NHWCDataReader"):
        ImageReader(tmp_path, model=MODEL)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (fake("N", 8, 8, 3), {}, DataError, r"\(NHWC\), but NCHWDataReader gives NCHW; use NHWC"),
        (fake("N", 7, 8, 8), {}, DataError, "as NCHW that is 7 channels, but images have 1 or 3"),
        (fake("N", 784), {}, DataError, r"\[N, 784\] float32: images have four axes"),
        (Fake([Info("x", np.dtype("f4"), None)]), {}, DataError, "leaves the image size open"),
        (
            Fake([*MODEL.inputs, Info("z", np.dtype("f4"), (1, 2))]),
            {},
            DataError,
            "the model has the inputs x, z; a folder of images feeds one",
        ),
        (MODEL, {"input_name": "q"}, OptionError, "the model has no input 'q'; it has x"),
        (MODEL, {"batch": 0}, OptionError, "batch 0: at least one sample"),
        (MODEL, {"limit": 0}, OptionError, "limit 0"),
        (MODEL, {"norm_mean": [1, 2]}, OptionError, "mean has 2 values but input 'x' has 3 chan"),
        (MODEL, {"norm_std": [1, 0, 1]}, OptionError, "std .* must be finite numbers above 0"),
        (MODEL, {"norm_mean": float("nan")}, OptionError, "mean nan must be finite"),
        (MODEL, {"scale": 0}, OptionError, "scale 0 must be a number other than 0"),
        (MODEL, {"color": "hsv"}, OptionError, "color 'hsv' is not known; it is rgb or bgr"),
        (fake(1, 1, 8, 8), {"color": "bgr"}, OptionError, "color bgr needs 3 channels"),
        (MODEL, {"pad_color": 0}, OptionError, "belong to resize letterbox"),
        (
            fake(1, 1, 8, 8),
            {"resize": "letterbox", "pad_color": (1, 2, 3)},
            OptionError,
            "a grey image takes one value",
        ),
    ],
)
def test_refuses(
    tmp_path: Path, model: Fake, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    images(tmp_path, 1)
    with pytest.raises(error, match=message) as caught:
        NCHWDataReader(tmp_path, model=model, **options)
    assert "\n" not in str(caught.value)


def test_one_of_several_inputs_can_be_named(tmp_path: Path) -> None:
    images(tmp_path, 1)
    model = Fake([*MODEL.inputs, Info("z", np.dtype("f4"), (1, 2))])
    assert gathered(NCHWDataReader(tmp_path, model=model, input_name="x")).shape == (1, 3, 8, 8)
