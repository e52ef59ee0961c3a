"""From ranges to quantization parameters, and numpy's QuantizeLinear and DequantizeLinear.

    q = saturate(round_half_even(x / scale) + zero_point)        x' = (q - zero_point) * scale

in float32, as onnxruntime computes them: the results are equal bit for bit. Weights are int8 with
zero point 0, so zeros stay exactly zero; a bias is int32 with scale s_in * s_w and zero point 0.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError, ModelError, OptionError

__all__ = [
    "BIAS_LIMIT",
    "DType",
    "QuantParams",
    "Range",
    "activation_params",
    "bias_params",
    "dequantize",
    "fake_quantize",
    "qlimits",
    "quantize",
    "weight_absmax",
    "weight_params",
    "weight_scale_for_bias",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
DType = Literal["int8", "uint8", "int16", "uint16", "int32"]

BIAS_LIMIT = 2**30
"""The largest |quantized bias|: it leaves half of the int32 accumulator to the products."""

_LIMITS: dict[str, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
}
_REDUCED = {"int8": (-64, 64), "uint8": (0, 127)}
_TINY = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)
_FINE = 2.0**-24  # bias step of a channel without weights, as a share of the output range


@dataclass(frozen=True)
class Range:
    """The interval that a tensor's values are taken to lie in."""

    low: float
    high: float

    def union(self, other: "Range") -> "Range":
        """The smallest range that holds both: what tensors that share their parameters get."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def contains(self, other: "Range") -> bool:
        """Whether the other range lies inside this one."""
        return self.low <= other.low and other.high <= self.high

    def with_zero(self) -> "Range":
        """The range widened to hold 0, which every quantized type must represent exactly."""
        return Range(min(self.low, 0.0), max(self.high, 0.0))


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scale and zero point of a tensor (both 0-d), or of each index of `axis` (both 1-d)."""

    scale: Floats
    zero_point: Array
    dtype: DType
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = np.array(self.scale, np.float32)
        if scale.ndim != (self.axis is not None):
            raise ValueError(f"scale of shape {scale.shape} does not fit axis {self.axis}")
        if not np.all((scale > 0) & np.isfinite(scale)):
            raise ValueError("a scale is positive and finite")
        low, high = _LIMITS[self.dtype]
        if not np.all((low <= np.asarray(self.zero_point)) & (np.asarray(self.zero_point) <= high)):
            raise ValueError(f"zero point {self.zero_point} is no {self.dtype}")
        zero_point = np.full(scale.shape, self.zero_point, self.dtype)
        scale.flags.writeable = zero_point.flags.writeable = False
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @classmethod
    def symmetric(
        cls, scale: npt.ArrayLike, dtype: DType = "int8", axis: int | None = None
    ) -> Self:
        """Parameters with zero point 0."""
        return cls(np.asarray(scale, np.float32), np.asarray(0), dtype, axis)

    @property
    def interval(self) -> Range:
        """What the type can represent with these parameters, over all channels."""
        low, high = _LIMITS[self.dtype]
        zero, scale = self.zero_point.astype(np.float64), self.scale.astype(np.float64)
        return Range(float(((low - zero) * scale).min()), float(((high - zero) * scale).max()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return (
            (self.dtype, self.axis) == (other.dtype, other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((self.dtype, self.axis, self.scale.tobytes(), self.zero_point.tobytes()))


def qlimits(
    dtype: DType, *, symmetric: bool = False, reduce_range: bool = False
) -> tuple[int, int]:
    """The integers that a range is mapped to; a saturating kernel still uses the whole type."""
    if dtype not in _LIMITS:
        raise OptionError(f"no quantized type {dtype!r}: there are {', '.join(_LIMITS)}")
    if reduce_range and dtype in _REDUCED:
        return _REDUCED[dtype]
    low, high = _LIMITS[dtype]
    return (-high, high) if symmetric and low else (low, high)


def activation_params(
    range_: Range, dtype: DType = "int8", *, symmetric: bool = False, reduce_range: bool = False
) -> QuantParams:
    """Per-tensor parameters of a range, by onnxruntime's rules.

    The range is widened to hold 0, and to +-absmax if symmetric (zero point 0, of unsigned types
    the middle); a scale below the smallest normal float32 becomes scale 1, zero point 0.
    """
    if not -_HUGE <= range_.low <= range_.high <= _HUGE:
        raise DataError(f"[{range_.low}, {range_.high}] is no range of finite float32 values")
    wide = range_.with_zero()
    qmin, qmax = qlimits(dtype, symmetric=symmetric, reduce_range=reduce_range)
    if symmetric:
        peak = max(-wide.low, wide.high)
        wide = Range(-peak, peak)
    scale = (wide.high - wide.low) / (qmax - qmin)
    if scale < _TINY:
        return QuantParams.symmetric(1, dtype)
    zero = (qmin + qmax) / 2 if symmetric else qmin - wide.low / scale
    return QuantParams(np.asarray(scale, np.float32), np.asarray(round(zero)), dtype)


def weight_absmax(weight: Array, axis: int | None = None) -> Floats:
    """The largest |w|, of the whole weight or of each index of `axis`."""
    others = (
        None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    )
    wide = weight.astype(np.float32, copy=False)
    peak = np.maximum(wide.max(axis=others, initial=0), -wide.min(axis=others, initial=0))
    if not np.all(np.isfinite(peak)):
        raise ModelError("the weight holds NaN or infinity; mend the model before quantizing it")
    return np.asarray(peak)


def weight_params(
    weight: Array, axis: int | None = None, *, reduce_range: bool = False
) -> QuantParams:
    """Symmetric int8 parameters of a weight that has no bias; 1 is the scale of one of zeros."""
    peak = weight_absmax(weight, axis).astype(np.float64)
    scale = peak / qlimits("int8", symmetric=True, reduce_range=reduce_range)[1]
    return QuantParams.symmetric(np.where(scale < _TINY, 1.0, scale), axis=axis)


def weight_scale_for_bias(
    absmax: npt.ArrayLike,
    bias: npt.ArrayLike,
    input_scale: float,
    output_range: Range | None = None,
    *,
    reduce_range: bool = False,
) -> Floats:
    """int8 weight scales (0-d or 1-d as `absmax`) at which the bias fits an int32 of s_in * s_w.

    The scale is absmax / 127, raised where |bias| / (s_in * s_w) would exceed `BIAS_LIMIT`: there
    the weights are so small beside the bias that their own precision matters less. A channel of
    zeros has no scale of its own: it takes one whose bias step s_in * s_w is 2^-24 of the output
    range, or |bias| / BIAS_LIMIT if that is more. So the step is at most 2^-16 of the output range
    as long as |bias| is at most 2^14 ranges; beyond that the output saturates whatever the step.

    Args:
        absmax: largest |w| of the tensor (0-d) or of each channel (1-d).
        bias: one value for each channel.
        input_scale: s_in.
        output_range: range of the layer's output; None takes the bias's own size instead.
        reduce_range: weights use -64..64 instead of -127..127.
    """
    peak = np.asarray(absmax, np.float64)
    size = np.abs(np.asarray(bias, np.float64))
    if not (np.all(np.isfinite(size)) and np.all(np.isfinite(peak)) and input_scale > 0):
        raise ModelError("the bias, the weight or the input scale is not finite and usable")
    if peak.ndim == 0:
        size = size.max(initial=0)
    span = 0.0 if output_range is None else output_range.high - output_range.low
    step = _FINE * np.where(span > 0, span, np.where(size > 0, size, 1.0))
    least = np.maximum(size / BIAS_LIMIT, _TINY) / input_scale
    natural = peak / qlimits("int8", symmetric=True, reduce_range=reduce_range)[1]
    dead = (natural < _TINY) | (natural * input_scale < _TINY)
    scale = np.maximum(np.where(dead, step / input_scale, natural), least)
    return np.asarray(np.clip(scale, _TINY, _HUGE), np.float32)


def bias_params(input_scale: npt.ArrayLike, weight: QuantParams) -> QuantParams:
    """int32 parameters of a bias: scale s_in * s_w in float32, per channel if the weight's is."""
    scale = np.asarray(input_scale, np.float32) * weight.scale
    return QuantParams.symmetric(scale, "int32", None if weight.axis is None else 0)


def quantize(values: Array, params: QuantParams) -> Array:
    """QuantizeLinear: rounds half to even, saturates."""
    scale, zero = _spread(params.scale, params, values), _spread(params.zero_point, params, values)
    # An int32 has more digits than a float32, so a bias is divided in double precision.
    wide = np.float64 if params.dtype == "int32" else np.float32
    steps = np.asarray(np.divide(values, scale, dtype=wide, casting="same_kind"))
    np.rint(steps, out=steps)
    steps += zero
    if np.isnan(steps.max(initial=0)):
        raise DataError("NaN has no quantized value")
    return np.clip(steps, *_LIMITS[params.dtype], out=steps).astype(params.dtype)


def dequantize(codes: Array, params: QuantParams) -> Floats:
    """DequantizeLinear, to float32."""
    scale, zero = _spread(params.scale, params, codes), _spread(params.zero_point, params, codes)
    wide = np.int16 if params.dtype in ("int8", "uint8") else np.int64
    steps = np.asarray(np.subtract(codes, zero, dtype=wide), np.float32)
    steps *= scale
    return steps


def fake_quantize(values: Array, params: QuantParams) -> Floats:
    """What is left of the values after a trip through the quantized type."""
    return dequantize(quantize(values, params), params)


def _spread(numbers: Array, params: QuantParams, values: Array) -> Array:
    """The numbers shaped to broadcast along the axis of `values`."""
    if params.axis is None:
        return numbers
    axis = params.axis % values.ndim
    if values.shape[axis] != numbers.size:
        raise ModelError(
            f"axis {axis} of shape {list(values.shape)} has not the {numbers.size} scales given"
        )
    return numbers.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
