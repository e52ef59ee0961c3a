"""Round weights so that their errors cancel in the outputs of their layers, from data.

    min |X (w - q)|^2   over q on the grid of QuantizeWeights, for each output of each layer

with X the rows of the layer's input (onnxdrp.unfold, onnxdrp.rounding). Instead of QuantizeWeights,
of which it is a kind: same grids, same tables. Layers are visited from the inputs on, each seeing
what the rounded weights before it make of the samples; one layer's X'X is held at a time. No output
errs more than if its weights had been rounded to the nearest, and zeros stay zero.

Weights that cannot be seen as rows, are read by layers in different ways, or have more inputs than
memory for their X'X, are rounded to the nearest; the figures say which and why.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.moments import Moments, too_large
from onnxdrp.passes.quantize_weights import Grids, QuantizeWeights
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import QuantParams, dequantize, fake_quantize, weight_absmax
from onnxdrp.rounding import Order, round_rows
from onnxdrp.segments import default_cuts
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding
from onnxdrp.walk import walk

__all__ = ["RoundWeights"]

Array = npt.NDArray[Any]

_COPIES = 5  # of X'X, at most at a time


@dataclass(frozen=True)
class RoundWeights(QuantizeWeights):
    """Round the weights of quantized layers to their grids by what their outputs lose.

    Stats: `error` is what the outputs of each weight lose, as a share of what rounding to the
    nearest would; `nearest` says which weights were rounded so, and why.

    Attributes:
        bits: 4 rounds to the 15 integers from -7 to 7, on scales that are wider by as much; they
            are stored as int8 all the same.
        order: which inputs are rounded first: "activation", those that carry most; or "natural".
        damping: this share of the mean input power is added to that of each input.
        positions: output positions of each sample that are looked at.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in five copies, is rounded to
            the nearest.
    """

    name: ClassVar[str] = "round-weights"

    bits: Literal[8, 4] = 8
    order: Order = "activation"
    damping: float = 0.01
    positions: int = 64
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise OptionError(f"bits {self.bits}: there are 8 and 4")
        if self.order not in ("activation", "natural"):
            raise OptionError(f"order {self.order!r}: there are activation and natural")
        if not 0 < self.damping <= 10:
            raise OptionError(f"damping {self.damping} is outside (0, 10]; 0.01 is usual")
        if self.positions < 1:
            raise OptionError(f"{self.positions} positions of a sample: give 1 or more")
        for limit in ("memory_limit", "moments_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """As QuantizeWeights, and there is data."""
        if ctx.reader is None:
            raise DataError("rounding needs data; give some hundred images or arrays (--calib)")
        super().requires(model, ctx)

    def round(
        self, model: Model, ctx: PassContext, grids: Grids
    ) -> tuple[dict[str, QuantParams], dict[str, Any]]:
        """Round weight by weight, from the inputs of the model on."""
        assert ctx.reader is not None  # `requires` has seen it
        held = {name: grids.tensor(name) for name in grids.params}
        params = {name: self._params(model, held[name], p) for name, p in grids.params.items()}
        layers, nearest, large = _layers(model, grids, self.moments_limit)
        nearest |= large
        for name in nearest:
            values = model.weight(held[name])
            model.set_weight(held[name], fake_quantize(values, params[name]))
        warnings = [f"weight {n!r} is rounded to the nearest: {why}" for n, why in large.items()]
        missing = Counter(name for at in layers.values() for name, _ in at)
        found: dict[str, Array] = {}
        error: dict[str, float] = {}
        cuts = [cut for cut in default_cuts(model) if cut[0] in layers]
        if not cuts:
            return params, {"error": error, "nearest": nearest, "warnings": warnings}
        stops = walk(
            model,
            ctx.reader,
            cuts,
            memory_limit=self.memory_limit,
            workers=ctx.workers,
            progress=ctx.progress,
        )
        for stop in stops:
            here, tensor = layers[stop.cut[0]], stop.cut[0]
            taps = {
                i: Tap(tensor, Moments(unfolding, self.positions, ctx.seed))
                for i, (_, unfolding) in enumerate(here)
            }
            moments = stop.observe(taps)
            for i, (name, unfolding) in enumerate(here):
                xx = moments.pop(i).xx
                found[name] = found[name] + xx if name in found else xx
                missing[name] -= 1
                if not missing[name]:
                    xx, p = found.pop(name), params[name]
                    limit = min(self._limit, grids.limit)
                    error[name] = self._round_one(model, held[name], unfolding, p, xx, limit)
        return params, {"error": error, "nearest": nearest, "warnings": warnings}

    def _params(self, model: Model, tensor: gs.Tensor, params: QuantParams) -> QuantParams:
        """The grid for the bits asked for, never finer than the one that suits the bias."""
        if self.bits == 8:
            return params
        peak = weight_absmax(model.weight(tensor), params.axis)
        scale = np.maximum(params.scale, peak / np.float32(self._limit))
        return QuantParams.symmetric(scale, axis=params.axis)

    @property
    def _limit(self) -> int:
        return (1 << self.bits - 1) - 1

    def _round_one(
        self,
        model: Model,
        tensor: gs.Tensor,
        unfolding: Unfolding,
        params: QuantParams,
        xx: Array,
        limit: int,
    ) -> float:
        """Round one weight; its error as a share of that of the nearest."""
        matrix = unfolding.matrix(model.weight(tensor))
        scale = np.broadcast_to(params.scale, matrix.shape[0] * matrix.shape[1])
        rounded = round_rows(
            matrix,
            scale.reshape(matrix.shape[:2]),
            xx,
            limit=limit,
            damping=self.damping,
            order=self.order,
        )
        model.set_weight(tensor, dequantize(unfolding.weight(rounded.codes), params))
        whole = float(rounded.nearest.sum())
        return float(rounded.error.sum()) / whole if whole else 1.0


def _layers(
    model: Model, grids: Grids, moments_limit: int
) -> tuple[dict[str, list[tuple[str, Unfolding]]], dict[str, str], dict[str, str]]:
    """{tensor: weights that multiply it, and how}; why others cannot; why others are too large."""
    varying = {cut[0] for cut in default_cuts(model)}
    layers: dict[str, list[tuple[str, Unfolding]]] = {}
    nearest: dict[str, str] = {}
    large: dict[str, str] = {}
    for name, uses in grids.uses.items():
        data = [grids.nodes[use.node].inputs[use.data].name for use in uses]
        try:
            ways = [Unfolding.of(model, grids.nodes[use.node]) for use in uses]
        except ModelError as why:
            nearest[name] = str(why)
            continue
        if any(way.geometry != ways[0].geometry for way in ways):
            nearest[name] = "its layers see it in different ways"
        elif not varying.issuperset(data):
            nearest[name] = "its layer reads what is the same for every sample"
        elif why_large := too_large(ways[0], moments_limit, _COPIES):
            large[name] = why_large
        else:
            for tensor, way in zip(data, ways, strict=True):
                layers.setdefault(tensor, []).append((name, way))
    return layers, nearest, large
