"""Take channels out of the graph: smaller weights, and fewer multiply-adds on every device.

Removes what ctx.removed names. Outputs change only by what the removed channels had contributed to
the layers that summed over them; refit-weights makes up for it. For that ctx.dense, the float
model, shows of each tensor the channels that are left.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from onnxdrp.channels import channels_of
from onnxdrp.channels.cost import totals
from onnxdrp.channels.spec import ChannelSpec
from onnxdrp.errors import CheckError, OptionError
from onnxdrp.macs import shape_of
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes.removing import entries, remove, seen_through, without
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["RemoveChannels"]


@dataclass(frozen=True)
class RemoveChannels(Pass):
    """Remove the channels that ctx.removed names.

    Stats: `channels` {layer: [output channels before, after]}; `decision`, what a file of
    onnxdrp.channels.spec has; `params` and `macs`, [before, after]
    of all layers (macs None where a shape is not known); `pinned` {layer: why none of its channels
    could be removed}.
    """

    name: ClassVar[str] = "remove-channels"

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Channels are chosen, and rates are not: they would be of other weights."""
        if not ctx.removed:
            raise OptionError(
                "no channels are chosen: run select-channels before; if it ran, ask for more of "
                "them, or give a smaller multiple"
            )
        self.refuse_rates(ctx)

    @staticmethod
    def refuse_rates(ctx: PassContext) -> None:
        """Raise OptionError where rates of weights are chosen."""
        if ctx.rates:
            raise OptionError("layers to prune are chosen already; run select-layers afterwards")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError where ctx.removed is of another model."""
        channels = channels_of(model)
        alive = channels.alive(ctx.removed)
        ctx.dense = seen_through(ctx.dense or model, channels, alive)
        lost = entries(channels, alive)
        for name, mask in ctx.masks.items():
            if name in lost:
                ctx.masks[name] = Mask(without(mask.keep, lost[name]))
        before = totals(model)
        decision = ChannelSpec.of(channels, ctx.removed).as_dict()
        counts = remove(model, channels, ctx.removed)
        after = totals(model)
        ctx.shortened |= {
            site.tensor
            for site in channels.trace.sites
            if site.role == "read" and site.axis in lost.get(site.tensor, ())
        }
        ctx.slim, ctx.removed = model.clone(), {}
        stats: dict[str, Any] = {
            "channels": {name: list(pair) for name, pair in counts.items()},
            "decision": decision,
            "params": [before[0], after[0]],
            "macs": [before[1], after[1]],
            "pinned": channels.pinned,
        }
        return PassResult(modified=bool(counts), stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """The graph is one that ONNX can infer all shapes of, and each Conv gets what it is for."""
        try:
            onnx.shape_inference.infer_shapes(model.skeleton(), strict_mode=True, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError) as e:
            first = str(e).strip().splitlines()[0]
            raise CheckError(f"the model without the channels has no valid shapes: {first}") from e
        _check_convolutions(model)


def _check_convolutions(model: Model) -> None:
    """Each gets as many channels as its weight is for: shape inference does not look at that."""
    for node in model.nodes("Conv", "ConvTranspose"):
        shape, weight = shape_of(node.inputs[0]), shape_of(node.inputs[1])
        if shape is None or weight is None:
            continue
        forward = node.op == "Conv"
        given, wanted = shape[1], weight[1 if forward else 0]
        if isinstance(given, int) and isinstance(wanted, int):
            wanted *= node.attrs.get("group", 1) if forward else 1
            if given != wanted:
                why = f"{node.name!r} reads {given} channels, its weight is for {wanted}"
                raise CheckError(f"the model without the channels is not valid: {why}")
