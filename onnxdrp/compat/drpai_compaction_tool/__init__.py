"""DRP-AI Extension Pack's `drpai_compaction_tool` on top of `onnxdrp.torch` and `onnxdrp.keras`.

    from onnxdrp.compat.drpai_compaction_tool.pytorch import Pruner, make_pruning_layer_list
    from onnxdrp.compat.drpai_compaction_tool.tensorflow import Pruner, make_pruning_layer_list

Names, parameters and defaults are those of its manual (chapter 4). No pruning logic is here.
docs/migrating-others.md says what is different.
"""

from onnxdrp import __version__

__all__ = ["__version__"]
