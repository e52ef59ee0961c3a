"""Share the sizes of weights out between layers, so that one scale suits all their channels.

    W2 relu(W1 x + b)  =  (W2 / a) relu(a W1 x + a b)          a = sqrt(r2 / r1) > 0

for each channel between two layers, r1 and r2 the largest weights that make and that read it: after
it both are sqrt(r1 r2) (cross-layer equalization, Nagel et al. 2019). Through Relu, LeakyRelu,
pooling, Transpose and Reshape, along chains with depthwise layers, until nothing moves; only where
nobody else reads what lies between. FuseBatchNorm does the same where a scale is left to share out.

A Clip from 0 to c lets a channel pass as before only if that stays below c: so channels are scaled
up to 0.8 c at most, and those whose largest value in the calibration data lies above 0.8 c, not at
all. Held-back samples must not reach the bound of any scaled channel either, or the Clip is left
alone. Tensors whose values change get new names. Zeros stay zero.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.datareaders import DataReader, split
from onnxdrp.errors import DataError, ModelError
from onnxdrp.model import Model
from onnxdrp.observe import observe
from onnxdrp.operators import clip_bounds
from onnxdrp.passes.absorb import Absorber
from onnxdrp.passes.affine import Affine, CannotFuseError
from onnxdrp.passes.edit import Names, is_standard
from onnxdrp.passes.layout import carried_on, shape_of, sized_back
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.taps import Tap

__all__ = ["CrossLayerEqualize"]

Array = npt.NDArray[Any]

_SWEEPS = 20
_STILL = 0.01  # a sweep that scales no channel by more than this share ends them
_ROOM = 0.8
_HELD_OUT = 0.2
_LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class CrossLayerEqualize(Pass):
    """Scale channels between two layers so that their weights are of one size.

    Stats: `equalized` is the largest factor, or its inverse, by layer; `skipped` says why others
    were left as they are.
    """

    name: ClassVar[str] = "cross-layer-equalize"

    def requires(self, model: Model, ctx: PassContext) -> None:
        """The model is a float one, and no ranges of it are known that would no longer hold."""
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(f"node {node.name!r}: the model is quantized already")
        if ctx.ranges:
            raise ModelError("ranges are measured already; run cross-layer-equalize first")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Find the pairs of layers, then sweep over them."""
        pairs, skipped = _pairs(model)
        refused = _look_at_clips(pairs, model, ctx)
        pairs = [pair for pair in pairs if pair.maker.name not in refused]
        skipped |= refused
        absorber = Absorber(model, Names(model), model.protected())
        for _ in range(_SWEEPS):
            moved = [pair.equalize(absorber) for pair in pairs]
            if max(moved, default=0.0) <= _STILL:
                break
        equalized: dict[str, float] = {}
        for pair in pairs:
            if pair.why:
                skipped[pair.maker.name] = pair.why
            if pair.factor > 1:
                equalized[pair.maker.name] = pair.factor
                for tensor in pair.between:
                    tensor.name = absorber.names.fresh(f"{tensor.name}_equalized")
        return PassResult(
            modified=bool(equalized), stats={"equalized": equalized, "skipped": skipped}
        )


@dataclass(eq=False)
class _Pair:
    """Two layers and the tensors between them.

    Attributes:
        maker: the layer that makes the channels.
        reader: the one that reads them.
        between: what lies between, from the output of the maker on.
        ramp: numbers the channels, as the maker's output has them.
        read: the same, as the reader's input has them.
        clip: the Clip between them.
        bound: its upper bound.
        peaks: the largest value of each channel behind the Clip.
        total: by what each channel was scaled.
        why: it cannot be equalized.
    """

    maker: gs.Node
    reader: gs.Node
    between: list[gs.Tensor]
    ramp: Affine
    read: Affine
    clip: gs.Node | None = None
    bound: float = np.inf
    peaks: Array | None = None
    total: Array = field(default_factory=lambda: np.ones(1))
    why: str = ""

    @property
    def factor(self) -> float:
        """The largest scale or inverse of one."""
        return float(np.maximum(self.total, 1 / self.total).max())

    def equalize(self, absorber: Absorber) -> float:
        """Scale the channels once; the largest change, |log a|."""
        if self.why:
            return 0.0
        kept, attrs = list(self.maker.inputs), dict(self.maker.attrs)
        one = Affine(np.ones_like(self.ramp.scale), np.zeros_like(self.ramp.scale))
        try:
            made = absorber.widths_after(self.maker, self.ramp)
            read = absorber.widths_before(self.reader, 0, self.read)
            scale = self._limited(one.balanced(made, read).scale)
            absorber.after(self.maker, Affine(scale, one.shift))
            inverse = (1 / scale).reshape(-1)[np.rint(self.read.scale).astype(np.int64) - 1]
            absorber.before(self.reader, 0, Affine(inverse, np.zeros_like(inverse)))
        except CannotFuseError as why:
            self.maker.inputs.clear()
            self.maker.inputs.extend(kept)
            self.maker.attrs = attrs
            self.why = str(why)
            return 0.0
        self.total = self.total * scale.reshape(-1)
        return float(np.abs(np.log(scale)).max())

    def _limited(self, scale: Array) -> Array:
        """No channel above what its Clip has room for; those that come near its bound stay."""
        if self.peaks is None:
            return scale
        room, flat = _ROOM * self.bound, scale.reshape(-1)
        most = room / np.maximum(self.peaks * self.total, 1e-30)
        limited = np.where(self.peaks <= room, np.minimum(flat, np.maximum(most, 1e-30)), 1.0)
        return np.asarray(limited.reshape(scale.shape))


