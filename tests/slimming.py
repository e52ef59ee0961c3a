"""Remove channels of a model, and compare all that is left with the model that has them masked."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.channels import Channels, Removed, channels_of
from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes.removing import remove

__all__ = ["Slimmed", "check_exact", "masked", "some_of", "values_of"]

Array = npt.NDArray[Any]


@dataclass
class Slimmed:
    """A model in three forms."""

    channels: Channels
    removed: Removed
    counts: dict[str, tuple[int, int]]
    before: Model
    masked: Model
    slim: Model


def some_of(channels: Channels, share: float = 0.5, seed: int = 0) -> dict[str, list[int]]:
    """Random units of every group: the same share of each block, at least one where possible."""
    rng, found = np.random.default_rng(seed), {}
    for group in channels.groups:
        units = [
            rng.choice(block, int(len(block) * share), replace=False) for block in group.blocks()
        ]
        chosen = np.sort(np.concatenate(units)).tolist()
        one = [int(rng.integers(group.size))]
        with suppress(OptionError):  # it may be all that some tensor has
            if not chosen and len(channels.alive({group.name: one})):
                chosen = one
        if chosen:
            found[group.name] = chosen
    return found


def masked(model: Model, channels: Channels, removed: Removed) -> Model:
    """A copy whose removed channels contribute nothing."""
    copy = model.clone()
    for name, mask in channels.masks(model, removed).items():
        copy.set_weight(name, mask.apply(copy.weight(name)))
    return copy


def values_of(model: Model, feeds: dict[str, Array], names: list[str]) -> dict[str, Array]:
    """Tensors of a model by name, onnxruntime's optimizations off."""
    session = model.session(outputs=names, optimize=False)
    return dict(zip(names, session.run(names, feeds), strict=True))


def check_exact(
    model: Model,
    feeds: dict[str, Array],
    removed: Removed | None = None,
    tolerance: float = 1e-4,
    effect: float = 1e-3,
) -> Slimmed:
    """Assert that every tensor is what it was in the masked model, without the removed channels.

    And that the removal is one: smaller weights, none of them dead, outputs that differ from the
    float model's by `effect` of their spread, a valid model with the shapes that it says.
    """
    before = model.fingerprint()
    channels = channels_of(model)
    removed = some_of(channels) if removed is None else removed
    zeros, slim = masked(model, channels, removed), model.clone()
    counts = remove(slim, channels, removed)
    assert model.fingerprint() == before
    slim.check()
    _check_tensors(channels, removed, zeros, slim, feeds, tolerance)
    _check_stored(model, slim)
    outputs = [o.name for o in model.outputs]
    if removed:
        whole, without = (values_of(m, feeds, outputs) for m in (model, zeros))
        assert slim.inventory()[1] < model.inventory()[1]
        assert any(np.abs(whole[n] - without[n]).max() > effect * np.ptp(whole[n]) for n in outputs)
        assert any(after < count for count, after in counts.values())
    return Slimmed(channels, removed, counts, model, zeros, slim)


def _check_tensors(
    channels: Channels,
    removed: Removed,
    zeros: Model,
    slim: Model,
    feeds: dict[str, Array],
    tolerance: float,
) -> None:
    """All float tensors: in the slim model what is left of the masked one's."""
    alive, lanes = channels.alive(removed), channels.trace.lanes
    stored, outputs = set(slim.weights()), [o.name for o in slim.outputs]
    inputs = {i.name for i in slim.inputs}
    names = [n for n in slim.tensors() if n and n not in stored and n not in inputs]
    names = sorted({*names, *outputs} & zeros.tensors().keys())
    want, got = (values_of(m, feeds, names) for m in (zeros, slim))
    shapes = {name: slim.tensor(name).shape for name in names}
    for name in names:
        values = want[name]
        if name in lanes:
            lane = lanes[name]
            values = values.compress(alive[lane.atoms], axis=lane.axis)
            assert shapes[name] is None or shapes[name][lane.axis] == values.shape[lane.axis], name
        assert values.shape == got[name].shape, name
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), name
            apart = np.abs(values - got[name]).max(initial=0)
            least = 0 if name in outputs else 1e-2  # inside, sums may cancel out
            assert apart <= tolerance * max(np.abs(want[name]).max(initial=0), least), name
    assert any(np.ptp(want[name]) > 0 for name in outputs)


def _check_stored(model: Model, slim: Model) -> None:
    """No dead weights, and none that another name was given without need."""
    proto = slim.proto()
    read = {name for node in proto.graph.node for name in node.input}
    read |= {o.name for o in proto.graph.output}
    assert {t.name for t in proto.graph.initializer} <= read
    assert [n.name for n in slim.nodes()] == [n.name for n in model.nodes()]
