"""The search of Fujitsu's CAC for rates without a target: thresholds, a radius of trust, its stops.

For each layer l (or group of layers), with the loss of the model as it was and as it is now:

    th_l = (loss_orig * (1 + loss_margin) - loss_cur) * S_l / numel_l

is the error that it may make, S_l being the error by which the loss rises by 1 (CAC: the mean of
1 / |gradient|). The rate of a layer is the highest whose error is at most th_l, or 0. Each has
the whole margin for itself; what all do together is kept in bounds by

    |th|_2 <= upper_bound            else all th are scaled to that norm
    upper_bound = limit = sqrt(L) * max(largest th, largest error at the highest rate)    at first

A candidate that holds becomes the model, and the bound grows; after one that does not it shrinks:

    grow      * max(scaling_factor, min over l of (1 + d_inc_l / th_l)), at most to the limit
    shrink    * min(1 / scaling_factor, max over l of (1 - d_dec_l / th_l))

with d_inc the least that an error tried lies above th, and d_dec the least that one lies below. The
search ends when all rates are 0, or the bound is below 0.

What is done otherwise than in CAC, unless `original` is asked for (docs/cac.md says why):

1. The largest threshold is that: CAC takes that of the lexicographically last layer.
2. A layer of rate 0 has a d_inc too, and stays out of what shrinks: in CAC it has 0 for both, which
   makes every factor exactly scaling_factor, or 1 over it, as long as one layer keeps all it has.
3. What shrinks is the smaller of the bound and the norm, and by a hair more than to where a layer
   reaches its threshold; else the very candidate that failed would be the next.
4. An infinite threshold becomes the bound, and the norm of the others is held to it by itself: in
   CAC they are multiplied by the bound.
5. A step down that would leave every layer whole leaves the cheaper half of those that lost
   something: else a candidate of several layers is followed by the end, and none of fewer is tried.
6. The search also ends when nothing that is left to take away costs anything by itself, and yet the
   candidate failed: a bound cannot keep it out. In CAC a weight that is all zero, whose rate is
   None, keeps "all rates are 0" from ever being true.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from onnxdrp.errors import OptionError

__all__ = ["Choice", "Proposal", "TrustRegion", "chosen_rate", "loss_thresholds"]

Errors = Mapping[str, Mapping[float, float]]
"""{layer: {rate: its error}}, of the rates above 0 at which the layer loses anything."""

_HAIR = 1e-6
_FAR = 100


def loss_thresholds(
    loss_orig: float,
    loss_cur: float,
    loss_margin: float,
    sensitivities: Mapping[str, float],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """{layer: the error that it may make}.

    Args:
        loss_orig: of the model as it was.
        loss_cur: of the model as it is now.
        loss_margin: share of loss_orig by which the loss may rise.
        sensitivities: {layer: S_l}.
        sizes: {layer: numel_l}; None where errors are not means over weights.
    """
    rise = loss_orig * (1 + loss_margin) - loss_cur
    return {name: rise * s / (1 if sizes is None else sizes[name])
            for name, s in sensitivities.items()}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The rate of one layer.

    Attributes:
        rate: 0 where no other has an error that is small enough.
        error: at that rate.
        d_inc: the least that an error tried lies above the threshold; inf if none does.
        d_dec: the least that one lies below it; inf if none does.
    """

    rate: float
    error: float
    d_inc: float
    d_dec: float


def chosen_rate(errors: Mapping[float, float], threshold: float, original: bool = False) -> Choice:
    """The highest rate whose error is at most the threshold.

    Args:
        errors: {rate: error}.
        threshold: th.
        original: a layer of rate 0 has d_inc = d_dec = 0.
    """
    above: list[float] = []
    for rate in sorted(errors, reverse=True):
        error = errors[rate]
        if error <= threshold:
            below = threshold - error
            return Choice(rate, error, min(above, default=math.inf), below or math.inf)
        above.append(error - threshold)
    return Choice(0.0, 0.0, 0.0, 0.0) if original else Choice(
        0.0, 0.0, min(above, default=math.inf), math.inf
    )  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """What the bound allows.

    Attributes:
        thresholds: {layer: th}, scaled to the bound.
        choices: {layer: its rate}.
        errors: {layer: {rate: error}}, of all.
        norm: of the thresholds.
        upper_bound: that they were scaled to.
    """

    thresholds: dict[str, float]
    choices: dict[str, Choice]
    errors: Errors
    norm: float
    upper_bound: float

    @property
    def rates(self) -> dict[str, float]:
        """{layer: rate}, of those that lose something."""
        return {name: choice.rate for name, choice in self.choices.items() if choice.rate > 0}


