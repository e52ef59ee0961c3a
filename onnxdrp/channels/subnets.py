"""Sub-networks: how many channels each group keeps, by a rate for each, and what that costs.

At a rate the same number of units stays of each block as onnxdrp.channels.choosing keeps; those of
the lowest scores go. Of a block all units are in the same tensors, equally often, so what a layer
costs is known from the numbers n that stay of the blocks alone,

    multiply-adds = sum over layers  m * (a0 + sum_b a_b n_b) * (c0 + sum_b c_b n_b)

with a of its outputs and c of the inputs that it sums over: thousands of sub-networks a second.

Random ones are drawn as EagleEye does (Li et al. 2020; AMD's Vitis AI Optimizer), for a share r of
the multiply-adds that is to go: for each group

    mu ~ U(r/2, r) if r >= 1/2 else U(0, r/2),    sigma ~ U(0, 0.3)
    rate = clip(N(mu, sigma), 0.05, 0.9)

and accepted if less than 0.01 away from r. Here all rates of a draw are first shifted alike, to
where they come nearest to r: few draws of large networks would be accepted otherwise. The first
draw is the uniform one.

Of given ratios, shares of a group that stay, as the once-for-all networks of AMD's Vitis AI
Optimizer have them, each rate is brought to the nearest: of a draw after the shift, which moves one
group after the other then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.choosing import kept_of, scores_of
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.groups import Channels
from onnxdrp.channels.lanes import Ints
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model

__all__ = ["Subnet", "Subnets", "rates_of"]

Floats = npt.NDArray[np.float64]

_HIGHEST = 0.9  # of all rates, unless they are given
_LOWEST = 0.05  # of a drawn rate
_NEAR = 0.01  # of the share of multiply-adds that is asked for
_HALVINGS = 16
_DRAWS = 200  # without a new sub-network, until it is held that there is none


@dataclass(frozen=True)
class Subnet:
    """A choice of rates.

    Attributes:
        rates: {group: share of its channels that was asked for}.
        kept: how many units stay of each block of the groups; equal ones are equal sub-networks.
        share: of the multiply-adds that goes.
    """

    rates: Mapping[str, float]
    kept: tuple[int, ...]
    share: float

    @property
    def key(self) -> str:
        """What tells it from others of these groups."""
        return " ".join(map(str, self.kept))


@dataclass(frozen=True, eq=False)
class _Block:
    """Units of a group that are in the same tensors.

    Attributes:
        group: its number.
        order: places of the units in the group, those that go first at the front.
        step: how many units make the wanted multiple of channels.
    """

    group: int
    order: Ints
    step: int


class Subnets:
    """All choices of rates for some groups of a model.

    Args:
        model: with shapes.
        channels: of it.
        groups: names of those that may lose channels.
        multiple: that the channels which stay are of, in each tensor.
        scores: {group: one for each unit}, the lowest go; None: by L1.
        ratios: the shares of a group's channels that may stay, before that; (): any.

    Attributes:
        channels: of the model.
        groups: names.
        whole: multiply-adds of the model as it is.

    Raises:
        ModelError: there are no groups, or the multiply-adds of a layer are not known.
        OptionError: the scores are of another model, or a ratio is none.
    """

    def __init__(
        self,
        model: Model,
        channels: Channels,
        groups: Sequence[str],
        multiple: int,
        scores: Mapping[str, Floats] | None = None,
        ratios: Sequence[float] = (),
    ) -> None:
        self._rates = rates_of(ratios)
        self._highest = float(self._rates[-1]) if len(self._rates) else _HIGHEST
        if not groups:
            raise ModelError("no group of channels may be removed; exclude fewer layers")
        self.channels, self.groups = channels, tuple(groups)
        scores, cost = scores_of(model, channels, groups, scores), Cost(model, channels)
        self.whole = cost.whole
        self._blocks: list[_Block] = []
        number = np.full(int(channels.unit.max(initial=-1)) + 2, -1)
        for i, name in enumerate(groups):
            group = channels.group(name)
            for block in group.blocks():
                order = block[np.argsort(scores[group.name][block], kind="stable")]
                number[group.units[block]] = len(self._blocks)
                self._blocks.append(_Block(i, order, group.step(int(block[0]), multiple)))
        self._sizes = np.array([len(b.order) for b in self._blocks])
        self._macs = np.array([layer.macs for layer in cost.layers], np.float64)
        of_atom = number[channels.unit]  # -1, of what stays, is the last
        self._made = self._shares([layer.made for layer in cost.layers], of_atom)
        self._read = self._shares([layer.read for layer in cost.layers], of_atom)

    def at(self, rates: Mapping[str, float]) -> Subnet:
        """The sub-network with these rates; groups that are not named stay whole.

        Raises:
            OptionError: a group is not among these, or a rate is outside [0, 1).
        """
        if unknown := rates.keys() - set(self.groups):
            raise OptionError(
                f"no channels of {min(unknown)!r} may be removed; groups are "
                + ", ".join(map(repr, self.groups))
            )
        return self._subnet(np.array([rates.get(name, 0.0) for name in self.groups]))

    def removed(self, subnet: Subnet) -> dict[str, tuple[int, ...]]:
        """{group: its units that go}, of groups that lose some."""
        gone: dict[str, list[int]] = {}
        for block, kept in zip(self._blocks, subnet.kept, strict=True):
            lost = block.order[: len(block.order) - kept]
            gone.setdefault(self.groups[block.group], []).extend(lost.tolist())
        return {name: tuple(sorted(units)) for name, units in gone.items() if units}

    def gone(self, subnet: Subnet) -> dict[str, float]:
        """{group: share of its channels that goes}, which rounding makes other than the rate."""
        lost, size = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        for block, kept in zip(self._blocks, subnet.kept, strict=True):
            lost[block.group] += len(block.order) - kept
            size[block.group] += len(block.order)
        return dict(zip(self.groups, (lost / size).tolist(), strict=True))

    @property
    def order(self) -> list[list[int]]:
        """In which units of each block go; with `kept` of a sub-network this says all of it."""
        return [block.order.tolist() for block in self._blocks]

    @property
    def most(self) -> float:
        """The largest share of the multiply-adds that can go."""
        return self._subnet(np.full(len(self.groups), self._highest)).share

    @property
    def block_groups(self) -> Ints:
        """[blocks]: the number of each one's group."""
        return np.array([block.group for block in self._blocks])

    @property
    def block_sizes(self) -> Ints:
        """[blocks]: how many units each has."""
        return self._sizes

    def of(self, kept: Ints) -> Subnet:
        """The sub-network in which so many units stay of each block, [blocks]."""
        lost = np.bincount(self.block_groups, self._sizes - kept)
        rates = lost / np.bincount(self.block_groups, self._sizes)
        named = dict(zip(self.groups, rates.round(6).tolist(), strict=True))
        return Subnet(named, tuple(kept.tolist()), self._share(kept))

    def one_less(self, kept: Ints) -> Ints:
        """[blocks]: what stays of each without one more multiple; 0 where that would be all."""
        steps = np.array([block.step for block in self._blocks])
        return np.asarray((kept - 1) // steps * steps)

    def shares_with(self, kept: Ints, other: Ints) -> Floats:
        """[blocks]: the share of multiply-adds that goes if one block keeps what `other` has."""
        part, change = np.append(kept / self._sizes, 1.0), (other - kept) / self._sizes
        made = (self._made @ part)[:, None] + self._made[:, :-1] * change
        read = (self._read @ part)[:, None] + self._read[:, :-1] * change
        return np.asarray(1 - self._macs @ (made * read) / self._macs.sum())

    def uniform(self, ratio: float) -> Subnet:
        """All groups at one rate, that comes nearest to a share of the multiply-adds."""
        return self.shifted(np.zeros(len(self.groups)), ratio)

    def random(self, random: np.random.Generator, ratio: float) -> Subnet:
        """One drawn, and shifted to where it comes nearest to a share of the multiply-adds."""
        count = len(self.groups)
        mu = (
            random.uniform(ratio / 2, ratio, count)
            if ratio >= 0.5
            else (random.uniform(0, ratio / 2, count))
        )
        sigma = random.uniform(0, 0.3, count)
        return self.shifted(np.clip(random.normal(mu, sigma), _LOWEST, _HIGHEST), ratio)

    def rates(self, random: np.random.Generator) -> Floats:
        """A rate for each group: any of the given ones, or of the tenths up to the highest."""
        count = len(self.groups)
        if len(self._rates):
            return random.choice(self._rates, count)
        return random.integers(0, round(10 * _HIGHEST) + 1, count) / 10

    def within(self, random: np.random.Generator, rates: Floats, low: float, high: float) -> Subnet:
        """With these rates, [groups], or shifted to where a share in these bounds goes.

        Of given rates all groups of one rate would move together: each is led astray a little, by
        what would not move it alone.
        """
        subnet = self._subnet(self._allowed(rates))
        if low <= subnet.share <= high:
            return subnet
        if len(self._rates) > 1:
            apart = float(np.diff(self._rates).min()) / 2
            rates = rates + random.uniform(-apart, apart, len(rates))
        return self.shifted(rates, min(max(subnet.share, low), high))

    def sample(self, ratio: float, count: int, seed: int) -> list[Subnet]:
        """So many different sub-networks, or all that are found; more of them begin alike.

        Args:
            ratio: share of the multiply-adds that goes, to 0.01; where no sub-network comes that
                near, to 0.01 more than the nearest.
            count: how many.
            seed: draws them.

        Raises:
            OptionError: `ratio` is not in (0, 1), or so much cannot go.
        """
        if not 0 < ratio < 1:
            raise OptionError(f"ratio {ratio} is outside (0, 1); 0.5 removes half")
        if ratio > (most := self.most) + _NEAR:
            raise OptionError(
                f"ratio {ratio}: no more than {most:.3f} of the multiply-adds can be removed from "
                f"{len(self.groups)} groups; ask for less, or exclude fewer layers"
            )
        near: list[Subnet] = []
        far: list[Subnet] = []
        for subnet in self._different(ratio, seed):
            (near if abs(subnet.share - ratio) < _NEAR else far).append(subnet)
            if len(near) == count:
                break
        if not near:
            limit = min(abs(s.share - ratio) for s in far) + _NEAR
            near = [s for s in far if abs(s.share - ratio) < limit]
        return near[:count]

    def _different(self, ratio: float, seed: int) -> Iterator[Subnet]:
        """Sub-networks that were not met before, until no draw gives any."""
        random, known = np.random.default_rng(seed), set[tuple[int, ...]]()
        subnet, idle = self.uniform(ratio), 0
        while idle < _DRAWS:
            idle += 1
            if subnet.kept not in known:
                known.add(subnet.kept)
                idle = 0
                yield subnet
            subnet = self.random(random, ratio)

    def shifted(self, rates: Floats, ratio: float) -> Subnet:
        """All rates, [groups], shifted alike to where nearly this share of multiply-adds goes."""
        low, high = -1.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._share(self._kept(self._allowed(rates + middle))) > ratio:
                high = middle
            else:
                low = middle
        both = [self._subnet(self._allowed(rates + shift)) for shift in (low, high)]
        return min(both, key=lambda s: abs(s.share - ratio))

    def _allowed(self, rates: Floats) -> Floats:
        """The nearest that may be."""
        if not len(self._rates):
            return np.clip(rates, 0, _HIGHEST)
        between = (self._rates[1:] + self._rates[:-1]) / 2
        return self._rates[np.searchsorted(between, rates)]

    def _subnet(self, rates: Floats) -> Subnet:
        kept = self._kept(rates)
        named = dict(zip(self.groups, rates.round(6).tolist(), strict=True))
        return Subnet(named, tuple(kept.tolist()), self._share(kept))

    def _kept(self, rates: Floats) -> Ints:
        return np.array([kept_of(len(b.order), rates[b.group], b.step) for b in self._blocks])

    def _share(self, kept: Ints) -> float:
        """Of the multiply-adds that goes."""
        part = np.append(kept / self._sizes, 1.0)
        left = self._macs * (self._made @ part) * (self._read @ part)
        return float(1 - left.sum() / self._macs.sum())

    def _shares(self, atoms: Sequence[Ints | None], block: Ints) -> Floats:
        """[layers, blocks and what stays]: the share of some atoms that is of each."""
        count = len(self._blocks) + 1
        rows = np.zeros((len(atoms), count))
        for row, own in zip(rows, atoms, strict=True):
            if own is None:
                row[-1] = 1
            else:
                row += np.bincount(block[own] % count, minlength=count) / len(own)
        return rows


def rates_of(ratios: Sequence[float]) -> Floats:
    """The shares of channels that go, ascending, for those that may stay.

    Raises:
        OptionError: one is outside (0, 1].
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise OptionError(
                f"ratios: {ratio} is outside (0, 1]; give the shares of a group's channels that "
                "may stay, such as 0.5,0.75,1"
            )
    return np.unique(np.round(1 - np.array(ratios, np.float64), 9))
