"""What a report says layer by layer, tensor by tensor and mask by mask, as JSON can hold it.

    model     what came in and what went out: nodes, opset, inputs, outputs
    layers    a row a layer of the result: shapes, parameters, zeros, multiply-adds
              before and after, precision, the range of its activation, its error, why it was left
    ranges    a row a calibrated tensor: its range, what was seen, how much lies outside, a coarse
              histogram, and the integers that it became
    masks     a small picture of each: the share that is kept, place by place
    graph     its nodes and links (onnxdrp.graph_figures)

The error of a layer is measured on a few samples of the data that was held back, between the model
that came in and the result; what it lets through to the outputs is in the summary.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError
from onnxdrp.evaluation import Comparison, compare_models
from onnxdrp.geometry import WeightGeometry
from onnxdrp.graph_figures import graph_figures
from onnxdrp.layers import by_weight, layers
from onnxdrp.observe import BadSample
from onnxdrp.pictures import kept_shares
from onnxdrp.summary import LayerSummary, Summary, summarize_layers

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxdrp.datareaders import DataReader
    from onnxdrp.masks import Mask
    from onnxdrp.model import Model
    from onnxdrp.pipeline import PassContext

__all__ = ["describe", "mask_picture"]

_SAMPLES = 8  # on which layers are compared
_ROWS, _COLUMNS = 32, 64  # of the picture of a mask, at most
_LEVELS = 15  # of its shares: one hexadecimal digit each
_FOLLOWED = 4  # nodes behind a layer that may be computed with it


def describe(
    original: "Model",
    model: "Model",
    ctx: "PassContext",
    found: Summary,
    held_out: "DataReader | None",
    *,
    skip_bad_samples: bool = False,
) -> dict[str, Any]:
    """The tables above; those without anything to say are left out.

    Args:
        original: the model before the run.
        model: after it.
        ctx: of the run.
        found: the layers of `model`.
        held_out: data on which the layers of both are compared; None: no errors of layers. Where
            channels are gone, those that are left are compared.
        skip_bad_samples: leave samples that give NaN or infinity out.
    """
    errors: tuple[Comparison, int] | None = None
    compared: dict[str, Any] = {}
    if held_out is not None:
        before = original if ctx.slim is None else ctx.dense or original
        try:
            errors = _compare(before, model, held_out, skip_bad_samples)
            compared = {"samples": errors[1], "verdict": errors[0].verdict}
        except DataError as e:  # files may be gone since the run, which has judged its outputs
            compared = {"why_not": str(e)}
    tables: dict[str, Any] = {
        "model": {"before": _outline(original), "after": _outline(model)},
        "layers": _layer_rows(original, model, ctx, found, errors),
        "layer_errors": compared,
        "ranges": _ranges(ctx),
        "masks": _masks(ctx.masks, ctx.slim or ctx.dense or model),
        "graph": graph_figures(
            model,
            {layer.name: i for i, layer in enumerate(found.layers, 1)},
            None if errors is None else errors[0],
        ),
    }
    return {name: table for name, table in tables.items() if table}


def _outline(model: "Model") -> dict[str, Any]:
    def told(tensors: Iterable[Any]) -> dict[str, Any]:
        return {t.name: {"shape": _plain(t.shape), "dtype": str(t.dtype)} for t in tensors}

    return {
        "file": "" if model.path is None else model.path.name,
        "nodes": len(model.nodes()),
        "opset": model.opset,
        "inputs": told(model.inputs),
        "outputs": told(model.outputs),
    }


def _plain(shape: tuple[int | str | None, ...] | None) -> list[int | str | None] | None:
    return None if shape is None else list(shape)


# ----------------------------------------------------------------------------------------- layers


def _compare(
    original: "Model",
    model: "Model",
    held_out: "DataReader",
    skip_bad_samples: bool,
) -> tuple[Comparison, int]:
    """The tensors that both models compute, and on how many samples."""
    from onnxdrp.datareaders import subset, take

    count = held_out.samples
    if count is None:
        few, samples = take(held_out, _SAMPLES), _SAMPLES
    else:
        samples = min(count, _SAMPLES)
        few = subset(held_out, np.linspace(0, count - 1, samples).astype(np.int64))
    bad: list[BadSample] = []
    on_bad = bad.append if skip_bad_samples else None
    return compare_models(original, model, few, layers=True, on_bad=on_bad), samples


def _layer_rows(
    original: "Model",
    model: "Model",
    ctx: "PassContext",
    found: Summary,
    errors: tuple[Comparison, int] | None,
) -> list[dict[str, Any]]:
    nodes = {node.name: node for node in model.nodes()}
    before = {} if ctx.slim is None else _multiply_adds(original)
    compared = {}
    if errors is not None:
        compared = {tensor: error for _, _, tensor, error in errors[0].layers} | errors[0].outputs
    ranges = {} if ctx.calibration is None else ctx.calibration.tensors
    rows = []
    for layer in found.layers:
        row = _sizes(layer) | {"mac_before": before.get(layer.name, layer.baseline_mac)}
        if layer.name in nodes:
            node = nodes[layer.name]
            row |= _precision(node)
            chain = list(_followed(node))
            row["tensor"] = chain[0]
            if tensor := next((t for t in chain if t in compared), None):
                error = compared[tensor].sqnr_db
                row["sqnr_db"] = error if np.isfinite(error) else str(error)
                row["cosine"] = compared[tensor].cosine
            if tensor := next((t for t in chain if t in ranges), None):
                row["range"] = [ranges[tensor].low, ranges[tensor].high]
        if layer.name in ctx.kept_float:
            row["why_float"] = ctx.kept_float[layer.name]
        rows.append(row)
    return rows


def _sizes(layer: LayerSummary) -> dict[str, Any]:
    told = layer.as_dict()
    names = ("name", "op", "input_shape", "output_shape", "params", "sparsity", "why_not")
    return {name: told[name] for name in names} | {
        "weight": layer.weight,
        "mac_before": layer.baseline_mac,
        "mac_after": layer.current_mac,
    }


def _multiply_adds(model: "Model") -> dict[str, int | None]:
    """{layer: multiply-adds}; only what lost channels had others than it has now."""
    return {layer.name: layer.baseline_mac for layer in summarize_layers(model).layers}


def _precision(node: "gs.Node") -> dict[str, list[str]]:
    """The types of a layer's two factors, as stored or rounded, in the order it reads them."""
    types = []
    for tensor in node.inputs[:2]:
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is not None and maker.op == "DequantizeLinear":
            tensor = maker.inputs[2 if len(maker.inputs) > 2 else 0]  # the zero point has its type
        if tensor.dtype is not None:
            types.append(np.dtype(tensor.dtype).name)
    return {"precision": types} if types else {}


