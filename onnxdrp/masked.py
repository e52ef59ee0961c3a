"""Whether a model still has the zeros that its masks say."""

from collections.abc import Mapping

import numpy as np

from onnxdrp.errors import CheckError
from onnxdrp.layers import by_weight, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model

__all__ = ["check_masks"]


def check_masks(model: Model, masks: Mapping[str, Mask]) -> None:
    """Each weight must exist and be zero wherever its mask is, behind a DequantizeLinear too.

    Raises:
        CheckError: names the weight that is gone or alive.
    """
    weights = by_weight(layers(model))
    for name, mask in masks.items():
        stored = weights[name][0].stored if name in weights else None
        if stored is None:
            raise CheckError(
                f"pruned weight {name!r} is gone; a pass that renames or removes a weight must "
                "move or drop its mask in ctx.masks"
            )
        mask.check_fits(stored.shape, f"pruned weight {name!r}")
        if not stored.holds(model, mask):
            alive = int(np.count_nonzero(stored.nonzero(model) & ~mask.keep))
            raise CheckError(
                f"pruned weight {name!r} has {alive:,} values that its mask has zeroed"
            )
