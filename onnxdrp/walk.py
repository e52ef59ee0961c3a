"""Models forward once, segment by segment, with time between for new weights.

At each cut the live activations of all samples are held: what the rest of the model reads
(onnxdrp.segments). Up to `memory_limit` they stay in memory, the rest lies in a temporary file.
Observing at a cut runs the models on from there, as far as the tapped tensors need; going on to the
next cut runs one segment with the weights that the models have then. So a sweep over L layers that
looks one segment ahead costs two inferences, not L.

    for stop in walk({"float": model, "pruned": pruned}, reader, default_cuts(model)):
        found = stop.observe({"moments": Tap((("pruned", x), ("float", y)), Moments(...))})
        pruned.set_weight(...)          # the walk goes on with it
"""

import weakref
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import Batch, Batching, Shard, fitting_size
from onnxdrp.errors import DataError, OptionError
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.independence import are_independent
from onnxdrp.job import Job, named
from onnxdrp.segments import Segment, Segments
from onnxdrp.taps import Pair, Tap, TensorRunner, tensor_bytes

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Stop", "walk"]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Key = TypeVar("Key", bound=Hashable)


def walk(
    models: "Model | Mapping[str, Model]",
    reader: "DataReader",
    cuts: Sequence[str | Sequence[str]],
    *,
    memory_limit: int = 1 << 30,
    workers: int | None = None,
    start: int = 0,
    keep: Sequence[str] = (),
    progress: Callable[[int, int | None], None] | None = None,
) -> "Generator[Stop, None, None]":
    """Yield a Stop at each cut, in order; the models may be given new weights before going on.

    Which samples run together, and so every bit of the result, depends neither on the reader's
    batches nor on `workers` nor on `memory_limit`.

    Args:
        models: one model, or {name: model}; all are fed the same samples. Their weights may be
            replaced (Model.set_weight) at a stop, their graphs may not.
        reader: the data, read once and a few samples ahead of that.
        cuts: tensors at which to stop, or sets of them, ancestors first; all models have them.
        memory_limit: bytes of live activations kept in memory; what is more goes to a file in the
            temporary folder. A few shards of samples are in memory besides.
        workers: threads; default: as many as there are cores.
        start: the cut to begin at. What lies before it is run at once, with the weights that the
            models have: so a walk that was interrupted goes on from any cut.
        keep: tensors that stay observable to the end.
        progress: called with (samples times segments done, of how many) as the work goes on.

    Raises:
        DataError: the reader gives no samples, or onnxruntime fails on them.
        OptionError: a cut names what is not computed in each of the models, or there is no cut
            `start`.
    """
    table: Mapping[str, Model] = models if isinstance(models, Mapping) else {"": models}
    names = [(cut,) if isinstance(cut, str) else tuple(cut) for cut in cuts]
    if not 0 <= start < max(len(names), 1):
        raise OptionError(f"there is no cut {start} to start at; give 0 to {len(names) - 1}")
    with TemporaryDirectory(prefix="onnxdrp-walk-") as folder:
        parts = {name: Segments(model, names, keep) for name, model in table.items()}
        batching = _batching(table, parts, reader)
        count = workers or available_cores()
        with own_or_threads(None, count) as pool:
            shelf = _Shelf(memory_limit, Path(folder))
            front = _Front(parts, pool, count, shelf, start)
            tell = _Teller(progress, reader.samples, len(names) - start)
            front.fill(batching.shards(reader), tell)
            for k in range(start, len(names)):
                stop = Stop(k, names[k], front, batching.whole)
                try:
                    yield stop
                finally:
                    stop._over = True
                if k + 1 < len(names):
                    front.advance(tell)


