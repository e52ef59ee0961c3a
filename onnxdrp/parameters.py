"""From a plan and ranges to parameters: of activations by group, of weights beside their bias."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.operators import WeightUse
from onnxdrp.plan import Operand, Plan
from onnxdrp.quantize import (
    QuantParams,
    Range,
    activation_params,
    weight_absmax,
    weight_params,
    weight_scale_for_bias,
)
from onnxdrp.targets import Target

__all__ = ["activation_parameters", "weight_parameters"]

Array = npt.NDArray[Any]


def activation_parameters(
    model: Model, plan: Plan, ranges: Mapping[str, Range], target: Target
) -> dict[str | Operand, QuantParams]:
    """The parameters of every activation and constant operand: one range for each group.

    Raises:
        ModelError: a tensor has no range: the model changed since the ranges were measured.
    """
    nodes = {n.name: n for n in model.nodes()}
    merged: dict[str | Operand, Range] = {}
    for key, group in plan.groups.items():
        if isinstance(key, tuple):
            values = model.constant(nodes[key[0]].inputs[key[1]])
            assert values is not None  # that is what makes it an operand
            found = Range(float(values.min(initial=0)), float(values.max(initial=0)))
        elif key in plan.fixed:
            found = Range(*plan.fixed[key])
        elif key not in plan.observed:
            continue  # made of others in its group
        elif key in ranges:
            found = ranges[key]
        else:
            raise ModelError(f"tensor {key!r} has no range; run calibrate on the model as it is")
        merged[group] = merged[group].union(found) if group in merged else found
    dtype, symmetric = target.activation_dtype, target.activation_symmetric
    params = {g: activation_params(r, dtype, symmetric=symmetric) for g, r in merged.items()}
    return {key: params[group] for key, group in plan.groups.items()}


def weight_parameters(
    model: Model,
    plan: Plan,
    weight: Array,
    layers: Iterable[WeightUse],
    activations: Mapping[str, QuantParams],
    per_channel: bool,
) -> QuantParams:
    """int8 parameters of a weight: wide enough for the int32 biases of all layers that use it.

    Args:
        model: holds the layers.
        plan: of the model.
        weight: the values.
        layers: the layers that use it.
        activations: {tensor: parameters}.
        per_channel: a scale for each output, where all layers have the same axis of outputs.
    """
    nodes = {n.name: n for n in model.nodes()}
    axes = {layer.axis for layer in layers}
    axis = axes.pop() if per_channel and len(axes) == 1 else None
    peak = weight_absmax(weight, axis)
    scales = []
    for layer in layers:
        holder, place = plan.biases.get(layer.node, ("", 0))
        bias = model.constant(nodes[holder].inputs[place]) if holder else None
        if bias is None:
            scales.append(weight_params(weight, axis).scale)
            continue
        data = activations[nodes[layer.node].inputs[layer.data].name]
        output = activations.get(plan.outputs[layer.node])
        span = output.interval if output is not None else None
        wide = np.broadcast_to(bias.reshape(-1), layer.outputs)
        scales.append(weight_scale_for_bias(peak, wide, float(data.scale), span))
    return QuantParams.symmetric(np.max(scales, axis=0), axis=axis)
