"""Cut a reader's samples anew: other batch sizes, some of the samples, two disjoint parts."""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from onnxdrp.datareaders.base import Batch, DataReader, rows_of
from onnxdrp.datareaders.files import check_limit
from onnxdrp.errors import DataError, OptionError

__all__ = ["Subset", "count", "rebatch", "split", "subset", "take"]


def rebatch(chunks: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Cut and join chunks into batches of `size` samples; the last may be smaller.

    Samples of different shapes are never joined: a batch ends where the shape changes.
    """
    held: list[Batch] = []
    for chunk in chunks:
        if held and _row_shapes(chunk) != _row_shapes(held[0]):
            yield _join(held)
            held = []
        held.append(chunk)
        ready = sum(map(rows_of, held))
        while ready >= size:
            whole = _join(held)
            yield {name: array[:size] for name, array in whole.items()}
            ready -= size
            held = [{name: array[size:] for name, array in whole.items()}] if ready else []
    if held:
        yield _join(held)


class Subset(DataReader):
    """Some samples of another reader, found by reading all of it up to the last of them.

    Batches have the size of the first batch of the other reader.
    """

    def __init__(self, reader: DataReader, indices: NDArray[np.int64]) -> None:
        self.layout = reader.layout
        self.samples = len(indices)
        self.labels = None if reader.labels is None else reader.labels[indices]
        self._reader = reader
        self._indices = indices

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass over the chosen samples."""
        source = self._reader.batches()
        head = next(source, None)
        if head is None:
            return
        yield from rebatch(self._chosen(chain([head], source)), rows_of(head))

    def pick(self, indices: NDArray[np.int64]) -> "Subset":
        """Return a reader of these samples alone."""
        return Subset(self._reader, self._indices[indices])

    def _chosen(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        start = done = 0
        for batch in batches:
            stop = start + rows_of(batch)
            after = int(np.searchsorted(self._indices, stop))
            rows = self._indices[done:after] - start
            if len(rows):
                yield {name: array[rows] for name, array in batch.items()}
            start, done = stop, after
            if done == len(self._indices):
                return
        raise DataError(
            f"the reader gave {start} samples, but sample {self._indices[done]} was wanted: "
            "it gives fewer in this pass than it said or gave before"
        )


class _Head(DataReader):
    """The first samples of a reader that does not know how many it has."""

    def __init__(self, reader: DataReader, limit: int) -> None:
        self.layout = reader.layout
        self._reader = reader
        self._limit = limit

    def batches(self) -> Iterator[Batch]:
        left = self._limit
        for batch in self._reader.batches():
            yield {name: array[:left] for name, array in batch.items()}
            left -= rows_of(batch)
            if left <= 0:
                return


def subset(reader: DataReader, indices: NDArray[np.int64]) -> DataReader:
    """Return a reader of these samples alone, in ascending order."""
    indices = np.unique(indices)
    return reader.pick(indices) or Subset(reader, indices)


def count(reader: DataReader) -> int:
    """Return the number of samples; a reader that does not know it is read through once."""
    if reader.samples is not None:
        return reader.samples
    return sum(map(rows_of, reader.batches()))


def take(reader: DataReader, samples: int) -> DataReader:
    """Return a reader of the first samples alone; the same one if it is known to have no more."""
    check_limit(samples)
    if reader.samples is None:
        return _Head(reader, samples)
    if reader.samples <= samples:
        return reader
    return subset(reader, np.arange(samples, dtype=np.int64))


def split(
    reader: DataReader, held_out: float = 0.2, seed: int = 0
) -> tuple[DataReader, DataReader]:
    """Part a reader into (calibration, held out): disjoint, together all, the same each time.

    The held-out samples are spread evenly: one is drawn from each of as many equal stretches of
    the data. Both parts have at least one sample. A reader that does not know how many samples it
    has is read through once.

    Args:
        reader: what to part.
        held_out: the share of samples to hold out, between 0 and 1.
        seed: draws the held-out samples.
    """
    if not 0 < held_out < 1:
        raise OptionError(f"held_out {held_out} must lie between 0 and 1")
    samples = count(reader)
    if samples < 2:
        raise DataError(f"cannot hold out a part of {samples} samples; give at least 2")
    parts = min(max(round(samples * held_out), 1), samples - 1)
    edges = np.arange(parts + 1, dtype=np.int64) * samples // parts
    drawn = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    rest = np.setdiff1d(np.arange(samples, dtype=np.int64), drawn)
    return subset(reader, rest), subset(reader, drawn)


def _row_shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in batch.items()}


def _join(chunks: list[Batch]) -> Batch:
    if len(chunks) == 1:
        return chunks[0]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
