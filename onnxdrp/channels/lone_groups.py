"""What removing channels of one group alone does: to what its readers give, and to the outputs.

    e(r) = what its readers lose without the channels that go at the rate r, when what is left is
           fitted again: a share of the variance of what they give (onnxdrp.passes.score_channels)
    rise(r) = s * e(r)               s = (loss with the group at its highest rate - loss) / e there

The loss (onnxdrp.label_free_loss) is looked at once for each group, on a few samples, with its
readers fitted to their own outputs (onnxdrp.pruning_curves): at the first of them the model is run
on to its outputs (onnxdrp.walk). The slope s is at least a tenth of the median of all groups': what
is less is by chance.

Removing a channel is the same as having nobody read it: makers are left as they are. A reader that
cannot be fitted (of a ConvTranspose, stored as integers) loses its columns unrepaired.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.groups import Channels
from onnxdrp.channels.reading import read_by_group
from onnxdrp.dataflow import ordered
from onnxdrp.datareaders import DataReader
from onnxdrp.label_free_loss import LabelFreeLoss
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.moments import Moments, too_large
from onnxdrp.passes.sweeps import Mended, centred, made_up, own_biases, sweep, without
from onnxdrp.pruning_curves import fit_to_own
from onnxdrp.taps import Tap
from onnxdrp.unit_sensitivity import few
from onnxdrp.walk import Stop, walk

__all__ = ["Lone", "lone_groups"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_LEAST_SLOPE = 0.1
_COPIES = 4  # of X'X, at most at a time


@dataclass(frozen=True)
class Lone:
    """What one group does alone.

    Attributes:
        errors: {rate: what its readers lose, as shares of the variance of what they give}.
        slope: by how much the loss rises for each 1 of that.
    """

    errors: dict[float, float]
    slope: float

    @property
    def rises(self) -> dict[float, float]:
        """{rate: by how much the loss rises}."""
        return {rate: self.slope * error for rate, error in self.errors.items()}


@dataclass(eq=False)
class _Probe:
    """A group at its highest rate.

    Attributes:
        masks: {weight of a reader: what stays of it}.
        changed: {stored tensor: its values then}.
    """

    masks: dict[str, Mask]
    changed: dict[str, Array] = field(default_factory=dict)

    def leave(self, model: Model, weights: set[str]) -> None:
        """Weights that cannot be fitted just lose their inputs."""
        for name in self.masks.keys() & weights:
            self.changed[name] = self.masks[name].apply(model.weight(name))


def lone_groups(
    model: Model,
    float_model: Model,
    channels: Channels,
    removed: Mapping[str, Mapping[float, Sequence[int]]],
    scores: Mapping[str, Floats],
    reader: DataReader,
    loss: LabelFreeLoss,
    *,
    samples: int = 64,
    rows: int = 8192,
    seed: int = 0,
    memory_limit: int = 1 << 30,
    moments_limit: int = 1 << 32,
    workers: int | None = None,
) -> dict[str, Lone]:
    """What each group does alone.

    Args:
        model: as it is now; is not changed.
        float_model: that the loss compares it to; has tensors of the same names.
        channels: of the model.
        removed: {group: {rate: its units that go}}.
        scores: {group: what is lost with each of its units and those that go before it}, of
            ScoreChannels by the same data.
        reader: the data.
        loss: of the outputs.
        samples: on which the loss is looked at.
        rows: of a layer's input that are looked at, if there are more.
        seed: draws both.
        memory_limit: bytes of activations held in memory.
        moments_limit: a reader whose X'X takes more bytes, in four copies, is not fitted.
        workers: threads.

    Raises:
        DataError: the reader gives nothing, or an activation is not finite.
    """
    errors = {
        name: {rate: float(scores[name][list(units)].max()) for rate, units in by.items()}
        for name, by in removed.items()
        if by
    }
    probes = {
        name: _Probe(channels.masks(model, {name: removed[name][max(of)]}, "read"))
        for name, of in errors.items()
    }
    changed = model.clone()
    weights = {name for probe in probes.values() for name in probe.masks}

    def why_not(one: Mended) -> str:
        if one.name not in weights:
            return "none of its inputs are removed"
        return too_large(one.uses[0].unfolding, moments_limit, _COPIES)

    stops, _ = without(sweep(changed, weights)[0], why_not)
    biases = own_biases(changed, stops)
    fitted = {one.name for stop in stops for one in stop.weights}
    for probe in probes.values():
        probe.leave(changed, weights - fitted)
    common: dict[str, Any] = {"memory_limit": memory_limit, "workers": workers}
    if stops:
        with closing(walk(changed, reader, [stop.cut for stop in stops], **common)) as walked:
            for at, stop in zip(walked, stops, strict=True):
                for one in stop.weights:
                    _fit(one, at, rows, seed, probes.values(), changed, biases)
    some = few(reader, samples, seed)
    rises = _rises({"float": float_model, "now": changed}, channels, probes, some, loss, common)
    return _with_slopes(errors, dict(rises))


def _fit(
    one: Mended,
    at: Stop,
    rows: int,
    seed: int,
    probes: Iterable[_Probe],
    model: Model,
    biases: Mapping[str, str],
) -> None:
    """The layers of a weight without some inputs, for each probe that takes some from it."""
    positions = math.ceil(rows / at.samples)
    taps = {
        i: Tap(use.data, Moments(use.unfolding, positions, seed)) for i, use in enumerate(one.uses)
    }
    found = at.observe(taps)
    moments = [found[i] for i in taps]
    stats, way = centred(one.uses, moments), one.uses[0].unfolding
    matrix = way.matrix(model.weight(one.weight))
    wide = np.asarray(matrix, np.float64)
    for probe in probes:
        if one.name in probe.masks:
            mended, _ = fit_to_own(matrix, way.matrix(probe.masks[one.name].keep), stats)
            probe.changed[one.name] = way.weight(mended)
            lost = wide - np.asarray(mended, np.float64)
            probe.changed |= made_up(one, lost, moments, model, biases)


def _rises(
    pair: Mapping[str, Model],
    channels: Channels,
    probes: Mapping[str, _Probe],
    reader: DataReader,
    loss: LabelFreeLoss,
    common: Mapping[str, Any],
) -> Iterator[tuple[str, float]]:
    """Each group that has readers, and by how much the loss rises with it at its highest rate."""
    float_, now = pair
    model = pair[now]
    place = {t.name: i for i, node in enumerate(ordered(model.nodes())) for t in node.outputs}
    readers = read_by_group(model, channels)
    first = {
        name: min((data for _, data in readers[name]), key=place.__getitem__)
        for name in probes
        if name in readers
    }
    cuts = sorted(set(first.values()), key=place.__getitem__)
    if not cuts:
        return
    taps, before = loss.taps(float_, now), None
    with closing(walk(pair, reader, cuts, **common)) as walked:
        for at in walked:
            if before is None:
                before = loss.value(at.observe(taps))[1]
            for name in (n for n, tensor in first.items() if (tensor,) == at.cut):
                own = model.exchange(probes[name].changed)
                yield name, loss.value(at.observe(taps))[1] - before
                model.exchange(own)


def _with_slopes(
    errors: Mapping[str, dict[float, float]], rises: Mapping[str, float]
) -> dict[str, Lone]:
    """The groups, with slopes that are not less than chance allows."""
    slopes = {
        name: rises.get(name, 0.0) / of[max(of)] for name, of in errors.items() if of[max(of)] > 0
    }
    rising = [slope for slope in slopes.values() if slope > 0]
    least = _LEAST_SLOPE * float(np.median(rising)) if rising else 1.0
    return {name: Lone(of, max(slopes.get(name, 0.0), least)) for name, of in errors.items()}
