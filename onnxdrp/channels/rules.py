"""How channels go through each operator: the inputs' lanes give the outputs', and sites and edits.

A rule is a function of a `View` of a node. It may tie atoms; where it cannot follow, it raises
`UnfollowedError`: all channels that reach the node are pinned with what that says, its outputs get
no lane. A rule gets called only where an input has a lane, but for those of layers, which make
channels from anything. What has no lane has a shape that removed channels do not change.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.channels.lanes import Edit, Ints, Lane, Role, Site, Trace
from onnxdrp.channels.reshaping import (
    MisfitError,
    Size,
    labels_after,
    product,
    resolved,
    sizes_of,
)
from onnxdrp.macs import shape_of, shape_text
from onnxdrp.model import Model
from onnxdrp.stored import find_stored

__all__ = ["LAYERS", "RULES", "UnfollowedError", "View"]

Array = npt.NDArray[Any]


class UnfollowedError(Exception):
    """Why the channels that reach a node are kept."""


@dataclass(frozen=True, eq=False)
class View:
    """A node, and what is known of its tensors.

    Attributes:
        model: that it is in.
        node: of the top graph.
        trace: of all nodes before it.
        watched: names of the outputs of the model, and of what bodies of If and Loop read.
    """

    model: Model
    node: gs.Node
    trace: Trace
    watched: AbstractSet[str]

    @property
    def lanes(self) -> list[Lane | None]:
        """Of the inputs."""
        return [self.trace.lanes.get(t.name) for t in self.node.inputs]

    @property
    def lane(self) -> Lane:
        """Of the first input. Raises UnfollowedError if it has none, or another input has one."""
        found, *others = self.lanes
        if found is None:
            raise UnfollowedError("what it takes its channels from is not followed")
        if any(lane is not None for lane in others):
            raise UnfollowedError("what it is told to do is computed from channels")
        return found

    def shape(self, place: int) -> tuple[int | str | None, ...]:
        """Of an input. Raises UnfollowedError if nothing is known of it."""
        found = shape_of(self.node.inputs[place])
        if found is None:
            raise UnfollowedError(
                f"the shape of its input {self.node.inputs[place].name!r} is unknown"
            )
        return found

    def rank(self, place: int) -> int:
        """Of an input."""
        return len(self.shape(place))

    def stored(self, place: int) -> Array | None:
        """The values of an input; None where it is absent or computed."""
        if not self.has(place):
            return None
        return self.model.constant(self.node.inputs[place])

    def has(self, place: int) -> bool:
        """Whether there is such an input."""
        return place < len(self.node.inputs) and bool(self.node.inputs[place].name)

    def weight(self, place: int) -> Array:
        """The values of a weight. Raises UnfollowedError where they are not stored as floats."""
        found, values = find_stored(self.model, self.node.inputs[place]), self.stored(place)
        if isinstance(found, str):
            raise UnfollowedError(found)
        if values is None:
            raise UnfollowedError(f"quantized weight: {found.name!r} is not read as it is stored")
        return values

    def numbers(self, place: int, attribute: str) -> list[int] | None:
        """A list of integers, an input or in older opsets an attribute; None where absent.

        Raises:
            UnfollowedError: it is computed.
        """
        if attribute in self.node.attrs:
            return [int(n) for n in np.atleast_1d(self.node.attrs[attribute])]
        if not self.has(place):
            return None
        values = self.stored(place)
        if values is None:
            raise UnfollowedError(f"its input {attribute!r} is computed")
        return [int(n) for n in values.reshape(-1)]

    def site(self, place: int, axis: int, atoms: Ints, role: Role) -> None:
        """Note that a stored input has an entry for each of these channels."""
        tensor, weight = self.node.inputs[place], self.node.op in LAYERS and place < 2
        if tensor.shape[axis] != len(atoms):
            raise UnfollowedError(f"{tensor.name!r} has another number of channels")
        name = str(tensor.name)
        self.trace.sites.append(Site(self.node.name, place, name, axis, atoms, weight, role))

    def give(self, *lanes: Lane | None) -> None:
        """The lanes of the outputs. Raises UnfollowedError where others are read."""
        for tensor in self.node.outputs[len(lanes) :]:
            if tensor.outputs or tensor.name in self.watched:
                raise UnfollowedError(f"its output {tensor.name!r} is read")
        for tensor, lane in zip(self.node.outputs, lanes, strict=False):
            if lane is None or not tensor.name:
                continue
            shape = shape_of(tensor)
            if shape is not None:
                size = shape[lane.axis] if lane.axis < len(shape) else 0
                if isinstance(size, int) and size != len(lane.atoms):
                    raise UnfollowedError(f"{tensor.name!r} is said to be {shape_text(shape)}")
            self.trace.lanes[tensor.name] = lane

    def makes(self, made: Lane, read: Lane | None) -> None:
        """The lane of a layer's output, and that which it sums over."""
        self.give(made)
        self.trace.made[self.node.name] = made.atoms
        if read is not None:
            self.trace.read[self.node.name] = read.atoms

    def edit(self, *outputs: Lane | None) -> None:
        """Note that the node counts channels."""
        before = {place: lane for place, lane in enumerate(self.lanes) if lane is not None}
        after = {place: lane for place, lane in enumerate(outputs) if lane is not None}
        self.trace.edits.append(Edit(self.node.name, before, after))


