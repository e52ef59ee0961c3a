"""Scale the channels between a layer and a depthwise one through SiLU, so that one range suits all.

    W2 (c g(c))  =  (W2 / a) (c' g(c' / a)),        c = W1 x + b,  c' = a c,  a > 0

for each channel, g a Sigmoid or HardSigmoid: SiLU or hard swish. Both c and c g(c) have one scale
a tensor, but a depthwise layer reads every channel with weights of its own: channels a hundred
times smaller than the largest can matter as much, and 8 bits leave nothing of them. SiLU does not
scale as its input does, so that cross-layer equalization ends there; a Mul by 1 / a before g, one
number a channel, makes it so. The layers take the rest.

    a = m / r        r the largest |c g(c)| of the channel, or |c| up to 3 if that is more: beyond
                     it a negative c comes to nothing; m the largest r

1 / a is rounded up to a multiple of the step that its tensor will have in 8 bits, so that it loses
nothing there. Only pairs that gain much are changed: the gain is that of the noise over the power
of each channel, before and after, summed over channels. Zeros stay zero.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.passes.absorb import Absorber
from onnxdrp.passes.affine import Affine, CannotFuseError
from onnxdrp.passes.edit import Names, is_standard, only_consumer, producer
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.quantization import qlimits

__all__ = ["EqualizeGates"]

Floats = npt.NDArray[np.float64]

_ACTIVE = 3.0  # up to here a negative input of a SiLU makes a difference worth its bits


@dataclass(frozen=True)
class EqualizeGates(Pass):
    """Give channels that a depthwise layer reads behind a SiLU one size.

    Stats: `equalized` is the gain in dB by layer; `skipped` says why others were left as they are.

    Attributes:
        gain_db: pairs that gain less are left alone: each costs a Mul.
    """

    name: ClassVar[str] = "equalize-gates"
    keeps_results: ClassVar[bool] = True

    gain_db: float = 20.0

    def __post_init__(self) -> None:
        if not self.gain_db >= 0:
            raise OptionError(f"gain_db {self.gain_db}: give 0 or more; 20 is usual")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """The model is a float one, no ranges of it are known, and there is data."""
        if ctx.reader is None:
            raise DataError(
                "equalize-gates needs data; give some hundred images or arrays (--calib)"
            )
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(f"node {node.name!r}: the model is quantized already")
        if ctx.ranges:
            raise ModelError("ranges are measured already; run equalize-gates first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Look how far channels go, then scale those that gain by it."""
        gates = _gates(model)
        equalized: dict[str, float] = {}
        skipped: dict[str, str] = {}
        if not gates:
            return PassResult(modified=False, stats={"equalized": equalized, "skipped": skipped})
        assert ctx.reader is not None  # `requires` has seen it
        taps = {
            gate.maker.name: Tap((("", gate.inner.name), ("", gate.outer.name)), _Reach())
            for gate in gates
        }
        found = observe(
            {"": model},
            ctx.reader,
            taps,
            executor=ctx.executor,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        low, high = qlimits(ctx.target.activation_dtype, symmetric=ctx.target.activation_symmetric)
        absorber = Absorber(model, Names(model), model.protected())
        for gate in gates:
            reach: _Reach = found[gate.maker.name]
            sizes = reach.sizes(high if ctx.target.activation_symmetric else high - low)
            gain = reach.gain(sizes)
            name = gate.maker.name
            if gain < self.gain_db:
                skipped[name] = f"gains {gain:.1f} dB only"
                continue
            try:
                gate.equalize(absorber, sizes)
                equalized[name] = round(gain, 1)
            except CannotFuseError as why:
                skipped[name] = str(why)
        return PassResult(
            modified=bool(equalized), stats={"equalized": equalized, "skipped": skipped}
        )


@dataclass(eq=False)
class _Reach:
    """How far channels go, along axis 1: `update(c, c g(c))`."""

    nonfinite: int = 0
    count: int = 0
    peak: Floats = field(default_factory=lambda: np.zeros(0))
    power: Floats = field(default_factory=lambda: np.zeros(0))

    def update(self, *arrays: npt.NDArray[Any]) -> None:
        inner, outer = arrays
        others = tuple(i for i in range(outer.ndim) if i != 1)
        size = np.maximum(outer.max(axis=others), -outer.min(axis=others))
        wide = np.maximum(inner.max(axis=others), -inner.min(axis=others))
        power = np.square(outer).sum(axis=others, dtype=np.float64)
        self.nonfinite += int(np.count_nonzero(~np.isfinite(power + wide)))
        self._take(
            outer.size // outer.shape[1],
            np.maximum(size, np.minimum(wide, _ACTIVE)).astype(np.float64),
            power,
        )

    def _take(self, count: int, peak: Floats, power: Floats) -> None:
        self.peak = np.maximum(self.peak, peak) if self.count else peak
        self.power = self.power + power if self.count else power
        self.count += count

    def merge(self, other: Self) -> None:
        self.nonfinite += other.nonfinite
        if other.count:
            self._take(other.count, other.peak, other.power)

    def result(self) -> Self:
        return self

    def sizes(self, levels: int) -> Floats:
        """The r / m of each channel, on a grid of so many levels."""
        most = float(self.peak.max())
        if not most > 0:
            return np.ones_like(self.peak)
        return np.maximum(np.ceil(self.peak / most * levels - 1e-6), 1) / levels

    def gain(self, sizes: Floats) -> float:
        """By how much the noise of the channels, each over its power, becomes less, in dB."""
        alive = self.power > 0
        if not alive.any():
            return 0.0
        share = 1 / self.power[alive]
        return -10 * math.log10(float((share * sizes[alive] ** 2).sum() / share.sum()))


@dataclass(frozen=True, eq=False)
class _Gate:
    """A layer, the gate behind it, and the depthwise layer that alone reads what comes of it."""

    maker: gs.Node
    inner: gs.Tensor
    gate: gs.Node
    outer: gs.Tensor
    reader: gs.Node

    def equalize(self, absorber: Absorber, sizes: Floats) -> None:
        """Scale by 1 / sizes between the layers."""
        shape = [1, -1] + [1] * (len(self.reader.inputs[1].shape) - 2)
        wide = sizes.reshape(shape)
        none = np.zeros_like(wide)
        kept, attrs = list(self.maker.inputs), dict(self.maker.attrs)
        absorber.after(self.maker, Affine(1 / wide, none))
        try:
            absorber.before(self.reader, 0, Affine(wide, none))
        except CannotFuseError:
            self.maker.inputs.clear()
            self.maker.inputs.extend(kept)
            self.maker.attrs = attrs
            raise
        names = absorber.names
        for tensor in (self.inner, self.outer):
            tensor.name = names.fresh(f"{tensor.name}_equalized")
        stem = f"{self.gate.name}_unscaled"
        factor = gs.Constant(names.fresh(f"{stem}_factor"), wide.astype(np.float32))
        back = gs.Variable(names.fresh(f"{stem}_output"), self.inner.dtype, self.inner.shape)
        node = gs.Node("Mul", names.fresh(stem), {}, [self.inner, factor], [back])
        self.gate.inputs[0] = back
        nodes = absorber.model.graph.nodes
        nodes.insert(next(i for i, n in enumerate(nodes) if n is self.gate), node)


def _gates(model: Model) -> list[_Gate]:
    """Conv, gate and depthwise Conv, with nothing else in between or beside."""
    protected = model.protected()
    found = []
    for gate in model.nodes("Sigmoid", "HardSigmoid"):
        inner, maker = gate.inputs[0], producer(gate.inputs[0])
        product = only_consumer(gate.outputs[0], protected)
        if maker is None or maker.op != "Conv" or product is None or product.op != "Mul":
            continue
        factors = {id(t) for t in product.inputs}
        readers = {id(n) for n in inner.outputs}
        if factors != {id(inner), id(gate.outputs[0])} or readers != {id(gate), id(product)}:
            continue
        outer = product.outputs[0]
        reader = only_consumer(outer, protected)
        plain = inner.name not in protected and inner.dtype == np.float32
        if plain and reader is not None and _is_depthwise(reader, outer):
            found.append(_Gate(maker, inner, gate, outer, reader))
    return found


def _is_depthwise(node: gs.Node, data: gs.Tensor) -> bool:
    """Whether each output of a node sees one channel of the tensor alone."""
    if node.op != "Conv" or not is_standard(node) or node.inputs[0] is not data:
        return False
    shape = node.inputs[1].shape
    return bool(shape) and shape[1] == 1 and int(node.attrs.get("group", 1)) > 1
