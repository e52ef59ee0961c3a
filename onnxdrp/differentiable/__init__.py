"""Models run by torch, so that gradients reach their weights. Needs the extra `distill`."""

from onnxdrp.differentiable.call import Call
from onnxdrp.differentiable.network import OPERATORS, Network, to_torch

__all__ = ["OPERATORS", "Call", "Network", "to_torch"]
