"""Give the outputs of layers the mean and the variance again that they have in the float model.

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

Whether that helps is asked of samples that the moments were not taken from, at the outputs of the
model: several strengths are tried, and nothing. What agrees with the float model on clearly more
samples wins (by more than a standard error of the difference); where that is not clear, what errs
less by half a decibel. A layer's own error could not tell: least squares, which makes variances
smaller, is best for it. Samples to which weights were fitted speak for those weights; so where
ctx.held_out has others, they are asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masked import check_masks
from onnxdrp.model import Model, reads
from onnxdrp.moments import ChannelMoments, ChannelStats
from onnxdrp.passes.biases import Biases
from onnxdrp.passes.sweeps import Mended, Stop, Use, sweep
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.taps import Tap
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import few
from onnxdrp.walk import walk

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["MatchMoments"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_STRENGTHS = (1.0, 0.5, 0.25)  # means alone, 0, were never the best of those measured
_FLOAT = "float"  # the name of that model while all walk
_JUDGED = 256  # most samples that are held in memory to judge by


@dataclass(frozen=True)
class MatchMoments(Pass):
    """Match means and variances, as far as that helps on samples held back.

    Stats: `strength` that was taken, None for none; `tried` {strength: figures} and `before`, on
    `samples` held back: the share that agrees on the top-1 (None without class scores) and the dB
    of the worst output; `layers`, of each the median and the extremes of s; `skipped` says why
    others were passed over.

    Attributes:
        strength: of variances; None: tried are 1, 0.5, 0.25 and nothing. With a number, nothing
            is held back and nothing asked.
        most: the largest factor, and one over the smallest.
        held_out: the share of the samples to hold back, where ctx.held_out has none.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
    """

    name: ClassVar[str] = "match-moments"

    strength: float | None = None
    most: float = 4.0
    held_out: float = 0.25
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise OptionError(f"strength {self.strength} is outside [0, 1]; 1 matches variances")
        if not 1 <= self.most <= 1000:
            raise OptionError(f"most {self.most} is outside [1, 1000]; 4 is usual")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out {self.held_out} is outside (0, 1); 0.25 is usual")
        if self.memory_limit < 1:
            raise OptionError(f"memory_limit {self.memory_limit}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There are masks, the model that they were taken from, and data."""
        if ctx.reader is None:
            raise DataError(
                "match-moments needs data; give some hundred images or arrays (--calib)"
            )
        if ctx.dense is None:
            raise ModelError("no weight is pruned yet; run prune-blocks or apply-masks first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError if an activation is not finite; names tensor, node and sample."""
        assert ctx.reader is not None
        assert ctx.dense is not None  # `requires` has seen to both
        pruned = [name for name, mask in ctx.masks.items() if mask.count < mask.size]
        stops, skipped = _possible(*sweep(model, pruned))
        stats: dict[str, Any] = {"strength": self.strength, "layers": {}, "skipped": skipped}
        if not stops:
            return PassResult(modified=False, stats=stats | {"strength": None})
        reader, trials = ctx.reader, None
        if self.strength is None:
            reader, held = self._parts(ctx, reader)
            trials = Trials(ctx.dense, few(held, _JUDGED, ctx.seed))
        strengths = _STRENGTHS if self.strength is None else (self.strength,)
        walked = _Matched.walk(self, model, ctx, stops, reader, strengths)
        best: _Matched | None = walked[0]
        if trials is not None:
            best, judged = _judged(trials, model, walked)
            stats |= judged
        if best is None:
            return PassResult(modified=False, stats=stats)
        stats["layers"] = best.factors
        return PassResult(modified=best.give(model), stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def _parts(self, ctx: PassContext, reader: "DataReader") -> "tuple[DataReader, DataReader]":
        """Samples to take moments from, and samples to judge by."""
        from onnxdrp.datareaders import split

        if ctx.held_out is not None:
            return reader, ctx.held_out
        return split(reader, self.held_out, ctx.seed)


def _possible(stops: list[Stop], skipped: dict[str, str]) -> tuple[list[Stop], dict[str, str]]:
    """The stops without weights that cannot be matched; and {node: why} of all passed over."""
    kept, passed = [], dict(skipped)
    for stop in stops:
        left = Stop(stop.cut)
        for mended in stop.rounds:
            whys = {id(one): _why_not(one) for one in mended}
            if fine := [one for one in mended if not whys[id(one)]]:
                left.rounds.append(fine)
            passed |= {u.node.name: w for one in mended for u in one.uses if (w := whys[id(one)])}
        if left.rounds:
            kept.append(left)
    return kept, passed


def _why_not(one: Mended) -> str:
    if any(use.bias is None for use in one.uses):
        return "its weight has a layer without a bias"
    layers = {id(use.node) for use in one.uses}
    if len(layers) > 1 and any(_is_after(use.node, layers) for use in one.uses):
        return "of the layers of its weight one comes after another"
    return ""


def _is_after(node: gs.Node, layers: set[int]) -> bool:
    """Whether a node reads what one of the layers has a part in."""
    seen: set[int] = set()
    waiting = [maker for tensor in reads(node) for maker in tensor.inputs]
    while waiting:
        at = waiting.pop()
        if id(at) in layers:
            return True
        if id(at) not in seen:
            seen.add(id(at))
            waiting += [maker for tensor in reads(at) for maker in tensor.inputs]
    return False


@dataclass
class _Matched:
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

    @classmethod
    def walk(
        cls,
        step: MatchMoments,
        model: Model,
        ctx: PassContext,
        stops: list[Stop],
        reader: "DataReader",
        strengths: Sequence[float],
    ) -> "list[_Matched]":
        """A copy for each strength, matched side by side on the same samples."""
        assert ctx.dense is not None
        start = model.clone()
        biases = _own_biases(start, stops)
        found = {str(s): cls(s, step.most, start, stops, biases) for s in strengths}
        steps = walk(
            {_FLOAT: ctx.dense, **{name: one.model for name, one in found.items()}},
            reader,
            [stop.cut for stop in stops],
            memory_limit=step.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        for at, stop in zip(steps, stops, strict=True):
            for mended in stop.rounds:
                uses = [use for one in mended for use in one.uses]
                taps = {
                    (name, tensor): Tap(
                        ((name, tensor),), ChannelMoments(use.unfolding.result_axis)
                    )
                    for name in (_FLOAT, *found)
                    for use in uses
                    for tensor in (use.output, use.total)
                }
                moments = at.observe(taps)
                for name, matched in found.items():
                    for one in mended:
                        matched.match(one, [_Seen.of(use, name, moments) for use in one.uses])
        return list(found.values())

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
        _own_biases(model, self.stops)
        held = model.tensors()
        for name in (*self.weights, *self.biases.values()):
            model.set_weight(held[name], self.model.weight(self.tensors[name]))
        return True


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


def _own_biases(model: Model, stops: list[Stop]) -> dict[str, str]:
    """{layer: its bias, that nobody else reads}; the same names for each copy of a model."""
    biases, nodes = Biases(model), {node.name: node for node in model.nodes()}
    uses = (u for stop in stops for mended in stop.rounds for one in mended for u in one.uses)
    return {
        use.node.name: biases.own(nodes[use.bias.holder.name], use.bias.place, use.bias.outputs)
        for use in uses
        if use.bias is not None
    }


def _judged(
    trials: Trials, model: Model, walked: "Sequence[_Matched]"
) -> "tuple[_Matched | None, dict[str, Any]]":
    """What is closest to the float model, None for the model as it is; and the figures."""
    before = closest = trials.closeness(model)
    best, tried = None, {}
    for matched in walked:
        found = trials.closeness(matched.model)
        tried[f"{matched.strength:g}"] = found.as_dict()
        if found.is_closer(closest):
            best, closest = matched, found
    return best, {
        "strength": None if best is None else best.strength,
        "samples": trials.samples,
        "before": before.as_dict(),
        "tried": tried,
    }
