"""Operators that move values, and compute with shapes, which stay on the host."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call, integers

__all__ = ["SHAPING"]


def _reshape(call: Call, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    shape = integers(call, "shape", given) or []
    if not call.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _flatten(call: Call, x: torch.Tensor) -> torch.Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: Call, x: torch.Tensor) -> torch.Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def _squeeze(call: Call, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    axes = integers(call, "axes", given)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(call: Call, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
    axes = integers(call, "axes", given) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    devices = {x.device for x in inputs}
    if len(devices) > 1:
        device = next(d for d in devices if d.type != "cpu")
        inputs = tuple(x.to(device) for x in inputs)
    return torch.cat(inputs, dim=call.attrs["axis"])


def _split(
    call: Call, x: torch.Tensor, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    axis, sizes = call.get("axis", 0), integers(call, "split", given)
    if sizes is None:
        parts = call.get("num_outputs", call.outputs)
        size = -(-x.shape[axis] // parts)
        sizes = [min(size, x.shape[axis] - i * size) for i in range(parts)]
    return tuple(torch.split(x, sizes, dim=axis))


def _slice(call: Call, x: torch.Tensor, *given: torch.Tensor | None) -> torch.Tensor:
    inputs = dict(zip(("starts", "ends", "axes", "steps"), given, strict=False))
    starts, ends, axes, steps = (
        integers(call, name, inputs.get(name)) for name in ("starts", "ends", "axes", "steps")
    )
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        chosen = range(*slice(start, _end(end, size, step), step).indices(size))
        if chosen == range(size):
            continue
        if step > 0:
            at = [slice(None)] * x.ndim
            at[axis] = slice(chosen.start, chosen.stop, step)
            x = x[tuple(at)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), device=x.device))
    return x


def _end(end: int, size: int, step: int) -> int | None:
    """An end at or before the first place: with a step back that is all the way to it."""
    return None if step < 0 and end < -size else end


_MODES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(call: Call, x: torch.Tensor, *given: torch.Tensor | None) -> torch.Tensor:
    """Other modes than constant by picking: the places that numpy would pick."""
    pads = integers(call, "pads", given[0] if given else None) or []
    value = given[1] if len(given) > 1 else None
    axes = integers(call, "axes", given[2] if len(given) > 2 else None)
    axes = list(range(len(pads) // 2)) if axes is None else [a % x.ndim for a in axes]
    ends = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    mode = call.get("mode", "constant")
    if mode == "constant":
        number = call.get("value", 0.0) if value is None else value.item()
        widths = [w for axis in reversed(range(x.ndim)) for w in ends.get(axis, (0, 0))]
        return functional.pad(x, widths, value=number)
    for axis, (before, after) in ends.items():
        if before or after:
            places = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] + min(after, 0)]
            places = np.pad(places, (max(before, 0), max(after, 0)), _MODES[mode])
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _gather(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    axis = call.get("axis", 0) % x.ndim
    flat = indices.reshape(-1).to(x.device, torch.int64)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, flat).reshape(shape)


def _gather_elements(call: Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    axis = call.get("axis", 0)
    indices = indices.to(x.device, torch.int64)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _shape(call: Call, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64)


def _size(call: Call, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return torch.tensor(x.numel())


def _constant(call: Call) -> torch.Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if (value := call.get(name)) is not None:
            kind = torch.float32 if "float" in name else torch.int64
            return value if name == "value" else torch.tensor(value, dtype=kind)
    raise call.refusal("its value is neither dense nor a number; run fold-constants first")


def _constant_of_shape(call: Call, shape: torch.Tensor) -> torch.Tensor:
    value = call.get("value")
    sizes = [int(n) for n in shape.tolist()]
    if value is None:
        return torch.zeros(sizes)
    return torch.full(sizes, value.item(), dtype=value.dtype)


def _expand(call: Call, x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _tile(call: Call, x: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return x.repeat(repeats.tolist())


def _range(
    call: Call,  # noqa: ARG001
    start: torch.Tensor,
    limit: torch.Tensor,
    delta: torch.Tensor,
) -> torch.Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _depth_to_space(call: Call, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    if call.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


SHAPING: dict[str, Callable[..., Any]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
