"""An exponential moving average of a model that is being pruned.

    v <- d v + (1 - d) w,   d = decay * (1 - exp(-updates / 2000))

for every floating-point parameter and buffer but the masks, which are the model's own. Averaged,
as other tensors, they would be neither 0 nor 1 for as long as the rate rises: hence the warning of
DRP-AI Extension Pack's manual (section 6) against averages in gradual pruning, which need not hold.
"""

import math

import torch
from torch import nn

from onnxdrp.torch.masking import copy_masks, deepcopy_model, held_layers, refresh
from onnxdrp.torch.tracing import plain

__all__ = ["PrunedModelEMA"]

_WARM = 2000  # updates until the decay is at 63 % of what it becomes


class PrunedModelEMA:
    """The average of a model's weights over training steps, with the model's masks.

    Args:
        model: may be wrapped in DistributedDataParallel or torch.compile.
        decay: in [0, 1).
        updates: how many there were before, of a training that goes on.

    Attributes:
        ema: the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, updates: int = 0) -> None:
        self.ema = deepcopy_model(plain(model)).eval().requires_grad_(False)
        self.decay = decay
        self.updates = updates

    def update(self, model: nn.Module) -> None:
        """Take the model's weights in; after each optimizer step."""
        model = plain(model)
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / _WARM))
        copy_masks(model, self.ema)  # before all: what has been pruned since has other names
        new = model.state_dict()
        with torch.no_grad():
            for name, value in self.ema.state_dict().items():
                if not value.is_floating_point():
                    value.copy_(new[name])
                elif not name.endswith("weight_mask"):
                    value.lerp_(new[name].to(value), 1 - decay)
        for module in held_layers(self.ema).values():
            refresh(module)