@dataclass
class TrustRegion:
    """The bound of the thresholds, from candidate to candidate.

    Attributes:
        scaling_factor: by which it grows at least, and shrinks at least.
        original: as CAC has it, where that differs and ends (see above; 6 does not).
        limit: that it grows to at most.
        upper_bound: the bound.
        stopped: why the search is over; "" while it is not.
    """

    scaling_factor: float = 2.0
    original: bool = False
    limit: float = math.nan
    upper_bound: float = math.nan
    stopped: str = ""

    def __post_init__(self) -> None:
        if not 1 < self.scaling_factor < math.inf:
            raise OptionError(f"scaling_factor {self.scaling_factor}: give more than 1; 2 is usual")

    def begin(self, thresholds: Mapping[str, float], errors: Errors) -> None:
        """Take the limit of a model: the first one, or the one that a candidate has become.

        Args:
            thresholds: of its layers, not scaled.
            errors: of its layers.
        """
        if self.original:
            largest = thresholds[max(thresholds)] if thresholds else 0.0
        else:
            largest = max((th for th in thresholds.values() if math.isfinite(th)), default=0.0)
        top = max((rate for of in errors.values() for rate in of), default=0.0)
        worst = max((of.get(top, 0.0) for of in errors.values()), default=0.0)
        self.limit = math.sqrt(len(thresholds)) * max(largest, worst)
        if math.isnan(self.upper_bound):
            self.upper_bound = self.limit

    def propose(self, thresholds: Mapping[str, float], errors: Errors) -> Proposal:
        """The rates that the bound allows; `stopped` if that is none.

        Args:
            thresholds: of the model, not scaled.
            errors: of its layers.
        """
        scaled = self._scaled(dict(thresholds))
        choices = {
            name: chosen_rate(errors.get(name, {}), th, self.original)
            for name, th in scaled.items()
        }
        found = Proposal(scaled, choices, errors, _norm(scaled.values()), self.upper_bound)
        if not found.rates:
            self.stopped = "all rates are 0"
        return found

    def accept(self, proposal: Proposal) -> None:
        """The candidate has become the model; call `begin` with the figures of that next."""
        factors = [1 + c.d_inc / th for c, th in _pairs(proposal) if th > 0]
        growth = max(self.scaling_factor, min(factors, default=1.0))
        self.upper_bound = min(self.upper_bound * growth, self.limit)

    def reject(self, proposal: Proposal) -> None:
        """The candidate loses too much."""
        if not any(proposal.choices[name].error > 0 for name in proposal.rates):
            self.stopped = self.stopped or "what is left costs nothing alone, but too much together"
        elif self.original:
            factors = [1 - c.d_dec / th for c, th in _pairs(proposal) if th > 0]
            shrunk = self.upper_bound * min(1 / self.scaling_factor, max(factors, default=1.0))
            self.upper_bound = min(shrunk, self.limit)
        else:
            self.upper_bound = min(self.upper_bound, proposal.norm) * self._step_down(proposal)
        if self.upper_bound < 0:
            self.stopped = "the bound is below 0"

    def rejections_left(self, thresholds: Mapping[str, float], errors: Errors) -> int:
        """How many candidates of a model follow if none of them holds; at most _FAR are counted."""
        ahead, found = replace(self), 0
        while found < _FAR and not ahead.stopped:
            proposal = ahead.propose(thresholds, errors)
            if proposal.rates:
                ahead.reject(proposal)
                found += 1
        return found

    def _step_down(self, proposal: Proposal) -> float:
        """The factor after which the next candidate is another."""
        rated = [(n, proposal.thresholds[n], proposal.choices[n].error) for n in proposal.rates]
        below = max(error / th for _, th, error in rated if error > 0) * (1 - _HAIR)
        factor = min(1 / self.scaling_factor, below)
        cheapest = sorted(
            min(proposal.errors[name].values()) / th for name, th, _ in rated if th > 0
        )
        fewer = [least * (1 + _HAIR) for least in cheapest if least * (1 + _HAIR) < below]
        if fewer and factor < fewer[0]:
            return fewer[(len(fewer) - 1) // 2]
        return factor

    def _scaled(self, thresholds: dict[str, float]) -> dict[str, float]:
        """The thresholds with a norm of at most the bound."""
        norm = _norm(th for th in thresholds.values() if th != math.inf)
        factor = self.upper_bound / norm if norm > self.upper_bound else 1.0
        if self.original and math.inf in thresholds.values():
            factor = self.upper_bound
        return {name: self.upper_bound if th == math.inf else th * factor
                for name, th in thresholds.items()}  # fmt: skip


def _pairs(proposal: Proposal) -> list[tuple[Choice, float]]:
    """(choice, threshold) of each layer."""
    return [(choice, proposal.thresholds[name]) for name, choice in proposal.choices.items()]


def _norm(values: Iterable[float]) -> float:
    return math.hypot(*values)
