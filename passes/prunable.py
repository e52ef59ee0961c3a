"""A weight to prune, and what a pattern keeps of it when a score ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError
from onnxdrp.geometry import PADDING, WeightGeometry, from_slabs, magnitude, to_slabs
from onnxdrp.layers import Layer
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.moments import ChannelStats, MomentStats
from onnxdrp.patterns import Block, Pattern, without_rate
from onnxdrp.pruned import PrunedWeight
from onnxdrp.scores import activation, lifted, second_order_mask
from onnxdrp.stored import Stored
from onnxdrp.unfold import Unfolding

__all__ = ["Prunable", "deviations"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Prunable:
    """A weight to prune.

    Attributes:
        stored: where it is.
        geometry: how the pattern sees it.
        users: its layers.
        pattern: of what stays.
        rate: at which it is pruned.
        masks: of before, by the names of weights; what they prune ranks last.
    """

    stored: Stored
    geometry: WeightGeometry
    users: list[Layer]
    pattern: Pattern
    rate: float
    masks: Mapping[str, Mask]

    def by_magnitude(self, model: Model) -> PrunedWeight:
        """Rank by |w|."""
        magnitudes = magnitude(self.stored.values(model), self.geometry)
        return self._pruned(magnitudes, self._largest(magnitudes))

    def largest(self, model: Model) -> Array:
        """What ranking by |w| keeps, in the slab view."""
        return self._largest(magnitude(self.stored.values(model), self.geometry))

    def _largest(self, magnitudes: Array) -> Array:
        kept = None if self._before is None else to_slabs(self._before, self.geometry)
        return self._mask(lifted(magnitudes, kept), self.rate)

    def by_data(self, model: Model, way: Unfolding, power: Array) -> PrunedWeight:
        """Rank by activation, from damped variances [g, k]; or second-order, from [g, k, k]."""
        values = self.stored.values(model)
        magnitudes = magnitude(values, self.geometry)
        if not np.isfinite(magnitudes).all():
            self._mask(magnitudes, self.rate)  # raises, as without data
        matrix = way.matrix(values).astype(np.float64)
        before = None if self._before is None else way.matrix(self._before)

        def choose(scores: Array, rate: float) -> Array:
            view = to_slabs(way.weight(scores), self.geometry, fill=PADDING)
            return way.matrix(from_slabs(self._mask(view, rate), self.geometry))

        if power.ndim == 2:
            kept = choose(lifted(activation(matrix, power), before), self.rate)
        else:
            whole = isinstance(self.pattern, Block) and not self.geometry.depthwise
            unit = self.pattern.block if whole else 1
            kept = second_order_mask(matrix, power, choose, self.rate, kept=before, unit=unit)
        return self._pruned(magnitudes, to_slabs(way.weight(kept), self.geometry))

    @property
    def _before(self) -> Array | None:
        return self.masks[self.stored.name].keep if self.stored.name in self.masks else None

    def _mask(self, view: Array, rate: float) -> Array:
        pattern = self.pattern if rate == self.rate else without_rate(self.pattern)
        try:
            return pattern.mask(view, rate)
        except ModelError as e:
            raise ModelError(f"weight {self.stored.name!r}: {e}") from e

    def _pruned(self, magnitudes: Array, keep: Array) -> PrunedWeight:
        return PrunedWeight.of(keep, magnitudes, self.geometry, self.rate)


def deviations(stats: MomentStats | ChannelStats, way: Unfolding) -> tuple[int, Array]:
    """Number of rows, and sums of squares of the deviations from the mean: [g, k, k] or [g, k]."""
    if isinstance(stats, MomentStats):
        return stats.count, stats.centred().xx
    squares = (stats.count * stats.variance).reshape(way.groups, -1)
    return int(stats.count.max(initial=0)), np.tile(squares, (1, way.columns // squares.shape[1]))
