"""Which entries of which tensors are the same channel: what the rules of the operators write down.

A *lane* is the axis of an activation along which its channels lie, and one number for each entry:
the atom. Entries with one atom live or die together. Rules make new atoms (the outputs of a layer),
tie atoms (the inputs of an Add), and pin them, with the reason: what is pinned is never removed. A
tensor without a lane has no channel that could be removed.

A *site* is the axis of a stored tensor whose entries go with channels; an *edit* is a node whose
attributes or parameters count channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Edit", "Ints", "Lane", "Role", "Site", "Trace"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Role = Literal["made", "read", "beside"]


@dataclass(frozen=True, eq=False)
class Lane:
    """Where the channels of an activation lie.

    Attributes:
        axis: not negative.
        atoms: one for each entry along the axis.
    """

    axis: int
    atoms: Ints

    def at(self, axis: int) -> "Lane":
        """The same channels along another axis."""
        return Lane(axis, self.atoms)


@dataclass(frozen=True, eq=False)
class Site:
    """An axis of a stored tensor whose entries go with channels.

    Attributes:
        node: that reads the tensor.
        place: of the tensor among the inputs of the node.
        tensor: its name.
        axis: not negative.
        atoms: one for each entry.
        weight: whether it is the weight of a layer; of other tensors each reader can have its own.
        role: "made": the node makes the channels, "read": it sums over them, "beside": it has a
            value for each, such as a bias or the scale of a normalization.
    """

    node: str
    place: int
    tensor: str
    axis: int
    atoms: Ints
    weight: bool
    role: Role


@dataclass(frozen=True, eq=False)
class Edit:
    """A node that counts channels somewhere else than in a stored tensor's shape.

    Attributes:
        node: its name.
        inputs: the lane of each input that has one, by its place.
        outputs: the lane of each output that has one, by its place.
    """

    node: str
    inputs: dict[int, Lane]
    outputs: dict[int, Lane]


@dataclass(eq=False)
class Trace:
    """All that is known of the channels of a graph.

    Attributes:
        lanes: {tensor: its lane}.
        sites: of stored tensors, in the order of the nodes.
        edits: in the order of the nodes.
        ties: pairs of atoms that are the same channel, [2, n] arrays.
        pins: (atoms that are never removed, why).
        made: {layer: its output channels}.
        read: {layer: the input channels that it sums over}, as far as they have a lane.
        unfollowed: {node: why}, of those whose inputs or weights could not be followed.
        atoms: how many there are.
    """

    lanes: dict[str, Lane] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    ties: list[Ints] = field(default_factory=list)
    pins: list[tuple[Ints, str]] = field(default_factory=list)
    made: dict[str, Ints] = field(default_factory=dict)
    read: dict[str, Ints] = field(default_factory=dict)
    unfollowed: dict[str, str] = field(default_factory=dict)
    atoms: int = 0

    def fresh(self, count: int) -> Ints:
        """Atoms that nothing else has."""
        self.atoms += count
        return np.arange(self.atoms - count, self.atoms)

    def tie(self, a: Ints, b: Ints) -> None:
        """Entry by entry the same channel; shapes broadcast."""
        self.ties.append(np.stack([x.reshape(-1) for x in np.broadcast_arrays(a, b)]))

    def pin(self, lanes: Iterable[Lane | None], why: str) -> None:
        """Keep all channels of some tensors."""
        self.pins += [(lane.atoms, why) for lane in lanes if lane is not None]

    def one_axis(self, labels: Ints, preferred: int | None = None) -> Lane | None:
        """The lane of a tensor whose every entry has an atom.

        Where atoms differ along several axes, those that share their place along one of them, the
        longest if none is preferred, are tied: a tensor can lose but whole slices.
        """
        differs = [
            axis
            for axis, size in enumerate(labels.shape)
            if size > 1 and np.any(labels != labels.take([0], axis))
        ]
        if not differs:
            return None
        axis = max(differs, key=lambda a: (a == preferred, labels.shape[a], a))
        slices = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if len(differs) > 1:
            self.tie(slices, slices[:, :1])
        return Lane(axis, slices[:, 0].copy())