# ------------------------------------------------------------------------------------------ layers


def _conv(at: View) -> None:
    weight, groups = at.weight(1), int(at.node.attrs.get("group", 1))
    outputs, lane = weight.shape[0], _channel_lane(at)
    if groups > 1 and weight.shape[1] == 1:
        made, lane = _depthwise(at, lane, outputs // groups), None
    else:
        _read(at, 1, 1, lane, groups, shared=True)
        made = _made(at.trace, outputs, groups)
        at.site(1, 0, made, "made")
    _bias(at, 2, made)
    at.makes(Lane(1, made), lane)


def _conv_transpose(at: View) -> None:
    weight, groups = at.weight(1), int(at.node.attrs.get("group", 1))
    lane = _channel_lane(at)
    if groups > 1 and weight.shape == (groups, 1, *weight.shape[2:]):
        made, lane = _depthwise(at, lane, 1), None
    else:
        _read(at, 1, 0, lane, groups, shared=False)
        made = _made(at.trace, weight.shape[1] * groups, groups)
        at.site(1, 1, made[: weight.shape[1]], "made")
    _bias(at, 2, made)
    at.makes(Lane(1, made), lane)


def _depthwise(at: View, lane: Lane | None, multiple: int) -> Ints:
    """Each input channel becomes `multiple` outputs of its own."""
    if lane is None:
        raise UnfollowedError("it is depthwise, and no channels of its input are followed")
    made = np.repeat(lane.atoms, multiple)
    at.site(1, 0, made, "beside")
    at.edit(Lane(1, made))
    return made


def _made(trace: Trace, count: int, groups: int) -> Ints:
    """New channels; the j-th of all groups are one, so that groups keep one size."""
    atoms = trace.fresh(count)
    if groups > 1:
        parts = atoms.reshape(groups, -1)
        trace.tie(parts, parts[:1])
    return atoms


def _read(at: View, place: int, axis: int, lane: Lane | None, groups: int, shared: bool) -> None:
    """The sum over input channels; `shared`: the weight has an entry for those of one group."""
    if lane is None:
        return
    if len(lane.atoms) % groups:
        raise UnfollowedError(f"its input has {len(lane.atoms)} channels in {groups} groups")
    parts = lane.atoms.reshape(groups, -1)
    if groups > 1:
        at.trace.tie(parts, parts[:1])
    at.site(place, axis, parts[0] if shared else lane.atoms, "read")


def _bias(at: View, place: int, made: Ints) -> None:
    if at.has(place):
        if at.stored(place) is None:
            raise UnfollowedError(f"its bias {at.node.inputs[place].name!r} is not stored")
        at.site(place, 0, made, "beside")


def _channel_lane(at: View) -> Lane | None:
    """That of the input, along its axis 1, if there is one."""
    lane = at.lanes[0]
    if lane is not None and lane.axis != 1:
        raise UnfollowedError(f"the channels it is given lie along axis {lane.axis}, not 1")
    return lane


def _side(at: View) -> int:
    """Which factor of a product is the weight."""
    found = [find_stored(at.model, tensor) for tensor in at.node.inputs[:2]]
    for place in (1, 0):
        if not isinstance(found[place], str):
            return place
    sparse = [why for why in found if isinstance(why, str) and why.startswith("sparse")]
    raise UnfollowedError(*sparse or ["both its factors are computed"])


def _gemm(at: View) -> None:
    place = _side(at)
    weight = at.weight(place)
    turned = bool(at.node.attrs.get("transB" if place else "transA", 0))
    data_turned = bool(at.node.attrs.get("transA" if place else "transB", 0))
    lane = at.lanes[1 - place]
    inner = int(data_turned) ^ place  # the axis of the data that is summed over
    if lane is not None:
        if lane.axis != inner:
            raise UnfollowedError("it sums over another axis than that of the channels")
        at.site(place, int(turned) ^ (1 - place), lane.atoms, "read")
    made_axis = int(turned) ^ place
    made = at.trace.fresh(weight.shape[made_axis])
    at.site(place, made_axis, made, "made")
    given = Lane(place, made)
    if at.has(2):
        if at.lanes[2] is not None:
            raise UnfollowedError(f"its bias {at.node.inputs[2].name!r} is not stored")
        _beside(at, 2, given, rank=2)
    at.makes(given, lane)


def _matmul(at: View) -> None:
    place = _side(at)
    weight, lane = at.weight(place), at.lanes[1 - place]
    if weight.ndim != 2:
        raise UnfollowedError(f"its weight has {weight.ndim} axes")
    rank = at.rank(1 - place)
    if rank < 2:
        raise UnfollowedError("it multiplies vectors")
    inner = rank - 1 if place else rank - 2
    if lane is not None:
        if lane.axis != inner:
            raise UnfollowedError("it sums over another axis than that of the channels")
        at.site(place, 1 - place, lane.atoms, "read")
    made = at.trace.fresh(weight.shape[place])
    at.site(place, place, made, "made")
    at.makes(Lane(inner, made), lane)


# ------------------------------------------------------------------------------- value by value


def _same(at: View) -> None:
    """Each value on its own; only the first input carries data."""
    at.give(at.lane)


def _normalized(at: View) -> None:
    """A scale, a bias, a mean and a variance for each channel."""
    lane = at.lane
    if lane.axis != 1:
        raise UnfollowedError(f"it normalizes axis 1, the channels lie along {lane.axis}")
    if not at.node.attrs.get("spatial", 1):
        raise UnfollowedError("it has statistics for each position")
    for place in range(1, len(at.node.inputs)):
        if at.stored(place) is None:
            raise UnfollowedError("its statistics are not stored")
        at.site(place, 0, lane.atoms, "beside")
    at.give(lane)


def _broadcast(at: View) -> None:
    """Value by value, of several inputs that are broadcast."""
    shapes = [shape_of(t) for t in at.node.inputs]
    if any(shape is None for shape in shapes):
        raise UnfollowedError("the shape of one of its inputs is unknown")
    ranks = [len(shape or ()) for shape in shapes]
    rank = max(ranks)
    if at.model.opset < 7 and min(ranks) < rank:
        raise UnfollowedError("it is broadcast in the way of opset 6 and before; convert the model")
    lanes = [
        None if lane is None else lane.at(lane.axis + rank - axes)
        for lane, axes in zip(at.lanes, ranks, strict=True)
    ]
    if any(lane is not None and len(lane.atoms) > 1 for lane in lanes):
        for place, lane in enumerate(lanes):  # what has one channel is spread over the others
            if lane is not None and len(lane.atoms) == 1:
                at.trace.pin([lane], f"{at.node.op} {at.node.name!r} spreads it over channels")
                lanes[place] = None
    there = [lane for lane in lanes if lane is not None]
    along = {lane.axis for lane in there}
    if len(along) > 1:
        raise UnfollowedError(
            f"the channels of its inputs lie along different axes, {sorted(along)}"
        )
    sizes = {len(lane.atoms) for lane in there}
    if len(sizes) > 1:
        raise UnfollowedError(f"its inputs have different numbers of channels, {sorted(sizes)}")
    first = there[0]
    for lane in there[1:]:
        at.trace.tie(first.atoms, lane.atoms)
    for place, own in enumerate(lanes):
        if own is None and at.has(place):
            _beside(at, place, first, rank)
    at.give(first)


def _beside(at: View, place: int, lane: Lane, rank: int) -> None:
    """An input without channels of its own, broadcast over these: a constant, or size 1 there."""
    shape = at.shape(place)
    axis = lane.axis - (rank - len(shape))
    if axis < 0 or shape[axis] == 1:
        return
    values = at.stored(place)
    if values is None or values.shape[axis] != len(lane.atoms):
        raise UnfollowedError(f"its input {at.node.inputs[place].name!r} is not followed")
    at.site(place, axis, lane.atoms, "beside")


# --------------------------------------------------------------------------- along other axes


def _spatial(at: View) -> None:
    """Windows, over all axes but the first two."""
    lane = at.lane
    if lane.axis > 1:
        raise UnfollowedError(f"its windows cross the channels, along axis {lane.axis}")
    at.give(lane)


def _resize(at: View) -> None:
    lane, rank = at.lane, at.rank(0)
    scales, sizes = at.stored(2 if at.model.opset >= 11 else 1), at.stored(3)
    order = [a % rank for a in at.node.attrs.get("axes", range(rank))]
    if lane.axis not in order:
        at.give(lane)
        return
    if at.node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnfollowedError("its sizes depend on how many channels there are")
    if at.node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise UnfollowedError("it crops")
    place = order.index(lane.axis)
    if "scales" in at.node.attrs:
        scales = np.asarray(at.node.attrs["scales"])
    if sizes is not None and sizes.size:
        stays = int(sizes.reshape(-1)[place]) == len(lane.atoms)
    elif scales is not None and scales.size:
        stays = float(scales.reshape(-1)[place]) == 1
    else:
        raise UnfollowedError("its scales and sizes are computed")
    if not stays:
        raise UnfollowedError("it resizes the axis of the channels")
    at.edit(lane)
    at.give(lane)


def _reduced(at: View) -> None:
    lane, rank = at.lane, at.rank(0)
    axes = at.numbers(1, "axes")
    if not axes and at.node.attrs.get("noop_with_empty_axes", 0):
        at.give(lane)
        return
    reduced = {a % rank for a in axes or range(rank)}
    if lane.axis in reduced:
        raise UnfollowedError("it mixes channels")
    gone = 0 if at.node.attrs.get("keepdims", 1) else sum(a < lane.axis for a in reduced)
    at.give(lane.at(lane.axis - gone))


def _picked_best(at: View) -> None:
    lane, axis = at.lane, int(at.node.attrs.get("axis", 0)) % at.rank(0)
    if lane.axis == axis:
        raise UnfollowedError("it mixes channels")
    at.give(lane.at(lane.axis - (not at.node.attrs.get("keepdims", 1) and axis < lane.axis)))


def _softmax(at: View) -> None:
    lane, newer = at.lane, at.model.opset >= 13
    axis = int(at.node.attrs.get("axis", -1 if newer else 1)) % at.rank(0)
    if lane.axis == axis or (not newer and lane.axis > axis):
        raise UnfollowedError("it mixes channels")
    at.give(lane)


def _layer_norm(at: View) -> None:
    lane, axis = at.lane, int(at.node.attrs.get("axis", -1)) % at.rank(0)
    if lane.axis >= axis:
        raise UnfollowedError("it mixes channels")
    at.give(lane)


def _mixes(_at: View) -> None:
    raise UnfollowedError("it mixes channels")


# --------------------------------------------------------------------------- moving values about


def _transpose(at: View) -> None:
    lane = at.lane
    order = at.node.attrs.get("perm", list(range(at.rank(0)))[::-1])
    at.give(lane.at(list(order).index(lane.axis)))


def _reshape(at: View) -> None:
    wanted = at.numbers(1, "shape")
    if wanted is None:
        raise UnfollowedError("its shape is not given")
    if at.node.attrs.get("allowzero", 0) and 0 in wanted:
        raise UnfollowedError("it gives nothing")
    given = _sizes(at)
    try:
        _laid_out(at, *resolved(given, wanted))
    except MisfitError as e:
        raise UnfollowedError(str(e)) from e


def _flatten(at: View) -> None:
    given, axis = _sizes(at), int(at.node.attrs.get("axis", 1))
    axis = axis + len(given) if axis < 0 else axis
    try:
        _laid_out(at, given, [product(given[:axis]), product(given[axis:])])
    except MisfitError as e:
        raise UnfollowedError(str(e)) from e


def _laid_out(at: View, given: Sequence[Size], wanted: Sequence[Size]) -> None:
    first, labels = labels_after(given, wanted, at.lane)
    preferred = _preferred_axis(at.node.outputs[0])
    after = at.trace.one_axis(labels, None if preferred is None else preferred - first)
    if after is None:
        raise UnfollowedError("it leaves no axis of channels")
    after = after.at(first + after.axis)
    at.edit(after)
    at.give(after)


def _preferred_axis(tensor: gs.Tensor) -> int | None:
    """Along which its reader wants the channels of a tensor, if it says so."""
    for user in tensor.outputs:
        if user.op in _CHANNELS_SECOND:
            return 1
        turned: Sequence[int] = user.attrs.get("perm", ()) if user.op == "Transpose" else ()
        after = user.outputs[0].outputs if len(turned) > 1 else ()
        if any(reader.op in _CHANNELS_SECOND for reader in after):
            return int(turned[1])
    return None


def _sizes(at: View) -> list[Size]:
    """Those of the first input."""
    sizes = sizes_of(at.shape(0))
    sizes[at.lane.axis] = Size(len(at.lane.atoms))
    return sizes


def _squeeze(at: View) -> None:
    lane, rank = at.lane, at.rank(0)
    axes = at.numbers(1, "axes")
    if axes is None:
        if any(not isinstance(size, int) for size in at.shape(0)):
            raise UnfollowedError("which axes it drops is not known")
        axes = [a for a, size in enumerate(at.shape(0)) if size == 1]
    dropped = {a % rank for a in axes}
    if lane.axis in dropped:
        raise UnfollowedError("it drops the axis of the channels")
    at.give(lane.at(lane.axis - sum(a < lane.axis for a in dropped)))


def _unsqueeze(at: View) -> None:
    lane, axes = at.lane, at.numbers(1, "axes") or []
    rank = at.rank(0) + len(axes)
    new = {a % rank for a in axes}
    at.give(lane.at([a for a in range(rank) if a not in new][lane.axis]))


def _concat(at: View) -> None:
    lanes = at.lanes
    axes = {lane.axis for lane in lanes if lane is not None}
    place = next(i for i, lane in enumerate(lanes) if lane is not None)
    along = int(at.node.attrs["axis"]) % at.rank(place)
    if len(axes) > 1:
        raise UnfollowedError(
            f"the channels of its inputs lie along different axes, {sorted(axes)}"
        )
    (axis,) = axes
    if axis == along:
        parts = [_part(at, i, axis) for i in range(len(lanes))]
        at.give(Lane(axis, np.concatenate(parts)))
        return
    first = next(lane for lane in lanes if lane is not None)
    for i, lane in enumerate(lanes):
        if lane is not None:
            at.trace.tie(first.atoms, lane.atoms)
        else:
            values = at.stored(i)
            if values is None:
                raise UnfollowedError(f"its input {at.node.inputs[i].name!r} is not followed")
            at.site(i, axis, first.atoms, "beside")
    at.give(first)


def _part(at: View, place: int, axis: int) -> Ints:
    """The channels that one input brings to a Concat along them."""
    lane = at.lanes[place]
    if lane is not None:
        return lane.atoms
    size = at.shape(place)[axis]
    if not isinstance(size, int):
        raise UnfollowedError(f"the size of its input {at.node.inputs[place].name!r} is unknown")
    atoms = at.trace.fresh(size)
    if at.stored(place) is not None:
        at.site(place, axis, atoms, "beside")
    else:
        why = f"{at.node.op} {at.node.name!r}: {at.node.inputs[place].name!r} is not followed"
        at.trace.pin([Lane(axis, atoms)], why)
    return atoms


def _split(at: View) -> None:
    lane, axis = at.lane, int(at.node.attrs.get("axis", 0)) % at.rank(0)
    if lane.axis != axis:
        at.give(*[lane] * len(at.node.outputs))
        return
    count, size = len(at.node.outputs), len(lane.atoms)
    sizes = at.numbers(1, "split")
    if sizes is None:
        each = -(-size // count)
        sizes = [max(0, min(each, size - i * each)) for i in range(count)]
    parts = [Lane(axis, part) for part in np.split(lane.atoms, np.cumsum(sizes)[:-1])]
    at.edit(*parts)
    at.give(*parts)


def _slice(at: View) -> None:
    lane, rank = at.lane, at.rank(0)
    axes = at.numbers(3, "axes")
    if axes is not None and lane.axis not in [a % rank for a in axes]:
        at.give(lane)
        return
    starts, ends, steps = at.numbers(1, "starts"), at.numbers(2, "ends"), at.numbers(4, "steps")
    if starts is None or ends is None:
        raise UnfollowedError("it says not what it takes")
    order = list(range(len(starts))) if axes is None else [a % rank for a in axes]
    if lane.axis not in order:
        at.give(lane)
        return
    place = order.index(lane.axis)
    if steps is not None and steps[place] != 1:
        raise UnfollowedError(f"it takes channels in steps of {steps[place]}")
    taken = Lane(lane.axis, lane.atoms[starts[place] : ends[place]])
    if not len(taken.atoms):
        raise UnfollowedError("it takes no channel")
    at.edit(taken)
    at.give(taken)


def _gather(at: View) -> None:
    lane, axis = at.lane, int(at.node.attrs.get("axis", 0)) % at.rank(0)
    rank = at.rank(1)
    if axis != lane.axis:
        at.give(lane.at(lane.axis + (rank - 1 if axis < lane.axis else 0)))
        return
    indices = at.stored(1)
    if indices is None:
        raise UnfollowedError("which channels it picks is computed")
    if indices.ndim != 1 or not indices.size:
        raise UnfollowedError("it picks single channels")
    taken = Lane(axis, lane.atoms[indices])
    at.edit(taken)
    at.give(taken)


def _pad(at: View) -> None:
    lane, rank = at.lane, at.rank(0)
    pads = at.numbers(1, "pads")
    if pads is None:
        raise UnfollowedError("its pads are unknown")
    given = at.numbers(3, "axes")
    axes = list(range(rank)) if given is None else [a % rank for a in given]
    if lane.axis not in axes:
        at.give(lane)
        return
    place = axes.index(lane.axis)
    front, back = pads[place], pads[place + len(axes)]
    if front == back == 0:
        at.give(lane)
        return
    if min(front, back) < 0 or at.node.attrs.get("mode", "constant") not in ("constant", b""):
        raise UnfollowedError("it crops channels, or repeats them")
    atoms = np.concatenate([at.trace.fresh(front), lane.atoms, at.trace.fresh(back)])
    padded = Lane(lane.axis, atoms)
    at.edit(padded)
    at.give(padded)


def _expand(at: View) -> None:
    lane, wanted = at.lane, at.numbers(1, "shape")
    if wanted is None:
        raise UnfollowedError("its shape is computed")
    rank = max(len(wanted), at.rank(0))
    after = lane.at(lane.axis + rank - at.rank(0))
    place = after.axis - (rank - len(wanted))
    if place >= 0 and wanted[place] not in (1, len(lane.atoms)):
        raise UnfollowedError("it spreads one channel over many")
    at.edit(after)
    at.give(after)


def _depth_to_space(at: View) -> None:
    lane, block = at.lane, int(at.node.attrs["blocksize"])
    if lane.axis != 1:
        raise UnfollowedError(f"the channels it is given lie along axis {lane.axis}, not 1")
    if at.node.attrs.get("mode", "DCR") == "DCR":
        labels = lane.atoms.reshape(block * block, -1)  # [places in a block, channels]
    else:
        labels = lane.atoms.reshape(-1, block * block).T
    at.trace.tie(labels, labels[:1])
    at.give(Lane(1, labels[0].copy()))


def _space_to_depth(at: View) -> None:
    lane, block = at.lane, int(at.node.attrs["blocksize"])
    if lane.axis != 1:
        raise UnfollowedError(f"the channels it is given lie along axis {lane.axis}, not 1")
    at.give(Lane(1, np.tile(lane.atoms, block * block)))


def _shape(at: View) -> None:
    """Reading sizes hurts only where that of the channels is used."""
    lane, rank = at.lane, at.rank(0)
    sizes = list(range(rank))[slice(at.node.attrs.get("start", 0), at.node.attrs.get("end"))]
    if lane.axis not in sizes:
        return
    place = sizes.index(lane.axis)
    out = at.node.outputs[0]
    for user in out.outputs:
        if place in _taken(at.model, user, len(sizes)):
            raise UnfollowedError(f"{user.op} {user.name!r} reads how many channels there are")
    if out.name in at.watched:
        raise UnfollowedError("how many channels there are is an output, or read in a body")


def _taken(model: Model, user: gs.Node, count: int) -> set[int]:
    """Which entries of a shape a node reads."""
    everything = set(range(count))
    stored = [model.constant(t) for t in user.inputs[1:] if t.name]
    if any(values is None for values in stored):
        return everything
    if user.op == "Gather" and stored:
        return {int(i) % count for i in np.asarray(stored[0]).reshape(-1)}
    if user.op == "Slice" and len(stored) >= 2:
        start, end, *rest = (int(np.asarray(s).reshape(-1)[0]) for s in stored)
        step = rest[1] if len(rest) > 1 else 1
        return set(list(range(count))[start:end:step])
    return everything


_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip"),
    *("Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal"),
    *("Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Where", "PRelu", "Mod"),
    *("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Xor"),
)
_WINDOWS = (
    *("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
)
_REDUCING = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_CHANNELS_SECOND = ("Conv", "ConvTranspose", "BatchNormalization", *_WINDOWS)
_MIXING = ("GroupNormalization", "InstanceNormalization", "LRN", "LpNormalization")

LAYERS: dict[str, Callable[[View], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""Operators that make channels."""

RULES: dict[str, Callable[[View], None]] = {
    **LAYERS,
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BROADCASTING, _broadcast),
    **dict.fromkeys(_WINDOWS, _spatial),
    **dict.fromkeys(_REDUCING, _reduced),
    **dict.fromkeys(_MIXING, _mixes),
    "ArgMax": _picked_best,
    "ArgMin": _picked_best,
    "BatchNormalization": _normalized,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Hardmax": _softmax,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _softmax,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
"""All operators through which channels are followed."""
