"""The layers that pruning concerns, in the order in which a sweep mends them, and what each is for.

A layer is concerned if its weight is pruned, or if what it reads is no longer what it was. It aims
at what the float model has at its output, plus the error that stands beside it: where its output y
is read by an Add alone, whose other input o comes from layers that are mended by then,

    t = (y + o) in the float model - o in the pruned one

and so on through Adds that follow each other. Of two layers that are added, the first to be mended
aims at its own output, the second makes up for the first.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError
from onnxdrp.least_squares import joined
from onnxdrp.model import Model, reads
from onnxdrp.moments import MomentStats
from onnxdrp.passes.biases import Biases, BiasPlace
from onnxdrp.passes.edit import only_consumer
from onnxdrp.segments import default_cuts
from onnxdrp.stored import Readers, Stored, find_stored
from onnxdrp.unfold import Unfolding

__all__ = ["Mended", "Stop", "Use", "centred", "made_up", "own_biases", "sweep", "without"]

Array = npt.NDArray[Any]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Use:
    """A layer of a weight.

    Attributes:
        node: the layer.
        data: the tensor that it reads.
        unfolding: how it meets its weight.
        bias: where its bias is added; None where it has none.
        total: what it aims at: this tensor of the float model,
        beside: less these of the pruned one.
    """

    node: gs.Node
    data: str
    unfolding: Unfolding
    bias: BiasPlace | None
    total: str
    beside: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The tensor that the layer makes, with the bias in it."""
        return str(self.node.outputs[0].name) if self.bias is None else self.bias.result


@dataclass(frozen=True, eq=False)
class Mended:
    """A weight and its layers, mostly one."""

    weight: gs.Constant
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        """Of the weight, by which masks are kept."""
        return str(self.weight.name)


@dataclass(eq=False)
class Stop:
    """Weights whose layers read the same tensors.

    Attributes:
        cut: these tensors.
        rounds: weights in an order in which each knows the errors that it makes up for; those of
            one round need not wait for each other.
    """

    cut: tuple[str, ...]
    rounds: list[list[Mended]] = field(default_factory=list)

    @property
    def weights(self) -> list[Mended]:
        """Those of all rounds."""
        return [weight for turn in self.rounds for weight in turn]


def sweep(model: Model, pruned: Collection[str]) -> tuple[list[Stop], dict[str, str]]:
    """The stops of a sweep, and {node: why a concerned layer is passed over}.

    Args:
        model: is not changed.
        pruned: names of weights.
    """
    graph = _Graph(model, pruned)
    stops: dict[tuple[str, ...], list[_Weight]] = {}
    for weight in sorted(graph.weights, key=lambda w: w.last):  # stable: as in the graph
        stops.setdefault(tuple(dict.fromkeys(n.data for n in weight.layers)), []).append(weight)
    waiting = reduce(or_, (w.bit for w in graph.weights), 0)
    found = []
    for cut, here in stops.items():
        stop = Stop(cut)
        turn: dict[int, int] = {}  # {weight: of its round}
        for weight in here:
            waiting &= ~weight.bit  # from here on it is of an earlier round, or stop
            uses, needs = graph.uses(weight, waiting | weight.bit)
            turn[weight.bit] = 1 + max((t for bit, t in turn.items() if bit & needs), default=-1)
            if turn[weight.bit] == len(stop.rounds):
                stop.rounds.append([])
            stop.rounds[turn[weight.bit]].append(Mended(weight.tensor, uses))
        found.append(stop)
    return found, graph.skipped


def without(
    stops: Iterable[Stop], why_not: Callable[[Mended], str]
) -> tuple[list[Stop], dict[str, str]]:
    """The stops without some weights, and {node: why its weight is passed over}.

    Args:
        stops: of a sweep.
        why_not: why a weight is passed over; "" if it is not.
    """
    kept, passed = [], dict[str, str]()
    for stop in stops:
        whys = {weight.name: why_not(weight) for weight in stop.weights}
        passed |= {u.node.name: why for w in stop.weights for u in w.uses if (why := whys[w.name])}
        rounds = [[weight for weight in turn if not whys[weight.name]] for turn in stop.rounds]
        if rounds := [turn for turn in rounds if turn]:
            kept.append(Stop(stop.cut, rounds))
    return kept, passed


def own_biases(model: Model, stops: Iterable[Stop]) -> dict[str, str]:
    """{layer: the bias that nobody else reads}; the same names for each copy of a model.

    Args:
        model: gets them; the one that was swept, or a copy of it.
        stops: of the layers.
    """
    biases, nodes = Biases(model), {node.name: node for node in model.nodes()}
    return {
        use.node.name: biases.own(nodes[use.bias.holder.name], use.bias.place, use.bias.outputs)
        for stop in stops
        for weight in stop.weights
        for use in weight.uses
        if use.bias is not None
    }


def centred(uses: Sequence[Use], moments: Sequence[MomentStats]) -> MomentStats:
    """The moments of a weight, about the means where a bias takes care of these."""
    pairs = zip(uses, moments, strict=True)
    return joined([stats if use.bias is None else stats.centred() for use, stats in pairs])


def made_up(
    one: Mended,
    lost: Array,
    moments: Sequence[MomentStats],
    model: Model,
    biases: Mapping[str, str],
) -> dict[str, Array]:
    """{bias: values} that make up for what a weight has lost, at the mean of what its layers read.

    Args:
        one: the weight.
        lost: of it, [g, m, k].
        moments: of each of its layers.
        model: has the biases.
        biases: {layer: its bias}, as own_biases gives them.
    """
    found = {}
    for use, of in zip(one.uses, moments, strict=True):
        if (name := biases.get(use.node.name)) is not None:
            bias = model.weight(name)
            shift = np.einsum("gmk,gk->gm", lost, of.x / max(of.count, 1))
            found[name] = bias + shift.reshape(bias.shape).astype(bias.dtype)
    return found


