"""Weights outside the protobuf: mapped from their file, streamed back, never held twice.

An ONNX file is read as a *skeleton*: the ModelProto whose large tensors (1 KiB and more) hold, in
place of their bytes, a reference to a `Weight`. The bytes themselves stay where they are, in the
file, and are mapped. This works alike for tensors inside the .onnx file and for external data, so
that no model is ever read whole.

Formulas and formats: protobuf encoding (protobuf.dev/programming-guides/encoding), field numbers
from onnx.proto3. This is the only module that knows offsets.
"""

import hashlib
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, Message

from onnxdrp.errors import ModelError

__all__ = ["THRESHOLD", "Weight", "Weights", "atomic_write", "read_skeleton", "write_model"]

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

THRESHOLD = 1024  # bytes; smaller tensors stay in the skeleton, where shape inference can read them
ALIGNMENT = 4096  # bytes; external tensors start on a page, so that others can map them too
PROTOBUF_LIMIT = 2**31 - 1  # bytes; no protobuf message may be larger
REFERENCE = "onnxdrp-weight-"

# The messages on the way from a ModelProto to the tensors in it: {message: {field number: message
# below}}.
_TREE: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: "TensorProto", 6: "GraphProto"},
    "TensorProto": {},
}
_RAW_DATA = 9  # TensorProto.raw_data


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
        self._array = weakref.ref(values)
        return values

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
        for weight in self._entries.values():
            if weight.holds(array):
                return weight
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
        weight._array = weakref.ref(array)
        self.add(weight)
        return weight

    def keeps(self, array: Array) -> bool:
        """Whether `array` belongs here: it is large, or a weight already."""
        return array.nbytes >= THRESHOLD or any(w.holds(array) for w in self._entries.values())

    def of(self, tensor: onnx.TensorProto) -> Weight | None:
        """The weight that a tensor of a skeleton stands for, or None if it holds its own bytes."""
        return self._entries.get(_location(tensor))

    def reads(self, path: Path) -> bool:
        """Whether a weight is mapped from this file."""
        start = f"{path.resolve()}@"
        return any((w.origin or "").startswith(start) for w in self._entries.values())

    def copy(self, without: Collection[Weight] = ()) -> "Weights":
        """Another table of the same weights, less those named; references mean the same in both."""
        other = Weights()
        left_out = {weight.reference for weight in without}
        other._entries.update({r: w for r, w in self._entries.items() if r not in left_out})
        other._count = self._count
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


# ---------------------------------------------------------------------------------- the wire format


