"""Which channels of a group go: those whose weights are smallest, in whole multiples.

The score of a unit is the sum of the absolute weights that make it (L1, Li et al. 2017), each layer
of the group divided by its mean over the units, so that layers count alike. Of the n units of a
block that all tensors have alike, at rate r

    max(m, m * floor(((1 - r) n + m / 2) / m))     stay, at most n, and all at rate 0,

with m as many units as make the wanted multiple of channels (AMD's Vitis AI Optimizer rounds so,
with m = 2). The first of equal scores go first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.groups import ChannelGroup, Channels
from onnxdrp.errors import OptionError
from onnxdrp.model import Model

__all__ = ["ChannelScores", "at_rates", "kept_of", "scores_of", "unit_scores"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelScores(Mapping[str, Floats]):
    """{group: a number for each of its units}, of all groups; the lowest go first.

    Attributes:
        by: "l1", "activation", or "second-order": then they are what is lost with a unit and with
            all that go before it.
        units: the numbers.
        unscored: {layer that reads some units: why what it loses does not count}.
    """

    by: str
    units: Mapping[str, Floats]
    unscored: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, group: str) -> Floats:
        return self.units[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


def unit_scores(model: Model, channels: Channels) -> dict[str, Floats]:
    """{group: the L1 score of each of its units}."""
    totals = {group.name: np.zeros(group.size) for group in channels.groups}
    place = np.full(int(channels.unit.max(initial=-1)) + 2, -1)
    owner: dict[str, ChannelGroup] = {}
    for group in channels.groups:
        place[group.units] = np.arange(group.size)
        owner |= dict.fromkeys(group.makers, group)
    tensors = model.tensors()
    for site in channels.trace.sites:
        group_of = owner.get(site.node)
        if group_of is None or site.role == "read" or not site.weight:
            continue
        at = place[channels.unit[site.atoms]]
        weight = np.moveaxis(np.abs(model.weight(tensors[site.tensor])), site.axis, 0)
        sums = weight.reshape(len(at), -1).sum(1, dtype=np.float64)
        own = np.bincount(at[at >= 0], sums[at >= 0], minlength=group_of.size)
        totals[group_of.name] += own / (own.mean() or 1.0)
    return totals


def scores_of(
    model: Model, channels: Channels, groups: Sequence[str], given: Mapping[str, Floats] | None
) -> Mapping[str, Floats]:
    """{group: a score for each of its units}: what is given, or if nothing is, by L1.

    Args:
        model: is not changed.
        channels: of it.
        groups: that need scores.
        given: scores of these groups, and maybe of others.

    Raises:
        OptionError: what is given is of another model, or of this one with other channels.
    """
    if given is None:
        return unit_scores(model, channels)
    for name in groups:
        size = channels.group(name).size
        if name not in given or len(given[name]) != size:
            raise OptionError(
                f"the scores of channels are of another model: the {size} units of {name!r} have "
                "none; run score-channels again"
            )
    return given


def kept_of(count: int, rate: float, multiple: int) -> int:
    """How many of so many units stay."""
    if not 0 <= rate < 1:
        raise OptionError(f"rate {rate} of channels is outside [0, 1)")
    if not rate:
        return count
    left = int((1 - rate) * count + multiple / 2 + 1e-9)
    return min(max(multiple, left - left % multiple), count)


def at_rates(
    channels: Channels, scores: Mapping[str, Floats], rates: Mapping[str, float], multiple: int
) -> dict[str, list[int]]:
    """{group: its units that go}, of groups that lose some.

    Args:
        channels: of the model.
        scores: {group: one for each unit}; the lowest go.
        rates: {group: share of its channels}.
        multiple: that the channels which stay are of, in each tensor.

    Raises:
        OptionError: a rate outside [0, 1), or a group that is not there.
    """
    found: dict[str, list[int]] = {}
    for name, rate in rates.items():
        group = channels.group(name)
        for block in group.blocks():
            stay = kept_of(len(block), rate, group.step(int(block[0]), multiple))
            order = block[np.argsort(scores[group.name][block], kind="stable")]
            found.setdefault(group.name, []).extend(order[: len(block) - stay].tolist())
    return {name: sorted(gone) for name, gone in found.items() if gone}
