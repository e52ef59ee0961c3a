"""Reductions over axes, and normalizations by mean and variance."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call, integers

__all__ = ["REDUCING"]


def _reduction(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def operator(call: Call, x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        axes = integers(call, "axes", given)
        if not axes and call.get("noop_with_empty_axes", 0):
            return x
        axes = axes or list(range(x.ndim))
        return run(x, dim=tuple(axes), keepdim=bool(call.get("keepdims", 1)))

    return operator


def _l2(x: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.square().sum(dim, keepdim).sqrt()


def _extreme(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def operator(call: Call, x: torch.Tensor) -> torch.Tensor:
        axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return run(x, dim=axis, keepdim=keep)
        return x.shape[axis] - 1 - run(x.flip(axis), dim=axis, keepdim=keep)

    return operator


def _batch_normalization(
    call: Call,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    if call.get("training_mode", 0):
        raise call.refusal("it is in training mode; export the model for inference")
    return functional.batch_norm(
        x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5)
    )


def _layer_normalization(
    call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    if call.outputs > 1:
        raise call.refusal("its mean and deviation are asked for; only the values can be given")
    axis = call.get("axis", -1)
    y = scale * functional.layer_norm(x, x.shape[axis:], eps=call.get("epsilon", 1e-5))
    return y if bias is None else y + bias


def _instance_normalization(
    call: Call, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


REDUCING: dict[str, Callable[..., Any]] = {
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceL2": _reduction(_l2),
    "ReduceSum": _reduction(torch.sum),
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
}
