"""Choose the channels to remove: of every group those of the lowest score.

Fills ctx.removed {group: units that go}; the model is not touched. Which channels must go together
is found in the graph (onnxdrp.channels); scores are those of score-channels, or if it has not run,
the sizes of weights (onnxdrp.channels.choosing). How many go is the same share of every group,
given or found by bisection for a share of the multiply-adds; or, where it is known what that costs
in each group (MeasureChannels), what costs least for a multiply-add (onnxdrp.channels.pricing):
then they go in the order in which they were measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxdrp.channels import Channels, channels_of
from onnxdrp.channels.choosing import at_rates, scores_of
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.pricing import by_price
from onnxdrp.channels.sensitivity import load_channel_sensitivity
from onnxdrp.channels.subnets import Subnets
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["SelectChannels"]

Floats = npt.NDArray[np.float64]

_HALVINGS = 20


@dataclass(frozen=True)
class SelectChannels(Pass):
    """Choose channels.

    Stats: `rate`, the share of each group, or `price`, what the last channels cost (squares of the
    score's drop, for all multiply-adds); `macs` before and after; `groups` {group: [channels of its
    first layer before, after]}; `skipped` {layer: why its channels stay}; `warnings` where the
    ratio is not met within 1 % of the multiply-adds that should be left.

    Attributes:
        rate: share of the channels of each group, in [0, 1).
        ratio: share of the multiply-adds that go, instead of a rate; what is nearest below where
            the multiple does not allow it.
        multiple: that the channels which stay are of; default: the target's.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        curves: a file of MeasureChannels, or of ctx.channel_curves; with a ratio. None: what is in
            ctx.channel_curves, if MeasureChannels ran before; without it all groups lose one share.
    """

    name: ClassVar[str] = "select-channels"
    keeps_results: ClassVar[bool] = True

    rate: float | None = None
    ratio: float | None = None
    multiple: int | None = None
    exclude: tuple[str, ...] = ()
    auto_excludes: bool = True
    curves: str | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.ratio is None):
            raise OptionError("give either rate, of the channels, or ratio, of the multiply-adds")
        for name in ("rate", "ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise OptionError(f"{name} {value} is outside [0, 1)")
        if self.multiple is not None and self.multiple < 1:
            raise OptionError(f"multiple {self.multiple}: give 1 or more")
        if self.curves is not None and self.ratio is None:
            raise OptionError("curves belong to a ratio; give that instead of a rate")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing can be removed, OptionError if a selector matches none."""
        channels = channels_of(model)
        groups, skipped = removable(model, channels, self.exclude, self.auto_excludes)
        if not groups:
            raise ModelError(f"no channels can be removed: {next(iter(skipped.values()), '')}")
        cost = Cost(model, channels)
        multiple = self.multiple or ctx.target.channel_multiple
        curves = ctx.channel_curves
        if self.curves is not None:
            curves = load_channel_sensitivity(self.curves)
        how: dict[str, Any]
        if self.ratio is not None and curves is not None:
            curves.check(model, channels)
            for name in (name for name in groups if name not in curves.curves):
                for maker in channels.group(name).makers:
                    skipped[maker] = curves.skipped.get(maker, "its group was not measured")
            groups = [name for name in groups if name in curves.curves]
            if not groups:
                raise ModelError("no group that may lose channels was measured; measure again")
            subnets = Subnets(model, channels, groups, multiple, curves.scores())
            chosen = by_price(subnets, curves, self.ratio)
            ctx.removed = subnets.removed(chosen.subnet)
            how = {"price": chosen.price}
            how["warnings"] = [] if chosen.met else [self._missed(chosen.subnet.share)]
        else:
            scores = scores_of(model, channels, groups, ctx.channel_scores)
            rate = self._rate(channels, cost, scores, groups, multiple)
            removed = at_rates(channels, scores, dict.fromkeys(groups, rate), multiple)
            ctx.removed = {name: tuple(units) for name, units in removed.items()}
            how = {"rate": rate}
        stats = {
            **how,
            "macs": [cost.whole, cost.macs(channels.alive(ctx.removed))],
            "groups": widths(channels, ctx),
            "skipped": skipped,
        }
        return PassResult(modified=False, stats=stats)

    def _rate(
        self,
        channels: Channels,
        cost: Cost,
        scores: Mapping[str, Floats],
        groups: list[str],
        multiple: int,
    ) -> float:
        """The share of each group that goes."""
        if self.rate is not None:
            return self.rate
        assert self.ratio is not None  # one of them is given

        def macs(rate: float) -> int:
            removed = at_rates(channels, scores, dict.fromkeys(groups, rate), multiple)
            return cost.macs(channels.alive(removed))

        return _rate_of(macs, cost.whole, self.ratio)

    def _missed(self, share: float) -> str:
        return (
            f"ratio {self.ratio:g} of the multiply-adds is not met: {share:.4f} of them go, the "
            "nearest below that the multiple of channels and the rates measured allow"
        )


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
