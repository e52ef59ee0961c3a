"""What the listings of DRP-AI Extension Pack's manual import from TensorFlow Model Optimization.

import onnxdrp.compat.drpai_compaction_tool.tensorflow_model_optimization as tfmot

tfmot.sparsity.keras.UpdatePruningStep, PruningSummaries
tfmot.python.core.sparsity.keras.pruning_wrapper.PruneLowMagnitude
"""

from onnxdrp.compat.drpai_compaction_tool.tensorflow_model_optimization.python.core import sparsity

__all__ = ["sparsity"]
