"""When a training run prunes, and how much.

    rate(s) = final + (initial - final) * (1 - (s - begin) / (end - begin))^3

at the steps s = begin, begin + frequency, ... and at `end` itself, so that `final` is always
reached; between them the rate stays. The curve is that of Zhu and Gupta 2017
(https://arxiv.org/abs/1710.01878, equation 1). The manual of DRP-AI Extension Pack (section 4.2.2)
names these parameters and says that the rate rises from initial to final; it does not state the
curve. With end = -1 pruning is one-shot: `final` at once, and the other parameters are ignored.
"""

from collections.abc import Sized
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from onnxdrp.errors import OptionError

__all__ = ["Schedule", "end_step", "frequency"]


@dataclass(frozen=True)
class Schedule:
    """The pruning rate at each step (iteration) of a training run, counted from 0.

    Attributes:
        initial_pr: rate at `begin_step`, in [0, 1).
        final_pr: rate at `end_step`, in [0, 1), and not below the initial one.
        begin_step: where pruning starts, 0 or more.
        end_step: where it ends, behind `begin_step`; -1: one-shot.
        frequency: steps from one pruning to the next, 1 or more.

    Raises:
        OptionError: names the parameter that is out of its range.
    """

    initial_pr: float = 0.01
    final_pr: float = 0.7
    begin_step: int = 0
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        for name in ("initial_pr", "final_pr"):
            rate = getattr(self, name)
            if not _is(rate, Real) or not 0 <= rate < 1:
                raise OptionError(f"{name} is {rate!r}: a pruning rate is in [0, 1)")
        for name, least in (("begin_step", 0), ("end_step", -1), ("frequency", 1)):
            value = getattr(self, name)
            if not _is(value, Integral) or value < least:
                raise OptionError(f"{name} is {value!r}: it must be an integer of {least} or more")
        if self.one_shot:
            return
        if self.begin_step >= self.end_step:
            raise OptionError(
                f"begin_step {self.begin_step} is not before end_step {self.end_step}; for "
                "one-shot pruning set end_step to -1"
            )
        if self.initial_pr > self.final_pr:
            raise OptionError(
                f"initial_pr {self.initial_pr} is above final_pr {self.final_pr}: what is pruned "
                "does not come back"
            )

    @property
    def one_shot(self) -> bool:
        """Whether all is pruned before the first step."""
        return self.end_step == -1

    def prunes(self, step: int) -> bool:
        """Whether the rate changes at this step; never in one-shot pruning."""
        if self.one_shot or not self.begin_step <= step <= self.end_step:
            return False
        return step == self.end_step or (step - self.begin_step) % self.frequency == 0

    def rate(self, step: int) -> float:
        """The rate that the formula gives for a step; outside of the range that of its ends."""
        if self.one_shot or step >= self.end_step:
            return self.final_pr
        left = 1 - max(step - self.begin_step, 0) / (self.end_step - self.begin_step)
        return float(self.final_pr + (self.initial_pr - self.final_pr) * left**3)

    def finished(self, steps: int) -> bool:
        """Whether the final rate is reached once so many steps have begun."""
        return self.one_shot or steps > self.end_step


def end_step(
    per_epoch: int, max_iter: int | None = None, max_epoch: int | None = None, ratio: float = 0.7
) -> int:
    """The step where pruning ends: (iterations of the training) * ratio, rounded down.

    Args:
        per_epoch: iterations of an epoch.
        max_iter: iterations of the training; or
        max_epoch: its epochs. One of the two.
        ratio: above 0; what is pruned behind the end of the training never is, so 1 or less.

    Raises:
        OptionError: names what is out of its range.
    """
    if (max_iter is None) == (max_epoch is None):
        raise OptionError("set either max_iter or max_epoch, and not both")
    given = max_epoch if max_iter is None else max_iter
    name = "max_epoch" if max_iter is None else "max_iter"
    if not _is(given, Integral) or given is None or given < 1:
        raise OptionError(f"{name} is {given!r}: it must be an integer of 1 or more")
    total = given * per_epoch if max_iter is None else given
    # 0.7 * 10 is 7.000000000000001 or 6.999999999999999, by the numbers: nearest first
    return int(round(total * _ratio(ratio), 6))


def frequency(per_epoch: int, ratio: float = 1.0) -> int:
    """Steps from one pruning to the next: (iterations of an epoch) * ratio, at least 1.

    Raises:
        OptionError: the ratio is not above 0.
    """
    return max(1, int(round(per_epoch * _ratio(ratio), 6)))


def iterations(loader: Sized, what: str = "the data loader") -> int:
    """The iterations of an epoch.

    Raises:
        OptionError: the loader does not know its length, or is empty.
    """
    try:
        count = len(loader)
    except TypeError as error:
        raise OptionError(
            f"{what} has no length; count the iterations of an epoch and give max_iter, or "
            "end_step and frequency themselves"
        ) from error
    if count < 1:
        raise OptionError(f"{what} is empty")
    return count


def _ratio(ratio: float) -> float:
    if not _is(ratio, Real) or not ratio > 0:
        raise OptionError(f"ratio is {ratio!r}: it must be above 0")
    return float(ratio)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
