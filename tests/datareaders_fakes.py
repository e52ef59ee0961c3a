"""Stand-ins for models and images that the reader tests share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxdrp.datareaders import DataReader

Array = NDArray[Any]


@dataclass(frozen=True)
class Info:
    name: str
    dtype: Any
    shape: tuple[int | str | None, ...] | None


@dataclass
class Fake:
    """A model as readers see it."""

    inputs: list[Info] = field(default_factory=list)


def fake(*shape: int | str | None, dtype: Any = np.float32, name: str = "x") -> Fake:
    return Fake([Info(name, np.dtype(dtype), shape)])


def pixels(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, image: Array, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def images(folder: Path, count: int, height: int = 8, width: int = 8) -> list[Array]:
    """Write so many RGB images as PNG; return their pixels."""
    made = [pixels(height, width, 3, seed=seed) for seed in range(count)]
    for number, image in enumerate(made):
        save(folder / f"{number:03}.png", image)
    return made


def gathered(reader: DataReader, name: str = "x") -> Array:
    """All samples of a pass."""
    return np.concatenate([batch[name] for batch in reader.batches()])


def sizes(reader: DataReader, name: str = "x") -> list[int]:
    return [len(batch[name]) for batch in reader.batches()]


class OneShot:
    """What people write for onnxruntime: it can be read once."""

    def __init__(self, batches: list[Mapping[str, Array]]) -> None:
        self.calls = 0
        self._left = iter(batches)

    def get_next(self) -> Mapping[str, Array] | None:
        self.calls += 1
        return next(self._left, None)
