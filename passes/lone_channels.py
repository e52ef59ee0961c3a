"""The outputs of a model with channels of one group removed, for many such choices.

A channel is as good as removed where nothing sums over it: the weights of the layers that read it
are zero there. So of each group the model runs from the first of those layers on, and what comes
before is shared: the float model walks (onnxdrp.walk) from group to group, and from each stop on a
copy runs, once for each choice, with the weights of the readers masked. Outputs of the float model
are held, in memory or in files.

An executor of processes or machines gets the choices in pieces, in the order of the walk.
Each piece walks from the start of the model, stop by stop, so that every bit is the same as in one;
that costs less than an inference each, and a piece is worth about eight.
"""

import pickle
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import static_batch
from onnxdrp.channels import Removed
from onnxdrp.channels.output_scores import Score
from onnxdrp.channels.reading import read_by_group
from onnxdrp.channels.sent import ModelWork
from onnxdrp.datareaders.base import Batch, DataReader
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext
from onnxdrp.segments import Segment, Segments
from onnxdrp.sending import Here, Sent
from onnxdrp.walk import Stop, walk

if TYPE_CHECKING:
    from onnxdrp.channels import Channels

__all__ = ["LoneChannels"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Feeds = tuple[tuple[int, ...], Mapping[str, Mapping[str, Any]]]  # of a batch, as walk gives them
Choice = tuple[str, float]
Found = tuple[str, float, float]

_PIECE = 8.0  # inferences that a piece is worth, or fewer so that there is one for each worker


class LoneChannels(ModelWork):
    """A model of which channels are masked.

    Args:
        model: float; is not changed.
        channels: of it.
        choices: {group: {rate: what is removed}}.
        reader: the samples, all of which are looked at.
        score: of no sample.
        memory_limit: bytes of activations held in memory by each process, and as many of the
            outputs; what is more goes to files.
        folder: for those, and for what is sent to other processes.
    """

    def __init__(
        self,
        model: Model,
        channels: "Channels",
        choices: Mapping[str, Mapping[float, Removed]],
        reader: DataReader,
        score: Score,
        *,
        memory_limit: int,
        folder: Path,
    ) -> None:
        super().__init__(model)
        self._choices, self._reader = choices, reader
        self._score, self._limit, self._folder = score, memory_limit, folder
        self._prepare(channels)

    def _prepare(self, channels: "Channels") -> None:
        self._channels = channels
        self._outputs = [
            o.name for o in self._model.outputs if o.dtype is not None and o.dtype.kind == "f"
        ]
        self._batch = static_batch([self._model])
        self._wanted: _Held | None = None
        readers = read_by_group(self._model, channels)
        order = {layer.name: i for i, layer in enumerate(layers(self._model))}
        self._stops: dict[str, list[str]] = {}  # {what the first reader reads: groups}, in order
        self._behind: dict[str, float] = {}  # {group: share of the layers from its first reader on}
        for group in sorted(self._choices, key=lambda name: order[readers[name][0][0]]):
            name, data = readers[group][0]
            self._stops.setdefault(data, []).append(group)
            self._behind[group] = 1 - order[name] / len(order)

    def measure(self, wanted: Collection[Choice], ctx: PassContext) -> Iterator[Found]:
        """Yield (group, rate, score) for each choice; first ("", 0.0, score of the float model).

        Args:
            wanted: (group, rate) of those that are looked at; some at least.
            ctx: with executor, workers and progress.

        Raises:
            DataError: the reader gives no samples, onnxruntime fails, or a user's score does.
        """
        count = ctx.workers or available_cores()
        if ctx.executor is None or isinstance(ctx.executor, ThreadPoolExecutor):
            found = self._measured(wanted, ctx.executor, count)
        else:
            found = self._elsewhere(wanted, ctx.executor, count)
        with closing(found):
            for told, one in enumerate(found):
                yield one
                if told and ctx.progress is not None:
                    samples = self._reader.samples or 1
                    ctx.progress(samples * told, samples * len(wanted))

    def _elsewhere(
        self, wanted: Collection[Choice], executor: Executor, count: int
    ) -> Generator[Found, None, None]:
        work, first = _Sent(self, self._folder), True
        for piece in in_order(executor, work, self._pieces(wanted, count), 2 * count):
            yield from piece if first else piece[1:]
            first = False

    def _pieces(self, wanted: Collection[Choice], workers: int) -> list[list[Choice]]:
        """The choices in the order of the walk, in pieces of about the same time."""
        groups = [name for at in self._stops.values() for name in at]
        cost = {name: self._behind[name] * sum(g == name for g, _ in wanted) for name in groups}
        size = min(_PIECE, sum(cost.values()) / workers)
        pieces: list[list[Choice]] = []
        spent = size
        for name in groups:
            own = [(name, rate) for rate in self._choices[name] if (name, rate) in wanted]
            if not own:
                continue
            if spent >= size:
                pieces.append([])
                spent = 0.0
            pieces[-1] += own
            spent += cost[name]
        return pieces

    def _measured(
        self, wanted: Collection[Choice], executor: Executor | None, count: int
    ) -> Generator[Found, None, None]:
        """The same in this process; several threads may be at it at a time."""
        cuts = [(cut,) for cut in self._stops]
        with self._lock:
            masked = self._model.clone()
            parts = {m: Segments(m, cuts) for m in (self._model, masked)}
        users, groups = by_weight(layers(masked)), {name for name, _ in wanted}
        at_stop = [[n for n in names if n in groups] for names in self._stops.values()]
        last = max(i for i, names in enumerate(at_stop) if names)
        walked = walk(self._model, self._reader, cuts, memory_limit=self._limit, workers=count)
        with own_or_threads(executor, count) as pool, closing(walked):
            for at in walked:

                def behind(model: Model, at: Stop = at) -> Segment:
                    return parts[model].span(at.index + 1, len(cuts), self._outputs, threads=1)

                if at.index == 0:  # whatever is wanted: elsewhere they would have other last bits
                    held = self._held(at, behind(self._model), pool, count)
                    yield "", 0.0, self._of_itself(at, held)
                for name in at_stop[at.index]:
                    for rate, removed in self._choices[name].items():
                        if (name, rate) not in wanted:
                            continue
                        before = self._mask(masked, users, removed)
                        work = partial(self._scored, behind(masked), held)
                        masked.exchange(before)  # the session has what it needs
                        sums = self._score.fresh()
                        for part in in_order(pool, work, enumerate(at.batches()), count + 1):
                            sums.merge(part)
                        yield name, rate, sums.result()
                if at.index == last:
                    return

    def _mask(
        self, masked: Model, users: Mapping[str, list[Layer]], removed: Removed
    ) -> dict[str, Array]:
        """Give the copy masked weights; those that it had."""
        masks = self._channels.masks(masked, removed, "read")
        before = {name: masked.weight(name) for name in masks}
        for name, mask in masks.items():
            stored = users[name][0].stored
            assert stored is not None  # channels end at weights that are not
            stored.apply(masked, mask)
        return before

    def _held(self, at: Stop, float_: Segment, pool: Executor, count: int) -> "_Held":
        """Outputs of the float model, computed once in each process."""
        with self._lock:
            if self._wanted is None:
                held = _Held(self._limit, Path(tempfile.mkdtemp(dir=self._folder)))
                work = partial(self._run, float_)
                for _, values in in_order(pool, work, at.batches(), count + 1):
                    held.append(values)
                self._wanted = held
            return self._wanted

    def _run(self, part: Segment, batch: Feeds) -> tuple[tuple[int, ...], Outputs]:
        """The numbers of a batch's samples, and their outputs."""
        numbers, feeds = batch
        size = self._batch or len(numbers)
        values = {
            name: v if len(v) % size else v[: len(v) // size * len(numbers)]
            for name, v in part.run(feeds[""]).items()
        }
        return numbers, values

    def _scored(self, part: Segment, wanted: "_Held", item: tuple[int, Feeds]) -> Score:
        i, batch = item
        numbers, got = self._run(part, batch)
        score = self._score.fresh()
        score.update(numbers, wanted[i], got)
        return score

    def _of_itself(self, at: Stop, wanted: "_Held") -> float:
        score = self._score.fresh()
        for i, (numbers, _) in enumerate(at.batches()):
            score.update(numbers, wanted[i], wanted[i])
        return score.result()

    def _state(self, folder: Path, token: str) -> dict[str, Any]:
        return {
            "_choices": self._choices,
            "_reader": _Written(self._reader, folder / f"{token}.samples"),
            "_score": self._score,
            "_limit": self._limit,
            "_folder": folder,
        }


_HERE = Here(LoneChannels.load, kept=1)


class _Sent(Sent[LoneChannels]):
    """Called with choices, gives what they and the float model score."""

    def __call__(self, piece: Sequence[Choice]) -> list[Found]:
        return list(self._here().measure(piece, PassContext(workers=1)))

    def _loaded(self, folder: Path, token: str) -> LoneChannels:
        return _HERE.work(folder, token)


class _Written(DataReader):
    """The samples of another reader, in a file; what is pickled is the name of that."""

    def __init__(self, reader: DataReader, path: Path) -> None:
        self._path, self._batches, self.samples = path, 0, reader.samples
        with path.open("wb") as file:
            for batch in reader.batches():
                pickle.dump({name: np.asarray(array) for name, array in batch.items()}, file)
                self._batches += 1

    def batches(self) -> Iterator[Batch]:
        """As the other gave them."""
        with self._path.open("rb") as file:
            for _ in range(self._batches):
                yield pickle.load(file)


class _Held(Sequence[Outputs]):
    """Outputs of batches, in memory up to a limit, and in files beyond it."""

    def __init__(self, limit: int, folder: Path) -> None:
        self._left, self._folder = limit, folder
        self._held: list[dict[str, Array | Path]] = []

    def append(self, values: Outputs) -> None:
        held: dict[str, Array | Path] = {}
        for number, (name, array) in enumerate(values.items()):
            self._left -= array.nbytes
            held[name] = array
            if self._left < 0:
                path = self._folder / f"{len(self._held)}-{number}.npy"
                np.save(path, array)
                held[name] = path
        self._held.append(held)

    def __getitem__(self, i: Any) -> Any:
        return {name: np.load(v) if isinstance(v, Path) else v for name, v in self._held[i].items()}

    def __len__(self) -> int:
        return len(self._held)
