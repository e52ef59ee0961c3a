"""What the layers that read a group lose without some of its channels, by moments, in one walk.

Each layer that sums over channels of a group is looked at alone, in the float model: the share of
its output power that is lost when those inputs go and its other weights are fitted
(onnxdrp.channels.losses). What the group loses is the sum over its layers: their errors add up.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxdrp.channels import Channels, Removed
from onnxdrp.channels.losses import lost_shares
from onnxdrp.channels.reading import read_by_group
from onnxdrp.errors import ModelError
from onnxdrp.layers import Layer, layers
from onnxdrp.model import Model
from onnxdrp.moments import Moments, MomentStats, too_large
from onnxdrp.passes.biases import Biases
from onnxdrp.pipeline import PassContext
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding
from onnxdrp.walk import walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["LostChannels"]

Bools = npt.NDArray[np.bool_]
Choices = Mapping[str, Mapping[float, Removed]]

_COPIES = 6  # of X'X, at most at a time


@dataclass(frozen=True, eq=False)
class _Reader:
    layer: Layer
    data: str
    unfolding: Unfolding
    biased: bool


class LostChannels:
    """The layers that sum over channels.

    Args:
        model: float; is not changed.
        channels: of it.
        reader: the samples, all of which are looked at.
        ctx: with seed, workers and progress.
        rows: of a layer's input that are looked at, if there are more.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a layer whose X'X takes more bytes, in six copies, is passed over.

    Attributes:
        skipped: {layer: why what it loses does not count}.
    """

    def __init__(
        self,
        model: Model,
        channels: Channels,
        reader: "DataReader",
        ctx: PassContext,
        *,
        rows: int,
        memory_limit: int,
        moments_limit: int,
    ) -> None:
        self.model, self.channels, self.reader, self._ctx = model, channels, reader, ctx
        self._rows, self._limit = rows, memory_limit
        self.skipped: dict[str, str] = {}
        known = {layer.name: layer for layer in layers(model)}
        nodes, biases = {node.name: node for node in model.nodes()}, Biases(model)
        self._readers: dict[str, list[_Reader]] = {}
        for group, pairs in read_by_group(model, channels).items():
            for name, data in pairs:
                try:
                    unfolding = Unfolding.of(model, nodes[name])
                except ModelError as why:
                    self.skipped[name] = str(why)
                    continue
                if why_not := too_large(unfolding, moments_limit, _COPIES):
                    self.skipped[name] = why_not
                    continue
                biased = not isinstance(biases.place(nodes[name]), str)
                one = _Reader(known[name], data, unfolding, biased)
                self._readers.setdefault(group, []).append(one)

    @property
    def groups(self) -> set[str]:
        """The groups of which some layer can be looked at."""
        return set(self._readers)

    def measure(
        self, choices: Choices, done: Collection[str]
    ) -> Iterator[tuple[str, dict[float, float]]]:
        """Yield (group, {rate: share that is lost}), each when its last layer is known.

        Args:
            choices: {group: {rate: what is removed}}, each choice a part of that of a higher rate.
            done: groups that are known; not all of them.

        Raises:
            DataError: the reader gives no samples, or an activation is not finite.
        """
        stops = self._stops(choices)
        todo = [name for name in choices if name not in done]
        waiting = {one.layer.name for name in todo for one in self._readers[name]}
        lost: dict[str, list[npt.NDArray[np.float64]]] = {}
        walked = walk(
            self.model,
            self.reader,
            [(cut,) for cut in stops],
            memory_limit=self._limit,
            workers=self._ctx.workers,
            progress=self._ctx.progress,
        )
        with closing(walked):
            for at, readers in zip(walked, stops.values(), strict=True):
                positions = math.ceil(self._rows / at.samples)
                taps = {
                    name: Tap(one.data, Moments(one.unfolding, positions, self._ctx.seed))
                    for name, one in readers.items()
                    if name in waiting
                }
                for name, stats in (at.observe(taps) if taps else {}).items():
                    one = readers[name]
                    for group in todo:
                        if one not in self._readers[group]:
                            continue
                        parts = lost.setdefault(group, [])
                        parts.append(self._lost(one, stats, choices[group]))
                        if len(parts) == len(self._readers[group]):
                            found = np.sum(lost.pop(group), axis=0).tolist()
                            yield group, dict(zip(choices[group], found, strict=True))

    def _stops(self, choices: Choices) -> dict[str, dict[str, _Reader]]:
        """{activation: the layers that read it}, ancestors first."""
        order = {layer.name: i for i, layer in enumerate(layers(self.model))}
        found = {one.layer.name: one for group in choices for one in self._readers[group]}
        stops: dict[str, dict[str, _Reader]] = {}
        for one in sorted(found.values(), key=lambda r: order[r.layer.name]):
            stops.setdefault(one.data, {})[one.layer.name] = one
        return stops

    def _lost(
        self, one: _Reader, stats: MomentStats, choices: Mapping[float, Removed]
    ) -> npt.NDArray[np.float64]:
        stored = one.layer.stored
        assert stored is not None  # channels end at weights that are not
        keeps = []
        for removed in choices.values():
            masks = self.channels.masks(self.model, removed, "read")
            mask = masks.get(stored.name)
            keep = np.ones(stored.shape, np.bool_) if mask is None else mask.keep
            keeps.append(one.unfolding.matrix(keep)[:, 0])
        matrix = one.unfolding.matrix(stored.values(self.model))
        return lost_shares(matrix, stats.centred() if one.biased else stats, keeps)