@dataclass(frozen=True, eq=False)
class _Layer:
    node: gs.Node
    data: str
    unfolding: Unfolding
    bias: BiasPlace | None


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight that is to be mended; its bit stands for it in sets, which are integers."""

    tensor: gs.Constant
    bit: int
    last: int  # the place of the last node that makes what its layers read
    layers: list[_Layer]


class _Graph:
    """Which weights each tensor depends on."""

    def __init__(self, model: Model, pruned: Collection[str]) -> None:
        self.model, self.skipped = model, dict[str, str]()
        self._protected, self._tensors = model.protected(), model.tensors()
        nodes = list(model.graph.nodes)
        self._maker = {t.name: i for i, node in enumerate(nodes) for t in node.outputs}
        bits: dict[str, int] = {}
        users: dict[str, list[gs.Node]] = {}
        self._depends: dict[str, int] = {}
        for node in nodes:
            depends = reduce(or_, (self._depends.get(t.name, 0) for t in reads(node)), 0)
            if (stored := _weight_of(model, node)) is not None:
                depends |= bits.setdefault(stored.name, 1 << len(bits))
                users.setdefault(stored.name, []).append(node)
            self._depends |= dict.fromkeys((t.name for t in node.outputs), depends)
        self._pruned = reduce(or_, (bits.get(name, 0) for name in pruned), 0)
        self._varying = {cut[0] for cut in default_cuts(model)}
        self._biases, self._readers = Biases(model), Readers(model)
        found = (self._weight(bits[name], users[name]) for name in users)
        self.weights = [weight for weight in found if weight is not None]

    def uses(self, weight: _Weight, waiting: int) -> tuple[tuple[Use, ...], int]:
        """The layers with what they aim at, and the weights that this depends on.

        Args:
            weight: of the layers.
            waiting: the weights that are not mended when these are.
        """
        uses, needs = [], 0
        for layer in weight.layers:
            output = layer.node.outputs[0].name if layer.bias is None else layer.bias.result
            total, beside = self._aim(self._tensors[output], waiting)
            needs |= reduce(or_, (self._depends.get(name, 0) for name in beside), 0)
            uses.append(Use(layer.node, layer.data, layer.unfolding, layer.bias, total, beside))
        return tuple(uses), needs

    def _aim(self, output: gs.Tensor, waiting: int) -> tuple[str, tuple[str, ...]]:
        at, beside, wrong = output, [], 0
        while (add := only_consumer(at, self._protected)) is not None and add.op == "Add":
            other = add.inputs[add.inputs[0] is at]
            depends = self._depends.get(other.name, 0)
            if depends & waiting or not self._alike(output, other):
                break
            beside.append(other.name)
            wrong |= depends & self._pruned
            at = add.outputs[0]
        return (at.name, tuple(beside)) if wrong else (output.name, ())

    def _alike(self, a: gs.Tensor, b: gs.Tensor) -> bool:
        """Whether two activations are known to have one shape."""
        known = isinstance(b, gs.Variable) and a.shape is not None and b.shape is not None
        return known and list(a.shape) == list(b.shape)

    def _weight(self, bit: int, users: list[gs.Node]) -> _Weight | None:
        """A weight, if pruning concerns it and it can be mended."""
        data = [_data(node, self._varying) for node in users]
        if not any((bit | self._depends.get(name, 0)) & self._pruned for name in data):
            return None
        try:
            if any(bit & self._depends.get(name, 0) for name in data):
                raise ModelError("of the layers of its weight one comes after another")
            layers = [self._layer(*pair) for pair in zip(users, data, strict=True)]
            stored = self._stored(users[0].inputs[1 - layers[0].unfolding.data], layers)
        except ModelError as why:
            self.skipped |= dict.fromkeys((node.name for node in users), str(why))
            return None
        last = max(self._maker.get(name, -1) for name in data)
        return _Weight(stored.tensor, bit, last, layers)

    def _layer(self, node: gs.Node, data: str) -> _Layer:
        if not data:
            raise ModelError("it reads what is the same for every sample")
        unfolding = Unfolding.of(self.model, node)
        bias = self._biases.place(node)
        if isinstance(bias, str) and node.op != "MatMul":
            raise ModelError(bias)
        return _Layer(node, data, unfolding, None if isinstance(bias, str) else bias)

    def _stored(self, weight: gs.Tensor, layers: list[_Layer]) -> Stored:
        stored = find_stored(self.model, weight)
        if isinstance(stored, str):
            raise ModelError(stored)
        if stored.dequantize is not None:
            raise ModelError("its weight is stored as integers")
        if any(n.unfolding.geometry != layers[0].unfolding.geometry for n in layers):
            raise ModelError("its layers see the weight in different ways")
        if why := self._readers.besides(stored, {n.node.name for n in layers}):
            raise ModelError(why)
        return stored


def _weight_of(model: Model, node: gs.Node) -> gs.Constant | None:
    """The stored tensor of a layer's weight, floats or integers."""
    if node.op not in _LAYERS or node.domain not in (None, "", "ai.onnx"):
        return None
    sides = (1, 0) if node.op in ("Gemm", "MatMul") else (1,)
    found = (find_stored(model, node.inputs[side]) for side in sides)
    return next((f.tensor for f in found if isinstance(f, Stored)), None)


def _data(node: gs.Node, varying: Collection[str]) -> str:
    """The activation that a layer reads; "" if there is none."""
    names: Iterable[str] = (t.name for t in node.inputs[:2])
    return next((name for name in names if name in varying), "")
