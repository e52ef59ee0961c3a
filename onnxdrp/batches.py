"""Samples to inference batches, by rules that the reader's own batches do not touch.

Which samples run together decides the last bits of what they give. So batches are formed anew:

    1. A shard is a fixed number of samples in a row; shards are what workers share out.
    2. Within a shard, samples of equal shapes run `size` at a time.
    3. Where the model's batch is static, a batch that is not full is padded by its last sample.
    4. An input without a batch axis goes whole to every batch.

`size` is more than 1 only where it was proven that a sample gives the same in any company
(onnxdrp.independence), or where the model's own batch is static.
"""

import math
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, OptionError

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = [
    "Batch",
    "Batching",
    "Shard",
    "Source",
    "aligned",
    "fitting_size",
    "pieces",
    "samples_of",
    "static_batch",
    "whole_inputs",
]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

_ALIGNMENT = 64
SHARD = 8
"""Samples of a shard, unless they are large."""
SHARD_BYTES = 8 << 20
"""What the inputs of a shard may take: some are held at a time, and dask warns above 10 MB."""
BATCH_BYTES = 8 << 20
"""What the tensors of a batch may take: more gains nothing, since calls cost little by then."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What runs at once.

    Attributes:
        feeds: {model: its inputs}; of a whole input all batches share one array.
        samples: the numbers of the samples, in order; rows beyond them are padding.
        size: the rows of an input, padding included.
        static: whether the model takes no other size.
    """

    feeds: Mapping[str, Feed]
    samples: tuple[int, ...]
    size: int
    static: bool = False

    @property
    def padded(self) -> bool:
        """Whether the last rows are no samples."""
        return len(self.samples) < self.size

    def without(self, samples: Collection[int], whole: Collection[str]) -> "Batch | None":
        """The batch without these samples, filled up if its size is static; None if it is empty."""
        rows = [i for i, number in enumerate(self.samples) if number not in samples]
        if len(rows) == len(self.samples):
            return self
        if not rows:
            return None
        size = self.size if self.static else len(rows)
        index = np.array(rows + rows[-1:] * (size - len(rows)))
        feeds = {
            model: {name: v if name in whole else v[index] for name, v in feed.items()}
            for model, feed in self.feeds.items()
        }
        return Batch(feeds, tuple(self.samples[i] for i in rows), size, self.static)


@dataclass(frozen=True, eq=False)
class Shard:
    """The samples `first` to `first + count - 1`, in batches."""

    index: int
    first: int
    count: int
    batches: tuple[Batch, ...]

    def without(self, samples: Collection[int], whole: Collection[str]) -> "Shard":
        """The shard without these samples."""
        left = (batch.without(samples, whole) for batch in self.batches)
        return replace(self, batches=tuple(batch for batch in left if batch is not None))


