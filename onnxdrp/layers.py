"""The layers of a model: where their weights are stored, how patterns see them, what they cost.

A layer is a Conv, Gemm or MatMul (and ConvTranspose, which is counted and never pruned). The
*first* layers have no layer with weights among their ancestors in the graph, the *last* ones none
among their descendants. A reason why a layer is not pruned reads "kind: detail".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import ModelError
from onnxdrp.flow import Flow
from onnxdrp.geometry import WeightGeometry
from onnxdrp.macs import Shape, batch_of, multiply_adds, shape_of
from onnxdrp.model import Model
from onnxdrp.stored import Readers, Stored, find_stored

__all__ = ["Layer", "by_weight", "layers"]

_PRUNABLE = {"Conv", "Gemm", "MatMul"}
_KINDS = {*_PRUNABLE, "ConvTranspose"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One node with weights, or a product of two activations, as far as the graph tells.

    Attributes:
        name: of the node.
        op: its operator.
        stored: its weight; None where that is not stored.
        geometry: how patterns see the weight; None where they cannot.
        weights: number of weights as far as known, else 0.
        params: weights and bias.
        groups: of a Conv, else 1.
        first: no layer comes before it.
        last: no layer comes after it.
        barred: why it cannot be pruned whatever the options, or "".
        input_shape: of its activations; None where unknown.
        output_shape: of its output; None where unknown.
        baseline_mac: multiply-adds for one image, zeros counted; None where unknown.
        why_no_mac: why that is None, or "".
    """

    name: str
    op: str
    stored: Stored | None
    geometry: WeightGeometry | None
    weights: int
    params: int
    groups: int
    first: bool
    last: bool
    barred: str
    input_shape: Shape
    output_shape: Shape
    baseline_mac: int | None
    why_no_mac: str

    @property
    def weight(self) -> str | None:
        """The name of the stored weight, by which rates and masks are kept."""
        return None if self.stored is None else self.stored.name

    @property
    def depthwise(self) -> bool:
        """Whether it is a grouped Conv with one input channel a group."""
        return self.geometry is not None and self.geometry.depthwise

    def nonzero(self, model: Model) -> npt.NDArray[np.bool_] | None:
        """Where its weight is not zero; None where it is not stored."""
        return None if self.stored is None else self.stored.nonzero(model)

    def mac(self, slots: int) -> int | None:
        """Multiply-adds for one image if `slots` of its weights take part; None where unknown."""
        if self.baseline_mac is None or not self.weights:
            return self.baseline_mac
        return self.baseline_mac * slots // self.weights


