"""A layer of a training framework as the rules and tables of ONNX models take it."""

from dataclasses import dataclass

from onnxdrp.layers import Layer

__all__ = ["TrainedLayer"]


@dataclass(frozen=True)
class TrainedLayer(Layer):
    """A layer whose weight is a parameter and no tensor of a file.

    Attributes:
        parameter: the name of the first layer with the same parameter.
    """

    parameter: str = ""

    @property
    def weight(self) -> str:
        """What layers that share a weight have in common."""
        return self.parameter
