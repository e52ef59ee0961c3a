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
from onnxdrp.model import Model
from onnxdrp.passes.edit import Names, replace_uses

__all__ = ["remove"]

__all__ = ["entries", "remove", "seen_through", "without"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


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
    tensors = model.tensors()
    for name, axes in entries(channels, alive).items():
        model.set_weight(tensors[name], without(model.weight(tensors[name]), axes))
    nodes = {node.name: node for node in model.nodes()}
    for edit in channels.trace.edits:
        lanes = (*edit.inputs.values(), *edit.outputs.values())
        if not all(alive[lane.atoms].all() for lane in lanes):
            node = nodes[edit.node]
            _EDITS[node.op](_Counted(model, node, edit, alive))
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


def entries(channels: Channels, alive: Bools) -> dict[str, dict[int, Bools]]:
    """{stored tensor: {axis: which of its entries stay}}, of those that lose some."""
    found: dict[str, dict[int, Bools]] = defaultdict(dict)
    for site in channels.trace.sites:
        keep = alive[site.atoms]
        if not keep.all():
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

    def __init__(self, model: Model, node: gs.Node, edit: Edit, alive: Bools) -> None:
        self.model, self.node, self.edit, self.alive = model, node, edit, alive

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
        name = self.model.unique_name(f"{self.node.name}_{attribute}")
        constant = gs.Constant(name, np.array(numbers, np.int64))
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


def _size_in(place: int, attribute: str) -> Callable[[_Counted], None]:
    """A list of sizes has that of the channels, unless it says "what is left", or "as before"."""

    def edit(at: _Counted) -> None:
        (lane,) = at.edit.outputs.values()
        sizes = at.numbers(place, attribute)
        if sizes[lane.axis] > 1:
            sizes[lane.axis] = at.left(lane)
            at.put(place, attribute, sizes)

    return edit


def _flatten(_at: _Counted) -> None:
    """Counts for itself."""


def _resize(at: _Counted) -> None:
    if len(at.node.inputs) > 3 and at.node.inputs[3].name:
        (lane,) = at.edit.outputs.values()
        sizes = at.numbers(3, "sizes")
        axes = at.node.attrs.get("axes")
        place = lane.axis if axes is None else [a % 4 for a in axes].index(lane.axis)
        sizes[place] = at.left(lane)
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
    "Expand": _size_in(1, "shape"),
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _size_in(1, "shape"),
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Upsample": _flatten,
}