@dataclass(frozen=True, eq=False)
class Source:
    """A shard that is read where it is observed.

    Attributes:
        reader: of its samples alone, pickled.
    """

    first: int
    count: int
    reader: bytes
    batching: "Batching"

    def read(self) -> Shard:
        """The shard. Raises DataError where the reader gives more or fewer samples."""
        reader: DataReader = pickle.loads(self.reader)
        batches = tuple(self.batching.batches(reader.batches(), self.first))
        found = sum(len(batch.samples) for batch in batches)
        if found != self.count:
            raise DataError(
                f"the reader gives {found} samples from number {self.first} on, where it said "
                f"{self.count}"
            )
        return Shard(self.first // self.batching.shard, self.first, self.count, batches)


@dataclass(frozen=True)
class Batching:
    """The rules for a set of models and one reader.

    Attributes:
        models: the names of the models, which are all fed the same.
        size: samples of a batch.
        static: whether batches that are not full are padded.
        whole: names of the inputs that have no batch axis.
        sample_bytes: bytes of the first sample's inputs; of larger samples fewer run at once.
    """

    models: tuple[str, ...]
    size: int = 1
    static: bool = False
    whole: frozenset[str] = field(default_factory=frozenset)
    sample_bytes: int = 0

    @classmethod
    def of(
        cls, models: "Mapping[str, Model]", reader: "DataReader", count: int = 4
    ) -> tuple[Self, list[Feed]]:
        """The rules of least company, and the first samples, by which more may be proven.

        Raises:
            DataError: the reader gives no samples.
            OptionError: the models are fixed to different batch sizes.
        """
        samples, whole = samples_of(reader, list(models.values()), count)
        if not samples:
            raise DataError("the reader gives no samples; check the path and the limit")
        static = static_batch(models.values())
        bytes_ = sum(v.nbytes for name, v in samples[0].items() if name not in whole)
        return cls(tuple(models), static or 1, static is not None, whole, bytes_), samples

    @property
    def shard(self) -> int:
        """Samples of a shard: a multiple of `size`."""
        fitting = SHARD_BYTES // max(self.sample_bytes, 1)
        count = 1 << max(0, min(fitting, SHARD).bit_length() - 1)
        return -(-count // self.size) * self.size

    def shards(self, reader: "DataReader", skip: int = 0) -> Iterator[Shard]:
        """Cut a reader's samples into shards; the last may be smaller.

        Args:
            reader: the data.
            skip: number of shards not to give; their samples are not read where `reader` can.
        """
        index, first = skip, skip * self.shard
        held, count = list[Feed](), 0
        for chunk in self._after(reader, first):
            rows, start = self._rows(chunk), 0
            while start < rows:
                stop = min(rows, start + self.shard - count)
                held.append(self._cut(chunk, rows, start, stop))
                count, start = count + stop - start, stop
                if count == self.shard:
                    yield Shard(index, first, count, tuple(self.batches(held, first)))
                    index, first, held, count = index + 1, first + count, [], 0
        if held:
            yield Shard(index, first, count, tuple(self.batches(held, first)))

    def sources(self, reader: "DataReader", skip: int = 0) -> "Iterator[Shard | Source]":
        """The same shards for other processes, which read the samples themselves if that is less.

        That is so where `reader` is one of onnxdrp's, gives chosen samples without reading others,
        and such a part of it takes fewer bytes than its samples, and no more than 64 KiB.
        """
        if _source(self, reader, 0) is None:
            return self.shards(reader, skip)
        return (
            source
            for index in range(skip, -(-(reader.samples or 0) // self.shard))
            if (source := _source(self, reader, index)) is not None
        )

    def _after(self, reader: "DataReader", samples: int) -> Iterator[Feed]:
        """What a reader gives after so many samples."""
        if samples and reader.samples is not None:
            if samples >= reader.samples:
                return
            rest = reader.pick(np.arange(samples, reader.samples))
            if rest is not None:
                yield from rest.batches()
                return
        for chunk in reader.batches():
            rows = self._rows(chunk)
            if samples < rows:
                yield self._cut(chunk, rows, samples, rows)
            samples = max(0, samples - rows)

    def _rows(self, chunk: Feed) -> int:
        """How many samples these are. Raises DataError where the inputs do not agree on that."""
        rows = {name: len(v) for name, v in chunk.items() if name not in self.whole}
        if len(set(rows.values())) > 1:
            said = ", ".join(f"{n} of {name!r}" for name, n in rows.items())
            raise DataError(f"the reader gives inputs of different lengths together: {said}")
        return next(iter(rows.values()), 1)

    def batches(self, chunks: Iterable[Feed], first: int) -> Iterator[Batch]:
        """Join and cut chunks of samples, which are numbered from `first`."""
        held: list[Feed] = []
        count = 0
        for chunk in chunks:
            if held and not self._alike(held[0], chunk):
                yield self._batch(held, first, count)
                first, held, count = first + count, [], 0
            rows, start, most = self._rows(chunk), 0, self._most(chunk)
            while start < rows:
                stop = min(rows, start + most - count)
                held.append(self._cut(chunk, rows, start, stop))
                count, start = count + stop - start, stop
                if count == most:
                    yield self._batch(held, first, count)
                    first, held, count = first + count, [], 0
        if held:
            yield self._batch(held, first, count)

    def _most(self, chunk: Feed) -> int:
        """How many samples like these run at once."""
        if self.static or self.size == 1:
            return self.size
        bytes_ = sum(v[:1].nbytes for name, v in chunk.items() if name not in self.whole)
        return max(1, min(self.size, self.size * self.sample_bytes // max(bytes_, 1)))

    def _alike(self, a: Feed, b: Feed) -> bool:
        """Whether samples of the two chunks can run together."""
        return a.keys() == b.keys() and all(
            v is b[name] or np.array_equal(v, b[name])
            if name in self.whole
            else v.shape[1:] == b[name].shape[1:] and v.dtype == b[name].dtype
            for name, v in a.items()
        )

    def _cut(self, chunk: Feed, rows: int, start: int, stop: int) -> Feed:
        if stop - start == rows:
            return chunk
        return {n: v if n in self.whole else v[start:stop] for n, v in chunk.items()}

    def _batch(self, chunks: list[Feed], first: int, count: int) -> Batch:
        size = self.size if self.static else count
        if len(chunks) == 1 and size == count:
            feed = chunks[0]
        else:
            feed = {
                name: v if name in self.whole else _joined([c[name] for c in chunks], size - count)
                for name, v in chunks[0].items()
            }
        numbers = tuple(range(first, first + count))
        return Batch(dict.fromkeys(self.models, feed), numbers, size, self.static)


def fitting_size(sample_bytes: int) -> int:
    """Samples of a batch, a power of two: few of which much is fetched, more of others.

    Args:
        sample_bytes: bytes of the tensors that are fetched, for one sample.
    """
    fitting = BATCH_BYTES // max(sample_bytes, 1)
    return 1 << max(0, min(SHARD, fitting).bit_length() - 1)


def aligned(array: Array) -> Array:
    """The array, or a copy of it, in one piece from an address that 64 divides.

    onnxruntime reads its inputs where they are, and its sums over one that lies at another address
    (a row of a larger array, say) have other last bits.
    """
    array = np.asarray(array)
    if array.flags.c_contiguous and array.__array_interface__["data"][0] % _ALIGNMENT == 0:
        return array
    if array.dtype.hasobject:
        return array  # strings
    copy = _empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def static_batch(models: Iterable["Model"]) -> int | None:
    """The batch size that the models are fixed to, or None where it is free.

    Raises:
        OptionError: the models are fixed to different ones.
    """
    first = (next((i.shape for i in model.inputs if i.shape), (None,)) for model in models)
    sizes = {shape[0] for shape in first if isinstance(shape[0], int)}
    if len(sizes) > 1:
        raise OptionError(
            f"the models have different batch sizes, {sorted(sizes)}; make them equal"
        )
    return sizes.pop() if sizes else None


def whole_inputs(models: Iterable["Model"], feed: Feed) -> frozenset[str]:
    """The names of a feed's arrays that have no batch axis.

    Those are scalars; inputs whose first dimension is fixed where that of the model's first input
    is free, or is fixed otherwise; and arrays that are not as long as the feed's first one.
    """
    whole = {name for name, v in feed.items() if not np.ndim(v)}
    for model in models:
        shapes = {info.name: info.shape for info in model.inputs}
        batch = next((s[0] for s in shapes.values() if s), None)
        whole |= {
            name for name in feed if (s := shapes.get(name)) and _is_fixed_otherwise(s[0], batch)
        }
    rows = next((len(v) for name, v in feed.items() if name not in whole), 1)
    return frozenset(whole | {n for n, v in feed.items() if n not in whole and len(v) != rows})


def samples_of(
    reader: "DataReader", models: Sequence["Model"], count: int
) -> tuple[list[Feed], frozenset[str]]:
    """The first samples of a reader, feeds with a batch axis of 1, and which inputs are whole."""
    found: list[Feed] = []
    whole: frozenset[str] | None = None
    batches = reader.batches()
    try:
        for batch in batches:
            whole = whole_inputs(models, batch) if whole is None else whole
            found += [
                {n: v if n in whole else v[i : i + 1] for n, v in batch.items()}
                for i in range(min(_rows(batch, whole), count - len(found)))
            ]
            if len(found) == count:
                break
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()
    return found, whole or frozenset()


def pieces(reader: "DataReader", batch_size: int | None) -> Iterator[tuple[Feed, int]]:
    """Yield (feed, number of valid samples) of the size that the model takes.

    Args:
        reader: gives batches of any size; the first input says how many samples there are, and
            an input of another length has no batch axis and is passed whole.
        batch_size: the model's static batch size, to which batches are cut and the last is padded
            (by its last sample); None: batches are passed as they come.
    """
    for batch in reader.batches():
        rows = _rows(batch, ())
        if batch_size is None:
            yield batch, rows
            continue
        whole = {name for name, v in batch.items() if not v.ndim or len(v) != rows}
        for item in Batching(("",), batch_size, True, frozenset(whole)).batches([batch], 0):
            yield item.feeds[""], len(item.samples)


_SOURCE_BYTES = 64 << 10


class _Bounded:
    """What is written, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.written, self._limit = b"", limit

    def write(self, data: Any) -> None:
        if len(self.written) + memoryview(data).nbytes > self._limit:
            raise OverflowError
        self.written += bytes(data)


def _source(batching: Batching, reader: "DataReader", index: int) -> Source | None:
    from onnxdrp.datareaders.batching import Subset

    # A class of the user's may be unknown elsewhere; a Subset reads all samples before its own.
    ours = type(reader).__module__.partition(".")[0] == "onnxdrp" and not isinstance(reader, Subset)
    if not ours or reader.samples is None:
        return None
    first = index * batching.shard
    numbers = np.arange(first, min(first + batching.shard, reader.samples))
    part, buffer = reader.pick(numbers), _Bounded(_SOURCE_BYTES)
    try:
        pickle.Pickler(buffer, protocol=5).dump(part)
    except (OverflowError, pickle.PicklingError, AttributeError, TypeError):
        return None
    if part is None or len(buffer.written) >= len(numbers) * batching.sample_bytes:
        return None
    return Source(first, len(numbers), buffer.written, batching)


def _is_fixed_otherwise(dimension: int | str | None, batch: int | str | None) -> bool:
    return isinstance(dimension, int) and dimension != batch


def _rows(feed: Feed, whole: Collection[str]) -> int:
    return next((len(v) for name, v in feed.items() if name not in whole and np.ndim(v)), 1)


def _joined(parts: list[Array], padding: int) -> Array:
    if parts[0].dtype.hasobject:  # strings
        return np.concatenate([*parts, np.repeat(parts[-1][-1:], padding, axis=0)])
    rows = sum(map(len, parts))
    joined = _empty((rows + padding, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=joined[:rows])
    joined[rows:] = parts[-1][-1]
    return joined
