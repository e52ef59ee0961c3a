"""The outputs of a model with channels of one group removed, for many such choices.

A channel is as good as removed where nothing sums over it: the weights of the layers that read it
are zero there. So of each group the model runs from the first of those layers on, and what comes
before is shared: the float model walks (onnxdrp.walk) from group to group, and from each stop on a
copy runs, once for each choice, with the weights of the readers masked. Outputs of the float model
are held, in memory or in files.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import static_batch
from onnxdrp.channels import Channels, Removed
from onnxdrp.channels.output_scores import Score
from onnxdrp.channels.reading import read_by_group
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.layers import by_weight, layers
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext
from onnxdrp.segments import Segment, Segments
from onnxdrp.walk import Stop, walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["LoneChannels"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Feeds = tuple[tuple[int, ...], Mapping[str, Mapping[str, Any]]]  # of a batch, as walk gives them


class LoneChannels:
    """A model, and a copy of which channels are masked.

    Args:
        model: float; is not changed.
        channels: of it.
        reader: the samples, all of which are looked at.
        score: of no sample.
        ctx: with workers and progress.
        memory_limit: bytes of activations held in memory, and as many of the outputs; what is more
            goes to temporary files.
    """

    def __init__(
        self,
        model: Model,
        channels: Channels,
        reader: "DataReader",
        score: Score,
        ctx: PassContext,
        memory_limit: int,
    ) -> None:
        self.model, self.channels, self.reader = model, channels, reader
        self._score, self._ctx, self._limit = score, ctx, memory_limit
        self._masked = model.clone()
        self._users = by_weight(layers(self._masked))
        self._outputs = [
            o.name for o in model.outputs if o.dtype is not None and o.dtype.kind == "f"
        ]
        self._batch = static_batch([model])

    def measure(
        self, choices: Mapping[str, Mapping[float, Removed]], done: Collection[tuple[str, float]]
    ) -> Iterator[tuple[str, float, float]]:
        """Yield (group, rate, score) for each choice; first ("", 0.0, score of the float model).

        Args:
            choices: {group: {rate: what is removed}}.
            done: (group, rate) of those that are known; not all of them.

        Raises:
            DataError: the reader gives no samples, onnxruntime fails, or a user's score does.
        """
        stops = self._stops(choices)
        cuts = [(cut,) for cut in stops]
        parts = {m: Segments(m, cuts) for m in (self.model, self._masked)}
        todo = {
            name: {rate: gone for rate, gone in of.items() if (name, rate) not in done}
            for name, of in choices.items()
        }
        total, told = sum(map(len, todo.values())), 0
        count = self._ctx.workers or available_cores()
        walked = walk(
            self.model,
            self.reader,
            cuts,
            memory_limit=self._limit,
            workers=self._ctx.workers,
        )
        with (
            TemporaryDirectory(prefix="onnxdrp-outputs-") as folder,
            own_or_threads(None, count) as pool,
            closing(walked),
        ):
            wanted = _Held(self._limit, Path(folder))
            for at, groups in zip(walked, stops.values(), strict=True):
                if not any(todo[name] for name in groups):
                    continue  # walked all the same: a start here would have other last bits

                def behind(model: Model, at: Stop = at) -> Segment:
                    return parts[model].span(at.index + 1, len(cuts), self._outputs, threads=1)

                if not len(wanted):
                    float_ = partial(self._run, behind(self.model))
                    for _, values in in_order(pool, float_, at.batches(), count + 1):
                        wanted.append(values)
                    yield "", 0.0, self._of_itself(at, wanted)
                for group in groups:
                    for rate, removed in todo[group].items():
                        before = self._mask(removed)
                        work = partial(self._scored, behind(self._masked), wanted)
                        sums = self._score.fresh()
                        for part in in_order(pool, work, enumerate(at.batches()), count + 1):
                            sums.merge(part)
                        self._masked.exchange(before)
                        yield group, rate, sums.result()
                        told += 1
                        if self._ctx.progress is not None:
                            self._ctx.progress(at.samples * told, at.samples * total)

    def _stops(self, choices: Mapping[str, Mapping[float, Removed]]) -> dict[str, list[str]]:
        """{activation that the first reader of a group reads: groups}, ancestors first."""
        readers = read_by_group(self.model, self.channels)
        order = {name: i for i, name in enumerate(layer.name for layer in layers(self.model))}
        stops: dict[str, list[str]] = {}
        for group in sorted(choices, key=lambda name: order[readers[name][0][0]]):
            stops.setdefault(readers[group][0][1], []).append(group)
        return stops

    def _mask(self, removed: Removed) -> dict[str, Array]:
        """Give the copy masked weights; those that it had."""
        masks = self.channels.masks(self._masked, removed, "read")
        before = {name: self._masked.weight(name) for name in masks}
        for name, mask in masks.items():
            stored = self._users[name][0].stored
            assert stored is not None  # channels end at weights that are not
            stored.apply(self._masked, mask)
        return before

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
