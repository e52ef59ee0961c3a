"""Operators that multiply by weights: Conv, ConvTranspose, Gemm, MatMul."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call
from onnxdrp.differentiable.windows import Windows

__all__ = ["CONVOLUTION"]

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _conv(
    call: Call, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    windows = Windows.of(call, x.shape[2:], weight.shape[2:])
    pads = windows.begin
    if not windows.symmetric:
        x, pads = windows.pad(x, 0.0), [0] * len(pads)
    run = _CONV.get(x.ndim - 2)
    if run is None:
        raise call.refusal(f"{x.ndim - 2} spatial axes; there can be 1 to 3")
    return run(x, weight, bias, windows.strides, pads, windows.dilations, call.get("group", 1))


def _conv_transpose(
    call: Call, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """All products without pads, then cut; what output_padding adds has the bias alone."""
    rank = x.ndim - 2
    run = _TRANSPOSED.get(rank)
    if run is None:
        raise call.refusal(f"{rank} spatial axes; there can be 1 to 3")
    strides = list(call.get("strides", [1] * rank))
    dilations = list(call.get("dilations", [1] * rank))
    more = list(call.get("output_padding", [0] * rank))
    pads = list(call.get("pads", [0] * 2 * rank))
    auto, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if auto == "VALID":
        pads = [0] * 2 * rank
    elif wanted is not None or auto != "NOTSET":
        sizes = zip(x.shape[2:], strides, more, weight.shape[2:], dilations, strict=True)
        whole = [s * (n - 1) + m + (k - 1) * d + 1 for n, s, m, k, d in sizes]
        if wanted is None:
            wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        total = [max(w - o, 0) for w, o in zip(whole, wanted[-rank:], strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    begin, end, group = pads[:rank], pads[rank:], call.get("group", 1)
    if begin == end and not any(more):
        return run(x, weight, bias, strides, begin, 0, group, dilations)
    y = run(x, weight, None, strides, 0, 0, group, dilations)
    cuts = reversed(list(zip(begin, end, more, strict=True)))
    y = functional.pad(y, [w for b, e, m in cuts for w in (-b, m - e)])
    return y if bias is None else y + bias.reshape(-1, *(1 for _ in range(rank)))


def _gemm(
    call: Call, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None
) -> torch.Tensor:
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    y = torch.matmul(a, b)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    y = y if alpha == 1 else alpha * y
    if c is None:
        return y
    return y + (c if beta == 1 else beta * c)


def _matmul(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return torch.matmul(a, b)


CONVOLUTION: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
