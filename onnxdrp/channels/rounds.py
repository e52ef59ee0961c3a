"""What a search for rates of channels tried, round by round, and what it came to."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.model import Model
from onnxdrp.report import Text

__all__ = ["AutoChannels", "Round"]


@dataclass(frozen=True)
class Round:
    """One candidate.

    Attributes:
        number: from 1.
        rates: {group: share of its channels that went}.
        errors: {group: predicted rise of the loss, at its rate}, of the same.
        thresholds: {group: what that may be}, of all.
        norm: of the thresholds.
        upper_bound: that the radius of trust allowed.
        limit: of that.
        loss: of the model that the candidate was made from.
        channels: how many units went.
        macs: multiply-adds that the candidate has; None where they are not known.
        lost: points, against the original model.
        low: lower end of the 95 % interval of that.
        high: upper end.
        accepted: whether the candidate became the model.
        recovered: how it was repaired: "refit" or "distill".
        same_as: the round that had this very candidate, so that it was not tried again; 0: none.
        seconds: that it took.
    """

    number: int
    rates: dict[str, float]
    errors: dict[str, float]
    thresholds: dict[str, float]
    norm: float
    upper_bound: float
    limit: float
    loss: float
    channels: int
    macs: int | None
    lost: float
    low: float
    high: float
    accepted: bool
    recovered: str
    same_as: int
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class AutoChannels(Tabular):
    """What the search came to.

    Attributes:
        model: the last that was accepted.
        rounds: all that was tried.
        removed: {group of the original model: its units that are gone}.
        channels: {layer: [output channels before, after]}, of those that lose some.
        macs: before and after; None where they are not known.
        params: before and after.
        max_drop: points that may be lost.
        what: what points are of.
        samples: that candidates were judged on.
        top1: percent of it that the original model has.
        stopped: why the search ended.
        skipped: {layer: why its channels stay}.
    """

    model: Model
    rounds: tuple[Round, ...]
    removed: dict[str, tuple[int, ...]]
    channels: dict[str, list[int]]
    macs: tuple[int | None, int | None]
    params: tuple[int, int]
    max_drop: float
    what: str
    samples: int
    top1: float
    stopped: str
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Round:
        """The last that was accepted."""
        return next(r for r in reversed(self.rounds) if r.accepted)

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the model: its interval, where the goal is in it."""
        best = self.best
        if best.high <= self.max_drop:
            return []
        told = f"the 95 % interval of what is lost on {self.samples} samples"
        beyond = f"{best.low:.2f} to {best.high:.2f} points, reaches beyond {self.max_drop:g}"
        return [f"{told}, {beyond}; more samples would tell finer"]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "max_drop": self.max_drop,
            "what": self.what,
            "samples": self.samples,
            "top1": self.top1,
            "lost": self.best.lost,
            "macs": list(self.macs),
            "params": list(self.params),
            "channels": self.channels,
            "removed": {name: list(units) for name, units in self.removed.items()},
            "stopped": self.stopped,
            "skipped": self.skipped,
            "rounds": [_finite(asdict(r)) for r in self.rounds],
        }

    def table(self) -> Text:
        """A line a round."""
        head = ("round", "groups", "channels", "bound", "loss", "million MACs", "points lost",
                "95 % interval", "repair", "seconds", "")  # fmt: skip
        rows = [
            (str(r.number), str(len(r.rates)), str(r.channels), f"{r.upper_bound:.4g}",
             f"{r.loss:.4f}", "-" if r.macs is None else f"{r.macs / 1e6:.1f}", f"{r.lost:.2f}",
             f"{r.low:.2f} to {r.high:.2f}", r.recovered, f"{r.seconds:.1f}", self._verdict(r))
            for r in self.rounds
        ]  # fmt: skip
        told = f"points are of {self.what} on the {self.samples} samples that judged"
        end = f"ended: {self.stopped}; {told}"
        return Shown(Table(head, rows), "", end)

    def _verdict(self, r: Round) -> str:
        if r.same_as:
            return f"as round {r.same_as}"
        return "taken" if r is self.best else "accepted" if r.accepted else "loses too much"


def _finite(value: Any) -> Any:
    """With None for what is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
