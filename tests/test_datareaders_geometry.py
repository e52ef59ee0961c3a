import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxdrp.datareaders.geometry import Fit
from onnxdrp.errors import OptionError

side = st.integers(1, 400)
modes = st.sampled_from(["stretch", "crop", "letterbox"])


def fitted(fit: Fit, image: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(fit.apply(Image.fromarray(image)))


@given(side, side, side, side, modes, st.integers(0, 2**32 - 1))
def test_placement_maps_there_and_back(
    height: int, width: int, h: int, w: int, mode: str, seed: int
) -> None:
    place = Fit(height, width, mode).placement(w, h)  # type: ignore[arg-type]
    boxes = np.random.default_rng(seed).uniform(0, 1, (5, 4)) * [w, h, w, h]
    np.testing.assert_allclose(place.to_image(place.to_model(boxes)), boxes, rtol=1e-9, atol=1e-9)
    points = boxes[:, :2]
    np.testing.assert_allclose(place.to_model(points), place.to_model(boxes)[:, :2])


@given(side, side, side, side, st.sampled_from(["centre", "top-left"]))
def test_letterbox_keeps_the_image_inside_and_its_aspect(
    height: int, width: int, h: int, w: int, pad_place: str
) -> None:
    fit = Fit(height, width, "letterbox", pad_place=pad_place)  # type: ignore[arg-type]
    place = fit.placement(w, h)
    x1, y1, x2, y2 = place.to_model(np.array([0.0, 0.0, w, h]))
    assert x1 >= 0
    assert y1 >= 0
    assert x2 <= width + 1e-9
    assert y2 <= height + 1e-9
    assert x2 - x1 >= width - 1e-9 or y2 - y1 >= height - 1e-9  # one side is filled
    scale = min(width / w, height / h)
    assert abs(x2 - x1 - w * scale) <= 1  # rounded to whole pixels, at least one
    assert abs(y2 - y1 - h * scale) <= 1
    if pad_place == "centre":
        assert abs((x1 + x2) - width) <= 1 + 1e-9
        assert abs((y1 + y2) - height) <= 1 + 1e-9
    else:
        assert (x1, y1) == (0, 0)


@given(side, side, side, side)
def test_crop_covers_the_target_around_the_centre(height: int, width: int, h: int, w: int) -> None:
    place = Fit(height, width, "crop").placement(w, h)
    x1, y1, x2, y2 = place.to_model(np.array([0.0, 0.0, w, h]))
    assert place.scale_x == place.scale_y
    assert x1 <= 1e-9
    assert y1 <= 1e-9
    assert min(abs(x2 - x1 - width), abs(y2 - y1 - height)) < 1e-6  # the shorter side fits
    np.testing.assert_allclose([x1 + x2, y1 + y2], [width, height], rtol=1e-9)


@given(side, side, side, side, modes)
def test_images_come_at_the_size(height: int, width: int, h: int, w: int, mode: str) -> None:
    image = np.zeros((h, w, 3), np.uint8)
    assert fitted(Fit(height, width, mode), image).shape == (height, width, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox"])
def test_same_size_leaves_the_pixels(mode: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fitted(Fit(9, 7, mode), image), image)  # type: ignore[arg-type]


def test_letterbox_pads_with_its_colour_at_its_place() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    centred = fitted(Fit(20, 20, "letterbox", (1, 2, 3)), image)
    assert (centred[5:15] == 200).all()
    assert (centred[:5] == [1, 2, 3]).all()
    assert (centred[15:] == [1, 2, 3]).all()
    top = fitted(Fit(20, 20, "letterbox", 7, "top-left"), image)
    assert (top[:10] == 200).all()
    assert (top[10:] == 7).all()
    grey = fitted(Fit(20, 20, "letterbox", 9), image[..., 0])
    assert (grey[:5] == 9).all()


def test_crop_takes_the_centre() -> None:
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 255
    assert (fitted(Fit(10, 10, "crop"), image) == 255).all()
    assert (fitted(Fit(10, 10, "crop"), image.T) == 255).all()


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox"])
def test_placement_is_where_the_pixels_land(mode: str) -> None:
    """A bright square's centre of mass in the result is where placement says."""
    image = np.zeros((60, 90), np.uint8)
    image[20:30, 40:50] = 255
    fit = Fit(48, 64, mode)  # type: ignore[arg-type]
    if mode == "letterbox":
        fit = Fit(48, 64, "letterbox", 0)
    result = fitted(fit, image).astype(np.float64)
    rows, columns = np.indices(result.shape) + 0.5
    centre = [(columns * result).sum() / result.sum(), (rows * result).sum() / result.sum()]
    want = fit.placement(90, 60).to_model(np.array([45.0, 25.0]))
    np.testing.assert_allclose(centre, want, atol=0.05)


def test_stretch_is_bilinear() -> None:
    image = np.array([[0, 100]], np.uint8)
    result = fitted(Fit(1, 4), image)
    np.testing.assert_array_equal(result, [[0, 25, 75, 100]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "squash"}, "resize 'squash' is not known; it is stretch, crop, letterbox"),
        ({"resize": "letterbox", "pad_place": "left"}, "pad_place 'left' is not known"),
        ({"pad_color": 0}, "belong to resize letterbox, not stretch"),
        ({"resize": "crop", "pad_place": "top-left"}, "belong to resize letterbox, not crop"),
        ({"resize": "letterbox", "pad_color": 256}, "pad_color 256 is not one or three values"),
        ({"resize": "letterbox", "pad_color": (1, 2)}, "is not one or three values"),
        ({"height": 0}, "size 0x8: both sides must be at least 1"),
    ],
)
def test_refuses_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Fit(**{"height": 8, "width": 8, **options})  # type: ignore[arg-type]


def test_grey_takes_one_pad_value() -> None:
    with pytest.raises(OptionError, match="a grey image takes one value"):
        Fit(8, 8, "letterbox", (1, 2, 3)).check(1)
