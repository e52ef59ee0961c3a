"""Moments of most samples, and of a few that are held back to check what was fitted to the others.

Which are held back depends on the number of a sample alone.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.moments import Moments, MomentStats

__all__ = ["HeldBack", "is_held_back"]

_EVERY = 5


def is_held_back(sample: int) -> bool:
    """Whether a sample is one of the about fifth that is held back."""
    return (sample * 2654435761 >> 8) % _EVERY == 0  # multiplicative hashing (Knuth): no pattern


@dataclass(eq=False)
class HeldBack:
    """Both moments of a layer; `result` is (those of most, those of the few).

    Attributes:
        most: as new.
        few: as new, of the same layer; another object.
        sample: the number of the sample that comes next; whoever updates sets it.
    """

    most: Moments
    few: Moments
    sample: int = 0
    each_sample: ClassVar[bool] = True

    @property
    def nonfinite(self) -> int:
        """How many rows with NaN or infinity were left out."""
        return self.most.nonfinite + self.few.nonfinite

    def update(self, *arrays: npt.NDArray[np.generic]) -> None:
        """Takes in the input and the target of one sample."""
        (self.few if is_held_back(self.sample) else self.most).update(*arrays)

    def merge(self, other: Self) -> None:
        """Takes in what the other has seen."""
        self.most.merge(other.most)
        self.few.merge(other.few)

    def result(self) -> tuple[MomentStats, MomentStats]:
        """The moments of all that was seen."""
        return self.most.result(), self.few.result()
