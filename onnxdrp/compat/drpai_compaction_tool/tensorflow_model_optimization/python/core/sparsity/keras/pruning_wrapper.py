"""The wrapper that Figure 3-21 of the manual looks for."""

from onnxdrp.keras import PruneLowMagnitude

__all__ = ["PruneLowMagnitude"]
