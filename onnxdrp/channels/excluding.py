"""Which groups of channels may be touched: not what the user excludes, nor the first and the last.

The first convolution meets the image, the last makes what the head reads: their outputs stay whole
by default, as in AMD's Vitis AI Optimizer; with them all that is added to these.
"""

from collections.abc import Sequence

from onnxdrp.channels.groups import Channels
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.selectors import select

__all__ = ["removable"]


def removable(
    model: Model, channels: Channels, exclude: Sequence[str] = (), auto_excludes: bool = True
) -> tuple[list[str], dict[str, str]]:
    """The names of the groups that may lose channels, and {layer: why its channels stay}.

    Raises:
        OptionError: a selector matches no layer.
    """
    found = layers(model)
    names = {u.name: tuple(filter(None, (u.name, u.weight))) for u in found}
    whole: dict[str, str] = {}
    if auto_excludes:
        convolutions = [layer for layer in found if layer.op in ("Conv", "ConvTranspose")]
        for layer in convolutions[-1:]:
            whole[layer.name] = "last: the last convolution stays whole"
        for layer in convolutions[:1]:
            whole[layer.name] = "first: the first convolution stays whole"
    for selector in exclude:
        whole |= dict.fromkeys(select(selector, names, "layer"), f"excluded: by {selector!r}")
    skipped, left = dict(channels.pinned), []
    for group in channels.groups:
        why = next((f"{whole[n]} ({n!r})" for n in group.makers if n in whole), "")
        skipped |= dict.fromkeys(group.makers if why else (), why)
        if not why:
            left.append(group.name)
    return left, skipped
