"""The module `drpai_compaction_tool.tensorflow` (DRP-AI Extension Pack's manual, section 4.3)."""

import math

import keras

from onnxdrp.errors import OptionError
from onnxdrp.keras import Pruner, info
from onnxdrp.training import schedule

__all__ = ["Pruner", "get_endstep", "get_frequency", "make_pruning_layer_list"]


def make_pruning_layer_list(
    model: keras.Model, prune_last: bool = False, prune_dwise: bool = False
) -> list[str]:
    """The layers to prune, in the order in which they run (section 4.3.1).

    Never: the first layer; those whose input channels (of a group) are no multiple of 32.
    `onnxdrp.keras.info` says of each layer why it is left out.

    Args:
        model: functional or sequential.
        prune_last: the last layer is pruned, too.
        prune_dwise: depthwise layers are.

    Raises:
        ModelError: it is subclassed, not built, or has neither Conv2D nor Dense.
    """
    return info(model, prune_last=prune_last, prune_dwise=prune_dwise).prunable


def get_endstep(
    num_data: int,
    batch_size: int,
    max_iter: int | None = None,
    max_epoch: int | None = None,
    ratio: float = 0.7,
) -> int:
    """The step where pruning ends: (iterations of the training) * ratio (section 4.3.3).

    Args:
        num_data: samples that are trained on, without those that are split off for validation.
        batch_size: of the training.
        max_iter: iterations of the training; or
        max_epoch: its epochs. One of the two.
        ratio: above 0.
    """
    return schedule.end_step(_iterations(num_data, batch_size), max_iter, max_epoch, ratio)


def get_frequency(num_data: int, batch_size: int, ratio: float = 1.0) -> int:
    """Iterations from one pruning to the next: (those of an epoch) * ratio (section 4.3.4).

    Args:
        num_data: samples that are trained on.
        batch_size: of the training.
        ratio: above 0; 1 prunes once an epoch.
    """
    return schedule.frequency(_iterations(num_data, batch_size), ratio)


def _iterations(num_data: int, batch_size: int) -> int:
    """Of an epoch: the last batch of `fit` may be smaller."""
    for name, value in (("num_data", num_data), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise OptionError(f"{name} is {value!r}: it must be an integer of 1 or more")
    return math.ceil(num_data / batch_size)
