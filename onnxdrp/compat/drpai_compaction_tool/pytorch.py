"""The module `drpai_compaction_tool.pytorch` (DRP-AI Extension Pack's manual, section 4.2)."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from onnxdrp.summary import LayerSummary
from onnxdrp.torch import (
    PrunedModelEMA,
    Pruner,
    deepcopy_model,
    finalize,
    info,
    load_pruned_state_dict,
)
from onnxdrp.training import schedule

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PrunedModelEMA",
    "Pruner",
    "deepcopy_model",
    "finalize",
    "get_endstep",
    "get_frequency",
    "get_model_info",
    "load_pruned_state_dict",
    "make_pruning_layer_list",
]


def make_pruning_layer_list(
    model: nn.Module,
    input_size: Sequence[tuple[int, ...]] | None = None,
    input_data: Sequence[Any] | Mapping[str, Any] | None = None,
    prune_last: bool = False,
    prune_dwise: bool = False,
) -> list[str]:
    """The layers to prune, in the order in which they run (section 4.2.1).

    Never: the first layer; those whose input channels (of a group) are no multiple of 32. Modules
    that the input does not reach are named in a warning. `onnxdrp.torch.info` says of each layer
    why it is left out.

    Args:
        model: is run once, as it is, and left so.
        input_size: a shape, batch first, for each input; or
        input_data: the arguments of `forward`, in a list or by name. One of the two.
        prune_last: the last layer is pruned, too.
        prune_dwise: depthwise layers are.

    Raises:
        OptionError: both or none of input_size and input_data.
        DataError: the model does not run on them.
        ModelError: it has neither Conv2d nor Linear.
    """
    found = info(model, input_size, input_data, prune_last=prune_last, prune_dwise=prune_dwise)
    idle = [row.name for row in found.layers if row.output_shape is None]
    if idle:
        warnings.warn(
            f"{len(idle)} layers did not run and are not pruned: {', '.join(idle)}", stacklevel=2
        )
    return found.prunable


def get_model_info(
    model: nn.Module,
    input_size: Sequence[tuple[int, ...]] | None = None,
    input_data: Sequence[Any] | Mapping[str, Any] | None = None,
) -> "pd.DataFrame":
    """The table of layers as Figure 3-11 has it; `onnxdrp.torch.info` gives the numbers.

    Args:
        model: is run once, as it is, and left so.
        input_size: a shape, batch first, for each input; or
        input_data: the arguments of `forward`, in a list or by name. One of the two.

    Returns:
        A row a layer in the order in which they run, and a last one with totals: shapes without
        the batch, parameters as float, sparsity (share of zeros among weights) and multiply-adds
        as text.
    """
    import pandas as pd

    found = info(model, input_size, input_data)
    total = ["total", "", "", float(found.params), ""]
    rows = [
        *([_cells(row) for row in found.layers]),
        [*total, f"{float(found.baseline_mac):,}", f"{float(found.current_mac):,}"],
    ]
    head = ["module name", "input shape", "output shape", "params", "sparsity"]
    index = [*map(str, range(len(found.layers))), ""]
    return pd.DataFrame(rows, index, [*head, "Baseline MAC", "Current MAC"])


def _cells(row: LayerSummary) -> list[Any]:
    macs = (row.baseline_mac, row.current_mac)
    return [
        row.name,
        " ".join(map(str, row.input_shape or ())),
        " ".join(map(str, row.output_shape or ())),
        float(row.params),
        f"{row.sparsity:.3f}",
        *("" if mac is None else f"{float(mac):,}" for mac in macs),
    ]


def get_endstep(
    dataloader: "DataLoader[Any]",
    max_iter: int | None = None,
    max_epoch: int | None = None,
    ratio: float = 0.7,
) -> int:
    """The step where pruning ends: (iterations of the training) * ratio (section 4.2.3).

    Args:
        dataloader: of the training.
        max_iter: iterations of the training; or
        max_epoch: its epochs. One of the two.
        ratio: above 0.
    """
    per_epoch = schedule.iterations(dataloader) if max_iter is None else 1
    return schedule.end_step(per_epoch, max_iter, max_epoch, ratio)


def get_frequency(dataloader: "DataLoader[Any]", ratio: float = 1.0) -> int:
    """Iterations from one pruning to the next: (those of an epoch) * ratio (section 4.2.4).

    Args:
        dataloader: of the training.
        ratio: above 0; 1 prunes once an epoch.
    """
    return schedule.frequency(schedule.iterations(dataloader), ratio)
