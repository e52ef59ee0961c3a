"""Where the windows of convolutions and pools lie: strides, dilations, pads.

pads     of each spatial axis, begin and end (onnxdrp.padding)
outputs  (in + begin + end - (kernel - 1) * dilation - 1) / stride + 1, rounded down; up with
         ceil_mode, but no window starts behind the input and the pads at its begin
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.nn import functional

from onnxdrp.differentiable.call import Call
from onnxdrp.padding import pads_of

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """The windows of a node; each list has one entry a spatial axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @classmethod
    def of(cls, call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Self:
        """The windows of a node over an input of these spatial sizes."""
        rank = len(sizes)
        strides = list(call.get("strides", [1] * rank))
        dilations = list(call.get("dilations", [1] * rank))
        pads = list(call.get("pads", [0] * 2 * rank))
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        auto = call.get("auto_pad", "NOTSET")
        begin, end = pads_of(auto, pads, sizes, extents, strides)
        return cls(list(kernel), strides, dilations, begin, end)

    @property
    def symmetric(self) -> bool:
        """Whether the same is padded at both ends."""
        return self.begin == self.end

    def overhang(self, sizes: Sequence[int]) -> list[int]:
        """What ceil_mode adds behind the end of each axis."""
        found = []
        for size, k, s, d, b, e in zip(
            sizes, self.kernel, self.strides, self.dilations, self.begin, self.end, strict=True
        ):
            span = (k - 1) * d + 1
            count = -(-(size + b + e - span) // s) + 1
            if (count - 1) * s >= size + b:
                count -= 1
            found.append(max((count - 1) * s + span - (size + b + e), 0))
        return found

    def pad(self, x: torch.Tensor, value: float, more: Sequence[int] = ()) -> torch.Tensor:
        """The input padded with a value, and by `more` behind the end."""
        more = more or [0] * len(self.end)
        ends = zip(self.begin, self.end, more, strict=True)
        widths = [w for b, e, m in reversed(list(ends)) for w in (b, e + m)]
        return functional.pad(x, widths, value=value) if any(widths) else x
