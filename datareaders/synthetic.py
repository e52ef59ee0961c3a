"""Seeded random inputs, shaped as the model wants them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from onnxdrp.datareaders.base import Array, Batch, DataReader, Dim, InputInfo, ModelLike, inputs_of
from onnxdrp.datareaders.layouts import infer_layout, layout_of, spec
from onnxdrp.errors import DataError, OptionError

__all__ = ["Distribution", "SyntheticReader"]

Distribution: TypeAlias = Literal["normal", "uniform"]


class SyntheticReader(DataReader):
    """Random inputs, for smoke tests: does the model run, do two models agree?

    Not for calibration: the ranges that a model shows on noise are not those of its data, and
    a model that is quantized with them is wrong on real inputs.

    A sample depends on the seed and its own number alone, not on the batch size. Integer inputs
    are uniform: all values of 8-bit types, 0 or 1 for wider ones unless `integers` says more.

    Args:
        model: the model, or its file.
        samples: how many samples a pass gives.
        batch: samples a batch.
        distribution: of float inputs: "normal" (0, 1) or "uniform" in [0, 1).
        integers: (low, high) of integer inputs, high excluded.
        size: (height, width) of images where the model leaves them open.
        shapes: shape of a sample (without the batch axis) by input, where the model leaves it open.
        seed: of the random numbers.
    """

    def __init__(
        self,
        model: ModelLike,
        samples: int = 8,
        *,
        batch: int = 1,
        distribution: Distribution = "normal",
        integers: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        seed: int = 0,
    ) -> None:
        if samples < 1 or batch < 1:
            raise OptionError("samples and batch must be at least 1")
        if distribution not in get_args(Distribution):
            raise OptionError(f"distribution {distribution!r} is not known; normal or uniform")
        self.batch = batch
        self.samples = samples
        self._inputs = inputs_of(model)
        given = dict(shapes or {})
        if unknown := set(given) - {info.name for info in self._inputs}:
            raise OptionError(f"shapes: the model has no input {', '.join(sorted(unknown))}")
        self._shapes = {
            info.name: _sample_shape(info, size, given.get(info.name)) for info in self._inputs
        }
        if size is not None and not any(len(shape) == 3 for shape in self._shapes.values()):
            raise OptionError("size is for images: no input of the model has four axes")
        self._ranges = {info.name: _range(info, integers) for info in self._inputs}
        layouts = [layout_of(info.shape) for info in self._inputs]
        self.layout = next((layout for layout in layouts if layout), "any")
        self._numbers = np.arange(samples, dtype=np.int64)
        self._distribution = distribution
        self._seed = seed

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass: the same numbers each time."""
        for start in range(0, len(self._numbers), self.batch):
            numbers = self._numbers[start : start + self.batch]
            yield {
                info.name: np.stack([self._sample(index, info, n) for n in numbers.tolist()])
                for index, info in enumerate(self._inputs)
            }

    def pick(self, indices: NDArray[np.int64]) -> "SyntheticReader":
        """Return a reader of these samples alone."""
        chosen = copy.copy(self)
        chosen._numbers = self._numbers[indices]
        chosen.samples = len(chosen._numbers)
        return chosen

    def _sample(self, index: int, info: InputInfo, number: int) -> Array:
        rng = np.random.default_rng((self._seed, index, number))
        shape, dtype = self._shapes[info.name], info.dtype
        if np.issubdtype(dtype, np.floating):
            draw = rng.standard_normal if self._distribution == "normal" else rng.random
            return np.asarray(draw(shape)).astype(dtype)
        low, high = self._ranges[info.name]
        return rng.integers(low, high, shape).astype(dtype)


def _range(info: InputInfo, integers: tuple[int, int] | None) -> tuple[int, int]:
    dtype = info.dtype
    if np.issubdtype(dtype, np.floating):
        return 0, 0  # not used
    if dtype.kind not in "iub":
        raise DataError(f"{spec(info)}: random data of that type cannot be made")
    if dtype.kind == "b":
        return 0, 2
    limits = np.iinfo(dtype)
    whole = int(limits.min), int(limits.max) + 1
    low, high = integers or (whole if dtype.itemsize == 1 else (0, 2))
    if not whole[0] <= low < high <= whole[1]:
        raise OptionError(f"{spec(info)}, which the integers {low}..{high - 1} do not fit")
    return low, high


def _sample_shape(
    info: InputInfo, size: tuple[int, int] | None, given: tuple[int, ...] | None
) -> tuple[int, ...]:
    wanted: tuple[Dim, ...]
    if info.shape is None:
        if given is None:
            raise DataError(f"{spec(info)}; give shapes={{{info.name!r}: (...)}}")
        return given
    wanted = info.shape[1:]
    filled: tuple[Dim, ...] = wanted if given is None else given
    if given is None and size is not None and len(wanted) == 3:
        filled = (
            (wanted[0], *size)
            if infer_layout(info.shape, info.name) == "NCHW"
            else (*size, wanted[2])
        )
    if len(filled) != len(wanted) or any(
        isinstance(want, int) and want != have for have, want in zip(filled, wanted, strict=True)
    ):
        raise DataError(f"{spec(info)}, which the sample shape {filled} does not fit")
    if not all(isinstance(dim, int) for dim in filled):
        raise DataError(
            f"{spec(info)}; give size=(H, W), or shapes={{{info.name!r}: (...)}} without the batch"
        )
    return tuple(int(dim) for dim in filled if isinstance(dim, int))
