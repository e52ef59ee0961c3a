"""Affine maps y = scale * x + shift, with one scale and shift for each index of one axis of x.

BatchNormalization in inference is one:

    scale = gamma / sqrt(var + epsilon)        shift = beta - mean * scale

and so are Mul, Div, Add and Sub with a stored operand that varies along one axis at most. Which
axis that is, is read off the shapes and followed through Transpose and Reshape, never assumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.edit import is_standard

__all__ = [
    "Affine",
    "Array",
    "CannotFuseError",
    "Shape",
    "affine_of",
    "data_input",
    "is_affine",
    "permuted",
    "reshaped",
]

Array = npt.NDArray[Any]
Shape = Sequence[int | str | None]


class CannotFuseError(Exception):
    """Why an affine map stays where it is; caught where skips are counted."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A scale and a shift in float64, of the rank of the tensor and size 1 but along one axis."""

    scale: Array
    shift: Array

    @property
    def axis(self) -> int | None:
        """The axis along which it varies; None if it is the same everywhere."""
        axes = [
            i
            for i, d in enumerate(np.broadcast_shapes(self.scale.shape, self.shift.shape))
            if d > 1
        ]
        return axes[0] if axes else None

    @property
    def is_finite(self) -> bool:
        """Whether it has neither infinities nor NaN."""
        return bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))

    @property
    def size(self) -> "Affine":
        """The map x -> |scale| * x; where the scale is 0, x -> x."""
        return Affine(np.where(self.scale == 0, 1.0, np.abs(self.scale)), np.zeros_like(self.shift))

    @property
    def ramp(self) -> "Affine":
        """The map that multiplies by 1, 2, 3, ... along the axis.

        Wherever it is carried, the number says which channel a place belongs to.
        """
        numbers = np.arange(1.0, self.scale.size + 1).reshape(self.scale.shape)
        return Affine(numbers, np.zeros_like(numbers))

    def balanced(self, made: tuple[Array, Array], read: tuple[Array, Array]) -> "Affine":
        """The scale a = sqrt(s * r2 / r1) of each channel; s where no weight is above 0.

        Args:
            made: numbers of the ramp and largest weights, of the outputs of the node before.
            read: the same, of the inputs of the node after; r1 and r2 are their maxima by channel.
        """
        peaks = []
        for numbers, widths in (made, read):
            peak = np.zeros(self.scale.size)
            np.maximum.at(peak, np.rint(numbers).astype(np.int64) - 1, widths)
            peaks.append(peak.reshape(self.scale.shape))
        r1, r2 = peaks
        usable = (r1 > 0) & (r2 > 0)
        ratio = np.divide(r2, r1, out=np.ones_like(r1), where=usable)
        return Affine(np.where(usable, np.sqrt(self.scale * ratio), self.scale), self.shift)

    def without(self, size: "Affine") -> "Affine":
        """The map that, done after `size`, is this one."""
        return Affine(self.scale / size.scale, self.shift)

    def then(self, other: "Affine") -> "Affine":
        """The map that does `other` after this. Raises CannotFuseError if both axes differ."""
        shift = other.scale * self.shift + other.shift
        return _checked(Affine(other.scale * self.scale, shift))

    def along(self, axis: int, size: int, what: str) -> tuple[Array, Array]:
        """Scale and shift as vectors of `size`, for a node whose channels lie along `axis`."""
        if self.axis not in (None, axis):
            raise CannotFuseError(f"it varies along axis {self.axis}, {what} lie along axis {axis}")
        if max(self.scale.size, self.shift.size) not in (1, size):
            raise CannotFuseError(f"it has {self.scale.size} values for {size} channels")
        scale, shift = (np.broadcast_to(v.reshape(-1), (size,)) for v in (self.scale, self.shift))
        return scale, shift


def is_affine(node: gs.Node) -> bool:
    """Whether a node is of a kind that may be an affine map of one of its inputs."""
    if node.op == "BatchNormalization":
        return is_standard(node) and isinstance(node.inputs[0], gs.Variable)
    if (
        node.op not in ("Mul", "Div", "Add", "Sub")
        or not is_standard(node)
        or len(node.inputs) != 2
    ):
        return False
    stored = [isinstance(t, gs.Constant) for t in node.inputs]
    if sum(stored) != 1 or (node.op == "Div" and stored[0]):
        return False
    return bool(np.dtype(node.inputs[stored.index(True)].dtype).kind == "f")


def data_input(node: gs.Node) -> gs.Variable:
    """The input of an affine node that is mapped."""
    return next(t for t in node.inputs if not isinstance(t, gs.Constant))


