"""The groups of channels of a model: which layers lose channels together, and what they keep.

A *unit* is all atoms that are tied: one channel of every layer that makes it. A *group* is the
units that share layers: the units of a residual stage, of a layer alone. What is pinned is no unit.
Within a group any units may be removed, each alone; at least one of each layer stays.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxdrp.channels.lanes import Ints, Role, Trace
from onnxdrp.channels.tracing import traced
from onnxdrp.errors import OptionError
from onnxdrp.layers import Layer, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model

__all__ = ["ChannelGroup", "Channels", "Removed", "channels_of"]

Bools = npt.NDArray[np.bool_]
Removed = Mapping[str, Sequence[int]]
"""{group: its units that are removed}."""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that several layers have in common.

    Attributes:
        name: the first layer that makes them.
        makers: {layer: [channels of the layer that each unit is]}.
        readers: layers that sum over them.
        units: numbers of the units, over the whole model.
        block: a number for each unit; those of one block are in the same tensors.
    """

    name: str
    makers: dict[str, Ints]
    readers: tuple[str, ...]
    units: Ints
    block: Ints

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.units)

    def blocks(self) -> list[Ints]:
        """The places of the units of each block: where each keeps a multiple, all tensors do."""
        return [np.flatnonzero(self.block == b) for b in np.unique(self.block)]

    def step(self, place: int, multiple: int) -> int:
        """How many units like that one make a multiple of channels in every layer."""
        counts = {int(c[place]) for c in self.makers.values()} - {0}
        return math.lcm(*(multiple // math.gcd(multiple, c) for c in counts))


@dataclass(frozen=True, eq=False)
class Channels:
    """All that can be removed from a model.

    Attributes:
        groups: in the order of their first layers.
        pinned: {layer: why none of its channels can be removed}.
        trace: what was found.
        unit: of each atom; -1 where it is pinned, or no layer makes it.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: dict[str, str]
    trace: Trace
    unit: Ints

    def group(self, name: str) -> ChannelGroup:
        """The group of this name, or of a layer of this name. Raises OptionError."""
        group = self._by_layer.get(name)
        if group is not None:
            return group
        why = self.pinned.get(name)
        raise OptionError(
            f"no channels of {name!r} can be removed: {why}"
            if why
            else f"no group of channels is called {name!r}; there are "
            + ", ".join(repr(g.name) for g in self.groups)
        )

    def alive(self, removed: Removed) -> Bools:
        """Whether each atom stays. Raises OptionError for what cannot be removed."""
        gone = np.zeros(int(self.unit.max(initial=-1)) + 2, np.bool_)
        for name, places in removed.items():
            group, chosen = self.group(name), np.asarray(places, np.int64)
            if np.any((chosen < 0) | (chosen >= group.size)):
                raise OptionError(f"group {name!r} has units 0 to {group.size - 1}")
            gone[group.units[chosen]] = True
        names, starts, members = self._may_vanish
        if names:
            dead = np.logical_and.reduceat(gone[members], starts)
            if dead.any():
                tensor = names[int(dead.argmax())]
                raise OptionError(f"nothing of tensor {tensor!r} would be left; keep some channels")
        return ~gone[self.unit]  # the last entry, of unit -1, stays False

    @cached_property
    def _by_layer(self) -> dict[str, ChannelGroup]:
        return {name: group for group in self.groups for name in group.makers}

    @cached_property
    def _may_vanish(self) -> tuple[list[str], Ints, Ints]:
        """Tensors all of whose channels are units, where those of each start, and the units.

        Of tensors that have the same units one stands for all.
        """
        found: dict[bytes, tuple[str, Ints]] = {}
        for tensor, atoms in _distinct(self.trace):
            members = np.unique(self.unit[atoms])
            if members[0] >= 0:
                found.setdefault(members.tobytes(), (tensor, members))
        sizes = [len(members) for _, members in found.values()]
        starts = np.cumsum([0, *sizes[:-1]])
        every = np.concatenate([np.empty(0, np.int64), *(m for _, m in found.values())])
        return [tensor for tensor, _ in found.values()], starts, every

    def masks(self, model: Model, removed: Removed, only: Role | None = None) -> dict[str, Mask]:
        """What is zero where channels are removed, of each weight of a layer that has some.

        Both the outputs that make a removed channel and the inputs that sum over it are pruned; or
        one of them: without what is "read" the outputs of the model are the same as without both.
        """
        alive, found, tensors = self.alive(removed), dict[str, Bools](), model.tensors()
        for site in self.trace.sites:
            if only not in (None, site.role):
                continue
            keep = alive[site.atoms]
            if not site.weight or keep.all():
                continue
            shape = tensors[site.tensor].shape
            sizes = [-1 if axis == site.axis else 1 for axis in range(len(shape))]
            before = found.get(site.tensor, np.ones(shape, np.bool_))
            found[site.tensor] = before & keep.reshape(sizes)
        return {name: Mask(keep) for name, keep in found.items()}

    def kept(self, removed: Removed) -> dict[str, Ints]:
        """{layer: the output channels that it keeps}, of those that lose some."""
        alive = self.alive(removed)
        return {
            layer: np.flatnonzero(alive[atoms])
            for layer, atoms in self.trace.made.items()
            if not alive[atoms].all()
        }


def channels_of(model: Model) -> Channels:
    """The groups of channels of a model, which is not changed; shapes should have been inferred."""
    trace = traced(model)
    classes = _classes(trace)
    whole = _pinned(trace, classes)
    made = {layer: classes[atoms] for layer, atoms in trace.made.items()}
    free = np.zeros(classes.max(initial=-1) + 1, np.bool_)
    for members in made.values():
        free[members] = True
    free[list(whole)] = False
    unit = np.where(free[classes], classes, -1) if len(classes) else classes
    groups = tuple(_groups(trace, unit, made, _blocks(trace, unit)))
    grouped = {name for group in groups for name in group.makers}
    unit = _only(unit, groups)
    pinned = {
        layer.name: _why_pinned(layer, made.get(layer.name), whole, trace)
        for layer in layers(model)
        if layer.name not in grouped
    }
    return Channels(groups, pinned, trace, unit)


def _classes(trace: Trace) -> Ints:
    """The number of the class of each atom: what is tied has one."""
    a, b = np.concatenate([np.empty((2, 0), np.int64), *trace.ties], axis=1)
    edges = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(trace.atoms, trace.atoms))
    return np.asarray(connected_components(edges, directed=False)[1], np.int64)


def _pinned(trace: Trace, classes: Ints) -> dict[int, str]:
    """{class: why it stays}, the first reason of each."""
    found: dict[int, str] = {}
    for atoms, why in trace.pins:
        for number in np.unique(classes[atoms]).tolist():
            found.setdefault(number, why)
    return found


def _only(unit: Ints, groups: Sequence[ChannelGroup]) -> Ints:
    """The unit of each atom, -1 where it is in no group."""
    known = np.zeros(int(unit.max(initial=-1)) + 2, np.bool_)
    for group in groups:
        known[group.units] = True
    return np.where(known[unit], unit, -1)


def _why_pinned(layer: Layer, members: Ints | None, whole: Mapping[int, str], trace: Trace) -> str:
    if members is None:
        return trace.unfollowed.get(layer.name) or layer.barred or "it is not followed"
    why = next((whole[n] for n in np.unique(members).tolist() if n in whole), "")
    return why or "all its channels are one: they can only be removed together"


def _distinct(trace: Trace) -> Iterator[tuple[str, Ints]]:
    """The channels of each tensor, once where several have the very same."""
    seen: set[int] = set()
    for tensor, lane in trace.lanes.items():
        if id(lane.atoms) not in seen:
            seen.add(id(lane.atoms))
            yield tensor, lane.atoms


def _blocks(trace: Trace, unit: Ints) -> Ints:
    """A number for each unit; those that are in the same tensors, as often, have one."""
    block, count = np.zeros(int(unit.max(initial=-1)) + 1, np.int64), 1
    for _, atoms in _distinct(trace):
        members, times = np.unique(unit[atoms], return_counts=True)
        members, times = members[members >= 0], times[members >= 0]
        pairs = np.stack([block[members], times])
        _, new = np.unique(pairs, axis=1, return_inverse=True)
        block[members] = count + new.reshape(-1)
        count += len(members)
    return block


def _groups(
    trace: Trace, unit: Ints, made: Mapping[str, Ints], block: Ints
) -> Iterator[ChannelGroup]:
    """Units that share a layer, and so on, are a group."""
    names = list(made)
    own = {layer: members[unit[trace.made[layer]] >= 0] for layer, members in made.items()}
    count = int(unit.max(initial=-1)) + 1
    rows = np.concatenate([np.empty(0, np.int64), *(own[name] for name in names)])
    columns = count + np.repeat(np.arange(len(names)), [len(own[name]) for name in names])
    size = count + len(names)
    edges = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(size, size))
    label = connected_components(edges, directed=False)[1]
    together: dict[int, list[str]] = {}
    for i, name in enumerate(names):
        if len(own[name]):
            together.setdefault(int(label[count + i]), []).append(name)
    owner, place = np.append(label[:count], -1), np.full(count, -1)  # -1: of what is pinned
    readers: dict[int, list[str]] = {}
    for layer, atoms in trace.read.items():
        for number in np.unique(owner[unit[atoms]]).tolist():
            readers.setdefault(number, []).append(layer)
    for number, layers_of_group in together.items():
        order = np.concatenate([own[name] for name in layers_of_group])
        units = order[np.sort(np.unique(order, return_index=True)[1])]  # as they are met first
        if len(units) < 2:
            continue  # tied as a whole
        place[units] = np.arange(len(units))
        makers = {
            name: np.bincount(place[own[name]], minlength=len(units)) for name in layers_of_group
        }
        reading = tuple(readers.get(number, ()))
        yield ChannelGroup(layers_of_group[0], makers, reading, units, block[units])
