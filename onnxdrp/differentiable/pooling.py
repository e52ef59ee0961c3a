"""Pools: of windows, and of all positions.

A mean divides by the places of the window that lie in the input, or with count_include_pad in the
input and its pads; what ceil_mode adds behind them never counts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call
from onnxdrp.differentiable.windows import Windows

__all__ = ["POOLING"]

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _max_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    windows, more = _windows(call, x)
    if call.outputs > 1:
        raise call.refusal("its indices are asked for; only the values can be given")
    pads = windows.begin
    fits = all(2 * p <= k for p, k in zip(pads, windows.kernel, strict=True))
    if any(more) or not windows.symmetric or not fits:
        x, pads = windows.pad(x, -torch.inf, more), [0] * len(pads)
    return _MAX[x.ndim - 2](x, windows.kernel, windows.strides, pads, windows.dilations)


def _average_pool(call: Call, x: torch.Tensor) -> torch.Tensor:
    windows, more = _windows(call, x)
    counted, pads = bool(call.get("count_include_pad", 0)), windows.begin
    fits = all(2 * p <= k for p, k in zip(pads, windows.kernel, strict=True))
    if fits and windows.symmetric and not any(more) and set(windows.dilations) == {1}:
        return _MEAN[x.ndim - 2](
            x, windows.kernel, windows.strides, pads, count_include_pad=counted
        )
    places = torch.ones_like(x[:1, :1])
    if counted:
        places = windows.pad(places, 1.0)
        places = functional.pad(places, [w for m in reversed(more) for w in (0, m)])
    else:
        places = windows.pad(places, 0.0, more)
    return _sums(windows, windows.pad(x, 0.0, more)) / _sums(windows, places)


def _sums(windows: Windows, x: torch.Tensor) -> torch.Tensor:
    """The sum of each window, of channels alone."""
    rank = x.ndim - 2
    ones = torch.ones((1, 1, *windows.kernel), dtype=x.dtype, device=x.device)
    alone = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[rank](alone, ones, None, windows.strides, 0, windows.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def _windows(call: Call, x: torch.Tensor) -> tuple[Windows, list[int]]:
    if x.ndim - 2 not in _MAX:
        raise call.refusal(f"{x.ndim - 2} spatial axes; there can be 1 to 3")
    windows = Windows.of(call, x.shape[2:], call.attrs["kernel_shape"])
    ceil = call.get("ceil_mode", 0) and call.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return windows, windows.overhang(x.shape[2:]) if ceil else [0] * (x.ndim - 2)


def _global_average(call: Call, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _global_max(call: Call, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


POOLING: dict[str, Callable[..., Any]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
}
