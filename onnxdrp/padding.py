"""What is padded around an input so that windows fit: the pads of Conv and of pooling operators.

VALID pads nothing; SAME_UPPER and SAME_LOWER make ceil(size / stride) windows, with the odd pad at
the end or at the begin of a side.
"""

from collections.abc import Sequence

__all__ = ["pads_of"]


def pads_of(
    auto_pad: str,
    pads: Sequence[int],
    sizes: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
) -> tuple[list[int], list[int]]:
    """The padding at the begin and at the end of each side.

    Args:
        auto_pad: NOTSET (or ""), VALID, SAME_UPPER or SAME_LOWER.
        pads: at the begin of each side, then at the ends; with another auto_pad they do not count.
        sizes: of the input.
        extents: how far a window reaches: (kernel - 1) * dilation + 1.
        strides: one a side.
    """
    rank = len(extents)
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    if auto_pad in ("", "NOTSET"):
        return list(pads[:rank]), list(pads[rank:])
    sides = zip(sizes, extents, strides, strict=True)
    needed = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sides]
    less, more = [n // 2 for n in needed], [n - n // 2 for n in needed]
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
