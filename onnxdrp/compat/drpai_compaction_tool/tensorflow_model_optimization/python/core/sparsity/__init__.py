"""`tfmot.sparsity`."""

from onnxdrp.compat.drpai_compaction_tool.tensorflow_model_optimization.python.core.sparsity import (  # noqa: E501
    keras,
)

__all__ = ["keras"]
