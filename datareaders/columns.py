"""Stored arrays read a few rows at a time: in memory, .npy (mapped) and .npz (streamed)."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxdrp.datareaders.base import Array
from onnxdrp.errors import DataError

__all__ = ["Column", "InMemory", "NpyFile", "NpzMember", "open_columns"]


class Column(Protocol):
    """An array whose first axis counts samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""

    def rows(self, indices: NDArray[np.int64], size: int) -> Iterator[Array]:
        """Yield the rows of these indices (ascending), `size` at a time."""

    def as_row(self) -> "Column":
        """See the whole array as one row of an array with one axis more."""


@dataclass(frozen=True)
class InMemory:
    """An array that is there."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self.array.dtype

    def rows(self, indices: NDArray[np.int64], size: int) -> Iterator[Array]:
        """Yield the rows of these indices, `size` at a time."""
        for start in range(0, len(indices), size):
            yield self.array[indices[start : start + size]]

    def as_row(self) -> "InMemory":
        """See the whole array as one row of an array with one axis more."""
        return InMemory(self.array[np.newaxis])


@dataclass(frozen=True)
class NpyFile:
    """A .npy file, mapped while it is read and closed in between (folders may hold thousands)."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, indices: NDArray[np.int64], size: int) -> Iterator[Array]:
        """Yield the rows of these indices, `size` at a time."""
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False).reshape(self.shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot read this array: {error}") from error
        for chunk in InMemory(array).rows(indices, size):
            yield np.asarray(chunk)

    def as_row(self) -> "NpyFile":
        """See the whole array as one row of an array with one axis more."""
        return replace(self, shape=(1, *self.shape))


@dataclass(frozen=True)
class NpzMember:
    """An array in a .npz file, compressed or not, streamed: memory holds the wanted rows alone.

    (An array saved in Fortran order, whose rows lie scattered, is loaded whole.)
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int  # of the data in the member
    fortran: bool

    def rows(self, indices: NDArray[np.int64], size: int) -> Iterator[Array]:
        """Yield the rows of these indices, `size` at a time."""
        try:
            if self.fortran:
                with np.load(self.path, allow_pickle=False) as arrays:
                    whole = arrays[self.member].reshape(self.shape)
                yield from InMemory(whole).rows(indices, size)
                return
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                for first in range(0, len(indices), size):
                    yield self._read(stream, indices[first : first + size])
        except _BROKEN as error:
            raise DataError(f"{self.path}: cannot read {self.member}: {error}") from error

    def as_row(self) -> "NpzMember":
        """See the whole array as one row of an array with one axis more."""
        return replace(self, shape=(1, *self.shape))

    def _read(self, stream: IO[bytes], indices: NDArray[np.int64]) -> Array:
        chunk = np.empty((len(indices), *self.shape[1:]), self.dtype)
        row_bytes = chunk.nbytes // len(indices)
        flat = chunk.reshape(-1).view(np.uint8).reshape(len(indices), row_bytes)
        for row, index in zip(flat, indices.tolist(), strict=True):
            _skip(stream, self.start + index * row_bytes - stream.tell())
            data = stream.read(row_bytes)
            if len(data) != row_bytes:
                raise DataError(f"{self.path}: {self.member} ends within sample {index}")
            row[:] = np.frombuffer(data, np.uint8)
        return chunk


def _skip(stream: IO[bytes], count: int) -> None:
    """Read so many bytes and forget them; zipfile's seek would hold 16 MB of them at once."""
    while count > 0 and (data := stream.read(min(count, 1 << 20))):
        count -= len(data)


# what zipfile, zlib and numpy raise on broken files (RuntimeError: encrypted, or compressed oddly)
_BROKEN = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def open_columns(path: str | os.PathLike[str]) -> dict[str, Column]:
    """Return the arrays of a .npz file by name; of a .npy file its one array, named ""."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                shape, _, dtype = _header(stream)
            return {"": NpyFile(path, shape, _plain(dtype, path, path.name))}
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _member(path, archive, name)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except _BROKEN as error:
        raise DataError(f"{path}: not a readable {path.suffix} file: {error}") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> NpzMember:
    with archive.open(name) as stream:
        shape, fortran, dtype = _header(stream)
        return NpzMember(path, name, shape, _plain(dtype, path, name), stream.tell(), fortran)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"its format version {version} is not known")


def _plain(dtype: np.dtype[Any], path: Path, name: str) -> np.dtype[Any]:
    if dtype.hasobject or dtype.names is not None:
        raise DataError(f"{path}: {name} holds {dtype}, not plain numbers")
    return dtype