def _varint(buffer: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        if shift > 63:
            raise IndexError("a number of more than 64 bits")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, start of the tag, start of the payload, end) of each field of a message.

    Raises IndexError where a length points past the end: the file is truncated or is no protobuf.
    """
    at = start
    while at < end:
        tag_start = at
        tag, at = _varint(buffer, at)
        wire = tag & 7
        if wire == 0:
            payload, at = at, _varint(buffer, at)[1]
        elif wire in (1, 5):
            payload, at = at, at + (8 if wire == 1 else 4)
        elif wire == 2:
            length, payload = _varint(buffer, at)
            at = payload + length
        else:
            raise IndexError(f"wire type {wire}")
        if at > end or tag >> 3 == 0:
            raise IndexError("field beyond its message")
        yield tag >> 3, tag_start, payload, at


def _strip(
    buffer: memoryview, start: int, end: int, kind: str, cut: Callable[[int, int], bytes]
) -> bytes:
    """Re-encode a message with the raw_data of its large tensors cut out.

    `cut(offset, length)` gives what stands there instead: the fields of an external tensor.
    """
    below = _TREE[kind]
    parts: list[Buffer] = []
    run = start  # start of the bytes not yet copied
    for number, tag_start, payload, stop in _fields(buffer, start, end):
        if stop - payload < THRESHOLD:
            continue
        if kind == "TensorProto" and number == _RAW_DATA:
            parts += [buffer[run:tag_start], cut(payload, stop - payload)]
        elif number in below:
            inner = _strip(buffer, payload, stop, below[number], cut)
            parts += [buffer[run:tag_start], _encode_varint(number << 3 | 2)]
            parts += [_encode_varint(len(inner)), inner]
        else:
            continue
        run = stop
    parts.append(buffer[run:end])
    return b"".join(parts)


def _fill(message: bytes, kind: str, weights: Weights, parts: list[bytes | Weight]) -> int:
    """The reverse of `_strip`: put the bytes they stand for in place of references.

    Appends the encoded message to `parts` and returns its length.
    """
    if kind == "TensorProto":
        tensor = onnx.TensorProto.FromString(message)
        weight = weights.of(tensor)
        if weight is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            head = tensor.SerializeToString()
            head += _encode_varint(_RAW_DATA << 3 | 2) + _encode_varint(weight.nbytes)
            parts += [head, weight]
            return len(head) + weight.nbytes
        parts.append(message)
        return len(message)
    below, marker, total, run = _TREE[kind], REFERENCE.encode(), 0, 0
    for number, tag_start, payload, stop in _fields(message, 0, len(message)):
        if number not in below or message.find(marker, payload, stop) < 0:
            continue
        inner: list[bytes | Weight] = []
        length = _fill(message[payload:stop], below[number], weights, inner)
        head = message[run:tag_start] + _encode_varint(number << 3 | 2) + _encode_varint(length)
        parts += [head, *inner]
        total += len(head) + length
        run = stop
    parts.append(message[run:])
    return total + len(message) - run


# ------------------------------------------------------------------------------------------ reading


def read_skeleton(path: Path) -> tuple[onnx.ModelProto, Weights]:
    """Read a model without its large tensors.

    Returns:
        The skeleton and the weights that its references stand for, mapped from the file and its
        external data.

    Raises:
        ModelError: no such file, not an ONNX model, truncated, or external data that is missing,
            too short, or outside the model's folder.
    """
    data, weights = _map(path), Weights()
    file = _identity(path)

    def cut(offset: int, length: int) -> bytes:
        weight = _mapped(data, offset, length, f"{file}:{offset}")
        reference = onnx.TensorProto()
        refer(reference, location=weights.add(weight))
        return bytes(reference.SerializeToString())

    try:
        model = onnx.ModelProto.FromString(_strip(data.data, 0, len(data), "ModelProto", cut))
    except (IndexError, DecodeError, RecursionError) as e:
        raise ModelError(
            f"{path}: not an ONNX model, or cut short ({len(data):,} bytes); copy it again"
        ) from e
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path}: not an ONNX model (it has no graph); check the file's name")
    if not _is_text(model):
        raise ModelError(f"{path}: has names that are no UTF-8 text; export or copy it again")
    for tensor in tensors(model.graph):
        _resolve(tensor, path, weights)
    return model, weights


def _is_text(message: Message) -> bool:
    """Whether all strings of a message are text: protobuf hands out bytes where one is not."""
    for field, content in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            parts = [content] if isinstance(content, Message) else content
            if not all(map(_is_text, parts)):
                return False
        elif field.type == field.TYPE_STRING:
            texts = [content] if isinstance(content, str | bytes) else content
            if not all(isinstance(text, str) for text in texts):
                return False
    return True


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}@{stat.st_ino}.{stat.st_size}.{stat.st_mtime_ns}"


def _map(path: Path) -> Array:
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a folder; give the .onnx file in it")
        if path.stat().st_size == 0:
            raise ModelError(f"{path}: is empty; export or copy the model again")
        return np.memmap(path, np.uint8, mode="r")
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror or e})") from e


def _mapped(data: Array, offset: int, length: int, origin: str) -> Weight:
    # np.asarray: a plain view of the mapping; memmap's own views cost a Python call each
    view = np.asarray(data)[offset : offset + length]
    return Weight(0, (), lambda: view, length, origin)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a graph: initializers, attributes, and those of If/Loop bodies."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


def _resolve(tensor: onnx.TensorProto, path: Path, weights: Weights) -> None:
    """Complete one tensor of a freshly read skeleton: map external data, take typed data out."""
    weight = weights.of(tensor)
    if weight is None and tensor.data_location == onnx.TensorProto.EXTERNAL:
        weight = _open_external(tensor, path)
        if weight.nbytes < THRESHOLD:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = weight.raw().tobytes()
            weight = None
        else:
            refer(tensor, location=weights.add(weight))
    if weight is not None:
        weight.data_type, weight.shape = tensor.data_type, tuple(tensor.dims)
    _check_size(tensor, weight, path)
    if weight is None and (weight := take_in(tensor, weights)) is not None:
        weight.origin = f"{_identity(path)}#{tensor.name}"


def take_in(tensor: onnx.TensorProto, weights: Weights) -> Weight | None:
    """Make a tensor that holds its values uniform: a reference if it is large, else raw bytes.

    So that equal tensors are equal protobufs, whichever of protobuf's fields they came in.
    """
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    if _expected_bytes(tensor) >= THRESHOLD:
        weight = weights.adopt(np.array(onnx.numpy_helper.to_array(tensor)))
        refer(tensor, location=weight.reference)
        return weight
    if not tensor.HasField("raw_data"):
        values = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
        for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(name)
        tensor.raw_data = values.raw_data
    return None


def _check_size(tensor: onnx.TensorProto, weight: Weight | None, path: Path) -> None:
    """Raise ModelError if a tensor has more or fewer values than its shape, or an unknown type."""
    if tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has the unknown type {tensor.data_type}; "
            "upgrade onnx, or export the model again"
        )
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if weight is not None or tensor.raw_data or not getattr(tensor, field):
        expected = _expected_bytes(tensor)
        found = weight.nbytes if weight is not None else len(tensor.raw_data)
        unit = "bytes"
    else:
        expected, found, unit = _expected_values(tensor), len(getattr(tensor, field)), "values"
    if expected != found or any(d < 0 for d in tensor.dims):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has {found:,} {unit} where its shape "
            f"{list(tensor.dims)} needs {expected:,}; export the model again"
        )


def _expected_values(tensor: onnx.TensorProto) -> int:
    """How many entries a typed field (float_data, int32_data, ...) of a tensor must have."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if _is_packed(dtype):
        return _expected_bytes(tensor)  # one entry a byte
    return int(math.prod(tensor.dims)) * (2 if dtype.kind == "c" else 1)


