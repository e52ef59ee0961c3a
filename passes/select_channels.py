"""Choose the channels to remove, the same share of every group: those of the lowest score.

Fills ctx.removed {group: units that go}; the model is not touched. Which channels must go together
is found in the graph (onnxdrp.channels); scores are those of score-channels, or if it has not run,
the sizes of weights (onnxdrp.channels.choosing). The share is given, or found by bisection for a
share of the multiply-adds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.channels import Channels, channels_of
from onnxdrp.channels.choosing import at_rates, scores_of
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.excluding import removable
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["SelectChannels"]

_HALVINGS = 20


@dataclass(frozen=True)
class SelectChannels(Pass):
    """Choose channels.

    Stats: `rate`, the share of each group; `macs` before and after; `groups` {group: [channels of
    its first layer before, after]}; `skipped` {layer: why its channels stay}.

    Attributes:
        rate: share of the channels of each group, in [0, 1).
        ratio: share of the multiply-adds that go, instead of a rate; what is nearest below where
            the multiple does not allow it.
        multiple: that the channels which stay are of; default: the target's.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
    """

    name: ClassVar[str] = "select-channels"
    keeps_results: ClassVar[bool] = True

    rate: float | None = None
    ratio: float | None = None
    multiple: int | None = None
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.ratio is None):
            raise OptionError("give either rate, of the channels, or ratio, of the multiply-adds")
        for name in ("rate", "ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise OptionError(f"{name} {value} is outside [0, 1)")
        if self.multiple is not None and self.multiple < 1:
            raise OptionError(f"multiple {self.multiple}: give 1 or more")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing can be removed, OptionError if a selector matches none."""
        channels = channels_of(model)
        groups, skipped = removable(model, channels, self.exclude, self.auto_excludes)
        if not groups:
            raise ModelError(f"no channels can be removed: {next(iter(skipped.values()), '')}")
        scores, cost = scores_of(model, channels, ctx.channel_scores), Cost(model, channels)
        multiple = self.multiple or ctx.target.channel_multiple

        def removed(rate: float) -> dict[str, list[int]]:
            return at_rates(channels, scores, dict.fromkeys(groups, rate), multiple)

        rate = self.rate
        if rate is None:
            assert self.ratio is not None
            rate = _rate_of(lambda r: cost.macs(channels.alive(removed(r))), cost.whole, self.ratio)
        ctx.removed = {name: tuple(units) for name, units in removed(rate).items()}
        stats = {
            "rate": rate,
            "macs": [cost.whole, cost.macs(channels.alive(ctx.removed))],
            "groups": widths(channels, ctx),
            "skipped": skipped,
        }
        return PassResult(modified=False, stats=stats)


def widths(channels: Channels, ctx: PassContext) -> dict[str, list[int]]:
    """{group: [units before, after]} of those that lose some."""
    return {
        name: [channels.group(name).size, channels.group(name).size - len(units)]
        for name, units in ctx.removed.items()
    }


def _rate_of(macs: Callable[[float], int], whole: int, ratio: float) -> float:
    """The highest rate that removes no more than this share of the multiply-adds."""
    low, high = 0.0, 1 - 1e-6
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if 1 - macs(middle) / whole > ratio:
            high = middle
        else:
            low = middle
    return low
