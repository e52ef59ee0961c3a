"""A decision which channels go, as a file: for a model that is fine-tuned before they do.

    {"format": "onnxdrp-channels", "version": 1, "structure": "...",
     "removed": {group: [units]}, "channels": {layer: [before, after]}}

`structure` tells by which channels of which layers the units of these groups are made, and nothing
of weights: the decision fits the model it was made for whatever its weights have become, and none
in which the numbers would mean other channels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from onnxdrp.channels.groups import Channels, Removed
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write, read_json

__all__ = ["ChannelSpec", "load_spec"]

_FORMAT, _VERSION = "onnxdrp-channels", 1
_FRONT = "onnxdrp-front"  # of onnxdrp.channels.front; each of its points is a decision


@dataclass(frozen=True)
class ChannelSpec:
    """Which channels go.

    Attributes:
        structure: hash of what the numbers mean.
        removed: {group: its units that go}.
        channels: {layer: output channels (before, after)}, of those that lose some.
    """

    structure: str
    removed: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, channels: Channels, removed: Removed) -> Self:
        """The decision for a model. Raises OptionError for what cannot be removed."""
        gone = {channels.group(n).name: tuple(sorted(u)) for n, u in removed.items() if len(u)}
        made = channels.trace.made
        counts = {layer: (len(made[layer]), len(k)) for layer, k in channels.kept(gone).items()}
        return cls(_structure(channels, gone), gone, counts)

    def check(self, channels: Channels) -> None:
        """See that it fits a model.

        Raises:
            OptionError: a layer is missing or has another number of channels, or channels hang
                together otherwise.
        """
        for layer, (before, _) in self.channels.items():
            made = channels.trace.made.get(layer)
            if made is None:
                raise OptionError(
                    f"the decision removes channels of layer {layer!r}, which the model does not "
                    "have; give the model that it was made for, fine-tuned or not"
                )
            if len(made) != before:
                raise OptionError(
                    f"the decision was made where layer {layer!r} has {before} channels; here it "
                    f"has {len(made)}: give that model, with no channel removed yet"
                )
        if any(not _is_group(channels, name) for name in self.removed) or (
            _structure(channels, self.removed) != self.structure
        ):
            raise OptionError(
                "the decision was made for another graph, in which other channels hang together; "
                "give the model that it was made for, fine-tuned or not"
            )
        channels.alive(self.removed)

    def as_dict(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "structure": self.structure,
            "removed": {name: list(units) for name, units in self.removed.items()},
            "channels": {name: list(pair) for name, pair in self.channels.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all. Raises ModelError if it cannot be written."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.as_dict()).encode() + b"\n")


def load_spec(path: str | Path, net_id: int | None = None) -> ChannelSpec:
    """Read what `ChannelSpec.save` wrote, or a point of what `Front.save` did.

    Args:
        path: the file.
        net_id: of the point; None where the file is a decision.

    Raises:
        OptionError: the file cannot be read or is neither, or has no such point.
    """
    with read_json(path, "decision") as table:
        kind = table["format"], table["version"]
        if kind == (_FRONT, _VERSION):
            table |= _point(path, table["points"], net_id)
        elif kind != (_FORMAT, _VERSION):
            raise OptionError(f"{path}: holds no channels of version {_VERSION}; name another file")
        elif net_id is not None:
            raise OptionError(f"{path}: is one decision; leave net_id {net_id} out")
        removed = {str(n): tuple(map(int, units)) for n, units in table["removed"].items()}
        counts = {str(n): (int(a), int(b)) for n, (a, b) in table["channels"].items()}
        return ChannelSpec(str(table["structure"]), removed, counts)


def _point(path: str | Path, points: list[dict[str, Any]], net_id: int | None) -> dict[str, Any]:
    """The decision of a point of a front."""
    there = [point["net_id"] for point in points]
    if net_id not in there:
        what = "is a front; say" if net_id is None else f"has no net_id {net_id}; there is"
        raise OptionError(f"{path}: {what} one of {', '.join(map(str, there))}")
    point = points[there.index(net_id)]
    return {"removed": point["setting"], **{k: point[k] for k in ("structure", "channels")}}


def _is_group(channels: Channels, name: str) -> bool:
    return any(group.name == name for group in channels.groups)


def _structure(channels: Channels, removed: Removed) -> str:
    """A hash of what units mean: the place, in its group, of each channel of each layer."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(removed):
        group = channels.group(name)
        place = np.full(int(channels.unit.max(initial=-1)) + 2, -1)
        place[group.units] = np.arange(group.size)
        for layer in sorted(group.makers):
            places = place[channels.unit[channels.trace.made[layer]]]
            digest.update(json.dumps([name, layer, places.tolist()]).encode())
    return digest.hexdigest()
