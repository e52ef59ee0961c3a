"""Where channels are after the sizes of a tensor were written otherwise (Reshape, Flatten).

Values stay in their order, so sizes can be cut into runs of equal products, before and after:
[N, 8, 4, 4] as [N, 2, 4, 16] is N | N, 8 | 2 * 4, 4 * 4 | 16. Within the run that has the channels
all sizes must be known; free ones, such as the batch, may stand in any other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdrp.channels.lanes import Ints, Lane

__all__ = ["MisfitError", "Size", "labels_after", "product", "resolved", "sizes_of"]


class MisfitError(Exception):
    """Why the channels cannot be followed."""


@dataclass(frozen=True)
class Size:
    """A known number times free ones.

    Attributes:
        known: the number.
        free: symbols, sorted.
    """

    known: int
    free: tuple[str, ...] = ()

    def __mul__(self, other: "Size") -> "Size":
        return Size(self.known * other.known, tuple(sorted(self.free + other.free)))

    def over(self, other: "Size") -> "Size | None":
        """The size that this one is the product of with another; None where there is none."""
        left = list(self.free)
        for symbol in other.free:
            if symbol not in left:
                return None
            left.remove(symbol)
        known, rest = divmod(self.known, other.known)
        return None if rest else Size(known, tuple(left))


def sizes_of(shape: Sequence[int | str | None]) -> list[Size]:
    """The sizes of a shape; each that is unknown is a free one of its own."""
    return [
        Size(size) if isinstance(size, int) else Size(1, (size or f"?{axis}",))
        for axis, size in enumerate(shape)
    ]


def product(sizes: Sequence[Size]) -> Size:
    """Of all."""
    return math.prod(sizes, start=Size(1))


def resolved(given: Sequence[Size], wanted: Sequence[int]) -> tuple[list[Size], list[Size]]:
    """The sizes before and after a Reshape.

    Args:
        given: before.
        wanted: what the Reshape asks for; 0 is the size that was there, -1 what is left.

    Raises:
        MisfitError: they do not go together.
    """
    if any(size.known == 0 for size in given):
        raise MisfitError("it is given nothing")
    if any(size == 0 and axis >= len(given) for axis, size in enumerate(wanted)):
        raise MisfitError("it copies a size that is not there")
    given = list(given)
    after = [given[axis] if size == 0 else Size(abs(size)) for axis, size in enumerate(wanted)]
    whole, asked = product(given), product(after)
    if -1 in wanted:
        rest = whole.over(asked)  # its own part of what is asked for is 1
        if rest is None:
            raise MisfitError("its shape counts sizes that are not known")
        after[list(wanted).index(-1)] = rest
        return given, after
    if whole == asked:
        return given, after
    if whole.known == asked.known and not asked.free:  # all that was free can only be 1
        return [Size(size.known) for size in given], after
    raise MisfitError("its shape counts sizes that are not known")


def labels_after(given: Sequence[Size], after: Sequence[Size], lane: Lane) -> tuple[int, Ints]:
    """The atoms of the run of axes that the channels come into.

    Args:
        given: sizes before.
        after: sizes after; of the same product.
        lane: before.

    Returns:
        The first axis of the run, and an array of its shape.

    Raises:
        MisfitError: a free size is in the same run.
    """
    for (start, stop), (first, last) in _runs(given, after):
        if start <= lane.axis < stop:
            before, now = given[start:stop], after[first:last]
            if any(size.free for size in (*before, *now)):
                raise MisfitError("it lays channels out together with a size that is not known")
            along = [len(lane.atoms) if a == lane.axis else 1 for a in range(start, stop)]
            labels = np.broadcast_to(lane.atoms.reshape(along), [size.known for size in before])
            return first, labels.reshape([size.known for size in now])
    raise MisfitError("it leaves no axis of channels")


def _runs(
    given: Sequence[Size], after: Sequence[Size]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Pairs of ranges of axes whose sizes have the same product."""
    i, j = 0, 0
    while i < len(given) or j < len(after):
        start, first, a, b = i, j, Size(1), Size(1)
        while (i, j) == (start, first) or a != b:
            if i < len(given) and (j == len(after) or b.over(a) is not None):
                a, i = a * given[i], i + 1
            else:
                b, j = b * after[j], j + 1
        yield (start, i), (first, j)
