"""Existing onnxruntime readers, which can be read once, made readable again."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from onnxdrp.datareaders.base import Array, Batch, DataReader, Layout
from onnxdrp.datareaders.blame import blamed
from onnxdrp.errors import DataError, OptionError

__all__ = ["HasGetNext", "SpooledReader", "wrap"]


class HasGetNext(Protocol):
    """What onnxruntime asks of a calibration data reader."""

    def get_next(self) -> Any:
        """Return the next batch by input name, or None at the end."""


class _Stored(NamedTuple):
    """Where an array lies in the spool file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SpooledReader(DataReader):
    """Makes any onnxruntime `CalibrationDataReader` readable as often as one likes.

    Its `get_next` is called as batches are first asked for, to its end once and never again; each
    batch goes to a temporary file, which is mapped for the passes after and deleted with this
    reader. A `rewind` of the reader's own is not used: it need not give the same data again.

    Attributes:
        samples: known once the reader has come to its end.
    """

    def __init__(self, reader: HasGetNext, layout: Layout = "any") -> None:
        self.layout = layout
        self._source = reader
        self._ended = False
        self._batches: list[dict[str, _Stored]] = []
        self._lock = threading.Lock()  # two passes may run at once
        folder = tempfile.mkdtemp(prefix="onnxdrp-spool-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._file = Path(folder, "batches")

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass: first what is spooled, then what the reader still has."""
        number = 0
        while self._has(number):
            stored = self._batches[number]
            yield {name: self._load(place) for name, place in stored.items()}
            number += 1

    def _has(self, number: int) -> bool:
        with self._lock:
            if number == len(self._batches) and not self._ended:
                self._pull()
            return number < len(self._batches)

    def _pull(self) -> None:
        who = type(self._source).__name__
        code = getattr(type(self._source).get_next, "__code__", None)
        with blamed(f"{who}.get_next", code and code.co_filename):
            batch = self._source.get_next()
        if batch is not None and not isinstance(batch, Mapping):
            kind = type(batch).__name__
            raise DataError(f"{who}.get_next gave a {kind}; it must give arrays by input name")
        if batch:
            self._batches.append(self._store(who, batch))
            return
        if not self._batches:
            raise DataError(f"{who}: its first get_next gave nothing; it may have been used up")
        self._ended = True
        self.samples = sum(next(iter(stored.values())).shape[0] for stored in self._batches)

    def _store(self, who: str, batch: Mapping[str, Any]) -> dict[str, _Stored]:
        arrays = {name: np.asarray(value, order="C") for name, value in batch.items()}
        for name, array in arrays.items():
            if array.dtype.hasobject or array.ndim == 0 or array.size == 0:
                raise DataError(
                    f"{who}: input {name!r} of batch {len(self._batches)} is {array.dtype} of "
                    f"shape {array.shape}; it must be numbers with a leading batch axis"
                )
        stored = {}
        with self._file.open("ab") as file:
            for name, array in arrays.items():
                stored[name] = _Stored(file.tell(), array.dtype, array.shape)
                file.write(array.data)
        return stored

    def _load(self, place: _Stored) -> Array:
        mapped = np.memmap(self._file, place.dtype, "r", place.offset, place.shape)
        return mapped.view(np.ndarray)


def wrap(reader: HasGetNext | DataReader, layout: Layout | None = None) -> DataReader:
    """Return a `DataReader` for any object with `get_next`; a `DataReader` is returned as it is.

    Args:
        reader: an onnxruntime `CalibrationDataReader`, or anything that works like one.
        layout: what the user says of its images; default what it says itself.
    """
    if not isinstance(reader, DataReader):
        return SpooledReader(reader, layout or _own_layout(reader))
    if layout is not None and reader.layout not in ("any", layout):
        raise OptionError(f"layout {layout}: {type(reader).__name__} gives {reader.layout}")
    return reader


def _own_layout(reader: HasGetNext) -> Layout:
    layout = getattr(reader, "layout", None)
    return "NCHW" if layout == "NCHW" else "NHWC" if layout == "NHWC" else "any"
