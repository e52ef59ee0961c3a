"""Take channels out of a model: smaller stored tensors, and nodes that count what is left.

Exact: what is computed of the channels that stay is what was computed before, if what summed over
the others had zeros for them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.channels.groups import Channels, Removed
from onnxdrp.channels.lanes import Edit, Lane
from onnxdrp.channels.tracing import places
from onnxdrp.model import Model
from onnxdrp.passes.edit import Names, replace_uses

__all__ = ["entries", "remove", "seen_through", "without"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
_Reader = tuple[str, int]  # a node, and the place among its inputs


def remove(model: Model, channels: Channels, removed: Removed) -> dict[str, tuple[int, int]]:
    """Remove units of groups in place; {layer: output channels before and after}.

    Args:
        model: the one that the channels were found in, or a copy of it.
        channels: of it.
        removed: {group: its units}.

    Raises:
        OptionError: what cannot be removed, or nothing of a layer would be left.
    """
    alive = channels.alive(removed)
    tensors, names = model.tensors(), Names(model)
    nodes = {node.name: node for node in model.nodes()}
    _shorten(model, channels, alive, names)
    for edit in channels.trace.edits:
        lanes = (*edit.inputs.values(), *edit.outputs.values())
        if not all(alive[lane.atoms].all() for lane in lanes):
            node = nodes[edit.node]
            _EDITS[node.op](_Counted(model, names, node, edit, alive))
    for name, lane in channels.trace.lanes.items():
        if name in tensors and tensors[name].shape is not None:
            shape = list(tensors[name].shape)
            shape[lane.axis] = int(alive[lane.atoms].sum())
            tensors[name].shape = shape
    return {
        layer: (len(atoms), int(alive[atoms].sum()))
        for layer, atoms in channels.trace.made.items()
        if not alive[atoms].all()
    }


def _shorten(model: Model, channels: Channels, alive: Bools, names: Names) -> None:
    """Take entries out of stored tensors; where readers lose different ones, each has its own."""
    tensors, nodes = model.tensors(), {node.name: node for node in model.nodes()}
    watched = model.protected()
    cuts: dict[str, dict[_Reader, dict[int, Bools]]] = defaultdict(lambda: defaultdict(dict))
    for site in channels.trace.sites:
        keep = alive[site.atoms]
        if not keep.all():
            cuts[site.tensor][site.node, site.place][site.axis] = keep
    weights = {site.tensor for site in channels.trace.sites if site.weight}
    for name, by_reader in cuts.items():
        tensor = tensors[name]
        values = model.weight(tensor)
        kinds: dict[tuple[tuple[int, bytes], ...], list[_Reader]] = defaultdict(list)
        for reader, axes in by_reader.items():
            kinds[tuple((axis, axes[axis].tobytes()) for axis in sorted(axes))].append(reader)
        readers = {(n.name, i) for n in tensor.outputs for i in places(n, name)}
        alone = len(kinds) == 1 and readers == by_reader.keys() and name not in watched
        if name in weights or alone:
            axes = {axis: keep for found in by_reader.values() for axis, keep in found.items()}
            model.set_weight(tensor, without(values, axes))
            continue
        for same in kinds.values():
            left = gs.Constant(names.fresh(f"{name}_left"), without(values, by_reader[same[0]]))
            for node, place in same:
                nodes[node].inputs[place] = left


def entries(channels: Channels, alive: Bools) -> dict[str, dict[int, Bools]]:
    """{weight of a layer: {axis: which of its entries stay}}, of those that lose some."""
    found: dict[str, dict[int, Bools]] = defaultdict(dict)
    for site in channels.trace.sites:
        keep = alive[site.atoms]
        if site.weight and not keep.all():
            found[site.tensor][site.axis] = keep
    return dict(found)


def without(values: Array, axes: Mapping[int, Bools]) -> Array:
    """A smaller array, with only what stays along some axes."""
    for axis, keep in axes.items():
        values = values.compress(keep, axis=axis)
    return values


def seen_through(model: Model, channels: Channels, alive: Bools) -> Model:
    """A copy that computes the same, but whose tensors have only the channels that stay.

    Each activation that loses channels gets another name, and its own name goes to what is left of
    it: so the copy can be compared with the smaller model tensor by tensor.
    """
    seen = model.clone()
    tensors, names = seen.tensors(), Names(seen)
    for name, lane in channels.trace.lanes.items():
        keep = alive[lane.atoms]
        if keep.all() or name not in tensors:
            continue
        left = tensors[name]
        whole = gs.Variable(names.fresh(f"{name}_whole"), left.dtype, left.shape)
        (maker,) = left.inputs
        maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is left)] = whole
        replace_uses(left, whole)
        if left.shape is not None:
            shape = list(left.shape)
            shape[lane.axis] = int(keep.sum())
            left.shape = shape
        places = gs.Constant(names.fresh(f"{name}_left"), np.flatnonzero(keep))
        attrs = {"axis": lane.axis}
        node = gs.Node("Gather", names.fresh(f"{name}_gather"), attrs, [whole, places], [left])
        seen.graph.nodes.append(node)
    return seen


class _Counted:
    """A node, and what is left of the channels of its tensors."""

    def __init__(self, model: Model, names: Names, node: gs.Node, edit: Edit, alive: Bools) -> None:
        self.model, self.names, self.node, self.edit = model, names, node, edit
        self.alive = alive

    def left(self, lane: Lane, entries: slice = slice(None)) -> int:
        """How many of some entries stay."""
        return int(self.alive[lane.atoms[entries]].sum())

    def numbers(self, place: int, attribute: str) -> list[int]:
        """An attribute, or an input."""
        if attribute in self.node.attrs:
            return [int(n) for n in np.atleast_1d(self.node.attrs[attribute])]
        return [int(n) for n in self.model.weight(self.node.inputs[place]).reshape(-1)]

    def put(self, place: int, attribute: str, numbers: list[int]) -> None:
        """The same with other numbers; in a tensor of its own."""
        if attribute in self.node.attrs:
            self.node.attrs[attribute] = numbers
            return
        given = place < len(self.node.inputs) and self.node.inputs[place].name
        dtype = self.model.weight(self.node.inputs[place]).dtype if given else np.int64
        name = self.names.fresh(f"{self.node.name}_{attribute}")
        constant = gs.Constant(name, np.array(numbers, dtype))
        if place < len(self.node.inputs):
            self.node.inputs[place] = constant
        else:
            self.node.inputs.append(constant)

    def place(self, axes_place: int, axis: int) -> int:
        """Where an axis stands in the lists of the node."""
        given = "axes" in self.node.attrs or (
            axes_place < len(self.node.inputs) and self.node.inputs[axes_place].name
        )
        if not given:
            return axis
        shape = self.node.inputs[0].shape
        axes = [a % len(shape) for a in self.numbers(axes_place, "axes")]
        return axes.index(axis)


def _groups(at: _Counted) -> None:
    at.node.attrs["group"] = at.left(at.edit.inputs[0])


def _reshape(at: _Counted) -> None:
    """The sizes of what has channels are given as numbers; -1 is right as it is."""
    (given,), (after,) = at.edit.inputs.values(), at.edit.outputs.values()
    sizes = at.numbers(1, "shape")
    for axis, size in enumerate(sizes):
        if axis == after.axis and size >= 0:
            sizes[axis] = at.left(after)
        elif axis == given.axis and size == 0:  # it copied what will be another size
            sizes[axis] = len(given.atoms)
    at.put(1, "shape", sizes)


def _expand(at: _Counted) -> None:
    (lane,) = at.edit.outputs.values()
    sizes, rank = at.numbers(1, "shape"), len(at.node.inputs[0].shape)
    place = lane.axis - max(rank - len(sizes), 0)
    if place >= 0 and sizes[place] > 1:
        sizes[place] = at.left(lane)
        at.put(1, "shape", sizes)


def _flatten(_at: _Counted) -> None:
    """Counts for itself."""


def _resize(at: _Counted) -> None:
    if len(at.node.inputs) > 3 and at.node.inputs[3].name:
        (lane,) = at.edit.outputs.values()
        sizes, rank = at.numbers(3, "sizes"), len(at.node.inputs[0].shape)
        axes = [a % rank for a in at.node.attrs.get("axes", range(rank))]
        sizes[axes.index(lane.axis)] = at.left(lane)
        at.put(3, "sizes", sizes)


def _split(at: _Counted) -> None:
    at.node.attrs.pop("num_outputs", None)
    sizes = [at.left(lane) for lane in at.edit.outputs.values()]
    if at.model.opset < 13:
        at.node.attrs["split"] = sizes
    else:
        at.put(1, "split", sizes)


def _slice(at: _Counted) -> None:
    before, after = at.edit.inputs[0], at.edit.outputs[0]
    place = at.place(3, before.axis)
    starts, ends = at.numbers(1, "starts"), at.numbers(2, "ends")
    start = slice(starts[place], ends[place]).indices(len(before.atoms))[0]
    starts[place] = at.left(before, slice(start))
    ends[place] = starts[place] + at.left(after)
    at.put(1, "starts", starts)
    at.put(2, "ends", ends)


def _gather(at: _Counted) -> None:
    before, after = at.edit.inputs[0], at.edit.outputs[0]
    where = np.cumsum(at.alive[before.atoms]) - 1
    indices = at.model.weight(at.node.inputs[1])[at.alive[after.atoms]]
    at.put(1, "indices", where[indices].tolist())


def _pad(at: _Counted) -> None:
    before, after = at.edit.inputs[0], at.edit.outputs[0]
    pads = at.numbers(1, "pads")
    place = at.place(3, before.axis)
    front = pads[place]
    pads[place] = at.left(after, slice(front))
    pads[place + len(pads) // 2] = at.left(after, slice(front + len(before.atoms), None))
    at.put(1, "pads", pads)


_EDITS: dict[str, Callable[[_Counted], None]] = {
    "Conv": _groups,
    "ConvTranspose": _groups,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Upsample": _flatten,
}
