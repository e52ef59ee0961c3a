"""Zeros that masks say: make them, and see that a model still has them."""

from collections.abc import Mapping

import numpy as np

from onnxdrp.errors import CheckError
from onnxdrp.layers import by_weight, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model

__all__ = ["check_masks", "masked_copy", "pruned_weights"]


def masked_copy(model: Model, masks: Mapping[str, Mask]) -> Model:
    """A copy of a model with what masks prune set to zero, and nothing repaired."""
    copy = model.clone()
    weights = by_weight(layers(copy))
    for name, mask in masks.items():
        if name in weights and (stored := weights[name][0].stored) is not None:
            stored.apply(copy, mask)
    return copy


def pruned_weights(masks: Mapping[str, Mask]) -> list[str]:
    """The names of the weights of which masks prune something."""
    return [name for name, mask in masks.items() if mask.count < mask.size]


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
