"""Models without some channels, repaired cheaply and compared with the float model.

Channels are taken out of a copy, and each layer's outputs get the mean and the variance that they
have in the float model (onnxdrp.passes.matching at strength 1): what EagleEye's adaptive
BatchNorm does (Li et al. 2020), in a graph whose BatchNorm is folded. The moments of the float
model, and what it gives on samples held back, are computed once; a trial then costs a walk of the
small model over some samples, and its forwards over those held back.

A judge goes to other processes too. It then carries no arrays: the first time that it is pickled,
all is written to a folder, from which each process loads it once.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.candidates import By, SubnetScore
from onnxdrp.channels.groups import Channels, Removed, channels_of
from onnxdrp.channels.sent import ModelWork
from onnxdrp.datareaders.base import Batch, DataReader
from onnxdrp.errors import DataError
from onnxdrp.layers import by_weight, layers
from onnxdrp.moments import ChannelMoments, ChannelStats
from onnxdrp.observe import observe
from onnxdrp.passes.matching import matched, why_not
from onnxdrp.passes.removing import remove
from onnxdrp.passes.sweeps import Stop, sweep, without
from onnxdrp.pipeline import PassContext
from onnxdrp.sending import Here, Sent
from onnxdrp.taps import Tap
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import few

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["SlimTrials"]

Bools = npt.NDArray[np.bool_]

_MOST = 4.0  # the largest factor of a weight, as of match-moments


class SlimTrials(Sent["_Work"]):
    """Called with {group: units that go}, gives the SubnetScore; by several threads at once too.

    Args:
        model: float, with shapes; is not changed.
        reader: samples to take moments from.
        held: samples to compare on, which `reader` has not.
        by: what counts; labels are looked at for "top-1" alone.
        samples: most of `reader` that are used.
        judged: most of `held` that are used.
        seed: draws them.
        memory_limit: bytes of activations held in memory by a trial.
        folder: where all is written if this is sent to another process; without one it cannot be.

    Raises:
        OptionError: "top-1" is asked for and there are no class scores.
        DataError: it is asked for and there are no labels, or an activation is not finite.
        ModelError: no output is float.
    """

    def __init__(
        self,
        model: "Model",
        reader: DataReader,
        held: DataReader,
        *,
        by: By = "sqnr",
        samples: int = 128,
        judged: int = 256,
        seed: int = 0,
        memory_limit: int = 1 << 30,
        folder: Path | None = None,
    ) -> None:
        if by == "top-1" and held.labels is None:
            raise DataError('the data has no labels, so top-1 is not known; choose by "agreement"')
        own = _InMemory(few(reader, samples, seed))
        trials = Trials(model, few(held, judged, seed), threads=1)
        super().__init__(_Work(model, own, trials, by, memory_limit), folder)

    def __call__(self, removed: Removed) -> SubnetScore:
        """Raises OptionError for what cannot be removed."""
        return self._here().score(removed)

    def repaired(self, removed: Removed) -> "Model":
        """The small model with its moments matched."""
        return self._here().repaired(removed)

    def _loaded(self, folder: Path, token: str) -> "_Work":
        return _HERE.work(folder, token)


class _Work(ModelWork):
    """The float model, what is known of it, and samples."""

    def __init__(
        self, model: "Model", reader: DataReader, trials: Trials, by: By, memory_limit: int
    ) -> None:
        super().__init__(model)
        self._reader, self._trials = reader, trials
        self._by, self._limit = by, memory_limit
        self._prepare(channels_of(model))
        stops = self._stops(model)
        taps = {
            tensor: Tap(tensor, ChannelMoments(use.unfolding.result_axis))
            for stop in stops
            for weight in stop.weights
            for use in weight.uses
            for tensor in (use.output, use.total)
        }
        self._moments = observe(model, reader, taps, memory_limit=memory_limit)
        if by != "sqnr":
            self._score(model)  # refuses what is not known, before any work

    def _prepare(self, channels: Channels) -> None:
        self._channels = channels
        touched = {s.tensor for s in self._channels.trace.sites if s.role != "beside"}
        self._weights = frozenset(touched & by_weight(layers(self._model)).keys())

    def score(self, removed: Removed) -> SubnetScore:
        """Of the model without some channels."""
        return self._score(self.repaired(removed))

    def repaired(self, removed: Removed) -> "Model":
        """The model without some channels, with its moments matched."""
        slim = self._model.clone()
        remove(slim, self._channels, removed)
        stops = self._stops(slim)
        if not removed or not stops:
            return slim
        (found,) = matched(
            slim,
            PassContext(workers=1),
            stops,
            self._reader,
            (1.0,),
            most=_MOST,
            memory_limit=self._limit,
            wanted=self._left(self._channels.alive(removed)),
        )
        return found.model

    def _stops(self, model: "Model") -> list[Stop]:
        """The layers to match; all that could lose channels count as pruned, whatever goes."""
        stops, _ = sweep(model, self._weights)
        return without(stops, why_not)[0]

    def _left(self, alive: Bools) -> dict[str, ChannelStats]:
        """The moments of the channels that stay."""
        lanes, found = self._channels.trace.lanes, {}
        for tensor, stats in self._moments.items():
            lane = lanes.get(tensor)
            keep = slice(None) if lane is None else alive[lane.atoms]
            found[tensor] = ChannelStats(stats.count[keep], stats.mean[keep], stats.variance[keep])
        return found

    def _score(self, model: "Model") -> SubnetScore:
        close = self._trials.closeness(model)
        top1 = None
        if self._by == "top-1":
            top1 = self._trials.top1 - self._trials.drop(model)[0]
        score = SubnetScore(
            agreement=None if close.same is None else float(close.same.mean()),
            sqnr_db=close.sqnr_db if math.isfinite(close.sqnr_db) else None,
            top1=top1,
        )
        score.order(self._by)
        return score

    def _state(self, folder: Path, token: str) -> dict[str, Any]:
        kept = ("_reader", "_trials", "_by", "_limit", "_moments")
        return {name: self.__dict__[name] for name in kept}


_HERE = Here(_Work.load, kept=1)


class _InMemory(DataReader):
    """The samples of another reader, read once."""

    def __init__(self, reader: DataReader) -> None:
        self._batches: list[Mapping[str, Any]] = [
            {name: np.array(array) for name, array in batch.items()} for batch in reader.batches()
        ]
        self.layout, self.samples = reader.layout, sum(map(_rows, self._batches))

    def batches(self) -> Iterator[Batch]:
        """As the other gave them."""
        return iter(self._batches)


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
