"""ONNX files as encoded protobuf: large tensors cut out of it and put back, by offset.

Encoding: protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto3.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

__all__ = ["encode_varint", "fields", "fill", "strip", "varint"]

Buffer = bytes | memoryview


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Payload = TypeVar("Payload", bound=_Sized)

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


def varint(buffer: Buffer, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset behind it. Raises IndexError at the end."""
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


def encode_varint(value: int) -> bytes:
    """A number below 2^64 in groups of 7 bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, start of the tag, start of the payload, end) of each field of a message.

    Raises IndexError where a length points past the end: the file is truncated or is no protobuf.
    """
    at = start
    while at < end:
        tag_start = at
        tag, at = varint(buffer, at)
        wire = tag & 7
        if wire == 0:
            payload, at = at, varint(buffer, at)[1]
        elif wire in (1, 5):
            payload, at = at, at + (8 if wire == 1 else 4)
        elif wire == 2:
            length, payload = varint(buffer, at)
            at = payload + length
        else:
            raise IndexError(f"wire type {wire}")
        if at > end or tag >> 3 == 0:
            raise IndexError("field beyond its message")
        yield tag >> 3, tag_start, payload, at


def strip(
    buffer: memoryview, start: int, end: int, least: int, cut: Callable[[int, int], bytes]
) -> bytes:
    """A ModelProto with the raw_data of its large tensors cut out.

    Args:
        buffer: holds the encoded message.
        start: where it starts.
        end: where it ends.
        least: bytes of raw_data from which on it is cut out.
        cut: called with (offset, length) of what is cut; gives the fields that stand there instead.

    Raises:
        IndexError: the message is truncated, or is none.
    """
    return _strip(buffer, start, end, "ModelProto", least, cut)


def _strip(
    buffer: memoryview,
    start: int,
    end: int,
    kind: str,
    least: int,
    cut: Callable[[int, int], bytes],
) -> bytes:
    below = _TREE[kind]
    parts: list[Buffer] = []
    run = start  # start of the bytes not yet copied
    for number, tag_start, payload, stop in fields(buffer, start, end):
        if stop - payload < least:
            continue
        if kind == "TensorProto" and number == _RAW_DATA:
            parts += [buffer[run:tag_start], cut(payload, stop - payload)]
        elif number in below:
            inner = _strip(buffer, payload, stop, below[number], least, cut)
            parts += [buffer[run:tag_start], _head(number, len(inner)), inner]
        else:
            continue
        run = stop
    parts.append(buffer[run:end])
    return b"".join(parts)


def fill(
    message: bytes,
    marker: bytes,
    whole: Callable[[bytes], tuple[bytes, Payload] | None],
    parts: "list[bytes | Payload]",
) -> int:
    """The reverse of `strip`: put raw_data back into the tensors of a ModelProto.

    Args:
        message: the encoded message.
        marker: bytes that occur in every tensor that is to be filled.
        whole: gives, of an encoded TensorProto, what stays of it and its raw_data, or None.
        parts: takes the encoded message, in pieces.

    Returns:
        The length of the message with all its raw_data.
    """
    return _fill(message, "ModelProto", marker, whole, parts)


def _fill(
    message: bytes,
    kind: str,
    marker: bytes,
    whole: Callable[[bytes], tuple[bytes, Payload] | None],
    parts: "list[bytes | Payload]",
) -> int:
    if kind == "TensorProto":
        found = whole(message)
        if found is None:
            parts.append(message)
            return len(message)
        head = found[0] + _head(_RAW_DATA, found[1].nbytes)
        parts += [head, found[1]]
        return len(head) + found[1].nbytes
    below, total, run = _TREE[kind], 0, 0
    for number, tag_start, payload, stop in fields(message, 0, len(message)):
        if number not in below or message.find(marker, payload, stop) < 0:
            continue
        inner: list[bytes | Payload] = []
        length = _fill(message[payload:stop], below[number], marker, whole, inner)
        head = message[run:tag_start] + _head(number, length)
        parts += [head, *inner]
        total += len(head) + length
        run = stop
    parts.append(message[run:])
    return total + len(message) - run


def _head(number: int, length: int) -> bytes:
    """The tag and length before the payload of a length-delimited field."""
    return encode_varint(number << 3 | 2) + encode_varint(length)
