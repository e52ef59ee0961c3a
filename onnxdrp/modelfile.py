"""Model files: read as a skeleton over mapped weights, written streamed; no weight is ever copied.

Tensors inside the .onnx file and external data are mapped alike, so that no model is read whole.
"""

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, Message

from onnxdrp.errors import ModelError
from onnxdrp.files import atomic_write
from onnxdrp.weights import (
    REFERENCE,
    THRESHOLD,
    Weight,
    Weights,
    expected_bytes,
    expected_values,
    refer,
    take_in,
    tensors,
)
from onnxdrp.wire import fill, strip

__all__ = ["filled", "read_skeleton", "write_model"]

Array = npt.NDArray[Any]

ALIGNMENT = 4096  # bytes; external tensors start on a page, so that others can map them too
PROTOBUF_LIMIT = 2**31 - 1  # bytes; no protobuf message may be larger


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

    def cut(offset: int, length: int) -> bytes:
        weight = _mapped(data, offset, length, path)
        reference = onnx.TensorProto()
        refer(reference, location=weights.add(weight))
        return bytes(reference.SerializeToString())

    try:
        model = onnx.ModelProto.FromString(strip(data.data, 0, len(data), THRESHOLD, cut))
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


def _identity(path: Path, stat: os.stat_result | None = None) -> str:
    stat = stat or path.stat()
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


def _mapped(data: Array, offset: int, length: int, path: Path) -> Weight:
    # np.asarray: a plain view of the mapping; memmap's own views cost a Python call each
    view = np.asarray(data)[offset : offset + length]
    return Weight(0, (), lambda: view, length, f"{_identity(path)}:{offset}", (path, offset))


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


def _check_size(tensor: onnx.TensorProto, weight: Weight | None, path: Path) -> None:
    """Raise ModelError if a tensor has more or fewer values than its shape, or an unknown type."""
    if tensor.data_type not in onnx.TensorProto.DataType.values()[1:]:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has the unknown type {tensor.data_type}; "
            "upgrade onnx, or export the model again"
        )
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if weight is not None or tensor.raw_data or not getattr(tensor, field):
        expected = expected_bytes(tensor)
        found = weight.nbytes if weight is not None else len(tensor.raw_data)
        unit = "bytes"
    else:
        expected, found, unit = expected_values(tensor), len(getattr(tensor, field)), "values"
    if expected != found or any(d < 0 for d in tensor.dims):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has {found:,} {unit} where its shape "
            f"{list(tensor.dims)} needs {expected:,}; export the model again"
        )


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
    length = _number(entries, "length", tensor, path) or expected_bytes(tensor)
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ModelError(
            f"{path}: the external data {location!r} ends before tensor {tensor.name!r} "
            f"(bytes {offset:,} to {offset + length:,}); copy the file again"
        )
    if length == 0:
        return Weight(
            tensor.data_type, tuple(tensor.dims), lambda: np.empty(0, np.uint8), 0, "empty"
        )
    return _mapped(_map_once(file), offset, length, file)


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
        _write(data, weight)
        refer(tensor, location=f"{name}.data", offset=offset, length=weight.nbytes)
    return external


def _write_filled(skeleton: onnx.ModelProto, weights: Weights, path: Path) -> None:
    length, parts = _encoded(skeleton, weights)
    if length > PROTOBUF_LIMIT:
        raise ModelError(
            f"{path}: would be {length:,} bytes, more than the 2 GB that an ONNX file may have; "
            "save with a smaller external_threshold"
        )
    with atomic_write(path) as file:
        for part in parts:
            if isinstance(part, Weight):
                _write(file, part)
            else:
                file.write(part)


def _write(file: BinaryIO, weight: Weight) -> None:
    """Append the bytes of a weight: from file to file inside the kernel where that can be."""
    start, copied = file.tell(), 0
    if weight.source is not None and hasattr(os, "copy_file_range"):
        path, offset = weight.source
        # the name may stand for another file by now; only the one that is mapped will do
        with suppress(OSError), path.open("rb") as source:
            if _identity(path, os.fstat(source.fileno())) == str(weight.origin).rpartition(":")[0]:
                file.flush()
                while copied < weight.nbytes:
                    done = os.copy_file_range(
                        source.fileno(), file.fileno(), weight.nbytes - copied, offset + copied
                    )
                    if done == 0:
                        break
                    copied += done
    file.seek(start + copied)
    file.write(weight.raw()[copied:].data)


def filled(skeleton: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The whole ModelProto, weights inside, all in memory: for tools that need one."""
    length, parts = _encoded(skeleton, weights)
    if length > PROTOBUF_LIMIT:
        raise ModelError(
            f"the model has {length:,} bytes; as one protobuf it may have 2 GB at most"
        )
    data = b"".join(p.raw().tobytes() if isinstance(p, Weight) else p for p in parts)
    model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    return model


def _encoded(skeleton: onnx.ModelProto, weights: Weights) -> tuple[int, list[bytes | Weight]]:
    """The whole model as it is written: its length, and its pieces in order."""

    def whole(message: bytes) -> tuple[bytes, Weight] | None:
        tensor = onnx.TensorProto.FromString(message)
        weight = weights.of(tensor)
        if weight is None:
            return None
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return tensor.SerializeToString(), weight

    parts: list[bytes | Weight] = []
    message = skeleton.SerializeToString(deterministic=True)
    return fill(message, REFERENCE.encode(), whole, parts), parts
