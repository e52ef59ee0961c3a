"""Tensors of running models: what to observe, and sessions that give it."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from onnxdrp.batches import Batch, aligned
from onnxdrp.errors import DataError
from onnxdrp.observers import Observer

if TYPE_CHECKING:
    import onnxruntime

    from onnxdrp.model import Model

__all__ = ["Pair", "Runner", "Tap", "TensorRunner", "run_batch", "tensor_bytes"]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Pair = tuple[str, str]
"""A tensor of one of several models: (name of the model, name of the tensor)."""


@dataclass(frozen=True)
class Tap:
    """What to observe: tensors, seen for the same samples, and the observer they go to.

    Attributes:
        tensors: the name of a tensor where there is one model; else (model, name) pairs, a pair for
            each argument of the observer's `update`.
        observer: as new; each `observe` works on copies of it, made by pickling.
    """

    tensors: str | tuple[Pair, ...]
    observer: Observer

    def pairs(self) -> tuple[Pair, ...]:
        """The tensors as (model, name) pairs; the name of an only model is ""."""
        return (("", self.tensors),) if isinstance(self.tensors, str) else self.tensors


class Runner(Protocol):
    """Gives some tensors of one model."""

    def run(self, feed: Feed) -> dict[str, Array]:
        """The tensors for a feed."""


class TensorRunner:
    """Gives tensors of a whole model.

    The session has one thread: workers run side by side, which takes less time than one session
    of as many threads (0.54 to 1.0 of it, on four models), and gives the same bits on any number
    of cores.
    """

    def __init__(self, model: "Model", wanted: Iterable[str], tapped: int = 0) -> None:
        """Open a session.

        Args:
            model: any.
            wanted: tensors to give.
            tapped: how many the caller wants in all, if others are for other runners: the session
                gives the same bits whatever part it has of them.
        """
        wanted, tensors = list(wanted), model.tensors()
        self.inputs = {info.name for info in model.inputs}
        constants = ((name, model.constant(tensors[name])) for name in wanted)
        self.stored = {name: values for name, values in constants if values is not None}
        self.fed = [name for name in wanted if name in self.inputs]
        self.computed = [n for n in wanted if n not in self.inputs and n not in self.stored]
        self.session: onnxruntime.InferenceSession | None = None
        if self.computed:
            tapped = tapped or len(self.computed)
            self.session = model.session(outputs=self.computed, threads=1, tapped=tapped)

    def run(self, feed: Feed) -> dict[str, Array]:
        """The wanted tensors. Raises DataError where onnxruntime fails on the feed."""
        values = dict(self.stored) | {name: feed[name] for name in self.fed}
        if self.session is not None:
            given = {name: feed[name] for name in self.inputs if name in feed}
            values |= zip(
                self.computed, run_session(self.session, self.computed, given), strict=True
            )
        return values


def run_session(
    session: "onnxruntime.InferenceSession", outputs: Sequence[str], feed: Mapping[str, Any]
) -> list[Array]:
    """The outputs of a session; what onnxruntime says against the feed becomes a DataError."""
    given = {n: v if isinstance(v, list) else aligned(v) for n, v in feed.items()}  # a sequence
    try:
        values: list[Array] = session.run(outputs, given)
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        raise DataError(f"onnxruntime fails on the data: {str(e).splitlines()[0]}") from e
    return values


def run_batch(
    runners: Mapping[str, Runner], batch: Batch, whole: Collection[str] = ()
) -> dict[Pair, Array]:
    """The tensors of every model for a batch, without the rows that are padding.

    Args:
        runners: {model: what gives its tensors}.
        batch: what to feed.
        whole: inputs without a batch axis.

    Raises:
        DataError: the batch is padded, and a tensor is not the same whatever the padding is.
    """
    values = _run(runners, batch.feeds)
    if not batch.padded:
        return values
    valid = {pair: _valid(value, batch) for pair, value in values.items()}
    other = {name: _repadded(feed, batch, whole) for name, feed in batch.feeds.items()}
    for pair, value in _run(runners, other).items():
        if not close(valid[pair], _valid(value, batch)):
            raise DataError(
                f"tensor {pair[1]!r} mixes the samples of a batch of {batch.size}, and these are "
                f"{len(batch.samples)}; give a multiple of {batch.size} samples, all of them good"
            )
    return valid


def _run(runners: Mapping[str, Runner], feeds: Mapping[str, Feed]) -> dict[Pair, Array]:
    return {
        (name, tensor): value
        for name, runner in runners.items()
        for tensor, value in runner.run(feeds[name]).items()
    }


def _valid(value: Array, batch: Batch) -> Array:
    """The rows of the samples; all of a tensor whose first axis is not the batch."""
    if not np.ndim(value) or len(value) % batch.size:
        return value
    return value[: len(value) // batch.size * len(batch.samples)]


def _repadded(feed: Feed, batch: Batch, whole: Collection[str]) -> Feed:
    """The feed with padding of zeros; of ones where it is zeros already."""
    other = {}
    for name, value in feed.items():
        other[name] = value
        if name not in whole and np.ndim(value) and len(value) == batch.size:
            other[name] = value.copy()
            padding = other[name][len(batch.samples) :]
            padding[:] = 0 if padding.any() else 1
    return other


def close(a: Array, b: Array) -> bool:
    """Whether two tensors differ by no more than rounding: 1e-4 of the largest value."""
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f" or not a.size:
        return np.array_equal(a, b)
    if np.array_equal(a, b, equal_nan=True):
        return True
    peak = float(np.abs(a).max())
    return bool(np.all(np.abs(a - b) <= 1e-4 * peak))  # False where either has NaN


def tensor_bytes(model: "Model", tensors: Iterable[str], feed: Feed) -> dict[str, int]:
    """The bytes of each tensor for this feed of one batch, measured without holding any of them.

    Shapes that the graph states are believed; for the others a copy of the graph gives the element
    count (operator Size) in a tensor's place.

    Raises:
        ModelError: a tensor is not in the model; the message has the nearest names.
    """
    known, sizes = model.tensors(), dict[str, int]()
    inputs = {info.name for info in model.inputs}
    symbols = {
        dim: length
        for info in model.inputs
        if info.shape is not None and info.name in feed
        for dim, length in zip(info.shape, np.shape(feed[info.name]), strict=False)
    }
    unknown = []
    for name in tensors:
        if name not in known:
            model.tensor(name)  # raises
        if name in inputs:
            sizes[name] = feed[name].nbytes
        elif model.constant(known[name]) is not None:
            sizes[name] = 0
        elif (count := _stated_count(known[name].shape, symbols)) is not None:
            sizes[name] = count * _width(known[name].dtype)
        else:
            unknown.append(name)
    counts = _counted(model, unknown, feed) if unknown else {}
    return sizes | {name: n * _width(known[name].dtype) for name, n in counts.items()}


def _stated_count(shape: Sequence[Any] | None, symbols: Mapping[Any, int]) -> int | None:
    """The elements of a shape whose dimensions are numbers, or symbols that inputs have."""
    if shape is None:
        return None
    dims: list[Any] = [symbols.get(d) if isinstance(d, str) else d for d in shape]
    if not all(isinstance(d, (int, np.integer)) and d >= 0 for d in dims):
        return None
    return math.prod(int(d) for d in dims)


def _width(dtype: Any) -> int:
    return int(np.dtype(dtype).itemsize) if dtype is not None and not isinstance(dtype, int) else 4


def _counted(model: "Model", tensors: Sequence[str], feed: Feed) -> dict[str, int]:
    probe = model.clone()
    skeleton = probe.skeleton()
    names = [f"{t}/size" for t in tensors]
    skeleton.graph.node.extend(
        onnx.helper.make_node("Size", [t], [n], name=n) for t, n in zip(tensors, names, strict=True)
    )
    skeleton.graph.ClearField("output")
    skeleton.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, []) for n in names
    )
    probe.rebuild(skeleton)
    given = {info.name: feed[info.name] for info in model.inputs if info.name in feed}
    session = probe.session(optimize=False)
    return dict(zip(tensors, map(int, run_session(session, names, given)), strict=True))
