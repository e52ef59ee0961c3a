"""QuantizeLinear and DequantizeLinear, through which gradients pass: fake quantization.

    q = clip(round_half_even(x / scale) + zero_point, low, high)      x' = (q - zero_point) * scale

Integers are held as floats, which are exact. The rounding counts as the identity (the
straight-through estimator, Bengio et al. 2013): dx'/dx is 1 where x / scale + zero_point lies in
[low, high], 0 outside. Scales and zero points get no gradient.
"""

from collections.abc import Callable
from typing import Any

import torch

from onnxdrp.differentiable.call import Call

__all__ = ["QUANTIZING", "fake_quantize", "rounded"]

_FLOAT_INT32 = 2**31 - 128
"""The largest float32 that is an int32."""


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round half to even; the gradient is that of the identity."""
    return x + (torch.round(x) - x).detach()  # exact: the difference is


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
) -> torch.Tensor:
    """Quantize and dequantize; the others, in floats, broadcast with x."""
    codes = torch.clamp(rounded(x / scale) + zero, low, high)
    return (codes - zero) * scale


def _quantize(
    call: Call, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    if zero is None and call.get("output_dtype", 0) not in (0, 2):
        raise call.refusal("its type is told by output_dtype; give it a zero point")
    dtype = torch.uint8 if zero is None else zero.dtype
    if dtype.is_floating_point:
        raise call.refusal(f"quantizing to {dtype} cannot be run")
    limits = torch.iinfo(dtype)
    codes = rounded(x / _spread(call, scale, x))
    if zero is not None:
        codes = codes + _spread(call, zero.to(x.dtype), x)
    return torch.clamp(codes, limits.min, min(limits.max, _FLOAT_INT32))


def _dequantize(
    call: Call, q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    codes = q.to(scale.device, scale.dtype)
    if zero is not None:
        codes = codes - _spread(call, zero.to(scale.dtype), q)
    return codes * _spread(call, scale, q)


def _spread(call: Call, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Scale or zero point so that it broadcasts with x: one, one an index of axis, or of blocks."""
    values = values.to(x.device)
    if values.numel() == 1:
        return values.reshape(())
    axis = call.get("axis", 1) % x.ndim
    if values.ndim == 1:
        return values.reshape([-1 if d == axis else 1 for d in range(x.ndim)])
    whole = values.repeat_interleave(call.attrs["block_size"], dim=axis)
    return whole.narrow(axis, 0, x.shape[axis])


QUANTIZING: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
