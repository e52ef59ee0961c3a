"""What the colour of a box says: sparsity, error or precision; never by colour alone.

Steps of one hue differ in lightness, and precisions are of Okabe and Ito's palette made light, so
that they are told apart without seeing colours; dark text is readable on each. A box of several
nodes has the sparsity of all their weights, the worst SQNR, and one precision if they share it.
"""

import math
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from onnxdrp.boxes import Box, Wires
from onnxdrp.layers import layers

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxdrp.evaluation import Comparison
    from onnxdrp.model import Model

__all__ = ["By", "Colours", "Precision", "Signal", "Sparsity"]

By = Literal["sparsity", "precision", "sqnr"]

_BLUES = ("#f3f8fe", "#cfe1f2", "#9dc9e6", "#6baed6", "#4a97c9")
_ORANGES = ("#fff3e6", "#fdd9b4", "#fdb97d", "#f8924a", "#e8702a")  # the worst is the darkest
_SHARES = (0.0, 0.25, 0.5, 0.75)
_DECIBELS = (40.0, 30.0, 20.0, 10.0)
_FUSED = {"Add", "Clip", "LeakyRelu", "PRelu", "Relu"}  # into what they follow
_PRECISIONS = {
    "float": "#ececec", "8 bit": "#a6d5f2", "4 bit": "#f6c15c", "16 bit": "#9fdcc6",
    "other bits": "#f4ef9a", "mixed": "#dfb3cd",
}  # fmt: skip


class Colours(Protocol):
    """Says of boxes what is to be shown.

    Attributes:
        title: what the colours stand for.
        legend: (colour, words) of each.
    """

    title: str
    legend: list[tuple[str, str]]

    def of(self, box: Box) -> tuple[str, str] | None:
        """Colour and words of a box; None where there is nothing to say."""
        ...


class Sparsity:
    """Zeros of the weights."""

    title = "zeros among weights"

    def __init__(self, model: "Model") -> None:
        words = ("none", "to 25 %", "to 50 %", "to 75 %", "more")
        self.legend = list(zip(_BLUES, words, strict=True))
        self.counts: dict[str, tuple[int, int]] = {}
        for layer in layers(model):
            nonzero = layer.nonzero(model)
            if nonzero is not None:
                zeros = nonzero.size - int(np.count_nonzero(nonzero))
                self.counts[layer.name] = zeros, nonzero.size

    def of(self, box: Box) -> tuple[str, str] | None:
        """Zeros over weights."""
        found = [self.counts[node.name] for node in box.nodes if node.name in self.counts]
        total = sum(size for _, size in found)
        if not total:
            return None
        share = sum(zeros for zeros, _ in found) / total
        step = sum(share > limit for limit in _SHARES)
        return _BLUES[step], f"{100 * share:.1f} % zeros"


class Signal:
    """SQNR of what a box gives, of a comparison by layers."""

    title = "SQNR of the output, dB"

    def __init__(self, comparison: "Comparison", wires: Wires) -> None:
        words = ("40 or more", "30", "20", "10", "less")
        self.legend = list(zip(_ORANGES, words, strict=True))
        errors = {tensor: error for _, _, tensor, error in comparison.layers} | comparison.outputs
        self.sqnr: dict[str, float] = {}
        for tensor, error in errors.items():
            source = wires.root(tensor)
            self.sqnr[source] = min(error.sqnr_db, self.sqnr.get(source, math.inf))

    def of(self, box: Box) -> tuple[str, str] | None:
        """The worst of its outputs."""
        names = [t.name for node in box.nodes for t in node.outputs]
        found = [self.sqnr[name] for name in names if name in self.sqnr]
        if not found:
            return None
        worst = min(found)
        words = f"{worst:.1f} dB" if math.isfinite(worst) else "no error"
        return _ORANGES[sum(worst < limit for limit in _DECIBELS)], words


class Precision:
    """What nodes compute in: the fewest bits that they read through DequantizeLinear.

    A node whose activations stay float computes in floats whatever its weights are stored in. A
    Relu, or the Add of a bias, takes the precision of the node that it follows.
    """

    title = "precision"

    def __init__(self, wires: Wires) -> None:
        self.types = wires.rounded
        self.legend = [(colour, words) for words, colour in _PRECISIONS.items()]

    def of(self, box: Box) -> tuple[str, str] | None:
        """The precision that its nodes share."""
        kinds = {kind for node in box.nodes if (kind := self._kind(node)) is not None}
        if not kinds:
            return None
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        return _PRECISIONS[kind], kind

    def _kind(self, node: "gs.Node") -> str | None:
        if not any(t.dtype is None or np.dtype(t.dtype).kind == "f" for t in node.outputs):
            return None
        while node.op in _FUSED and node.inputs[0].name not in self.types and node.inputs[0].inputs:
            node = node.inputs[0].inputs[0]
        read = [self.types.get(t.name) for t in node.inputs]
        if not read or read[0] is None:
            return "float"
        return _bits([dtype for dtype in read if dtype])


def _bits(types: list[str]) -> str:
    """The fewest bits of these integer types in words; the 32 of biases do not count."""
    found = sorted(int("".join(filter(str.isdigit, name)) or 0) for name in types)
    words = f"{found[0]} bit"
    return words if words in _PRECISIONS else "other bits"