def _followed(node: "gs.Node") -> Iterator[str]:
    """The tensor that a layer gives, then those of the nodes that alone read it."""
    for _ in range(_FOLLOWED):
        tensor = node.outputs[0]
        yield str(tensor.name)
        if len(tensor.outputs) != 1:
            return
        node = tensor.outputs[0]


# ----------------------------------------------------------------------------------------- ranges


def _ranges(ctx: "PassContext") -> dict[str, Any] | None:
    if ctx.calibration is None:
        return None
    tensors = {}
    for name, tensor in ctx.calibration.tensors.items():
        row: dict[str, Any] = {
            key: getattr(tensor, key)
            for key in ("low", "high", "min", "max", "count")
            if getattr(tensor, key) is not None
        }
        if params := ctx.quantization.get(name):
            row |= {"dtype": params.dtype, "scale": params.scale, "zero_point": params.zero_point}
        tensors[name] = row | ctx.histograms.get(name, {})
    told = {"method": ctx.calibration.method, "samples": ctx.calibration.samples}
    return told | {"tensors": tensors} if tensors else None


# ------------------------------------------------------------------------------------------ masks


def _masks(masks: "Mapping[str, Mask]", whole: "Model") -> dict[str, Any]:
    users = by_weight(layers(whole))
    return {
        name: {
            "shape": list(mask.shape),
            "kept": mask.count,
            "picture": mask_picture(mask.keep, users[name][0].geometry if name in users else None),
        }
        for name, mask in masks.items()
    }


def mask_picture(keep: npt.NDArray[np.bool_], geometry: WeightGeometry | None = None) -> list[str]:
    """A mask as lines of hexadecimal digits: 0, nothing is kept there, to f, everything.

    A line is some outputs, a digit some input channels at one kernel position: the order in which
    patterns see the weight. There are at most 32 lines of 64 digits.

    Args:
        keep: bool, of the weight's shape.
        geometry: of the weight; None: its first axis is of outputs, the second of inputs.
    """
    if not keep.size:
        return []
    shares = kept_shares(keep, geometry, (_ROWS, _COLUMNS))
    return ["".join(f"{level:x}" for level in row) for row in _digits(shares).tolist()]


def _digits(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Shares as levels; only what is all or nothing has the first or the last."""
    levels = np.rint(shares * _LEVELS).astype(np.int64)
    levels[(shares > 0) & (levels == 0)] = 1
    levels[(shares < 1) & (levels == _LEVELS)] = _LEVELS - 1
    return levels
