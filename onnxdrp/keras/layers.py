"""The table of a Keras model's layers: the same rows, and the same rules, as of an ONNX model.

A layer is the first if no other comes before it in the graph of the model, the last if none comes
after it; networks with several heads have several. The multiply-adds are those of one sample,
summed over all calls of the layer.
"""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from onnxdrp.keras.graph import Traced, trace
from onnxdrp.keras.pruner import wrappers
from onnxdrp.keras.wrapper import (
    NO_KERNEL,
    PruneLowMagnitude,
    array_of,
    geometry_of,
    kernel_of,
)
from onnxdrp.layers import Layer
from onnxdrp.patterns import Pattern, parse_pattern
from onnxdrp.refusals import refusals
from onnxdrp.summary import Summary, summarize
from onnxdrp.training.rows import TrainedLayer

__all__ = ["info"]


def info(
    model: keras.Model,
    pattern: str | Pattern = "flex-nm",
    *,
    prune_last: bool = False,
    prune_dwise: bool = False,
) -> Summary:
    """The layers in the order in which they run: shapes, sparsity, multiply-adds, why not pruned.

    Args:
        model: functional or sequential, pruned or not.
        pattern: whose rules say what is prunable.
        prune_last: the last layers are prunable, too.
        prune_dwise: depthwise layers are.

    Returns:
        What `onnxdrp.info` returns for an ONNX model; shapes have no batch. Layers of models that
        stand in the model as layers have names OUTER/INNER.

    Raises:
        OptionError: an unknown pattern, or it is no Keras model.
        ModelError: it is subclassed, not built, or has neither Conv2D nor Dense.
    """
    traced = trace(model)
    rules = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    behind = set().union(*(seen.before - {seen.name} for seen in traced))
    held = wrappers(model)
    found = [_layer(seen, behind, rules.block) for seen in traced]
    why_not = refusals(found, rules, prune_last=prune_last, prune_depthwise=prune_dwise)
    rows = [
        summarize(row, _nonzero(seen.layer, held), why_not.get(row.name, ""))
        for seen, row in zip(traced, found, strict=True)
    ]
    return Summary(rows, rules.name)


def _layer(seen: Traced, behind: set[str], block: int) -> Layer:
    layer, kernel = seen.layer, kernel_of(seen.layer)
    barred = f"layer in a layer: of {seen.holder}, left as it is" if seen.holder else ""
    if kernel is None:
        barred = barred or f"kernel is no variable: {NO_KERNEL}"
    weights = 0 if kernel is None else math.prod(kernel.shape)
    bias = getattr(layer, "bias", None)
    positions = _positions(seen)
    return TrainedLayer(
        name=seen.name,
        op=type(layer).__name__,
        stored=None,
        geometry=None if barred else geometry_of(layer, block),
        weights=weights,
        params=weights + (0 if bias is None else math.prod(bias.shape)),
        groups=getattr(layer, "groups", 1),
        first=not seen.before - {seen.name},
        last=seen.name not in behind,
        barred=barred,
        input_shape=None if seen.input_shape is None else seen.input_shape[1:],
        output_shape=None if seen.output_shape is None else seen.output_shape[1:],
        baseline_mac=None if isinstance(positions, str) else positions * weights,
        why_no_mac=positions if isinstance(positions, str) else "",
        parameter=seen.name,  # layers that share a weight are one layer in Keras
    )


def _positions(seen: Traced) -> int | str:
    """Places that the weight is applied to for one sample, over all calls; or why not known."""
    if seen.holder:
        return "it stands in a layer"
    places = [_places(seen.layer, shape) for shape in seen.calls]
    if any(side is None for place in places for side in place):
        return "the model's input has no fixed size"
    return sum(math.prod(side or 1 for side in place) for place in places)


def _places(layer: Any, output: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if isinstance(layer, keras.layers.Dense):
        return output[1:-1]
    return output[2:] if layer.data_format == "channels_first" else output[1:-1]


def _nonzero(layer: Any, held: Mapping[int, PruneLowMagnitude]) -> npt.NDArray[np.bool_] | None:
    """Where the weight that the layer computes with is not zero, as the geometry has it."""
    kernel = kernel_of(layer)
    if kernel is None:
        return None
    nonzero: npt.NDArray[np.bool_] = array_of(kernel) != 0
    if id(layer) in held:
        nonzero &= held[id(layer)].keep
    return nonzero.reshape(geometry_of(layer).shape)
