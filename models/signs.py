"""Draws small colour images of road signs, the same for the same seed: nothing is downloaded.

    images, labels = draw(count=200, seed=1)  # uint8 [200, 32, 32, 3] RGB, int64 [200]

Each sign is shapes in a square that is turned, scaled and shifted, before a horizon of two colours.
Light, its tint, a shadow's edge, a post in front, blur and noise differ from image to image. Red,
yellow, blue and green are not exchangeable: no sign is another one with red and blue swapped.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["CLASSES", "SIZE", "draw"]

SIZE = 32
_FINE = 2  # pixels drawn for each side of a pixel
_CHUNK = 250  # images drawn at a time

Array = np.ndarray
Layer = tuple[Array, str]

_COLOURS = {
    "red": (0.76, 0.07, 0.12),
    "yellow": (0.96, 0.76, 0.05),
    "blue": (0.04, 0.24, 0.66),
    "green": (0.02, 0.48, 0.27),
    "white": (0.93, 0.93, 0.91),
    "black": (0.08, 0.08, 0.09),
}
_SKIES = np.array([(0.52, 0.70, 0.90), (0.74, 0.80, 0.86), (0.62, 0.62, 0.62), (0.32, 0.45, 0.22)])
_GROUNDS = np.array([(0.36, 0.36, 0.37), (0.28, 0.42, 0.18), (0.52, 0.43, 0.32), (0.5, 0.5, 0.48)])


def _disc(u: Array, v: Array, radius: float) -> Array:
    return u**2 + v**2 < radius**2


def _polygon(u: Array, v: Array, sides: int, radius: float, turn: float = 0.0) -> Array:
    """Of equal sides, `radius` from its middle to a side; one side's normal is at `turn`."""
    angles = turn + 2 * np.pi * np.arange(sides) / sides
    far = [u * np.cos(a) + v * np.sin(a) for a in angles]
    return np.max(far, axis=0) < radius


def _box(u: Array, v: Array, x: float, y: float, width: float, height: float) -> Array:
    return (np.abs(u - x) < width) & (np.abs(v - y) < height)


def _stop(u: Array, v: Array) -> list[Layer]:
    turn = np.pi / 8
    return [
        (_polygon(u, v, 8, 0.95, turn), "white"),
        (_polygon(u, v, 8, 0.85, turn), "red"),
        (_box(u, v, 0, 0, 0.62, 0.18), "white"),
    ]


def _give_way(u: Array, v: Array) -> list[Layer]:
    return [
        (_polygon(u, v - 0.2, 3, 0.62, np.pi / 2), "red"),
        (_polygon(u, v - 0.2, 3, 0.34, np.pi / 2), "white"),
    ]


def _no_entry(u: Array, v: Array) -> list[Layer]:
    return [(_disc(u, v, 0.95), "red"), (_box(u, v, 0, 0, 0.66, 0.18), "white")]


def _speed_limit(u: Array, v: Array) -> list[Layer]:
    digits = _box(u, v, -0.24, 0, 0.13, 0.34) | _box(u, v, 0.24, 0, 0.13, 0.34)
    return [(_disc(u, v, 0.95), "red"), (_disc(u, v, 0.68), "white"), (digits, "black")]


def _ahead_only(u: Array, v: Array) -> list[Layer]:
    arrow = _box(u, v, 0, -0.2, 0.13, 0.42) | _polygon(u, v - 0.3, 3, 0.2, -np.pi / 2)
    return [(_disc(u, v, 0.95), "blue"), (arrow, "white")]


def _parking(u: Array, v: Array) -> list[Layer]:
    letter = _box(u, v, -0.25, 0, 0.12, 0.6) | _disc(u - 0.05, v - 0.27, 0.36)
    return [
        (_box(u, v, 0, 0, 0.85, 0.85), "blue"),
        (letter, "white"),
        (_disc(u - 0.05, v - 0.27, 0.15), "blue"),
    ]


def _priority(u: Array, v: Array) -> list[Layer]:
    turn = np.pi / 4
    return [(_polygon(u, v, 4, 0.75, turn), "white"), (_polygon(u, v, 4, 0.52, turn), "yellow")]


def _road_works(u: Array, v: Array) -> list[Layer]:
    turn = -np.pi / 2
    return [
        (_polygon(u, v + 0.2, 3, 0.62, turn), "red"),
        (_polygon(u, v + 0.2, 3, 0.38, turn), "yellow"),
        (_box(u, v, 0, -0.2, 0.1, 0.3), "black"),
    ]