def _pairs(model: Model) -> tuple[list[_Pair], dict[str, str]]:
    """The layers with one layer behind each; and why others have none."""
    protected = model.protected()
    pairs: list[_Pair] = []
    skipped: dict[str, str] = {}
    for node in model.nodes(*_LAYERS):
        if not is_standard(node):
            continue
        try:
            pairs.append(_pair(model, node, protected))
        except CannotFuseError as why:
            skipped[node.name] = str(why)
    return pairs, skipped


def _pair(model: Model, maker: gs.Node, protected: set[str]) -> _Pair:
    shape = shape_of(maker.outputs[0])
    weight = model.constant(maker.inputs[1])
    if weight is None:
        raise CannotFuseError("its weight is computed")
    axis = len(shape) - 1 if maker.op == "MatMul" else 1
    turned = maker.op == "Conv" or bool(maker.attrs.get("transB", 0))
    size = weight.shape[0 if turned else -1]
    numbers = np.arange(1.0, size + 1).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    ramp = read = Affine(numbers, np.zeros_like(numbers))
    found = _Pair(maker, maker, [], ramp, read, total=np.ones(size))
    tensor = maker.outputs[0]
    while True:
        if tensor.name in protected:
            raise CannotFuseError(f"{tensor.name!r} is an output of the model or read by a body")
        if len(tensor.outputs) != 1:
            raise CannotFuseError(f"{tensor.name!r} is read by {len(tensor.outputs)} nodes")
        node = tensor.outputs[0]
        found.between.append(tensor)
        if node.op in _LAYERS and node.inputs[0] is tensor:
            found.reader, found.read = node, read
            return found
        read = _through(model, node, tensor, read, found)
        tensor = node.outputs[0]


def _through(model: Model, node: gs.Node, tensor: gs.Tensor, read: Affine, found: _Pair) -> Affine:
    """The numbers of the channels behind a node that scales as its input does."""
    if node.op == "Clip" and node.inputs[0] is tensor:
        bounds = clip_bounds(model, node)
        if bounds is None or bounds[0] != 0 or found.clip is not None:
            raise CannotFuseError(f"{node.name!r} does not clip at 0 and a bound, once")
        if bounds[1] < np.inf:
            if read.axis != 1 or read.scale.size != found.ramp.scale.size:
                raise CannotFuseError(f"{node.name!r} clips channels that do not lie along axis 1")
            found.clip, found.bound = node, bounds[1]
        return read
    place = next(i for i, t in enumerate(node.inputs) if t is tensor)
    after = carried_on(node, place, read)
    if after is None and node.op in ("LeakyRelu", "Relu"):
        after = sized_back(node, read)
    if after is None:
        raise CannotFuseError(f"{node.op} behind it does not scale as its input does")
    return after


# -------------------------------------------------------------------------------------------- clips


@dataclass(eq=False)
class _Peaks:
    """The largest value of each index of axis 1: `update(a)`."""

    peaks: Array = field(default_factory=lambda: np.zeros(0))
    nonfinite: int = 0

    def update(self, *arrays: Array) -> None:
        for array in arrays:
            others = tuple(i for i in range(array.ndim) if i != 1)
            peaks = np.asarray(array.max(axis=others, initial=0), np.float64)
            self.nonfinite += int(np.count_nonzero(~np.isfinite(peaks)))
            self._take(peaks)

    def merge(self, other: Self) -> None:
        self.nonfinite += other.nonfinite
        if other.peaks.size:
            self._take(other.peaks)

    def _take(self, peaks: Array) -> None:
        self.peaks = np.maximum(self.peaks, peaks) if self.peaks.size else peaks

    def result(self) -> Array:
        return self.peaks


def _look_at_clips(pairs: list[_Pair], model: Model, ctx: PassContext) -> dict[str, str]:
    """Find how far channels go before they are clipped; why a pair cannot be scaled."""
    clipped = [pair for pair in pairs if pair.clip is not None]
    if not clipped:
        return {}
    try:
        if ctx.reader is None:
            raise DataError("there is no data")
        seen, held = (_observed(clipped, model, part, ctx) for part in split(ctx.reader, _HELD_OUT))
    except DataError as why:
        return {p.maker.name: f"{p.clip.name!r} clips, and {why}" for p in clipped if p.clip}
    refused = {}
    for pair in clipped:
        assert pair.clip is not None
        name = pair.maker.name
        pair.peaks = seen[name]
        free = seen[name] <= _ROOM * pair.bound
        if not free.any():
            refused[name] = f"all its channels come near the bound of {pair.clip.name!r}"
        elif np.any(held[name][free] >= pair.bound):
            refused[name] = f"held-back samples reach the bound of {pair.clip.name!r} elsewhere"
    return refused


def _observed(
    pairs: list[_Pair], model: Model, reader: DataReader, ctx: PassContext
) -> dict[str, Array]:
    """{maker: largest value of each channel before it is clipped}."""
    taps = {p.maker.name: Tap(p.clip.inputs[0].name, _Peaks()) for p in pairs if p.clip}
    return observe(
        model, reader, taps, executor=ctx.executor, workers=ctx.workers, progress=ctx.progress
    )
