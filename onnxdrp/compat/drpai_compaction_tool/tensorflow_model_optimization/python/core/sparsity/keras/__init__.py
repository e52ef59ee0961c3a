"""`tfmot.sparsity.keras`: the callbacks (manual, sections 3.5.4 and 3.6)."""

from onnxdrp.keras import PruningSummaries, UpdatePruningStep

__all__ = ["PruningSummaries", "UpdatePruningStep"]
