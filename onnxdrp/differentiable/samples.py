"""Samples in any order: in memory as far as they fit, else in a temporary file that is mapped.

Samples of a batch that have different shapes run in several parts; a model that is fixed to a batch
size gets parts of that size, filled up with the last sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import static_batch, whole_inputs
from onnxdrp.datareaders import DataReader, SpooledReader
from onnxdrp.errors import DataError
from onnxdrp.model import Model

__all__ = ["Part", "Samples"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Part:
    """What runs at once.

    Attributes:
        samples: their numbers; rows of the feeds beyond them are padding.
        feeds: {input: array}.
    """

    samples: tuple[int, ...]
    feeds: dict[str, Array]


class Samples:
    """The samples of a reader.

    Args:
        reader: is read through once, or twice where its samples do not fit.
        model: says which inputs have a batch axis, and whether its size is fixed.
        limit: bytes of samples that are held in memory.

    Raises:
        DataError: the reader gives no samples.
    """

    def __init__(self, reader: DataReader, model: Model, limit: int) -> None:
        self._static = static_batch([model])
        self._batches = _read(reader, limit)
        if not self._batches:
            raise DataError("the reader gives no samples; check the path and the limit")
        self._whole = whole_inputs([model], self._batches[0])
        self._rows: list[tuple[int, int]] = []
        for number, batch in enumerate(self._batches):
            rows = next((len(v) for n, v in batch.items() if n not in self._whole), 1)
            self._rows += [(number, row) for row in range(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def is_whole(self, name: str) -> bool:
        """Whether an input has no batch axis."""
        return name in self._whole

    def parts(self, numbers: Sequence[int], most: int = 1 << 30) -> Iterator[Part]:
        """The samples of these numbers, those of equal shapes together, `most` at once."""
        groups: dict[Any, list[int]] = {}
        for number in numbers:
            batch = self._batches[self._rows[number][0]]
            key = tuple(
                (name, v.shape[1:], v.dtype.str)
                for name, v in batch.items()
                if name not in self._whole
            )
            groups.setdefault(key, []).append(number)
        for group in groups.values():
            size = self._static or min(most, len(group))
            for start in range(0, len(group), size):
                yield self._part(group[start : start + size])

    def _part(self, numbers: list[int]) -> Part:
        missing = 0 if self._static is None else self._static - len(numbers)
        filled = numbers + numbers[-1:] * missing
        places = [self._rows[number] for number in filled]
        first = self._batches[places[0][0]]
        feeds = {
            name: v
            if name in self._whole
            else np.stack([self._batches[batch][name][row] for batch, row in places])
            for name, v in first.items()
        }
        return Part(tuple(numbers), feeds)


def _read(reader: DataReader, limit: int) -> list[dict[str, Array]]:
    held, taken = [], 0
    for batch in reader.batches():
        held.append({name: np.asarray(v) for name, v in batch.items()})
        taken += sum(v.nbytes for v in held[-1].values())
        if taken > limit:
            break
    else:
        return held
    held.clear()
    reader.rewind()
    spooled = SpooledReader(reader)
    return [dict(batch) for batch in spooled.batches()]
