"""Weights outside the protobuf: what the references in a skeleton stand for.

A *skeleton* is a ModelProto whose large tensors (1 KiB and more) hold, in place of their bytes, a
reference to a `Weight`. The bytes stay where they are: in the file, which is mapped, or in an array
that was put in since.
"""

import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

__all__ = [
    "REFERENCE",
    "THRESHOLD",
    "Weight",
    "Weights",
    "expected_bytes",
    "expected_values",
    "refer",
    "take_in",
    "tensors",
]

Array = npt.NDArray[Any]

THRESHOLD = 1024  # bytes; smaller tensors stay in the skeleton, where shape inference can read them
REFERENCE = "onnxdrp-weight-"


_givers: "weakref.WeakValueDictionary[int, Weight]" = weakref.WeakValueDictionary()
"""By the id of an array, the weight that gave it last; `Weight.holds` says if it still is one."""


@dataclass(eq=False)
class Weight:
    """The bytes of one tensor and what they mean.

    `raw` gives them as a read-only uint8 view, from the mapped file or from memory. `origin` says
    which file and offset they were loaded from, or is None for an array that was put in since.
    """

    data_type: int  # onnx.TensorProto.DataType
    shape: tuple[int, ...]
    raw: Callable[[], Array]
    nbytes: int
    origin: str | None = None
    source: tuple[Path, int] | None = None  # the file that is mapped, and the offset in it
    reference: str = ""  # what stands for it in skeletons; given by Weights.add
    _array: "weakref.ref[Array] | None" = None
    _digest: str = ""

    def array(self) -> Array:
        """The values, read-only; 4-bit and 2-bit types come unpacked, one element a byte."""
        alive = self._array() if self._array is not None else None
        if alive is not None:
            return alive
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.data_type)
        raw = self.raw()
        if dtype.itemsize * math.prod(self.shape) != self.nbytes:
            packed = onnx.TensorProto(data_type=self.data_type, dims=self.shape)
            packed.raw_data = raw.tobytes()
            values = np.array(onnx.numpy_helper.to_array(packed))
        else:
            values = np.require(raw.view(dtype).reshape(self.shape), requirements="A")
        values.setflags(write=False)
        self._gives(values)
        return values

    def _gives(self, array: Array) -> None:
        self._array = weakref.ref(array)
        _givers[id(array)] = self

    def holds(self, array: Array) -> bool:
        """Whether `array` is the very array that `array()` gave."""
        return self._array is not None and self._array() is array

    def digest(self) -> str:
        """What the weight is: where it was loaded from, or the hash of its content."""
        if self.origin is not None:
            return self.origin
        if not self._digest:
            self._digest = hashlib.blake2b(self.raw().data, digest_size=16).hexdigest()
        return self._digest


class Weights:
    """The weights that the references of one model's skeletons stand for.

    They are held weakly: a weight lives as long as a tensor of the graph has it, so that one which
    was replaced is freed. Clones share the `Weight` objects, which never change.
    """

    def __init__(self) -> None:
        self._entries: weakref.WeakValueDictionary[str, Weight] = weakref.WeakValueDictionary()
        self._pinned: list[Weight] = []
        self._count = 0

    def add(self, weight: Weight) -> str:
        """Keep `weight` until `release`, or while it is used; return its reference."""
        weight.reference = f"{REFERENCE}{self._count}"
        self._count += 1
        self._entries[weight.reference] = weight
        self._pinned.append(weight)
        return weight.reference

    def release(self) -> None:
        """From here on only weights that something else holds live on."""
        self._pinned.clear()

    def adopt(self, array: Array) -> Weight:
        """The weight that is `array`, which becomes read-only and is copied only if it must be."""
        if (known := self._giver(array)) is not None:
            return known
        if _is_packed(array.dtype):
            flat = np.frombuffer(onnx.numpy_helper.from_array(array).raw_data, np.uint8)
        else:
            # only where needed: a conversion that converts nothing gives a view, and only
            # that would be frozen
            if not (array.dtype.isnative and array.flags.c_contiguous):
                array = array.astype(array.dtype.newbyteorder("="), order="C")
            array.setflags(write=False)
            flat = array.reshape(-1).view(np.uint8)
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        weight = Weight(data_type, tuple(array.shape), lambda: flat, flat.nbytes)
        weight._gives(array)
        self.add(weight)
        return weight

    def keeps(self, array: Array) -> bool:
        """Whether `array` belongs here: it is large, or a weight already."""
        return array.nbytes >= THRESHOLD or self._giver(array) is not None

    def _giver(self, array: Array) -> Weight | None:
        """The weight of this table that is `array`."""
        weight = _givers.get(id(array))
        known = weight is not None and self._entries.get(weight.reference) is weight
        return weight if known and weight is not None and weight.holds(array) else None

    def of(self, tensor: onnx.TensorProto) -> Weight | None:
        """The weight that a tensor of a skeleton stands for, or None if it holds its own bytes."""
        return self._entries.get(_location(tensor))

    def reads(self, path: Path) -> bool:
        """Whether a weight is mapped from this file."""
        start = f"{path.resolve()}@"
        return any((w.origin or "").startswith(start) for w in self._entries.values())

    def copy(self) -> "Weights":
        """Another table of the same weights; references mean the same in both."""
        other = Weights()
        other._entries.update(self._entries)
        other._count = self._count
        return other

    def part(self, weights: Iterable[Weight]) -> "Weights":
        """A table of these of the weights alone, under the same references, to read from."""
        other = Weights()
        other._entries.update({weight.reference: weight for weight in weights})
        return other


def _is_packed(dtype: np.dtype[Any]) -> bool:
    return "int4" in dtype.name or "int2" in dtype.name or "float4" in dtype.name


def _location(tensor: onnx.TensorProto) -> str:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return ""
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def refer(tensor: onnx.TensorProto, **entries: str | int) -> None:
    """Make `tensor` an external one with these entries (location, offset, length)."""
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(name)
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.extend(
        onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items()
    )


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a graph: initializers, attributes, and those of If/Loop bodies."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


def take_in(tensor: onnx.TensorProto, weights: Weights) -> Weight | None:
    """Make a tensor that holds its values uniform: a reference if it is large, else raw bytes.

    So that equal tensors are equal protobufs, whichever of protobuf's fields they came in.
    """
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    if expected_bytes(tensor) >= THRESHOLD:
        weight = weights.adopt(np.array(onnx.numpy_helper.to_array(tensor)))
        refer(tensor, location=weight.reference)
        return weight
    if not tensor.HasField("raw_data"):
        values = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
        for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(name)
        tensor.raw_data = values.raw_data
    return None


def expected_values(tensor: onnx.TensorProto) -> int:
    """How many entries a typed field (float_data, int32_data, ...) of a tensor must have."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if _is_packed(dtype):
        return expected_bytes(tensor)  # one entry a byte
    return int(math.prod(tensor.dims)) * (2 if dtype.kind == "c" else 1)


def expected_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the raw_data of a tensor must have, by its type and shape."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    elements = math.prod(tensor.dims)
    if _is_packed(dtype):
        return int(-(-elements * (2 if "int2" in dtype.name else 4) // 8))
    return int(elements * dtype.itemsize)
