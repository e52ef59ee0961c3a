"""A layer as a product of matrices: the rows x that its weights multiply, position by position.

    y[n, p, g, :] = W[g] x[n, p, g, :] + b

for sample n, output position p and group g. Of a Conv, x holds the inputs under the kernel, zero
outside of the image ("im2col"; Chellapilla, Puri and Simard 2006); of a Gemm or MatMul, the vector
that is multiplied. Columns are ordered as slabs are, kernel position by kernel position:

    column = kernel position * (inputs of a group) + input of the group
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.errors import DataError, ModelError
from onnxdrp.geometry import WeightGeometry, from_slabs, to_slabs
from onnxdrp.model import Model
from onnxdrp.padding import pads_of
from onnxdrp.stored import Stored, find_stored

__all__ = ["Unfolding"]

Array = npt.NDArray[Any]
Index = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Unfolding:
    """How one layer meets its weight. Build it with `of`.

    A Gemm or MatMul is a Conv of one kernel position over one axis, to which all axes other than
    the samples' and the channels' are joined; without one, each sample is a position.

    Attributes:
        geometry: of the weight, in slabs of one input.
        data: the place of the input that carries activations.
        data_axis: of that input, the axis along which the weights sum.
        result_axis: of the output, the axis of the weight's outputs.
        kernel: its sides.
        strides: one a side.
        dilations: one a side.
        pads: at the begin of each side, then at the ends; with `auto_pad` they do not count.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
        scale: a factor of all rows: the alpha of a Gemm.
    """

    geometry: WeightGeometry
    data: int = 0
    data_axis: int = 1
    result_axis: int = 1
    kernel: tuple[int, ...] = (1,)
    strides: tuple[int, ...] = (1,)
    dilations: tuple[int, ...] = (1,)
    pads: tuple[int, ...] = (0, 0)
    auto_pad: str = "NOTSET"
    scale: float = 1.0

    @classmethod
    def of(cls, model: Model, node: gs.Node) -> Self:
        """How a Conv, Gemm or MatMul with a stored weight of two axes (a Conv: any) meets it.

        Raises:
            ModelError: it is none of these; names the node and why.
        """
        sides = {"Conv": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}.get(node.op, ())
        if not sides or node.domain not in (None, "", "ai.onnx"):
            raise ModelError(f"node {node.name!r}: {node.op} is no Conv, Gemm or MatMul to unfold")
        found = {side: find_stored(model, node.inputs[side]) for side in sides}
        side = next((s for s in sides if isinstance(found[s], Stored)), sides[0])
        stored = found[side]
        if isinstance(stored, str):
            raise ModelError(f"node {node.name!r} cannot be unfolded: {stored}")
        try:
            if node.op == "Conv":
                return cls._conv(node.attrs, stored.shape)
            return cls._product(node, stored.shape, side)
        except ModelError as e:
            raise ModelError(f"node {node.name!r} cannot be unfolded: {e}") from e

    @classmethod
    def _conv(cls, attrs: dict[str, Any], shape: tuple[int, ...]) -> Self:
        kernel = shape[2:]
        return cls(
            WeightGeometry.conv(shape, int(attrs.get("group", 1)), block=1),
            kernel=kernel,
            strides=tuple(attrs.get("strides") or [1] * len(kernel)),
            dilations=tuple(attrs.get("dilations") or [1] * len(kernel)),
            pads=tuple(attrs.get("pads") or [0] * 2 * len(kernel)),
            auto_pad=str(attrs.get("auto_pad", "NOTSET")),
        )

    @classmethod
    def _product(cls, node: gs.Node, shape: tuple[int, ...], side: int) -> Self:
        if len(shape) != 2:
            raise ModelError(f"its weight has the shape {list(shape)}, not two axes")
        a, b = (bool(node.attrs.get(key, 0)) for key in ("transA", "transB"))
        rows_first = (side == 0) != (a if side == 0 else b)  # [outputs, inputs]
        geometry = WeightGeometry.gemm(shape, trans_b=rows_first, block=1)
        if node.op == "MatMul":
            axis = -1 if side == 1 else -2
            return cls(geometry, 1 - side, axis, axis)
        axis = int(not a) if side == 1 else int(b)
        return cls(geometry, 1 - side, axis, side, scale=float(node.attrs.get("alpha", 1.0)))

    @property
    def groups(self) -> int:
        """g, the number of groups."""
        return self.geometry.groups

    @property
    def columns(self) -> int:
        """k, the length of a row: kernel positions times the inputs of a group."""
        return self.geometry.view_shape[2]

    @property
    def outputs(self) -> int:
        """m, the outputs of a group."""
        return self.geometry.view_shape[1]

    def matrix(self, weight: Array) -> Array:
        """The weight, or a mask of its shape, as [groups, outputs, columns]; may share memory."""
        return to_slabs(weight, self.geometry)[..., 0]

    def weight(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        return from_slabs(matrix[..., None], self.geometry)

    def output(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The sides of the output for an input of these sides."""
        reach = zip(spatial, *self._ends(spatial), self._extents, self.strides, strict=True)
        return tuple(max((n + b + e - k) // s + 1, 0) for n, b, e, k, s in reach)

    def lines(self, x: Array) -> tuple[Array, tuple[int, ...]]:
        """The input as [samples, positions, inputs], shared where that can be, and its sides.

        Raises:
            DataError: it has not the axes or the inputs that the layer takes.
        """
        x = np.asarray(x)
        inputs = self.groups * self.geometry.inputs
        conv = len(self.geometry.shape) > 2
        lines = _lines(x, self.data_axis)
        fits = x.ndim == len(self.geometry.shape) if conv else x.ndim > 0
        if not fits or lines.shape[-1] != inputs:
            raise DataError(f"an input of shape {list(x.shape)} does not fit {self._text}")
        return lines, x.shape[2:] if conv else lines.shape[1:2]

    def targets(self, t: Array, samples: int, positions: int) -> Array:
        """What stands at the layer's output as [samples, positions, groups * outputs].

        Raises:
            DataError: it is not of the output's shape.
        """
        lines = _lines(np.asarray(t), self.result_axis)
        wanted = (samples, positions, self.groups * self.outputs)
        if lines.shape != wanted:
            raise DataError(
                f"a target of shape {list(np.shape(t))} is no output of {self._text}: "
                f"that has {' x '.join(map(str, wanted))} values (samples, positions, channels)"
            )
        return lines

    def rows(self, line: Array, spatial: Sequence[int], positions: Index) -> Array:
        """The rows [groups, positions, columns] of one sample at some output positions.

        Args:
            line: [positions of the input, inputs], one sample of `lines`.
            spatial: the sides that its positions make up.
            positions: flat numbers of positions of the output, each below prod(output(spatial)).
        """
        where, inside = self._under_kernel(spatial, positions)
        # `take` is several times faster, and of another layout would copy all
        found = line.take(where, axis=0) if line.flags.c_contiguous else line[where]
        if not inside.all():
            found[~inside] = 0
        if self.scale != 1:
            found = found.astype(np.float64) * self.scale
        if self.groups == 1:
            return found.reshape(1, len(positions), self.columns)
        grouped = found.reshape(*where.shape, self.groups, -1)
        return grouped.transpose(2, 0, 1, 3).reshape(self.groups, len(positions), self.columns)

    def _under_kernel(
        self, spatial: Sequence[int], positions: Index
    ) -> tuple[Index, npt.NDArray[np.bool_]]:
        """The flat input position under each kernel position, and whether it is in the image."""
        begins, _ = self._ends(spatial)
        where = np.zeros((len(positions), 1), np.intp)
        inside = np.ones((len(positions), 1), np.bool_)
        for axis, at in enumerate(np.unravel_index(positions, self.output(spatial))):
            steps = np.arange(self.kernel[axis]) * self.dilations[axis]
            at = at[:, None] * self.strides[axis] - begins[axis] + steps
            last = spatial[axis] - 1
            within = (at >= 0) & (at <= last)
            at = where[:, :, None] * spatial[axis] + at.clip(0, last)[:, None, :]
            where = at.reshape(len(positions), -1)
            inside = (inside[:, :, None] & within[:, None, :]).reshape(where.shape)
        return where, inside

    @property
    def _extents(self) -> list[int]:
        """How far the kernel reaches along each side."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def _ends(self, spatial: Sequence[int]) -> tuple[list[int], list[int]]:
        """The padding at the begin and at the end of each side."""
        return pads_of(self.auto_pad, self.pads, spatial, self._extents, self.strides)

    @property
    def _text(self) -> str:
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"a layer whose weight is {list(self.geometry.shape)}{groups}"


def _lines(a: Array, axis: int) -> Array:
    """An array as [samples, positions, channels]; without axes of positions, [1, samples, ...]."""
    if a.ndim > 1:
        a = np.moveaxis(a, axis, -1)
    samples = a.shape[0] if a.ndim > 2 else 1
    return a.reshape(samples, math.prod(a.shape[1 if a.ndim > 2 else 0 : -1]), *a.shape[-1:])
