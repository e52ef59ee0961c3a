"""Mask: which places of a weight are kept, one bit a weight; and the .npz file of a model's masks.

The file has `format`, `names` (the weights' names), and for the i-th name `shape_i` and `bits_i`
(numpy.packbits of the keep array in C order). Equal masks give equal bytes.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write

__all__ = ["Mask", "dead_outputs", "load_masks", "save_masks"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_FORMAT = "onnxdrp-masks-1"


class Mask:
    """The keep bits of one weight, in its own shape: True lives, False is pruned. Immutable."""

    __slots__ = ("_bits", "shape")

    shape: tuple[int, ...]
    _bits: bytes

    def __init__(self, keep: npt.ArrayLike) -> None:
        array = np.asarray(keep)
        if array.dtype != np.bool_:
            raise OptionError(f"a mask is made of booleans, not of {array.dtype}")
        object.__setattr__(self, "shape", array.shape)
        object.__setattr__(self, "_bits", np.packbits(array).tobytes())

    @classmethod
    def from_zeros(cls, weight: Array) -> "Mask":
        """The mask that a pruned weight shows by its zeros."""
        return cls(weight != 0)

    @classmethod
    def _of_bits(cls, bits: bytes, shape: tuple[int, ...]) -> "Mask":
        mask = cls.__new__(cls)
        object.__setattr__(mask, "shape", shape)
        object.__setattr__(mask, "_bits", bits)
        return mask

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Mask does not change: {name} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Mask._of_bits, (self._bits, self.shape)

    @property
    def keep(self) -> Bools:
        """A fresh boolean array of the weight's shape: True lives."""
        bits = np.unpackbits(self._packed, count=self.size)
        return bits.view(np.bool_).reshape(self.shape)

    @property
    def size(self) -> int:
        """The number of weights, kept and pruned."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def count(self) -> int:
        """The number of weights kept."""
        return int(np.bitwise_count(self._packed).sum(dtype=np.int64))

    @property
    def sparsity(self) -> float:
        """The share of weights pruned; 0 for an empty weight."""
        return (self.size - self.count) / self.size if self.size else 0.0

    def apply(self, weight: Array, name: str = "the weight") -> Array:
        """A new array: the weight with every pruned place exactly +0."""
        self.check_fits(weight.shape, name)
        return np.where(self.keep, weight, np.zeros((), weight.dtype))

    def holds(self, weight: Array, name: str = "the weight") -> bool:
        """Whether every pruned place of the weight is zero (kept places may be zero too)."""
        self.check_fits(weight.shape, name)
        return not np.any(weight[~self.keep])

    def intersects(self, other: "Mask") -> bool:
        """Whether the two masks keep some weight in common."""
        self.check_fits(other.shape, "the other mask")
        return bool(np.any(self._packed & other._packed))

    def check_fits(self, shape: tuple[int, ...], name: str) -> None:
        """Raises OptionError if the mask is not one for a weight of this shape."""
        if tuple(shape) != self.shape:
            raise OptionError(
                f"{name} has shape {list(shape)}, its mask {list(self.shape)}: "
                "the mask was made for another model; make it again from this one"
            )

    @property
    def _packed(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._bits, np.uint8)

    def __and__(self, other: "Mask") -> "Mask":
        """The mask that keeps what both keep."""
        self.check_fits(other.shape, "the other mask")
        return Mask._of_bits((self._packed & other._packed).tobytes(), self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shape == other.shape and self._bits == other._bits

    def __hash__(self) -> int:
        return hash((self.shape, self._bits))

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, keeps {self.count} of {self.size})"

    def _repr_html_(self) -> str:
        from onnxdrp.display import Shown
        from onnxdrp.pictures import heat_map, runs

        pictures = (heat_map(self), runs(self)) if self.size else ()
        return Shown(repr(self), *pictures)._repr_html_()


def dead_outputs(keep: Array, output_axis: int = 0) -> npt.NDArray[np.intp]:
    """The indices of the outputs left without any weight, from a keep array or a pruned weight."""
    others = tuple(axis for axis in range(keep.ndim) if axis != output_axis % keep.ndim)
    return np.flatnonzero(~np.any(keep, axis=others))


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Mask]) -> Path:
    """Writes the masks to one .npz file; the file appears whole or not at all."""
    path = Path(path)
    entries: dict[str, Array] = {
        "format": np.array(_FORMAT),
        "names": np.array(list(masks), np.str_),
    }
    for index, mask in enumerate(masks.values()):
        entries[f"shape_{index}"] = np.array(mask.shape, np.int64)
        entries[f"bits_{index}"] = mask._packed
    with atomic_write(path) as file:
        np.savez_compressed(file, allow_pickle=False, **entries)
    return path


def load_masks(path: str | os.PathLike[str]) -> dict[str, Mask]:
    """Reads what `save_masks` wrote; anything else is refused with an OptionError."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as e:
        raise OptionError(f"{path}: the masks cannot be read: {e.strerror or e}") from e
    try:
        return _read_masks(io.BytesIO(content))
    except Exception as e:  # zipfile and numpy meet a damaged file with all kinds of errors
        raise OptionError(
            f"{path}: not a file of masks, or a damaged one; give one that onnxdrp saved"
        ) from e


def _read_masks(file: io.BytesIO) -> dict[str, Mask]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile) or str(archive["format"]) != _FORMAT:
        raise ValueError("another kind of file")
    masks = {}
    for index, name in enumerate(archive["names"].tolist()):
        shape = tuple(archive[f"shape_{index}"].tolist())
        bits = archive[f"bits_{index}"]
        if bits.dtype != np.uint8 or bits.shape != (-(-int(np.prod(shape)) // 8),):
            raise ValueError(f"{name}: bits and shape disagree")
        masks[name] = Mask._of_bits(bits.tobytes(), shape)
    return masks
