"""The contract of every reader: named batches that can be read as often as anyone likes.

A reader of one's own is a class with one method::

    class Noise(DataReader):
        def batches(self):
            rng = np.random.default_rng(0)
            for _ in range(10):
                yield {"x": rng.normal(size=(1, 3, 32, 32)).astype(np.float32)}
"""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

__all__ = [
    "Array",
    "Batch",
    "DataReader",
    "InputInfo",
    "Layout",
    "ModelLike",
    "first_batch",
    "inputs_of",
    "rows_of",
]

Array: TypeAlias = NDArray[Any]
Batch: TypeAlias = Mapping[str, Array]
Layout: TypeAlias = Literal["NCHW", "NHWC", "any"]
Dim: TypeAlias = int | str | None


class InputInfo(Protocol):
    """What a reader asks of an input of the model (`onnxdrp.model.TensorInfo` has it)."""

    @property
    def name(self) -> str:
        """The input's name."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type that the model wants."""

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """Static, symbolic (str) or unknown (None) dimensions; None if even the rank is unknown."""


class HasInputs(Protocol):
    """What a reader asks of a model (`onnxdrp.model.Model` has it)."""

    @property
    def inputs(self) -> Sequence[InputInfo]:
        """The model's real inputs."""


ModelLike: TypeAlias = HasInputs | str | os.PathLike[str]


class DataReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Batches of model inputs, re-iterable; subclasses write `batches`.

    Every reader is an `onnxruntime.quantization.CalibrationDataReader` too: `get_next` gives the
    batches one by one and None at the end of a pass; the call after that begins a new pass.

    Attributes:
        layout: axis order of the images it gives; "any" if it gives no images or does not know.
        samples: how many samples a pass gives; None if that is not known.
        labels: class indices, int64 [samples], aligned with the samples; None without labels.
        finite: whether NaN and infinity in the data are refused.
    """

    layout: Layout = "any"
    samples: int | None = None
    labels: NDArray[np.int64] | None = None
    finite: bool = True
    _pass: Iterator[Batch] | None = None

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        # onnxruntime's calls anything with get_next its subclass; `batches` has to be inherited
        return NotImplemented

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Begin a new pass: each batch maps input names to arrays with a leading batch axis."""

    def pick(self, indices: NDArray[np.int64]) -> "DataReader | None":
        """Return a reader of these samples alone (ascending), reading no others.

        None, the default, says that filtering `batches()` is as good as it gets.
        """
        del indices
        return None

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch; None ends the pass, and the call after that begins a new one."""
        if self._pass is None:
            self._pass = iter(self.batches())
        batch = next(self._pass, None)
        if batch is None:
            self._pass = None
            return None
        return dict(batch)

    def rewind(self) -> None:
        """Let the next `get_next` begin a new pass."""
        self._pass = None

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        # onnxruntime's raises NotImplementedError, which breaks even list(reader) and bool(reader)
        raise TypeError("a reader has no length in batches; `samples` counts its samples")

    def __bool__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        # a copy starts afresh: a pass under way can be neither copied nor pickled
        return {key: value for key, value in self.__dict__.items() if key != "_pass"}


def inputs_of(model: ModelLike) -> Sequence[InputInfo]:
    """Return the inputs of a model, or of the model in a file."""
    if isinstance(model, (str, os.PathLike)):
        from onnxdrp.model import Model

        return Model.load(Path(model)).inputs
    return model.inputs


def rows_of(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(next(iter(batch.values())))


def first_batch(reader: DataReader) -> Batch | None:
    """Return the first batch and end the pass at once (threads that decode ahead stop)."""
    batches = reader.batches()
    try:
        return next(batches, None)
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()
