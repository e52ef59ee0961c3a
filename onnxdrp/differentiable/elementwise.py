"""Operators that treat each value alone: arithmetic, activations, comparisons, Cast, Where."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import onnx
import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call

__all__ = ["ELEMENTWISE"]

_Function = Callable[..., torch.Tensor]

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.BOOL: torch.bool,
}


def _unary(run: _Function) -> _Function:
    def operator(call: Call, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return run(x)

    return operator


def _binary(run: _Function) -> _Function:
    def operator(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return run(*_together(a, b))

    return operator


def _variadic(run: _Function) -> _Function:
    def operator(call: Call, *inputs: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return reduce(lambda a, b: run(*_together(a, b)), inputs)

    return operator


def _together(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both on one device: numbers that shapes are computed from stay on the host."""
    if a.device != b.device and a.ndim and b.ndim:
        return (a.to(b.device), b) if a.device.type == "cpu" else (a, b.to(a.device))
    return a, b


def _div(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _mod(call: Call, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = _together(a, b)
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _mean(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    return _variadic(torch.add)(call, *inputs) / len(inputs)


def _pow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if b.ndim == 0 or (b.numel() == 1 and b.ndim <= a.ndim):
        return torch.pow(a, b.item()).to(a.dtype)  # a number: x^2 is then no logarithm
    return torch.pow(a, b).to(a.dtype)


def _clip(
    call: Call,
    x: torch.Tensor,
    low: torch.Tensor | None = None,
    high: torch.Tensor | None = None,
) -> torch.Tensor:
    ends = [
        call.get(name) if end is None else end.item() for name, end in (("min", low), ("max", high))
    ]
    return x if ends == [None, None] else torch.clamp(x, *ends)


def _leaky_relu(call: Call, x: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


def _prelu(call: Call, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return torch.where(x >= 0, x, slope * x)


def _hard_sigmoid(call: Call, x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _elu(call: Call, x: torch.Tensor) -> torch.Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


def _celu(call: Call, x: torch.Tensor) -> torch.Tensor:
    return functional.celu(x, call.get("alpha", 1.0))


def _selu(call: Call, x: torch.Tensor) -> torch.Tensor:
    alpha = call.get("alpha", 1.6732632423543772)
    return call.get("gamma", 1.0507009873554805) * functional.elu(x, alpha)


def _gelu(call: Call, x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def _softmax(run: _Function) -> _Function:
    def operator(call: Call, x: torch.Tensor) -> torch.Tensor:
        if call.opset >= 13:
            return run(x, dim=call.get("axis", -1))
        axis = call.get("axis", 1) % max(x.ndim, 1)  # all axes from there on are one
        return run(x.reshape(math.prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return operator


def _cast(call: Call, x: torch.Tensor) -> torch.Tensor:
    dtype = _DTYPES.get(call.attrs["to"])
    if dtype is None:
        name = onnx.TensorProto.DataType.Name(call.attrs["to"])
        raise call.refusal(f"the type {name} cannot be computed with")
    return x.to(dtype)


def _cast_like(call: Call, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return x.to(other.dtype)


def _where(
    call: Call,  # noqa: ARG001
    condition: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
) -> torch.Tensor:
    a, b = _together(a, b)
    return torch.where(condition.to(a.device), a, b)


def _dropout(call: Call, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    if call.outputs > 1:
        raise call.refusal("its mask is asked for; only the values can be given")
    if len(rest) > 1 and rest[1] is not None and bool(rest[1]):
        raise call.refusal("it is in training mode; export the model for inference")
    return x


ELEMENTWISE: dict[str, _Function] = {
    "Abs": _unary(torch.abs),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "Log": _unary(torch.log),
    "Mish": _unary(functional.mish),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Tanh": _unary(torch.tanh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Div": _binary(_div),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Mul": _binary(torch.mul),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_pow),
    "Sub": _binary(torch.sub),
    "Xor": _binary(torch.logical_xor),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mod": _mod,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax(functional.log_softmax),
    "PRelu": _prelu,
    "Selu": _selu,
    "Softmax": _softmax(functional.softmax),
    "Where": _where,
}
