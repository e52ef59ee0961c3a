"""Copies of a pruned model whose outputs have the moments that they have in the float model.

    w' = s w,    b' = s (b - m') + m' + d,    s = (v / v')^(strength / 2), within [1 / most, most]

for each output of each layer that pruning concerns: v is its variance in the float model, m' and v'
are mean and variance in the pruned one, over samples and positions; d is by how much the mean of
what the layer aims at differs: of its output, or of the sum that makes up for what was pruned
beside it (onnxdrp.passes.sweeps). At strength 1 variances are those of the float model ("REPAIR",
Jordan et al. 2023, put into the weights): what pruning takes out of a sum it takes out of its
variance, and layer after layer that adds up. At strength 0 means alone are matched. The models walk
forward together (onnxdrp.walk), so each layer sees what those before it give by then. Zeros stay
zero. A weight of several layers has one factor, of their variances together; outputs without any
weight have their mean alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, ChannelStats
from onnxdrp.passes.sweeps import Mended, Stop, Use, own_biases
from onnxdrp.pipeline import PassContext
from onnxdrp.taps import Tap
from onnxdrp.walk import walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["Matched", "matched", "why_not"]

Floats = npt.NDArray[np.float64]

_FLOAT = "float"  # the name of that model while all walk


@dataclass
class Matched:
    """A copy of the model, matched layer by layer.

    Attributes:
        strength: of variances.
        most: the largest factor.
        start: the model with biases of their own, before any was matched.
        stops: the layers.
        biases: {layer: name of its bias}.
        model: the copy.
        tensors: of the copy.
        weights: the names of those that were matched.
        factors: {layer: figures of s}.
    """

    strength: float
    most: float
    start: Model
    stops: list[Stop]
    biases: dict[str, str]
    model: Model = field(init=False)
    tensors: dict[str, Any] = field(init=False)
    weights: list[str] = field(default_factory=list)
    factors: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.start.clone()
        self.tensors = self.model.tensors()

    def match(self, one: Mended, seen: "Sequence[_Seen]") -> None:
        """Give a weight and its biases what the moments of their outputs ask for."""
        weight, way = self.tensors[one.weight.name], one.uses[0].unfolding
        matrix = way.matrix(self.model.weight(weight))
        factor = self._factor(seen)
        factor[~matrix.any(-1).ravel()] = 1
        if np.any(factor != 1):
            scaled = matrix * factor.reshape(*matrix.shape[:2], 1)
            self.model.set_weight(weight, way.weight(scaled.astype(matrix.dtype)))
        self.weights.append(str(weight.name))
        for use, moments in zip(one.uses, seen, strict=True):
            bias = self.tensors[self.biases[use.node.name]]
            old = self.model.weight(bias)
            by = (factor - 1) * (old.ravel() - moments.mean) + moments.missing
            self.model.set_weight(bias, (old + by.reshape(old.shape)).astype(old.dtype))
            self.factors[use.node.name] = {
                "median": float(np.median(factor)),
                "least": float(factor.min()),
                "most": float(factor.max()),
            }

    def _factor(self, seen: "Sequence[_Seen]") -> Floats:
        """The s of each output; 1 where it is constant in one of the models."""
        wanted = np.sum([moments.wanted for moments in seen], axis=0)
        there = np.sum([moments.there for moments in seen], axis=0)
        known = (wanted > 0) & (there > 0)
        ratio = np.divide(wanted, there, out=np.ones_like(there), where=known)
        return np.asarray(np.clip(ratio ** (self.strength / 2), 1 / self.most, self.most))

    def give(self, model: Model) -> bool:
        """Let the model that this is a copy of have the same; False if that changes nothing."""
        if self.model.fingerprint() == self.start.fingerprint():
            return False
        own_biases(model, self.stops)
        held = model.tensors()
        for name in (*self.weights, *self.biases.values()):
            model.set_weight(held[name], self.model.weight(self.tensors[name]))
        return True


def matched(
    model: Model,
    ctx: PassContext,
    stops: list[Stop],
    reader: "DataReader",
    strengths: Sequence[float],
    *,
    most: float,
    memory_limit: int,
    wanted: Mapping[str, ChannelStats] | None = None,
) -> list[Matched]:
    """A copy of a model for each strength, matched side by side on the same samples.

    Args:
        model: pruned; is not changed.
        ctx: of the pass; ctx.dense says what is to be matched.
        stops: the layers, those without a reason (`why_not`).
        reader: the samples.
        strengths: of variances.
        most: the largest factor, and one over the smallest.
        memory_limit: bytes of activations held in memory.
        wanted: {tensor: its moments in the float model}, where they are known: of what layers give
            and of what they aim at. None: ctx.dense walks along.
    """
    floats = {(_FLOAT, tensor): stats for tensor, stats in (wanted or {}).items()}
    start = model.clone()
    biases = own_biases(start, stops)
    found = {str(s): Matched(s, most, start, stops, biases) for s in strengths}
    models = {name: one.model for name, one in found.items()}
    if wanted is None:
        assert ctx.dense is not None
        models[_FLOAT] = ctx.dense
    walked = walk(
        models,
        reader,
        [stop.cut for stop in stops],
        memory_limit=memory_limit,
        workers=ctx.workers,
        progress=ctx.progress,
    )
    with closing(walked):
        for at, stop in zip(walked, stops, strict=True):
            for turn in stop.rounds:
                moments = floats | at.observe(_taps(turn, list(models)))
                for name, copy in found.items():
                    for one in turn:
                        copy.match(one, [_Seen.of(use, name, moments) for use in one.uses])
    return list(found.values())


def _taps(turn: Sequence[Mended], models: Sequence[str]) -> dict[tuple[str, str], Tap]:
    """Moments of what layers give and of what they aim at, in each model."""
    return {
        (name, tensor): Tap(((name, tensor),), ChannelMoments(use.unfolding.result_axis))
        for name in models
        for one in turn
        for use in one.uses
        for tensor in (use.output, use.total)
    }


def why_not(one: Mended) -> str:
    """Why a weight cannot be matched; "" if it can."""
    if any(use.bias is None for use in one.uses):
        return "its weight has a layer without a bias"
    return ""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is known of the outputs of a layer; arrays [outputs].

    Attributes:
        wanted: sum of squared deviations in the float model.
        there: the same in the pruned one.
        mean: in the pruned one.
        missing: by how much the mean of what the layer aims at is less than it should be.
    """

    wanted: Floats
    there: Floats
    mean: Floats
    missing: Floats

    @classmethod
    def of(cls, use: Use, name: str, moments: Mapping[tuple[str, str], ChannelStats]) -> Self:
        """Of a layer in the model of this name."""
        float_, pruned = (moments[key, use.output] for key in (_FLOAT, name))
        return cls(
            wanted=float_.count * float_.variance,
            there=pruned.count * pruned.variance,
            mean=pruned.mean,
            missing=moments[_FLOAT, use.total].mean - moments[name, use.total].mean,
        )
