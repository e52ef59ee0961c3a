"""Set to zero the weights of channels that will be removed; the shapes stay.

The form in which a model can be repaired, or fine-tuned elsewhere: outputs that make a removed
channel and inputs that sum over it are zero (ctx.removed, onnxdrp.channels). remove-channels then
takes them out, which changes no output.
"""

from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.channels import channels_of
from onnxdrp.channels.spec import ChannelSpec
from onnxdrp.errors import OptionError
from onnxdrp.layers import by_weight, layers
from onnxdrp.masked import check_masks
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["MaskChannels"]


@dataclass(frozen=True)
class MaskChannels(Pass):
    """Mask the channels that ctx.removed names.

    Stats: `masks`, how many weights have zeros now; `sparsity` of these; `decision`,
    what a file of onnxdrp.channels.spec has, for remove-channels of the model once it is trained;
    `pinned` {layer: why none of its channels could go}.
    """

    name: ClassVar[str] = "mask-channels"

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Channels are chosen."""
        if not ctx.removed:
            raise OptionError("no channels are chosen; run select-channels before")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError where ctx.removed is of another model."""
        channels = channels_of(model)
        masks = channels.masks(model, ctx.removed)
        ctx.dense = ctx.dense or model.clone()
        users, changed = by_weight(layers(model)), 0
        for name, mask in masks.items():
            stored = users[name][0].stored
            assert stored is not None  # channels end at weights that are not
            changed += stored.apply(model, mask)
            ctx.masks[name] = ctx.masks[name] & mask if name in ctx.masks else mask
        size = sum(mask.size for mask in masks.values())
        kept = sum(mask.count for mask in masks.values())
        stats = {
            "masks": len(masks),
            "sparsity": 1 - kept / max(size, 1),
            "decision": ChannelSpec.of(channels, ctx.removed).as_dict(),
            "pinned": channels.pinned,
        }
        return PassResult(modified=changed > 0, stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)