class Stop:
    """All samples, at a cut.

    Attributes:
        index: the number of the cut.
        cut: its tensors.
        live: {model: names of the tensors whose values are held}.
        samples: how many there are.
    """

    def __init__(
        self, index: int, cut: tuple[str, ...], front: "_Front", whole: frozenset[str]
    ) -> None:
        self.index, self.cut = index, cut
        self.live = front.live()
        self.samples = sum(shard.count for shard in front.shards)
        self._front, self._whole = front, whole
        self._over = False

    def observe(self, taps: Mapping[Key, Tap]) -> dict[Key, Any]:
        """{key: result of its tap's observer} over all samples, with the weights of now.

        Args:
            taps: of tensors that are live here or come later; the models are run on as far as
                these need, once for all taps together.

        Raises:
            DataError: a tapped tensor has NaN or infinity; names tensor, node and sample.
            OptionError: a tensor is no longer live here, or the walk has gone on.
        """
        self._check()
        front = self._front
        segments = front.towards({pair for tap in taps.values() for pair in tap.pairs()})
        wanted: dict[Hashable, Tap] = dict(taps.items())
        job = Job({}, wanted, self._whole, runners=segments)
        found: dict[Key, Any] = {}
        for result in in_order(front.pool, job, front.shards, front.workers + 1):
            if result.refused is not None:
                models = {name: part.model for name, part in front.parts.items()}
                raise DataError(f"{named(models, result.refused)}; check that sample")
            for key in taps:
                if key in found:
                    found[key].merge(result.observers[key])
                else:
                    found[key] = result.observers[key]
        return {key: observer.result() for key, observer in found.items()}

    def batches(self) -> Iterator[tuple[tuple[int, ...], Mapping[str, Feed]]]:
        """Yield (numbers of the samples, {model: {live tensor: values}}), in order.

        Values are read-only; rows beyond the samples are padding, where the batch is static.
        """
        self._check()
        for shard in self._front.shards:
            for batch in shard.batches:
                yield batch.samples, batch.feeds

    def _check(self) -> None:
        if self._over:
            raise OptionError(f"the walk has left cut {self.index}; observe before going on")


def _batching(
    models: "Mapping[str, Model]", parts: Mapping[str, Segments], reader: "DataReader"
) -> Batching:
    """The rules for batches: several samples at once where they are small and independent."""
    rules, samples = Batching.of(models, reader)
    if rules.static:
        return rules
    live = {
        name: list(dict.fromkeys(t for k in range(len(p)) for t in p.live(k)))
        for name, p in parts.items()
    }
    size = fitting_size(
        sum(sum(tensor_bytes(models[n], live[n], samples[0]).values()) for n in models)
    )
    runners = {n: TensorRunner(m, live[n]) for n, m in models.items()} if size > 1 else {}
    proven = runners and are_independent(runners, samples, rules.whole)
    return replace(rules, size=size if proven else 1)


class _Teller:
    """Counts what is done, over all segments."""

    def __init__(
        self, progress: Callable[[int, int | None], None] | None, samples: int | None, segments: int
    ) -> None:
        self._progress, self._done = progress, 0
        self._total = None if samples is None else samples * segments

    def __call__(self, samples: int) -> None:
        self._done += samples
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Front:
    """The live activations at cut `k`, and how to get on from there."""

    def __init__(
        self,
        parts: Mapping[str, Segments],
        pool: Executor,
        workers: int,
        shelf: "_Shelf",
        k: int,
    ) -> None:
        self.parts, self.pool, self.workers, self.k = parts, pool, workers, k
        self.shards: list[Shard] = []
        self._shelf = shelf

    def live(self) -> dict[str, tuple[str, ...]]:
        return {name: part.live(self.k) for name, part in self.parts.items()}

    def towards(self, pairs: Iterable[Pair]) -> dict[str, Segment]:
        """What runs from here to some tensors."""
        wanted: dict[str, dict[str, None]] = {}
        for name, tensor in sorted(pairs):
            if name not in self.parts:
                raise OptionError(f"no model is called {name!r}; there is {sorted(self.parts)}")
            wanted.setdefault(name, {})[tensor] = None
        return {name: self._segment(name, list(tensors)) for name, tensors in wanted.items()}

    def _segment(self, name: str, tensors: list[str]) -> Segment:
        part, here = self.parts[name], set(self.parts[name].live(self.k))
        later = [part.segment_of(t) for t in tensors if t not in here]
        first = min(self.k + 1, len(part) - 1)
        return part.span(first, max([first, *later]), tensors, threads=1)

    def fill(self, shards: Iterable[Shard], tell: _Teller) -> None:
        """Run everything up to cut k."""
        segments = {
            name: part.span(0, self.k, part.live(self.k), threads=1)
            for name, part in self.parts.items()
        }
        for shard in in_order(self.pool, _Forward(segments), shards, self.workers + 1):
            self.shards.append(self._kept(shard))
            tell(shard.count)
        self._shelf.close()

    def advance(self, tell: _Teller) -> None:
        """Go on to the next cut, with the weights of now."""
        segments = {}
        for name, part in self.parts.items():
            here = set(part.live(self.k))
            new = [tensor for tensor in part.live(self.k + 1) if tensor not in here]
            segments[name] = part.build(self.k + 1, new, threads=1)
        self.k += 1
        before = (shard for shard in self.shards)  # nothing else may hold what was left behind
        work = in_order(self.pool, _Forward(segments), before, self.workers + 1)
        for i, shard in enumerate(work):
            self.shards[i] = self._kept(shard, self.shards[i])
            tell(shard.count)
        self._shelf.close()

    def _kept(self, shard: Shard, before: Shard | None = None) -> Shard:
        """The shard with its live tensors on the shelf, and nothing that is live no longer."""
        batches = []
        for i, batch in enumerate(shard.batches):
            old = before.batches[i].feeds if before is not None else {}
            feeds = {}
            for name, new in batch.feeds.items():
                held = _held(old.get(name))
                for tensor in held.keys() - set(self.parts[name].live(self.k)):
                    self._shelf.drop(held[tensor])
                feeds[name] = _Live(
                    {
                        tensor: held[tensor] if tensor in held else self._shelf.put(new[tensor])
                        for tensor in self.parts[name].live(self.k)
                    }
                )
            batches.append(replace(batch, feeds=feeds))
        return replace(shard, batches=tuple(batches))


