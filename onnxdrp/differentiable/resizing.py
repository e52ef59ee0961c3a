"""Resize and Upsample, nearest and linear, axis by axis.

With i the place in the output, s the scale (as given, else out / in), x the place in the input:

    half_pixel            x = (i + 0.5) / s - 0.5
    half_pixel_symmetric  x = in / 2 * (1 - out / (s * in)) + (i + 0.5) / s - 0.5
    pytorch_half_pixel    as half_pixel; 0 where the output has one place
    align_corners         x = i * (in - 1) / (out - 1); 0 where the output has one place
    asymmetric            x = i / s            also Upsample, and Resize of opset 10
    tf_half_pixel_for_nn  x = (i + 0.5) / s

in float32, as onnxruntime computes them. Linear takes the two places about x, clipped to the input.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxdrp.differentiable.call import Call, integers

__all__ = ["RESIZING"]

Floats = npt.NDArray[np.float32]
_Coordinates = Callable[[Floats, np.float32, int, int], npt.NDArray[np.floating]]

_HALF, _ONE = np.float32(0.5), np.float32(1)


def _symmetric(i: Floats, s: np.float32, size: int, out: int) -> npt.NDArray[np.floating]:
    adjusted = np.float32(out) / (s * np.float32(size))
    offset = np.float32(size) / np.float32(2) * (_ONE - adjusted)
    return offset + (i + _HALF) / s - _HALF


_COORDINATES: dict[str, _Coordinates] = {
    "half_pixel": lambda i, s, _size, _out: (i + _HALF) / s - _HALF,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda i, s, _size, out: (i + _HALF) / s - _HALF if out > 1 else 0 * i,
    "align_corners": lambda i, _s, size, out: (
        i * np.float32(size - 1) / np.float32(out - 1) if out > 1 else 0 * i
    ),
    "asymmetric": lambda i, s, _size, _out: i / s,
    "tf_half_pixel_for_nn": lambda i, s, _size, _out: (i + _HALF) / s,
}

_NEAREST: dict[str, Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - _HALF),
    "round_prefer_ceil": lambda x: np.floor(x + _HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _resize(call: Call, x: torch.Tensor, *given: torch.Tensor | None) -> torch.Tensor:
    if call.opset < 11:
        scales, sizes = given[0], None
    else:
        _, scales, sizes = (*given, None, None, None)[:3]
    if call.get("antialias", 0) or call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refusal("antialias and keep_aspect_ratio_policy cannot be run")
    axes = call.get("axes") or list(range(x.ndim))
    if sizes is not None and sizes.numel():
        out = integers(call, "sizes", sizes) or []
        factors = [np.float32(o) / np.float32(x.shape[a]) for a, o in zip(axes, out, strict=True)]
    elif scales is not None and scales.numel():
        factors = [np.float32(s) for s in scales.tolist()]
        out = [math.floor(x.shape[a] * float(s)) for a, s in zip(axes, factors, strict=True)]
    else:
        raise call.refusal("it has neither scales nor sizes")
    old = call.opset < 11
    coordinates = call.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = call.get("nearest_mode", "floor" if old else "round_prefer_floor")
    return _along(call, x, axes, out, factors, coordinates, rounding)


def _upsample(call: Call, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    scales = call.attrs["scales"] if given is None else given.tolist()
    factors = [np.float32(s) for s in scales]
    out = [math.floor(n * float(s)) for n, s in zip(x.shape, factors, strict=True)]
    return _along(call, x, list(range(x.ndim)), out, factors, "asymmetric", "floor")


def _along(
    call: Call,
    x: torch.Tensor,
    axes: list[int],
    out: list[int],
    factors: list[np.float32],
    coordinates: str,
    rounding: str,
) -> torch.Tensor:
    mode = call.get("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear") or coordinates not in _COORDINATES:
        raise call.refusal(f"mode {mode} with {coordinates} cannot be run; nearest and linear can")
    for axis, count, factor in zip(axes, out, factors, strict=True):
        size = x.shape[axis]
        if count == size and factor == 1:
            continue
        place = np.arange(count, dtype=np.float32)
        at = _COORDINATES[coordinates](place, factor, size, count)
        if mode == "nearest":
            x = _pick(x, axis, np.clip(_NEAREST[rounding](at), 0, size - 1))
            continue
        at = np.clip(at, 0, size - 1)
        low = np.floor(at)
        share = torch.from_numpy((at - low).astype(np.float32)).to(x.device, x.dtype)
        share = share.reshape([-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])
        above = _pick(x, axis, np.clip(low + 1, 0, size - 1))
        x = _pick(x, axis, low) * (1 - share) + above * share
    return x


def _pick(x: torch.Tensor, axis: int, places: npt.NDArray[np.floating]) -> torch.Tensor:
    return x.index_select(axis, torch.from_numpy(places.astype(np.int64)).to(x.device))


RESIZING: dict[str, Callable[..., Any]] = {"Resize": _resize, "Upsample": _upsample}