def by_weight(found: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers of each stored weight; more than one where it is shared."""
    users: dict[str, list[Layer]] = {}
    for layer in found:
        if layer.weight is not None:
            users.setdefault(layer.weight, []).append(layer)
    return users


def layers(model: Model, block: int = 32) -> list[Layer]:
    """Every layer, in the order of the nodes; those inside If and Loop bodies after their node.

    The values of weights are not read. The time is linear in the number of nodes.

    Args:
        model: is not changed.
        block: input channels of a slab, for the geometry.
    """
    flow, nodes = Flow(model), model.graph.nodes
    sides = {i: _side(n, flow.is_activation) for i, n in enumerate(nodes) if _is_layer(n)}
    trunk = [
        i
        for i, side in sides.items()
        if side is not None and nodes[i].op in _PRUNABLE and flow.is_activation(nodes[i].outputs[0])
    ]
    below, above = flow.descendants(trunk), flow.ancestors(trunk)
    look = _Look(model, block)
    found = []
    for i, node in enumerate(nodes):
        if i in sides:
            found.append(look.at(node, sides[i], i not in below, i not in above))
        found += look.inside(node)
    return _bar_shared(found, look.readers)


def _is_layer(node: gs.Node) -> bool:
    return node.op in _KINDS and node.domain in (None, "", "ai.onnx") and len(node.inputs) > 1


def _side(node: gs.Node, is_activation: Callable[[gs.Tensor], bool]) -> int | None:
    """Which input of a layer is its weight; None if all depend on what the user feeds."""
    sides = (1,) if node.op in ("Conv", "ConvTranspose") else (1, 0)
    return next((i for i in sides if not is_activation(node.inputs[i])), None)


class _Look:
    """Makes Layers of the nodes of one model."""

    def __init__(self, model: Model, block: int) -> None:
        self.model = model
        self.block = block
        self.batch = batch_of(model)
        self.readers = Readers(model)

    def at(self, node: gs.Node, side: int | None, first: bool, last: bool) -> Layer:
        stored, barred = self._stored(node, side)
        shape = self._weight_shape(node, side, stored)
        geometry: WeightGeometry | str = barred
        if not barred and stored is not None and side is not None:
            geometry = _geometry(node, stored.shape, side, self.block)
        macs = multiply_adds(node, shape, side, self.batch)
        weights = 0 if shape is None else math.prod(shape)
        return Layer(
            name=node.name,
            op=node.op,
            stored=stored,
            geometry=None if isinstance(geometry, str) else geometry,
            weights=weights,
            params=weights + self._bias(node, side, shape),
            groups=node.attrs.get("group", 1),
            first=first,
            last=last,
            barred=geometry if isinstance(geometry, str) else "",
            input_shape=shape_of(node.inputs[1 if side == 0 else 0]),
            output_shape=shape_of(node.outputs[0]),
            baseline_mac=None if isinstance(macs, str) else macs,
            why_no_mac=macs if isinstance(macs, str) else "",
        )

    def inside(self, node: gs.Node) -> Iterator[Layer]:
        """The layers in the bodies of a node: they are counted and left as they are."""
        for body in node.subgraphs(recursive=True):
            for inner in filter(_is_layer, body.nodes):
                layer = self.at(inner, _side(inner, self._is_not_stored), False, False)
                where = f"layer in a body: of {node.op} {node.name!r}, left as it is"
                yield replace(layer, geometry=None, barred=where)

    def _is_not_stored(self, tensor: gs.Tensor) -> bool:
        return isinstance(find_stored(self.model, tensor), str)

    def _stored(self, node: gs.Node, side: int | None) -> tuple[Stored | None, str]:
        if side is None:
            return None, "no weights: both factors are activations"
        found = find_stored(self.model, node.inputs[side])
        if isinstance(found, str):
            return None, found
        if isinstance(node.inputs[1 - side], gs.Constant):
            return found, "constant operation: nothing of it is fed; run fold-constants first"
        return found, ""

    def _weight_shape(
        self, node: gs.Node, side: int | None, stored: Stored | None
    ) -> tuple[int, ...] | None:
        if stored is not None:
            return stored.shape
        known = None if side is None else shape_of(node.inputs[side])
        sizes = [d for d in known or () if isinstance(d, int)]
        return tuple(sizes) if known is not None and len(sizes) == len(known) else None

    def _bias(self, node: gs.Node, side: int | None, shape: tuple[int, ...] | None) -> int:
        """Stored values that are added to its output; for a MatMul by the Add that follows it."""
        if node.op != "MatMul":
            return self._size(node.inputs[2]) if len(node.inputs) > 2 else 0
        if side is None or shape is None or len(shape) != 2:
            return 0
        outputs = shape[1] if side == 1 else shape[0]
        followers = self.readers.through_casts(node.outputs[0])
        if len(followers) != 1 or followers[0].op != "Add":
            return 0
        return outputs if outputs in map(self._size, followers[0].inputs) else 0

    def _size(self, tensor: gs.Tensor) -> int:
        if tensor.is_empty():
            return 0
        found = find_stored(self.model, tensor)
        return 0 if isinstance(found, str) else math.prod(found.shape)


def _geometry(node: gs.Node, shape: tuple[int, ...], side: int, block: int) -> WeightGeometry | str:
    """How patterns see a stored weight, or why they cannot."""
    if node.op == "ConvTranspose":
        return "ConvTranspose: counted, never pruned"
    groups = node.attrs.get("group", 1)
    if node.op != "Conv" and len(shape) != 2:
        many = "batched weight" if len(shape) > 2 else "weight without two axes"
        return f"{many}: its shape is {list(shape)}"
    try:
        if node.op == "Conv" and groups > 1 and shape[1] == 1:
            return WeightGeometry.depthwise_conv(shape, block)
        if node.op == "Conv":
            return WeightGeometry.conv(shape, groups, block)
        turned = bool(node.attrs.get("transB" if side == 1 else "transA", 0))
        return WeightGeometry.gemm(shape, trans_b=(side == 0) != turned, block=block)
    except ModelError as e:
        return f"weight of another shape: {e}"


def _bar_shared(found: list[Layer], readers: Readers) -> list[Layer]:
    """Bar the layers whose weight is read otherwise too, or seen in two ways by its layers."""
    barred: dict[str, str] = {}
    for weight, users in by_weight(found).items():
        stored = users[0].stored
        if stored is None:
            continue
        seen = {layer.geometry for layer in users if layer.geometry is not None}
        why = readers.besides(stored, {layer.name for layer in users})
        if len(seen) > 1:
            names = " and ".join(repr(layer.name) for layer in users)
            why = f"shared weight: {names} see it in different geometries"
        if why:
            barred[weight] = why
    return [
        replace(layer, geometry=None, barred=barred[layer.weight])
        if layer.weight in barred and not layer.barred
        else layer
        for layer in found
    ]
