"""Retraining with held masks in Keras 3, on the same patterns, with any of its backends.

    info                    the table of layers, as `onnxdrp.info` has it
    Pruner                  makes the model for pruning, out of the layers of the model
    UpdatePruningStep       the callback that prunes by the schedule while `fit` runs
    PruningSummaries        the callback that writes sparsities for TensorBoard
    EarlyStopping           that of Keras, waiting for the end of pruning
    PruneLowMagnitude       the wrapper of a layer that holds its mask
    masks                   by name of the layer
    finalize                the plain model again, masks folded in

Needs the extra `keras`, and tensorflow, jax or torch for Keras to run on (KERAS_BACKEND).
`onnxdrp.compat.drpai_compaction_tool.tensorflow` has the same under the names of DRP-AI Extension
Pack.
"""

from onnxdrp.keras.callbacks import EarlyStopping, PruningSummaries, UpdatePruningStep
from onnxdrp.keras.layers import info
from onnxdrp.keras.pruner import Pruner, finalize, masks
from onnxdrp.keras.wrapper import PruneLowMagnitude

__all__ = [
    "EarlyStopping",
    "PruneLowMagnitude",
    "Pruner",
    "PruningSummaries",
    "UpdatePruningStep",
    "finalize",
    "info",
    "masks",
]
