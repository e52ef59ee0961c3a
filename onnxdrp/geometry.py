"""How a stored weight is seen by the sparsity patterns: (groups, outputs, slabs, block).

A slab is `block` consecutive input channels at one kernel position; its index is
kernel position * (blocks of inputs) + block of inputs. With g groups, b = block and K kernel
positions in all:

    Conv [Cout, Cin/g, *kernel]                       (g, Cout/g, K * Cin/g/b, b)
    Gemm transB=1, MatMul left constant [Cout, Cin]   (1, Cout, Cin/b, b)
    Gemm transB=0, MatMul right constant [Cin, Cout]  (1, Cout, Cin/b, b)
    depthwise Conv [Cout, 1, *kernel]                 (1, K, Cout/b, b)

A depthwise Conv has one input per output, so its slabs run along its channels: b consecutive
channels at one kernel position are a vector, and the kernel positions stand where other weights
have their outputs.

Inputs that are not a multiple of the block are padded at the end, at each kernel position.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError

__all__ = ["PADDING", "WeightGeometry", "from_slabs", "magnitude", "to_slabs"]

Array = npt.NDArray[Any]

PADDING = -1.0
"""The score of a padded place: below every magnitude, so it is never kept and never counted."""


@dataclass(frozen=True)
class WeightGeometry:
    """Which axis of a weight is which. Build it with one of the class methods."""

    shape: tuple[int, ...]
    output_axis: int
    input_axis: int
    groups: int = 1
    block: int = 32
    depthwise: bool = False

    def __post_init__(self) -> None:
        rank = len(self.shape)
        if rank < 2 or min(self.shape) < 1:
            raise ModelError(
                f"a weight of shape {list(self.shape)} has no outputs x inputs to prune"
            )
        axes = (self.output_axis, self.input_axis)
        if self.output_axis == self.input_axis or not all(0 <= axis < rank for axis in axes):
            raise ModelError(f"axes {axes} do not name outputs and inputs of a rank-{rank} weight")
        if self.block < 1:
            raise ModelError(
                f"a block of {self.block} input channels is not possible; use 1 or more"
            )
        if self.groups < 1 or self.shape[self.output_axis] % self.groups:
            raise ModelError(
                f"{self.shape[self.output_axis]} outputs do not divide into {self.groups} groups"
            )
        if self.depthwise and self.shape[self.input_axis] != 1:
            raise ModelError(
                f"a weight of shape {list(self.shape)} is not depthwise: its axis 1 is not 1"
            )

    @classmethod
    def conv(cls, shape: tuple[int, ...], groups: int = 1, block: int = 32) -> Self:
        """Conv [Cout, Cin/groups, *kernel] of any spatial rank."""
        return cls(tuple(shape), 0, 1, groups, block)

    @classmethod
    def depthwise_conv(cls, shape: tuple[int, ...], block: int = 32) -> Self:
        """Depthwise Conv [Cout, 1, *kernel]: slabs along the channels."""
        return cls(tuple(shape), 0, 1, 1, block, depthwise=True)

    @classmethod
    def gemm(cls, shape: tuple[int, ...], *, trans_b: bool, block: int = 32) -> Self:
        """Constant B of a Gemm: [Cin, Cout], or [Cout, Cin] with transB=1."""
        return cls(tuple(shape), 0, 1, 1, block) if trans_b else cls(tuple(shape), 1, 0, 1, block)

    @classmethod
    def matmul(
        cls, shape: tuple[int, ...], constant: Literal["left", "right"], block: int = 32
    ) -> Self:
        """Constant side of a MatMul: right [Cin, Cout], left [Cout, Cin]."""
        return cls.gemm(shape, trans_b=constant == "left", block=block)

    @property
    def inputs(self) -> int:
        """What the blocks divide: Cin/groups, or Cout when depthwise."""
        return self.shape[self.output_axis if self.depthwise else self.input_axis]

    @property
    def aligned(self) -> bool:
        """Whether the inputs are a multiple of the block, so that the view has no padding."""
        return self.inputs % self.block == 0

    @property
    def kernel(self) -> int:
        """The number of kernel positions."""
        return math.prod(self.shape) // (self.shape[self.output_axis] * self.shape[self.input_axis])

    @property
    def view_shape(self) -> tuple[int, int, int, int]:
        """The shape of the slab view: (groups, outputs of a group, slabs, block)."""
        blocks = -(-self.inputs // self.block)
        if self.depthwise:
            return (1, self.kernel, blocks, self.block)
        outputs = self.shape[self.output_axis] // self.groups
        return (self.groups, outputs, self.kernel * blocks, self.block)


def to_slabs(weight: Array, geometry: WeightGeometry, fill: float = 0) -> Array:
    """The weight seen as (groups, outputs, slabs, block), padded with `fill`.

    The view may share memory with the weight.
    """
    if weight.shape != geometry.shape:
        raise ModelError(
            f"a weight of shape {list(weight.shape)} has not the geometry of {list(geometry.shape)}"
        )
    groups, outputs, slabs, block = geometry.view_shape
    lines = _turned(weight, geometry).reshape(-1, geometry.inputs)
    if not geometry.aligned:
        missing = -geometry.inputs % block
        lines = np.pad(lines, ((0, 0), (0, missing)), constant_values=fill)
    return np.ascontiguousarray(lines).reshape(groups, outputs, slabs, block)


def from_slabs(slabs: Array, geometry: WeightGeometry) -> Array:
    """The exact inverse of `to_slabs`: an array of the weight's own shape, padding dropped."""
    if slabs.shape != geometry.view_shape:
        raise ModelError(
            f"slabs of shape {list(slabs.shape)} do not fit the view {list(geometry.view_shape)}"
        )
    padded = geometry.inputs + -geometry.inputs % geometry.block
    lines = slabs.reshape(-1, padded)[:, : geometry.inputs]
    shape = geometry.shape
    kernel = _kernel_shape(geometry)
    if geometry.depthwise:
        turned = lines.reshape(*kernel, 1, shape[geometry.output_axis])
        weight = np.moveaxis(turned, (-1, -2), (geometry.output_axis, geometry.input_axis))
    else:
        turned = lines.reshape(shape[geometry.output_axis], *kernel, geometry.inputs)
        weight = np.moveaxis(turned, (0, -1), (geometry.output_axis, geometry.input_axis))
    return np.ascontiguousarray(weight)


def magnitude(weight: Array, geometry: WeightGeometry) -> Array:
    """|w| in the slab view, as float32 (float64 if stored so), `PADDING` where there is no weight.

    The patterns rank by these scores; half-precision weights are widened before anything is
    squared or added.
    """
    wide = np.float64 if weight.dtype == np.float64 else np.float32
    return to_slabs(np.abs(weight.astype(wide, copy=False)), geometry, fill=PADDING)


def _turned(weight: Array, geometry: WeightGeometry) -> Array:
    """The weight as (outputs, *kernel, inputs), or (*kernel, 1, channels) when depthwise."""
    if geometry.depthwise:
        return np.moveaxis(weight, (geometry.output_axis, geometry.input_axis), (-1, -2))
    return np.moveaxis(weight, (geometry.output_axis, geometry.input_axis), (0, -1))


def _kernel_shape(geometry: WeightGeometry) -> tuple[int, ...]:
    axes = {geometry.output_axis, geometry.input_axis}
    return tuple(side for axis, side in enumerate(geometry.shape) if axis not in axes)
