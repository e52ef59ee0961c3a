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

__all__ = ["LEGENDS", "By", "Colours", "Precision", "Signal", "Sparsity", "of_figure"]

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


LEGENDS: dict[By, tuple[str, list[tuple[str, str]]]] = {
    "sparsity": (
        "zeros among weights",
        list(zip(_BLUES, ("none", "to 25 %", "to 50 %", "to 75 %", "more"), strict=True)),
    ),
    "sqnr": (
        "SQNR of the output, dB",
        list(zip(_ORANGES, ("40 or more", "30", "20", "10", "less"), strict=True)),
    ),
    "precision": ("precision", [(colour, words) for words, colour in _PRECISIONS.items()]),
}
"""What colours stand for, and (colour, words) of each."""


def of_figure(by: By, figure: float | str) -> tuple[str, str]:
    """Colour and words of a share of zeros, of decibels, or of a precision in words."""
    if by == "precision":
        return _PRECISIONS[str(figure)], str(figure)
    value = float(figure)
    if by == "sparsity":
        return _BLUES[sum(value > limit for limit in _SHARES)], f"{100 * value:.1f} % zeros"
    words = f"{value:.1f} dB" if math.isfinite(value) else "no error"
    return _ORANGES[sum(value < limit for limit in _DECIBELS)], words


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

    title, legend = LEGENDS["sparsity"]

    def __init__(self, model: "Model") -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        for layer in layers(model):
            nonzero = layer.nonzero(model)
            if nonzero is not None:
                zeros = nonzero.size - int(np.count_nonzero(nonzero))
                self.counts[layer.name] = zeros, nonzero.size

    def of(self, box: Box) -> tuple[str, str] | None:
        """Zeros over weights."""
        zeros, size = self.count(box)
        return of_figure("sparsity", zeros / size) if size else None

    def count(self, box: Box) -> tuple[int, int]:
        """How many weights are zero, and how many there are."""
        found = [self.counts[node.name] for node in box.nodes if node.name in self.counts]
        return sum(zeros for zeros, _ in found), sum(size for _, size in found)


class Signal:
    """SQNR of what a box gives, of a comparison by layers."""

    title, legend = LEGENDS["sqnr"]

    def __init__(self, comparison: "Comparison", wires: Wires) -> None:
        errors = {tensor: error for _, _, tensor, error in comparison.layers} | comparison.outputs
        self.sqnr: dict[str, float] = {}
        for tensor, error in errors.items():
            source = wires.root(tensor)
            self.sqnr[source] = min(error.sqnr_db, self.sqnr.get(source, math.inf))

    def of(self, box: Box) -> tuple[str, str] | None:
        """The worst of its outputs."""
        worst = self.worst(box)
        return None if worst is None else of_figure("sqnr", worst)

    def worst(self, box: Box) -> float | None:
        """In dB; None where nothing of it was compared."""
        names = [t.name for node in box.nodes for t in node.outputs]
        return min((self.sqnr[name] for name in names if name in self.sqnr), default=None)


class Precision:
    """What nodes compute in: the fewest bits that they read through DequantizeLinear.

    A node whose activations stay float computes in floats whatever its weights are stored in. A
    Relu, or the Add of a bias, takes the precision of the node that it follows.
    """

    title, legend = LEGENDS["precision"]

    def __init__(self, wires: Wires) -> None:
        self.types = wires.rounded

    def of(self, box: Box) -> tuple[str, str] | None:
        """The precision that its nodes share."""
        kind = self.shared(box)
        return None if kind is None else of_figure("precision", kind)

    def shared(self, box: Box) -> str | None:
        """The same in words; None where no float is computed."""
        kinds = {kind for node in box.nodes if (kind := self._kind(node)) is not None}
        return "mixed" if len(kinds) > 1 else next(iter(kinds), None)

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
