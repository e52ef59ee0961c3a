"""Retraining with held masks in PyTorch, on the same patterns, and masks to and from ONNX files.

    info                    the table of layers, as `onnxdrp.info` has it
    Pruner                  prunes once or gradually; holds the masks while the model is trained
    PrunedModelEMA          an average of weights that respects masks
    masks, set_masks        by name of the layer; copy_masks between models
    load_pruned_state_dict, deepcopy_model, finalize
    reapply                 masks found on an exported ONNX file, carried into the model
    masks_for               the model's masks for an exported ONNX file

Needs the extra `torch`. `onnxdrp.compat.drpai_compaction_tool.pytorch` has the same under the names
of DRP-AI Extension Pack.
"""

from onnxdrp.torch.averaging import PrunedModelEMA
from onnxdrp.torch.layers import info
from onnxdrp.torch.masking import (
    copy_masks,
    deepcopy_model,
    finalize,
    load_pruned_state_dict,
    masks,
    set_masks,
)
from onnxdrp.torch.matching import masks_for, reapply
from onnxdrp.torch.pruner import Pruner

__all__ = [
    "PrunedModelEMA",
    "Pruner",
    "copy_masks",
    "deepcopy_model",
    "finalize",
    "info",
    "load_pruned_state_dict",
    "masks",
    "masks_for",
    "reapply",
    "set_masks",
]
