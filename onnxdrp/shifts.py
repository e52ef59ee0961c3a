"""By what each channel must be shifted so that its activation gives most nearly what it gave.

    min over b of   sum (f(h + b) - f(w))^2        w = wanted values, h = those that there are

to first order in b (a Gauss-Newton step), f the curve behind (onnxdrp.curves):

    b = sum f'(h) (f(w) - f(h)) / (sum f'(h)^2 + ridge * n)

Without a curve that is the mean of w - h. With a Relu, values that it drops in both have no part in
it: matching the mean of all would move those that pass by the errors of those that do not.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.curves import Curve

__all__ = ["Shift"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_RIDGE = 0.01  # channels that are hardly ever active are hardly shifted
_POSITIONS = 256  # of a channel of a sample that are looked at


@dataclass(eq=False)
class Shift:
    """The best shift of each index of `axis`: `update(wanted, there)`; `result` is [channels].

    Of a channel of a sample at most some 256 positions are looked at, evenly spaced. NaN and
    infinities are left out; `nonfinite` counts them.

    Attributes:
        axis: of the channels.
        curve: f; None: the identity.
    """

    axis: int = 1
    curve: Curve | None = None
    nonfinite: int = 0
    _count: int = field(default=0, init=False, repr=False)
    _made: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)
    _slope: Floats = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def update(self, *arrays: Array) -> None:
        """Takes in what is wanted and what is there, of one shape."""
        wanted, there = (self._thin(array) for array in arrays)
        good = np.isfinite(wanted) & np.isfinite(there)
        bad = good.size - int(np.count_nonzero(good))
        if bad:
            self.nonfinite += bad
            wanted, there = np.where(good, wanted, 0), np.where(good, there, 0)
        if self.curve is None:
            made, slope = wanted - there, np.ones_like(there)
        else:
            slope = self.curve.slopes(there)
            made = slope * (self.curve(wanted) - self.curve(there))
        self._take(there[:, 0].size, made, slope**2)

    def _take(self, count: int, made: Floats, slope: Floats) -> None:
        made, slope = made.sum((0, 2)), slope.sum((0, 2))
        self._made = self._made + made if self._made.size else made
        self._slope = self._slope + slope if self._slope.size else slope
        self._count += count

    def _thin(self, array: Array) -> Floats:
        """The values as [any, channels, positions]."""
        axis = self.axis % array.ndim
        sides = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
        parts = array.reshape(int(np.prod(sides[0])), sides[1], int(np.prod(sides[2])))
        step = max(parts.shape[2] // _POSITIONS, 1) | 1  # odd: sides of images are even
        return parts[:, :, ::step].astype(np.float64)

    def merge(self, other: Self) -> None:
        """Takes in what the other has seen."""
        self.nonfinite += other.nonfinite
        self._count += other._count
        if other._made.size:
            self._made = self._made + other._made if self._made.size else other._made
            self._slope = self._slope + other._slope if self._slope.size else other._slope

    def result(self) -> Floats:
        """The shift of each channel; 0 where nothing was seen."""
        ridge = 0.0 if self.curve is None else _RIDGE
        return np.asarray(self._made / np.maximum(self._slope + ridge * self._count, 1e-30))
