"""Choose the channels that an earlier decision names: a file (onnxdrp.channels.spec).

Fills ctx.removed {group: units that go}; the model is not touched. Its weights may be others than
when the decision was made: where it was fine-tuned with these channels masked, to remove them
changes no output.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxdrp.channels import channels_of
from onnxdrp.channels.spec import load_spec
from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes.select_channels import widths
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["ApplyChannels"]

_MASKED = 0.5  # share of zeros from which on the model was masked once


@dataclass(frozen=True)
class ApplyChannels(Pass):
    """Choose the channels of a file.

    Stats: `groups` {group: [units before, after]}; `zeros`, the share that is zero already of the
    weights that make or read these channels: 1 in a model that was masked and stayed so.

    Attributes:
        file: of a decision, or of a Pareto front.
        net_id: the point of the front.
    """

    name: ClassVar[str] = "apply-channels"
    keeps_results: ClassVar[bool] = True

    file: str = ""
    net_id: int | None = None

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is a file."""
        if not self.file:
            raise OptionError("no file of a decision is named; give what slim --save-spec wrote")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError if the file cannot be read, or does not fit the model."""
        channels = channels_of(model)
        spec = load_spec(self.file, self.net_id)
        try:
            spec.check(channels)
        except OptionError as e:
            raise OptionError(f"{self.file}: {e}") from e
        ctx.removed = dict(spec.removed)
        masks = channels.masks(model, ctx.removed)
        going = sum(mask.size - mask.count for mask in masks.values())
        left = sum(
            int(np.count_nonzero(model.weight(name)[~mask.keep])) for name, mask in masks.items()
        )
        zeros = 1 - left / max(going, 1)
        stats: dict[str, Any] = {"groups": widths(channels, ctx), "zeros": zeros}
        if _MASKED < zeros < 1:
            told = f"{left:,} of {going:,} weights of the channels that go are not zero any more"
            mend = "outputs will change; hold the zeros while you train, or repair afterwards"
            stats["warnings"] = [f"{told}: {mend}"]
        return PassResult(modified=False, stats=stats)
