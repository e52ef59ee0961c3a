"""Arrays in memory, in a .npy or in a .npz file."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdrp.datareaders.adapt import Adapter, ArrayOptions, adapter, is_pixels
from onnxdrp.datareaders.base import (
    Array,
    Batch,
    DataReader,
    Layout,
    ModelLike,
    inputs_of,
)
from onnxdrp.datareaders.batching import rebatch
from onnxdrp.datareaders.columns import Column, InMemory, open_columns
from onnxdrp.datareaders.files import spread
from onnxdrp.datareaders.finite import check_finite
from onnxdrp.datareaders.geometry import PadColor, PadPlace, Resize
from onnxdrp.datareaders.layouts import layout_of, parse_layout
from onnxdrp.datareaders.pixels import ChannelValues, Color, Pixels
from onnxdrp.datareaders.prefetch import prefetch
from onnxdrp.datareaders.shards import Shard, read_labels, shard_of
from onnxdrp.errors import OptionError

__all__ = ["ArrayReader"]

Key: TypeAlias = tuple[str, np.dtype[Any], tuple[int, ...]]


class ArrayReader(DataReader):
    """Reads arrays from memory, from a .npz or from a .npy file.

    The model's one input is fed by the array with its name, or `x`, or the only array; several
    inputs are fed by their names. Integers called `y` (where that is no input) are the labels.

    uint8 arrays are pixels, RGB, and become what `NCHWDataReader` makes of images; they are
    turned to the model's layout by what their shape shows or `layout` says. Float arrays are
    taken as they are, and turned only if `layout` says so. Memory holds a few batches, however
    large the file: .npy is mapped, .npz is streamed.

    Args:
        data: an array, arrays by name, or the path of a .npz or .npy file.
        model: the model, or its file.
        layout: axis order of the data, "NCHW" or "NHWC".
        size: (height, width) of pixels; default the model's, else their own.
        resize: "stretch", "crop" or "letterbox", for pixels of another size.
        pad_color: what letterbox fills with: one value, or R, G, B.
        pad_place: where letterbox puts the image: "centre" or "top-left".
        color: "rgb" or "bgr", as the model wants pixels.
        scale: what pixels are multiplied with first; default 1/255.
        mean: of scaled pixels, one value or one a channel; default 0.
        std: of scaled pixels, one value or one a channel; default 1.
        limit: read only so many samples, drawn with `seed`.
        batch: samples a batch.
        seed: draws the samples for `limit`.
    """

    def __init__(
        self,
        data: Array | Mapping[str, Array] | str | os.PathLike[str],
        model: ModelLike,
        *,
        layout: str | None = None,
        size: tuple[int, int] | None = None,
        resize: Resize = "stretch",
        pad_color: PadColor = 114,
        pad_place: PadPlace = "centre",
        color: Color = "rgb",
        scale: float | None = None,
        mean: ChannelValues | None = None,
        std: ChannelValues | None = None,
        limit: int | None = None,
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        if batch < 1:
            raise OptionError(f"batch {batch}: at least one sample a batch is needed")
        pixels = Pixels(scale, mean, std, color)
        self._options = ArrayOptions(
            parse_layout(layout), size, resize, pad_color, pad_place, pixels
        )
        self._inputs = inputs_of(model)
        self._shards = self._open(data)
        self._adapters()  # what does not fit is refused here, not after the work has begun
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        names = [shard.name for shard in self._shards for _ in range(shard.rows)]
        self._chosen = spread(names, limit, seed)
        self.batch = batch
        self.layout = self._layout()
        self.samples = len(self._chosen)
        labels = read_labels(self._shards)
        self.labels = None if labels is None else labels[self._chosen]

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass over the arrays."""
        # of a copy: were this reader held by the thread, dropping it would not end its `get_next`
        return prefetch(rebatch(copy.copy(self)._adapted(), self.batch))

    def pick(self, indices: NDArray[np.int64]) -> "ArrayReader":
        """Return a reader of these samples alone."""
        chosen = copy.copy(self)
        chosen._chosen = self._chosen[indices]
        chosen.samples = len(chosen._chosen)
        chosen.labels = None if self.labels is None else self.labels[indices]
        return chosen

    def _open(self, data: Any) -> Sequence[Shard]:
        if isinstance(data, (str, os.PathLike)):
            return [shard_of(open_columns(data), self._inputs, str(Path(data)))]
        arrays = data if isinstance(data, Mapping) else {"": data}
        columns = {name: InMemory(np.asarray(array)) for name, array in arrays.items()}
        return [shard_of(columns, self._inputs, "the arrays")]

    def _adapted(self) -> Iterator[Batch]:
        """Yield chunks of at most a batch, one shard after the other."""
        adapters = self._adapters()
        cuts = np.searchsorted(self._chosen, self._starts)
        for number, shard in enumerate(self._shards):
            wanted = self._chosen[cuts[number] : cuts[number + 1]] - self._starts[number]
            streams = [column.rows(wanted, self.batch) for column in shard.columns.values()]
            for turn, arrays in enumerate(zip(*streams, strict=True)):
                chunk = {
                    name: adapters[_key(name, column)](array)
                    for (name, column), array in zip(shard.columns.items(), arrays, strict=True)
                }
                if self.finite:
                    check_finite(chunk, wanted[turn * self.batch :], shard.origin)
                yield chunk

    def _adapters(self) -> dict[Key, Adapter]:
        """Return how the arrays of each type and shape become their input."""
        infos = {info.name: info for info in self._inputs}
        columns = {
            _key(name, column): column
            for shard in self._shards
            for name, column in shard.columns.items()
        }
        if self._options.concerns_pixels() and not any(
            is_pixels(column.dtype, infos[key[0]]) for key, column in columns.items()
        ):
            raise OptionError(
                f"{self._shards[0].origin}: scale, mean, std, color, size and resize are for uint8 "
                "arrays; others are taken as they are: drop these options"
            )
        return {
            key: adapter(infos[key[0]], column.dtype, column.shape, self._options)
            for key, column in columns.items()
        }

    def _layout(self) -> Layout:
        images = [info for info in self._inputs if info.shape is not None and len(info.shape) == 4]
        if not images:
            return "any"
        return layout_of(images[0].shape) or self._options.layout or "any"


def _key(name: str, column: Column) -> Key:
    return name, column.dtype, column.shape[1:]
