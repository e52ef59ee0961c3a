"""Which weight of an ONNX file is which layer of the PyTorch model that it was exported from.

Names are no help: exporters rename, and BatchNormalization folded into a Conv scales each of its
outputs. So weights are compared by their values: of two weights of one shape, seen as one row for
each output,

    likeness = sum_o |w_o . v_o| / sum_o |w_o| |v_o|        over the places that both keep

which no scale of an output changes, and which a repair after pruning changes little. 1 is the same
weight; of unrelated ones it is about sqrt(2 / pi / n), n the length of a row. Among the weights of
one shape the assignment of the greatest sum is taken (scipy.optimize.linear_sum_assignment), and
refused where a pair is not alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from torch import nn

from onnxdrp.errors import ModelError
from onnxdrp.geometry import WeightGeometry
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.torch.layers import geometry_of
from onnxdrp.torch.masking import masks, set_masks, weight_array
from onnxdrp.torch.tracing import layers_of

__all__ = ["masks_for", "reapply"]

Array = npt.NDArray[Any]

_ALIKE = 0.6  # a pair below this is not the same weight


def reapply(model: nn.Module, pruned: str | Path | Model) -> dict[str, Mask]:
    """Carry the masks of a pruned ONNX model into the PyTorch model, to retrain from there.

    Args:
        model: is given the masks (`weight_orig`, `weight_mask`); its values stay, pruned ones do
            not count any more.
        pruned: what was exported from it and pruned, repaired or not; float or quantized.

    Returns:
        {layer: mask} of those that the file prunes.

    Raises:
        ModelError: a pruned weight is like none of the model's.
    """
    onnx_model = pruned if isinstance(pruned, Model) else Model.load(pruned)
    found = {}
    for name, layer in _pairs(model, onnx_model).items():
        nonzero = _stored(layer).nonzero(onnx_model)
        if not nonzero.all():
            found[name] = Mask(_turned(nonzero, layer))
    set_masks(model, found)
    return found


def masks_for(model: nn.Module, exported: str | Path | Model) -> dict[str, Mask]:
    """The masks of a PyTorch model under the names that its weights have in an exported ONNX model.

    Args:
        model: pruned.
        exported: what was exported from it, before it was pruned or after; is not changed.

    Returns:
        {weight: mask}, for `onnxdrp.save_masks` and the pass ApplyMasks.

    Raises:
        ModelError: a pruned weight is like none of the file's.
    """
    onnx_model = exported if isinstance(exported, Model) else Model.load(exported)
    held = masks(model)
    return {
        _stored(layer).name: Mask(_turned(held[name].keep, layer))
        for name, layer in _pairs(model, onnx_model, only=list(held)).items()
        if name in held
    }


def _pairs(
    model: nn.Module, onnx_model: Model, only: Sequence[str] | None = None
) -> dict[str, Layer]:
    """{layer of the PyTorch model: layer of the ONNX model}.

    Args:
        model: the PyTorch model.
        onnx_model: the file.
        only: layers that must find theirs; None: those of the file that have zeros must.
    """
    stored = [users[0] for users in by_weight(layers(onnx_model)).values()]
    theirs: dict[WeightGeometry, list[Layer]] = {}
    for layer in stored:
        if layer.geometry is not None:
            theirs.setdefault(_upright(layer.geometry), []).append(layer)
    ours: dict[WeightGeometry, list[str]] = {}
    modules = layers_of(model)
    for name, module in modules.items():
        ours.setdefault(_upright(geometry_of(module)), []).append(name)
    pairs: dict[str, Layer] = {}
    for geometry, candidates in theirs.items():
        names = ours.get(geometry, [])
        pairs |= _assigned({name: modules[name] for name in names}, candidates, onnx_model)
    _refuse_unmatched(pairs, stored, onnx_model, only)
    return pairs


def _assigned(
    modules: Mapping[str, nn.Module], candidates: Sequence[Layer], onnx_model: Model
) -> dict[str, Layer]:
    """The pairs among weights of one geometry that are alike."""
    if not modules:
        return {}
    rows = [_rows(weight_array(module)) for module in modules.values()]
    likeness = np.array(
        [
            [_likeness(a, b) for b in rows]
            for a in (_rows(_turned(_stored(x).values(onnx_model), x)) for x in candidates)
        ]
    )
    names = list(modules)
    taken = linear_sum_assignment(likeness, maximize=True)
    pairs = zip(*(side.tolist() for side in taken), strict=True)
    return {names[j]: candidates[i] for i, j in pairs if likeness[i, j] >= _ALIKE}


def _refuse_unmatched(
    pairs: Mapping[str, Layer],
    stored: Sequence[Layer],
    onnx_model: Model,
    only: Sequence[str] | None,
) -> None:
    if only is not None:
        lost = [name for name in only if name not in pairs]
        what, where = "pruned layers of the PyTorch model", "the ONNX model"
    else:
        taken = {id(layer) for layer in pairs.values()}
        lost = [
            _stored(layer).name
            for layer in stored
            if id(layer) not in taken and not _stored(layer).nonzero(onnx_model).all()
        ]
        what, where = "pruned weights of the ONNX model", "the PyTorch model"
    if lost:
        raise ModelError(
            f"{len(lost)} {what} are like no weight of {where} ({', '.join(lost[:3])}); give the "
            "file that was exported from this model with these weights"
        )


def _stored(layer: Layer) -> Any:
    assert layer.stored is not None  # by_weight has only such layers
    return layer.stored


def _upright(geometry: WeightGeometry) -> WeightGeometry:
    """The geometry as PyTorch stores weights: outputs first."""
    if geometry.output_axis == 0:
        return geometry
    return WeightGeometry.gemm(geometry.shape[::-1], trans_b=True, block=geometry.block)


def _turned(array: Array, layer: Layer) -> Array:
    """An array of the stored weight's shape, or of the upright one, as the other."""
    assert layer.geometry is not None
    return array if layer.geometry.output_axis == 0 else array.T


def _rows(weight: Array) -> Array:
    return weight.reshape(len(weight), -1).astype(np.float64)


def _likeness(a: Array, b: Array) -> float:
    both = (a != 0) & (b != 0)
    a, b = a * both, b * both
    norms = float((np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).sum())
    return float(np.abs(np.einsum("oi,oi->o", a, b)).sum()) / norms if norms else 0.0
