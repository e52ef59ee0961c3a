"""What pruning one layer alone does to the outputs of the model, at each rate, from data.

    d(r) = s(e(r)) * e(r)          s = D / e  at two rates: the one it has, and one nearer to 1

with e(r) what stays wrong at the layer's own output when it is pruned at rate r and its other
weights are fitted (onnxdrp.pruning_curves), and D the error of the model's outputs, as a share of
their power, when it is so. Between the two rates s is on a line, beyond them it stays. It is not
the same at both: large errors go through activations otherwise than small ones do, and cannot make
outputs worse than useless. A weight that several layers share is pruned for all of them; D then
tells of those behind the last tensor that they read.
"""

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError
from onnxdrp.fidelity import Error
from onnxdrp.geometry import from_slabs
from onnxdrp.layers import Layer
from onnxdrp.model import Model
from onnxdrp.moments import Moments, MomentStats, too_large
from onnxdrp.passes.prunable import Prunable
from onnxdrp.passes.sweeps import (
    Mended,
    Stop,
    centred,
    made_up,
    own_biases,
    sweep,
    without,
)
from onnxdrp.patterns import Pattern, prune_count
from onnxdrp.pipeline import PassContext
from onnxdrp.pruned import units_of
from onnxdrp.pruning_curves import error_curve, fit_to_own, spread_rows
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding
from onnxdrp.unit_sensitivity import few, noise_power
from onnxdrp.walk import Stop as At
from onnxdrp.walk import walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["Damage", "LoneLayers", "units"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_RATES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # at which layers are fitted, besides their own
_COPIES = 4  # of X'X, at most at a time


def units(layer: Layer, pattern: Pattern) -> int:
    """How many units of a pattern a layer has, of which a rate prunes a whole number."""
    if layer.geometry is None:
        raise ModelError(f"{layer.name!r} cannot be pruned ({layer.barred})")
    found = units_of(layer.geometry, pattern)
    # one that is not ours rounds a rate as it will
    return math.prod(layer.geometry.shape) if found is None else found


@dataclass(frozen=True, eq=False)
class Damage:
    """What pruning one weight does.

    Attributes:
        rates: from 0 to the highest.
        errors: of the outputs of the model, noise over signal, at each; a mean over the outputs.
    """

    rates: list[float]
    errors: list[float]


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A weight pruned and fitted.

    Attributes:
        place: of the rate among those of its probe.
        changed: {stored tensor: values} of it and of the biases of its layers.
    """

    place: int
    changed: dict[str, Array]


@dataclass(frozen=True, eq=False)
class _Probe:
    """What is known of a weight by what its layers read.

    Attributes:
        rates: from 0 to the highest.
        errors: of some rows of the weight at each of them.
        fitted: at the rates at which outputs are looked at.
    """

    rates: list[float]
    errors: Array
    fitted: list[_Fitted]


class LoneLayers:
    """The layers that have rates, each of which is pruned alone in a copy of the model.

    Args:
        model: float; is not changed.
        ctx: with rates and data; is not changed.
        pattern: of the masks.
        users: {weight: its layers}.
        highest: rate to look at, where a layer has not a higher one.
        rows: of a layer's input that are looked at, if there are more.
        memory_limit: bytes of activations held in memory.
        moments_limit: a weight whose X'X takes more bytes, in four copies, is passed over.
        kept: weights to pass over.

    Attributes:
        skipped: {node: why it is passed over}.
    """

    def __init__(
        self,
        model: Model,
        ctx: PassContext,
        pattern: Pattern,
        users: Mapping[str, list[Layer]],
        *,
        highest: float,
        rows: int,
        memory_limit: int,
        moments_limit: int,
        kept: set[str],
    ) -> None:
        self.model, self.ctx, self.pattern, self.users = model, ctx, pattern, users
        self._highest, self._rows, self._limit = highest, rows, memory_limit
        self._pruned = model.clone()
        stops, skipped = sweep(self._pruned, list(ctx.rates))
        names = {layer.name for weight in ctx.rates for layer in users[weight]}
        self.skipped = {node: why for node, why in skipped.items() if node in names}
        chosen = ctx.rates.keys() - kept
        stops = [Stop(s.cut, [[w for w in s.weights if w.name in chosen]]) for s in stops]
        self._stops, large = without(
            stops,
            lambda one: too_large(one.uses[0].unfolding, moments_limit, _COPIES, targets=True),
        )
        self.skipped |= large
        self._biases = own_biases(self._pruned, self._stops)

    def damages(self, samples: int) -> dict[str, Damage]:
        """{weight: what it does}.

        Args:
            samples: on which outputs are compared.

        Raises:
            ModelError: no output of the model is float.
            DataError: an activation is not finite.
        """
        probes = dict(self._fitted())
        measured = self._measured(probes, samples)
        return {weight: _damage(probes[weight], points) for weight, points in measured}

    def _fitted(self) -> Iterator[tuple[str, _Probe]]:
        """Each weight, pruned and fitted by what its layers read in the float model."""
        assert self.ctx.reader is not None
        with closing(self._walk(self.model, self.ctx.reader)) as walked:
            for at, stop in zip(walked, self._stops, strict=True):
                positions = math.ceil(self._rows / at.samples)
                for one in stop.weights:
                    taps = {
                        i: Tap(use.data, Moments(use.unfolding, positions, self.ctx.seed))
                        for i, use in enumerate(one.uses)
                    }
                    moments = at.observe(taps)
                    yield one.weight.name, self._probe(one, [moments[i] for i in taps])

    def _probe(self, one: Mended, moments: list[MomentStats]) -> _Probe:
        weight, way = one.weight.name, one.uses[0].unfolding
        rate, layer = self.ctx.rates[weight], self.users[weight][0]
        count = units(layer, self.pattern)
        own, most = prune_count(rate, count), prune_count(max(self._highest, rate), count)
        looked_at = sorted({own, min((own + count) // 2, most)})
        places = sorted({0, most, *looked_at, *(min(prune_count(r, count), most) for r in _RATES)})
        rates = [place / count for place in places]
        values = self.model.weight(one.weight)
        matrix = way.matrix(values)
        stats = centred(one.uses, moments)

        def keep(at: float) -> Bools:
            return self._keep(layer, way, at)

        fitted = []
        for place in looked_at:
            mended, wrong = fit_to_own(matrix, keep(place / count), stats)
            lost = matrix - np.asarray(mended, np.float64)
            changed = made_up(one, lost, moments, self._pruned, self._biases)
            changed[weight] = way.weight(mended)
            fitted.append(_Fitted(places.index(place), changed))
        rows = spread_rows(wrong, way.columns)
        errors = error_curve(matrix, keep, stats, rates[1:], rows)
        return _Probe(rates, np.append(0.0, errors), fitted)

    def _keep(self, layer: Layer, way: Unfolding, rate: float) -> Bools:
        """The mask that PruneBlocks would give a weight, as the unfolding sees it."""
        assert layer.stored is not None
        assert layer.geometry is not None  # it is chosen
        one = Prunable(layer.stored, layer.geometry, [layer], self.pattern, rate, {})
        return way.matrix(from_slabs(one.largest(self.model), layer.geometry))

    def _measured(
        self, probes: Mapping[str, _Probe], samples: int
    ) -> Iterator[tuple[str, list[float]]]:
        """Each weight, and the error of the outputs with it alone as each of its probe's."""
        assert self.ctx.reader is not None
        outputs = [
            o.name for o in self.model.outputs if o.dtype is not None and o.dtype.kind == "f"
        ]
        if not outputs:
            raise ModelError("no output of the model is float; there is nothing to compare")
        taps = {name: Tap((("float", name), ("pruned", name)), Error()) for name in outputs}
        reader = few(self.ctx.reader, samples, self.ctx.seed)
        pair = {"float": self.model, "pruned": self._pruned}
        with closing(self._walk(pair, reader)) as walked:
            for at, stop in zip(walked, self._stops, strict=True):
                for one in stop.weights:
                    errors = []
                    for fitted in probes[one.weight.name].fitted:
                        before = self._pruned.exchange(fitted.changed)
                        found = at.observe(taps)
                        self._pruned.exchange(before)
                        errors.append(_share([found[name].sqnr_db for name in outputs]))
                    yield one.weight.name, errors

    def _walk(
        self, models: Model | Mapping[str, Model], reader: "DataReader"
    ) -> "Generator[At, None, None]":
        """From layer to layer."""
        return walk(
            models,
            reader,
            [stop.cut for stop in self._stops],
            memory_limit=self._limit,
            workers=self.ctx.workers,
            progress=self.ctx.progress,
        )


def _share(decibels: list[float]) -> float:
    """The mean of noise over signal, without outputs that are all zero in the float model."""
    shares = [share for share in map(noise_power, decibels) if math.isfinite(share)]
    return math.fsum(shares) / max(len(shares), 1)


def _damage(probe: _Probe, measured: list[float]) -> Damage:
    """The curve through what was measured; the layer's own errors, if nothing is wrong there."""
    at = [float(probe.errors[fitted.place]) for fitted in probe.fitted]
    known = [(x, y / x) for x, y in zip(at, measured, strict=True) if x > 0] or [(0.0, 1.0)]
    wrong, slopes = np.array(known).T
    slope = np.interp(probe.errors, wrong, slopes)
    return Damage(probe.rates, np.maximum.accumulate(slope * probe.errors).tolist())
