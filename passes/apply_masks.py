"""Set to zero what saved masks prune; and read masks back from the zeros of a pruned model.

Fills ctx.masks. Rates and rules of SelectLayers do not matter here: a mask holds what was decided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.errors import OptionError
from onnxdrp.layers import by_weight, layers
from onnxdrp.masked import check_masks
from onnxdrp.masks import Mask, load_masks
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.stored import Stored

__all__ = ["ApplyMasks", "masks_from_zeros"]


@dataclass(frozen=True)
class ApplyMasks(Pass):
    """Apply masks to the weights they are named after.

    Attributes:
        path: an .npz file that `onnxdrp.masks.save_masks` wrote; default: the masks in the context.
    """

    name: ClassVar[str] = "apply-masks"

    path: str | None = None

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Every mask is one for a weight of this model."""
        _fitting(model, self._masks(ctx))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Apply all masks, or none where one does not fit."""
        masks = self._masks(ctx)
        weights = _fitting(model, masks)
        ctx.dense = ctx.dense or model.clone()
        changed = [name for name, stored in weights.items() if stored.apply(model, masks[name])]
        ctx.masks |= masks
        size = sum(mask.size for mask in masks.values())
        kept = sum(mask.count for mask in masks.values())
        stats = {"masks": len(masks), "changed": changed, "sparsity": 1 - kept / size}
        return PassResult(modified=bool(changed), stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def _masks(self, ctx: PassContext) -> dict[str, Mask]:
        masks = ctx.masks if self.path is None else load_masks(self.path)
        if not masks:
            where = "the context" if self.path is None else self.path
            raise OptionError(f"{where}: holds no masks; prune first, or name a file of masks")
        return dict(masks)


def masks_from_zeros(model: Model) -> dict[str, Mask]:
    """{weight: mask} of every stored weight of a layer that has zeros, float or quantized.

    Weights that were rounded to zero look like pruned ones.
    """
    masks = {}
    for name, users in by_weight(layers(model)).items():
        nonzero = users[0].nonzero(model)
        if nonzero is not None and not nonzero.all():
            masks[name] = Mask(nonzero)
    return masks


def _fitting(model: Model, masks: Mapping[str, Mask]) -> dict[str, Stored]:
    """{name: weight} of the masks. Raises OptionError naming the first that does not fit."""
    users = by_weight(layers(model))
    found = {}
    for name, mask in masks.items():
        stored = users[name][0].stored if name in users else None
        if stored is None:
            raise OptionError(
                f"mask {name!r}: the model has no layer with a weight of this name; "
                "the mask was made for another model, or a pass renamed the weight"
            )
        mask.check_fits(stored.shape, f"weight {name!r}")
        found[name] = stored
    return found
