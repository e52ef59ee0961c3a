"""From a plan and ranges to parameters: of activations by group, of weights beside their bias."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.operators import WeightUse, channel_axis
from onnxdrp.plan import Operand, Plan
from onnxdrp.quantization import (
    DType,
    QuantParams,
    Range,
    activation_params,
    weight_absmax,
    weight_params,
    weight_scale_for_bias,
)
from onnxdrp.ranges import Ranges
from onnxdrp.targets import Target

__all__ = [
    "activation_parameters",
    "group_types",
    "member_ranges",
    "uses_by_weight",
    "weight_parameters",
]

Array = npt.NDArray[Any]
Nodes = Mapping[str, gs.Node]


def activation_parameters(
    model: Model,
    plan: Plan,
    ranges: Mapping[str, Range],
    target: Target,
    wide: Iterable[str] = (),
    calibration: Ranges | None = None,
) -> dict[str | Operand, QuantParams]:
    """The parameters of every activation and constant operand: one range for each group.

    A group has the target's wide type if one of its tensors comes from a node of `wide`. Its ranges
    are then the extremes that were seen: what was left out for the sake of 8 bits comes back.

    Args:
        model: as it was planned.
        plan: of the model.
        ranges: {tensor: range}.
        target: the profile.
        wide: names of nodes; those that give nothing that is quantized count for nothing.
        calibration: the extremes of `ranges`, where they are known.

    Raises:
        ModelError: a tensor has no range: the model changed since the ranges were measured.
        OptionError: nodes are to be wide, and the target has no wide type.
    """
    types = group_types(plan, target, wide)
    merged: dict[str | Operand, Range] = {}
    for key, found in member_ranges(model, plan, ranges).items():
        group = plan.groups[key]
        if types[group] == target.wide_dtype:
            found = _extremes(plan, key, found, calibration)
        merged[group] = merged[group].union(found) if group in merged else found
    symmetric = target.activation_symmetric
    params = {g: activation_params(r, types[g], symmetric=symmetric) for g, r in merged.items()}
    return {key: params[group] for key, group in plan.groups.items()}


def group_types(plan: Plan, target: Target, wide: Iterable[str]) -> dict[str | Operand, DType]:
    """{name of a group: its type}: the wide one if any of its tensors comes from a node of `wide`.

    Raises:
        OptionError: some are to be wide, and the target has no wide type.
    """
    types: dict[str | Operand, DType] = dict.fromkeys(plan.groups.values(), target.activation_dtype)
    groups = [plan.groups[tensor] for name in wide for tensor in plan.made.get(name, ())]
    if not groups:
        return types
    if target.wide_dtype is None:
        raise OptionError(f"target {target.name} has no 16-bit activations; keep the nodes float")
    return types | dict.fromkeys(groups, target.wide_dtype)


def _extremes(plan: Plan, key: str | Operand, found: Range, calibration: Ranges | None) -> Range:
    """What a member of a wide group adds: all that was seen of it."""
    if isinstance(key, str) and key in plan.wide_fixed:
        return Range(*plan.wide_fixed[key])
    seen = calibration.tensors.get(key) if calibration and isinstance(key, str) else None
    if seen is None or seen.min is None or seen.max is None:
        return found
    return found.union(Range(seen.min, seen.max))


def member_ranges(
    model: Model, plan: Plan, ranges: Mapping[str, Range]
) -> dict[str | Operand, Range]:
    """What each tensor and constant operand adds to the range of its group; those that add some.

    Raises:
        ModelError: a tensor has no range: the model changed since the ranges were measured.
    """
    nodes = {n.name: n for n in model.nodes()}
    found = {key: _range_of(model, nodes, plan, ranges, key) for key in plan.groups}
    return {key: range_ for key, range_ in found.items() if range_ is not None}


def _range_of(
    model: Model, nodes: Nodes, plan: Plan, ranges: Mapping[str, Range], key: str | Operand
) -> Range | None:
    """What a member adds to the range of its group; None if it is made of others in it."""
    if isinstance(key, tuple):
        values = _stored(model, nodes, key)
        return Range(float(values.min(initial=0)), float(values.max(initial=0)))
    if key in plan.fixed:
        return Range(*plan.fixed[key])
    if key not in plan.observed:
        return None
    if key not in ranges:
        raise ModelError(f"tensor {key!r} has no range; run calibrate on the model as it is now")
    return ranges[key]


def uses_by_weight(nodes: Nodes, plan: Plan) -> dict[str, list[WeightUse]]:
    """The quantized layers of each stored weight; more than one where it is shared."""
    uses: dict[str, list[WeightUse]] = {}
    for use in plan.layers.values():
        uses.setdefault(nodes[use.node].inputs[use.weight].name, []).append(use)
    return uses


def weight_parameters(
    model: Model,
    plan: Plan,
    activations: Mapping[str, QuantParams],
    target: Target,
    *,
    per_channel: bool | None = None,
    reduce_range: bool | None = None,
) -> dict[str, QuantParams]:
    """int8 parameters of each weight: wide enough for the int32 biases of all its layers.

    Args:
        model: holds the weights.
        plan: of the model.
        activations: {tensor: parameters}.
        target: the profile.
        per_channel: a scale for each output, where all layers of a weight have the same axis and
            the target takes it of their operators; None: as the target has it.
        reduce_range: -64..64 instead of -127..127; None: as the target has it.
    """
    by_channel = target.per_channel if per_channel is None else per_channel
    reduced = target.reduces_range if reduce_range is None else reduce_range
    nodes = {n.name: n for n in model.nodes()}
    params = {}
    for name, uses in uses_by_weight(nodes, plan).items():
        weight = _stored(model, nodes, (uses[0].node, uses[0].weight))
        axes = {channel_axis(nodes[use.node], use, target) for use in uses}
        axis = axes.pop() if by_channel and len(axes) == 1 else None
        params[name] = weight_params(weight, axis, reduce_range=reduced)
        biased = [use for use in uses if use.node in plan.biases]
        if biased and target.bias_dtype == "int32":
            peak = weight_absmax(weight, axis)
            beside = [_beside_bias(model, nodes, plan, use, activations) for use in biased]
            scales = [weight_scale_for_bias(peak, *b, reduce_range=reduced) for b in beside]
            params[name] = QuantParams.symmetric(np.max(scales, axis=0), axis=axis)
    return params


def _beside_bias(
    model: Model, nodes: Nodes, plan: Plan, use: WeightUse, activations: Mapping[str, QuantParams]
) -> tuple[Array, float, Range | None]:
    """A layer's bias, the scale of its input and the range of its output."""
    bias = _stored(model, nodes, plan.biases[use.node])
    data = activations[nodes[use.node].inputs[use.data].name]
    output = activations.get(plan.outputs[use.node])
    span = output.interval if output is not None else None
    return np.broadcast_to(bias.reshape(-1), use.outputs), float(data.scale), span


def _stored(model: Model, nodes: Nodes, at: Operand) -> Array:
    return model.weight(nodes[at[0]].inputs[at[1]])