@dataclass(frozen=True)
class _Forward:
    """Runs a shard through segments; padding goes along."""

    segments: Mapping[str, Segment]

    def __call__(self, shard: Shard) -> Shard:
        return replace(shard, batches=tuple(self._forward(batch) for batch in shard.batches))

    def _forward(self, batch: Batch) -> Batch:
        feeds = {
            name: {tensor: _own(v) for tensor, v in part.run(batch.feeds[name]).items()}
            for name, part in self.segments.items()
        }
        return replace(batch, feeds=feeds)


def _own(value: Any) -> Any:
    """The array in memory of its own: onnxruntime's, and the reader's, is not to be held for long.

    Sequences of tensors, which Loop bodies and the like make, stay as they are.
    """
    return np.array(value, order="C") if isinstance(value, np.ndarray) else value


@dataclass(frozen=True, eq=False)
class _File:
    """Where arrays were spilled; deleted when none of them is live any more."""

    path: Path

    def __post_init__(self) -> None:
        weakref.finalize(self, self.path.unlink, missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Spilled:
    """An array in a file."""

    file: _File
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> Array:
        count = int(np.prod(self.shape, dtype=np.int64))
        values = np.fromfile(self.file.path, self.dtype, count, offset=self.offset)
        return values.reshape(self.shape)


class _Live(Mapping[str, Array]):
    """Live tensors by name; what was spilled is read when it is asked for."""

    def __init__(self, held: dict[str, Array | _Spilled]) -> None:
        self.held = held

    def __getitem__(self, name: str) -> Array:
        value = self.held[name]
        return value.read() if isinstance(value, _Spilled) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def _held(feed: Feed | None) -> dict[str, Array | _Spilled]:
    return feed.held if isinstance(feed, _Live) else {}


_FILE_BYTES = 256 << 20  # a file is deleted as a whole


class _Shelf:
    """Keeps arrays in memory up to a limit, and in files beyond it."""

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit, self.folder = limit, folder
        self.held = 0
        self._file: _File | None = None
        self._files = self._end = 0

    def put(self, array: Any) -> Any:
        """The array, which becomes read-only, or a _Spilled in a file."""
        if not isinstance(array, np.ndarray):
            return array
        if self.held + array.nbytes <= self.limit:
            self.held += array.nbytes
            array.flags.writeable = False
            return array
        return self._spill(array)

    def drop(self, value: Array | _Spilled) -> None:
        """Forget an array."""
        if isinstance(value, np.ndarray):
            self.held -= value.nbytes

    def close(self) -> None:
        """Begin a new file with the next array: those of one cut die at about the same time."""
        self._file = None

    def _spill(self, array: Array) -> _Spilled:
        if self._file is None or self._end >= _FILE_BYTES:
            self._file = _File(self.folder / f"{self._files}.bin")
            self._files, self._end = self._files + 1, 0
        with self._file.path.open("ab") as file:
            array.tofile(file)
        offset, self._end = self._end, self._end + array.nbytes
        return _Spilled(self._file, offset, array.dtype, array.shape)