def affine_of(model: Model, node: gs.Node, shape: Shape) -> Affine:
    """What an affine node does to its input of the given shape. Raises CannotFuseError."""
    if node.op == "BatchNormalization":
        return _batchnorm(model, node, len(shape))
    if model.opset < 7:
        raise CannotFuseError("its broadcasting is that of an opset below 7")
    place = next(i for i, t in enumerate(node.inputs) if isinstance(t, gs.Constant))
    value = model.constant(node.inputs[place])
    if value is None:
        raise CannotFuseError("its constant is sparse")
    value = _fitted(value.astype(np.float64), shape)
    one, zero = np.ones_like(value), np.zeros_like(value)
    with np.errstate(divide="ignore"):
        if node.op == "Mul":
            return Affine(value, zero)
        if node.op == "Div":
            return Affine(1 / value, zero)
        if node.op == "Add":
            return Affine(one, value)
        return Affine(-one, value) if place == 0 else Affine(one, -value)


def _fitted(value: Array, shape: Shape) -> Array:
    """A constant broadcast to a rank; it may vary along one axis, and must not widen the tensor."""
    if value.ndim > len(shape):
        raise CannotFuseError("its constant has more dimensions than its input")
    value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    wide = [i for i, d in enumerate(value.shape) if d > 1]
    if len(wide) > 1:
        raise CannotFuseError(f"its constant varies along {len(wide)} axes")
    if any(not isinstance(shape[i], int) for i in wide):
        raise CannotFuseError("the size of its input is not known; run infer-shapes first")
    if value.size == 0 or any(shape[i] != value.shape[i] for i in wide):
        raise CannotFuseError("its constant widens its input")
    return value


def _batchnorm(model: Model, node: gs.Node, rank: int) -> Affine:
    if node.attrs.get("training_mode", 0) or sum(bool(t.name) for t in node.outputs) > 1:
        raise CannotFuseError("it is in training mode")
    if (model.opset < 7 and not node.attrs.get("is_test", 0)) or not node.attrs.get("spatial", 1):
        raise CannotFuseError("it is not in inference mode, or not by channel")
    stored = [model.constant(t) for t in node.inputs[1:5]]
    values = [v.astype(np.float64) for v in stored if v is not None]
    if len(values) < 4:
        raise CannotFuseError("its scale, bias, mean or variance is computed")
    gamma, beta, mean, var = values
    scale = gamma / np.sqrt(var + float(np.float32(node.attrs.get("epsilon", 1e-5))))
    wide = (1, -1) + (1,) * (rank - 2)
    return Affine(scale.reshape(wide), (beta - mean * scale).reshape(wide))


def permuted(affine: Affine, perm: Sequence[int]) -> Affine:
    """The map of Transpose(x, perm), given that of x."""
    return Affine(affine.scale.transpose(perm), affine.shift.transpose(perm))


def reshaped(affine: Affine, old: Shape, new: Shape) -> Affine:
    """The map of a tensor reshaped from `old` to `new`. Raises CannotFuseError if that has none.

    The axis it varies along may survive whole, or be merged into one with others: Flatten of
    [N, C, H, W] repeats each channel H*W times.
    """
    if affine.axis is None:
        flat = (1,) * len(new)
        return Affine(affine.scale.reshape(flat), affine.shift.reshape(flat))
    axis, size = affine.axis, max(affine.scale.size, affine.shift.size)
    after = _known(old[axis + 1 :])
    for i, d in enumerate(new):
        if d == size and after is not None and _known(new[i + 1 :]) == after:
            wide = tuple(size if j == i else 1 for j in range(len(new)))
            scale, shift = affine.along(axis, size, "channels")
            return Affine(scale.reshape(wide), shift.reshape(wide))
    inner, outer = _known(old[1:]), _known(new[1:])
    if axis == 0 or inner is None or inner != outer:
        raise CannotFuseError("its axis is lost in a Reshape, or of a size that is not known")
    parts = [  # the first axis, the batch, is the same in both since all others are
        _narrowed(np.broadcast_to(v[0], tuple(old[1:])).reshape(tuple(new[1:])))[None]  # type: ignore[arg-type]
        for v in (affine.scale, affine.shift)
    ]
    return _checked(Affine(*parts))


def _checked(affine: Affine) -> Affine:
    wide = np.broadcast_shapes(affine.scale.shape, affine.shift.shape)
    if sum(d > 1 for d in wide) > 1:
        raise CannotFuseError("it varies along more than one axis")
    return affine


def _known(dims: Shape) -> int | None:
    return math.prod(dims) if all(isinstance(d, int) for d in dims) else None  # type: ignore[arg-type]


def _narrowed(value: Array) -> Array:
    """An array with size 1 along every axis along which it does not vary."""
    for axis in range(value.ndim):
        first = value.take([0], axis)
        if np.array_equal(np.broadcast_to(first, value.shape), value):
            value = first
    return value