def _exit(u: Array, v: Array) -> list[Layer]:
    return [(_box(u, v, 0, 0, 0.85, 0.85), "green"), (_box(u, v, 0.1, -0.1, 0.3, 0.5), "white")]


def _end_of_limit(u: Array, v: Array) -> list[Layer]:
    stripe = (np.abs(u - v) < 0.25) & _disc(u, v, 0.85)
    return [(_disc(u, v, 0.95), "black"), (_disc(u, v, 0.88), "white"), (stripe, "black")]


_SIGNS: dict[str, Callable[[Array, Array], list[Layer]]] = {
    "stop": _stop,
    "give way": _give_way,
    "no entry": _no_entry,
    "speed limit": _speed_limit,
    "ahead only": _ahead_only,
    "parking": _parking,
    "priority road": _priority,
    "road works": _road_works,
    "exit": _exit,
    "end of limit": _end_of_limit,
}

CLASSES = tuple(_SIGNS)


def draw(count: int, seed: int) -> tuple[Array, Array]:
    """RGB images and their classes, as many of each class as the count allows, in random order.

    Args:
        count: of images.
        seed: other images for each.

    Returns:
        Images, uint8 [count, 32, 32, 3], and classes, int64 [count], numbers of `CLASSES`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    chunks = [_images(labels[i : i + _CHUNK], rng) for i in range(0, count, _CHUNK)]
    return np.concatenate([np.zeros((0, SIZE, SIZE, 3), np.uint8), *chunks]), labels


def _images(labels: Array, rng: np.random.Generator) -> Array:
    count, side = len(labels), SIZE * _FINE
    at = (np.arange(side) + 0.5) / side * 2 - 1  # -1 to 1 across the image
    x, y = np.meshgrid(at, -at)

    def some(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, (count, *(shape or (1, 1))))

    image = _scene(count, y, rng)
    scale, angle, slant = some(0.3, 0.9), some(-0.3, 0.3), some(0.65, 1.0)
    right, up = x - some(-0.3, 0.3), y - some(-0.3, 0.3)
    u = (right * np.cos(angle) + up * np.sin(angle)) / (scale * slant)
    v = (up * np.cos(angle) - right * np.sin(angle)) / scale
    fade = some(0.75, 1.1, 1)  # of paint
    for number, sign in enumerate(_SIGNS.values()):
        rows = np.flatnonzero(labels == number)
        for inside, colour in sign(u[rows], v[rows]):
            paint = np.array(_COLOURS[colour]) * fade[rows]
            image[rows] = np.where(inside[..., None], paint[:, None, None], image[rows])
    post = (np.abs(x - some(-0.7, 0.7)) < some(0.05, 0.2)) & (some(0, 1) < 0.4)
    image = np.where(post[..., None], some(0.1, 0.5, 1, 1, 3), image)
    edge = x * np.cos(tilt := some(0, 2 * np.pi)) + y * np.sin(tilt) > some(-0.5, 0.8)
    image *= np.where(edge & (some(0, 1) < 0.4), some(0.3, 0.8), 1.0)[..., None]
    image *= (some(0.2, 1.15) * (1 + some(-0.25, 0.25) * x))[..., None] * some(0.8, 1.15, 1, 1, 3)
    pixels = image.reshape(count, SIZE, _FINE, SIZE, _FINE, 3).mean((2, 4))
    pixels = _blurred(pixels, some(0, 0.3, 1, 1, 1))
    pixels += rng.normal(0, 1, pixels.shape) * some(0.0, 0.12, 1, 1, 1)
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def _scene(count: int, y: Array, rng: np.random.Generator) -> Array:
    """Two colours that meet at a horizon, [count, side, side, 3], with coarse patches of light."""
    sky, ground = (c[rng.integers(0, len(c), count)][:, None, None] for c in (_SKIES, _GROUNDS))
    above = y > rng.uniform(-0.8, 0.6, (count, 1, 1))
    patches = rng.normal(1, 0.15, (count, 8, 8, 1)).repeat(len(y) // 8, 1).repeat(len(y) // 8, 2)
    return np.where(above[..., None], sky, ground) * patches


def _blurred(pixels: Array, share: Array) -> Array:
    """Each pixel gives a share to its neighbours, a quarter to each; along both axes in turn."""
    for axis in (1, 2):
        ahead, behind = (np.roll(pixels, by, axis) for by in (1, -1))
        pixels = (1 - share) * pixels + share / 2 * (ahead + behind)
    return pixels