def _expected_bytes(tensor: onnx.TensorProto) -> int:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    elements = math.prod(tensor.dims)
    if _is_packed(dtype):
        return int(-(-elements * (2 if "int2" in dtype.name else 4) // 8))
    return int(elements * dtype.itemsize)


def _open_external(tensor: onnx.TensorProto, path: Path) -> Weight:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.resolve().parent
    location = entries.get("location", "")
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has its data outside the folder, at {location!r}; "
            "move it beside the model and save the model again"
        )
    if not file.is_file():
        raise ModelError(
            f"{path}: the external data {location!r} of tensor {tensor.name!r} is missing; "
            "copy it into the model's folder"
        )
    offset = _number(entries, "offset", tensor, path)
    length = _number(entries, "length", tensor, path) or _expected_bytes(tensor)
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ModelError(
            f"{path}: the external data {location!r} ends before tensor {tensor.name!r} "
            f"(bytes {offset:,} to {offset + length:,}); copy the file again"
        )
    if length == 0:
        return Weight(
            tensor.data_type, tuple(tensor.dims), lambda: np.empty(0, np.uint8), 0, "empty"
        )
    return _mapped(_map_once(file), offset, length, f"{_identity(file)}:{offset}")


def _number(entries: dict[str, str], key: str, tensor: onnx.TensorProto, path: Path) -> int:
    try:
        return int(entries.get(key, 0))
    except ValueError as e:
        raise ModelError(
            f"{path}: the external data of tensor {tensor.name!r} has the {key} {entries[key]!r}, "
            "which is no number; export the model again"
        ) from e


_open_maps: "weakref.WeakValueDictionary[str, Array]" = weakref.WeakValueDictionary()


def _map_once(file: Path) -> Array:
    key = _identity(file)
    mapping = _open_maps.get(key)
    if mapping is None:
        mapping = _open_maps[key] = _map(file)
    return mapping


# ------------------------------------------------------------------------------------------ writing


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when all of it is written.

    Raises:
        ModelError: the folder is missing, or the file cannot be written.
    """
    if not path.parent.is_dir():
        raise ModelError(f"{path}: the folder {path.parent} does not exist; create it")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name a file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise ModelError(f"{path}: cannot be written ({e.strerror or e})") from e
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp makes files private
        Path(name).replace(path)
    except OSError as e:
        raise ModelError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        Path(name).unlink(missing_ok=True)


def write_model(
    skeleton: onnx.ModelProto,
    weights: Weights,
    path: Path,
    external_threshold: int | None,
    overwrite: bool = False,
) -> None:
    """Write a skeleton and its weights, streamed: no weight is copied in memory.

    Args:
        skeleton: as `read_skeleton` gives it; is not changed.
        weights: what its references stand for.
        path: the .onnx file; external data goes to `<path>.data`, beside it.
        external_threshold: initializers of this many bytes and more become external data; None: one
            file if that stays below protobuf's 2 GB, else 1024.
        overwrite: allow the external data to replace a file that the weights are mapped from.

    Raises:
        ModelError: the file cannot be written, or does not fit into 2 GB with this threshold.
    """
    used = sum(w.nbytes for t in tensors(skeleton.graph) if (w := weights.of(t)))
    if external_threshold is None and used + skeleton.ByteSize() > PROTOBUF_LIMIT - 2**20:
        external_threshold = THRESHOLD
    if external_threshold is not None:
        beside = path.with_name(path.name + ".data")
        if not overwrite and weights.reads(beside):
            raise ModelError(
                f"{beside}: holds the weights of the input, and would be replaced; "
                "name another output, or save with overwrite=True"
            )
        with atomic_write(beside) as data:
            skeleton = _write_external(skeleton, weights, data, path.name, external_threshold)
            _write_filled(skeleton, weights, path)
    else:
        _write_filled(skeleton, weights, path)


def _write_external(
    skeleton: onnx.ModelProto, weights: Weights, data: BinaryIO, name: str, threshold: int
) -> onnx.ModelProto:
    external = onnx.ModelProto()
    external.CopyFrom(skeleton)
    for tensor in external.graph.initializer:
        weight = weights.of(tensor)
        if weight is None or weight.nbytes < threshold:
            continue
        offset = -(-data.tell() // ALIGNMENT) * ALIGNMENT
        data.seek(offset)
        data.write(weight.raw().data)
        refer(tensor, location=f"{name}.data", offset=offset, length=weight.nbytes)
    return external


def _write_filled(skeleton: onnx.ModelProto, weights: Weights, path: Path) -> None:
    parts: list[bytes | Weight] = []
    length = _fill(skeleton.SerializeToString(deterministic=True), "ModelProto", weights, parts)
    if length > PROTOBUF_LIMIT:
        raise ModelError(
            f"{path}: would be {length:,} bytes, more than the 2 GB that an ONNX file may have; "
            "save with a smaller external_threshold"
        )
    with atomic_write(path) as file:
        for part in parts:
            file.write(part.raw().data if isinstance(part, Weight) else part)


def filled(skeleton: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The whole ModelProto, weights inside, all in memory: for tools that need one."""
    parts: list[bytes | Weight] = []
    length = _fill(skeleton.SerializeToString(), "ModelProto", weights, parts)
    if length > PROTOBUF_LIMIT:
        raise ModelError(
            f"the model has {length:,} bytes; as one protobuf it may have 2 GB at most"
        )
    data = b"".join(p.raw().tobytes() if isinstance(p, Weight) else p for p in parts)
    model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    return model
