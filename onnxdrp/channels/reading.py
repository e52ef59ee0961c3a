"""The layers that sum over channels, as products of matrices whose columns are known by unit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.channels.groups import Channels
from onnxdrp.channels.lanes import Ints
from onnxdrp.model import Model
from onnxdrp.stored import Stored, find_stored
from onnxdrp.unfold import Unfolding

__all__ = ["Reader", "read_by_group", "readers_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over channels.

    Attributes:
        name: of the layer.
        data: the tensor that it reads.
        axis: of that, along which the channels lie.
        matrix: its weights [g, m, k].
        units: the number of the unit of each column, over the whole model, [g, k]; -1 for columns
            that are of none.
        unfolding: how it meets its weight; None for a ConvTranspose, which is none.
    """

    name: str
    data: str
    axis: int
    matrix: Array
    units: Ints
    unfolding: Unfolding | None


def readers_of(model: Model, channels: Channels) -> list[Reader]:
    """The layers that sum over channels which could be removed, in the order of the nodes.

    Args:
        model: is not changed.
        channels: of it.
    """
    summing = {site.node for site in channels.trace.sites if site.role == "read"}
    found = (_reader(model, channels, n) for n in model.nodes() if n.name in summing)
    return [reader for reader in found if (reader.units >= 0).any()]


def read_by_group(model: Model, channels: Channels) -> dict[str, list[tuple[str, str]]]:
    """{group: [(layer that sums over it, the activation that it reads)]}, in the order of nodes."""
    nodes, lanes = {node.name: node for node in model.nodes()}, channels.trace.lanes

    def data(layer: str) -> str:
        return next(str(t.name) for t in nodes[layer].inputs[:2] if t.name in lanes)

    return {
        group.name: [(layer, data(layer)) for layer in group.readers]
        for group in channels.groups
        if group.readers
    }


def _reader(model: Model, channels: Channels, node: gs.Node) -> Reader:
    units = channels.unit[channels.trace.read[node.name]]
    if node.op == "ConvTranspose":
        groups = int(node.attrs.get("group", 1))
        weight = _values(model, node.inputs[1])
        matrix = weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)
        return Reader(node.name, node.inputs[0].name, 1, matrix, units.reshape(groups, -1), None)
    way = Unfolding.of(model, node)
    matrix = way.matrix(_values(model, node.inputs[1 - way.data]))
    each = units.reshape(way.groups, -1)
    columns = np.tile(each, (1, way.columns // each.shape[1]))
    return Reader(node.name, node.inputs[way.data].name, way.data_axis, matrix, columns, way)


def _values(model: Model, weight: gs.Tensor) -> Array:
    stored = find_stored(model, weight)
    assert isinstance(stored, Stored), "the weight of a layer that is followed is stored"
    return stored.values(model)
