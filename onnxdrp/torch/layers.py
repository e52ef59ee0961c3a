"""The table of a PyTorch model's layers: the same rows, and the same rules, as of an ONNX model.

A layer is the first if no other comes before it in the data flow of a forward pass, the last if
none comes after it; networks with several heads have several. The multiply-adds are those of one
sample, summed over all calls of the layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from onnxdrp.geometry import WeightGeometry
from onnxdrp.layers import Layer
from onnxdrp.patterns import Pattern, parse_pattern
from onnxdrp.refusals import refusals
from onnxdrp.summary import Summary, summarize
from onnxdrp.torch.masking import parameter, weight_array
from onnxdrp.torch.tracing import Traced, layers_of, trace
from onnxdrp.training.rows import TrainedLayer

__all__ = ["geometry_of", "info"]


def geometry_of(module: nn.Module, block: int = 32) -> WeightGeometry:
    """How patterns see the weight of a Conv2d [Cout, Cin/g, kh, kw] or a Linear [out, in]."""
    shape = tuple(parameter(module).shape)
    if isinstance(module, nn.Linear):
        return WeightGeometry.gemm(shape, trans_b=True, block=block)
    if 1 < module.groups == module.in_channels:
        return WeightGeometry.depthwise_conv(shape, block)
    return WeightGeometry.conv(shape, module.groups, block)


def info(
    model: nn.Module,
    input_size: Sequence[tuple[int, ...]] | None = None,
    input_data: Sequence[Any] | Mapping[str, Any] | None = None,
    pattern: str | Pattern = "flex-nm",
    *,
    prune_last: bool = False,
    prune_dwise: bool = False,
) -> Summary:
    """The layers in the order in which they run: shapes, sparsity, multiply-adds, why not pruned.

    Args:
        model: is run once, and left as it is.
        input_size: a shape, batch first, for each input; or
        input_data: the arguments of `forward` in a list, or by name.
        pattern: whose rules say what is prunable.
        prune_last: the last layers are prunable, too.
        prune_dwise: depthwise layers are.

    Returns:
        What `onnxdrp.info` returns for an ONNX model; shapes have no batch. Layers that did not
        run are its last rows, without shapes.

    Raises:
        OptionError: both or none of the inputs, or an unknown pattern.
        DataError: the model does not run on the input.
        ModelError: it has neither Conv2d nor Linear.
    """
    traced, idle = trace(model, input_size, input_data)
    rules = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    modules = layers_of(model)
    behind = set().union(*(seen.before - {seen.name} for seen in traced))
    owners: dict[int, str] = {}
    for name, module in modules.items():
        owners.setdefault(id(parameter(module)), name)
    ran = {seen.name: seen for seen in traced}
    found = [
        _layer(name, modules[name], ran.get(name), behind, owners, rules.block)
        for name in (*ran, *idle)
    ]
    why_not = refusals(found, rules, prune_last=prune_last, prune_depthwise=prune_dwise)
    rows = [
        summarize(x, np.asarray(weight_array(modules[x.name]) != 0), why_not.get(x.name, ""))
        for x in found
    ]
    return Summary(rows, rules.name)


def _layer(
    name: str,
    module: nn.Module,
    seen: Traced | None,
    behind: set[str],
    owners: Mapping[int, str],
    block: int,
) -> Layer:
    weight = parameter(module)
    bias = 0 if module.bias is None else module.bias.numel()
    return TrainedLayer(
        name=name,
        op=type(module).__name__,
        stored=None,
        geometry=geometry_of(module, block) if seen is not None else None,
        weights=weight.numel(),
        params=weight.numel() + bias,
        groups=getattr(module, "groups", 1),
        first=seen is not None and not seen.before - {name},
        last=seen is not None and name not in behind,
        barred="" if seen is not None else "did not run: the input given does not reach it",
        input_shape=None if seen is None else _sample(seen.input_shape, module),
        output_shape=None if seen is None else _sample(seen.output_shape, module),
        baseline_mac=None if seen is None else round(seen.positions * weight.numel()),
        why_no_mac="" if seen is not None else "it did not run",
        parameter=owners[id(weight)],
    )


def _sample(shape: tuple[int, ...], module: nn.Module) -> tuple[int, ...]:
    """Without the batch, where there is one."""
    return shape[1:] if len(shape) > (3 if isinstance(module, nn.Conv2d) else 1) else shape
