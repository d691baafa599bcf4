"""The protobuf wire format of ONNX, walked without decoding it.

`fields` finds where each field of a message lies; `rewrite` replaces tensors deep inside a model
and mends the lengths of everything around them. Neither looks at bytes that it does not need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TrainingInfoProto

LENGTH_DELIMITED = 2
PROTOBUF_LIMIT_BYTES = 2**31 - 1
DEPTH_LIMIT = 100  # protobuf's own parsers give up at this depth
_WINDOW_BYTES = 1 << 15
_MOST_NUMBERS = 100_000  # of an attribute that is looked through
_LONGEST_HEADER_BYTES = 32  # a tag of 5 bytes and a value of 10, generously


class MalformedError(Exception):
    """The bytes are no protobuf message; the text says what is wrong and at which byte."""


class Source(Protocol):
    """Bytes that can be looked at anywhere."""

    def window(self, position: int) -> tuple[bytes, int]:
        """Return a buffer with the header of the field at `position`, and where it begins there."""

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`."""


class MemorySource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def window(self, position: int) -> tuple[bytes, int]:
        """See Source."""
        return self.data, position

    def read(self, start: int, end: int) -> bytes:
        """See Source."""
        return self.data[start:end]


class FileSource:
    """An open file, read a little at a time.

    Not mmap: a file that shrinks while it is mapped kills the process, here it is an error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window = b""
        self._window_start = 0
        self._budget_bytes = PROTOBUF_LIMIT_BYTES

    def window(self, position: int) -> tuple[bytes, int]:
        """See Source."""
        index = position - self._window_start
        if not 0 <= index <= len(self._window) - _LONGEST_HEADER_BYTES:
            self._window = os.pread(self._descriptor, _WINDOW_BYTES, position)
            self._window_start = position
            index = 0
        return self._window, index

    def peek(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`, fewer where the file is shorter by now."""
        return os.pread(self._descriptor, end - start, start)

    def read(self, start: int, end: int) -> bytes:
        """See Source. All that is read together must fit a protobuf message."""
        self._budget_bytes -= end - start
        if self._budget_bytes < 0:
            raise MalformedError(
                "without its weights it is larger than the 2 GiB that protobuf can read"
            )
        data = os.pread(self._descriptor, end - start, start)
        while len(data) < end - start:  # pread returns at most 2 GiB - 4 KiB
            more = os.pread(self._descriptor, end - start - len(data), start + len(data))
            if not more:
                raise MalformedError("it became shorter while it was read")
            data += more
        return data


class Field(NamedTuple):
    """Where a field lies: `tag` is its first byte, `length` the byte after the tag."""

    number: int
    wire_type: int
    tag: int
    length: int
    value: int
    end: int


class Splice(NamedTuple):
    """A range of bytes in a file, standing for those bytes."""

    path: str
    offset: int
    length: int


Piece = bytes | Splice


def piece_length(piece: Piece) -> int:
    """Return how many bytes a piece stands for."""
    return piece.length if isinstance(piece, Splice) else len(piece)


def varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def fields(source: Source, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that lies from `start` up to `end`, in file order.

    Raises:
        MalformedError: a field is truncated, overlong, or of a kind that ONNX never uses.
    """
    position = base = start
    window, last = b"", -1
    while position < end:
        index = position - base
        if index > last:
            window, index = source.window(position)
            base, last = position - index, len(window) - _LONGEST_HEADER_BYTES
        # nearly every tag and every other length is one byte, and a call for each takes long
        if index <= last and window[index] < 0x80:
            tag = window[index]
            index += 1
        else:
            tag, index = _read_varint(window, index, base, longest=5)
        length_at = base + index
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or tag > 0xFFFFFFFF:
            raise MalformedError(f"there is no valid field at byte {position}")
        if wire_type == LENGTH_DELIMITED:
            if index <= last and window[index] < 0x80:
                length = window[index]
                index += 1
            else:
                length, index = _read_varint(window, index, base, longest=5)
            value = base + index
            stop = value + length
        elif wire_type == 0:
            value = length_at
            _, index = _read_varint(window, index, base, longest=10)
            stop = base + index
        elif wire_type in (1, 5):
            value = length_at
            stop = value + (8 if wire_type == 1 else 4)
        else:
            raise MalformedError(f"there is no valid field at byte {position}")
        if stop > end:
            raise MalformedError(
                f"it is truncated or damaged: the field at byte {position} reaches to byte {stop}, "
                f"but what holds it ends at byte {end}"
            )
        yield Field(number, wire_type, position, length_at, value, stop)
        position = stop


def _read_varint(window: bytes, index: int, base: int, longest: int) -> tuple[int, int]:
    """Return the integer at `index` and the index after it."""
    value = shift = 0
    for i in range(index, min(index + longest, len(window))):
        byte = window[i]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, i + 1
        shift += 7
    raise MalformedError(f"it is truncated or damaged at byte {base + index}")


_MESSAGES = (
    ModelProto,
    GraphProto,
    NodeProto,
    AttributeProto,
    FunctionProto,
    TrainingInfoProto,
)
# Where tensors can be: for each message, its fields that hold tensors at any depth. Sparse tensors
# are left out: runtimes expect their parts inline.
CHILDREN = {
    message.DESCRIPTOR.name: {
        field.number: field.message_type.name
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None
        and field.message_type.name in {"TensorProto", *(m.DESCRIPTOR.name for m in _MESSAGES)}
    }
    for message in _MESSAGES
}
_SINGLE_TENSOR = AttributeProto.T_FIELD_NUMBER

Edit = Callable[[int, int], "list[Piece] | None"]


def rewrite(
    source: Source,
    kind: str,
    start: int,
    end: int,
    edit: Edit,
    wanted: Callable[[int, int], bool],
    depth: int = 0,
) -> list[Piece] | None:
    """Replace the tensors inside the message of type `kind` that lies from `start` up to `end`.

    `edit(start, end)` returns the new content of a tensor, or None to leave it.
    `wanted(start, end)` says whether a message may hold a tensor of interest; no other is entered.

    Returns:
        The message's new content, or None if nothing in it changes.

    Raises:
        MalformedError: see `fields`.
    """
    if kind == "TensorProto":
        return edit(start, end)
    if depth > DEPTH_LIMIT or (kind == "AttributeProto" and not _is_clear(source, start, end)):
        return None
    children = CHILDREN[kind]
    pieces: list[Piece] = []
    copied = start
    for field in fields(source, start, end):
        child = children.get(field.number)
        if child is None or field.wire_type != LENGTH_DELIMITED:
            continue
        if not wanted(field.value, field.end):
            continue
        content = rewrite(source, child, field.value, field.end, edit, wanted, depth + 1)
        if content is None:
            continue
        pieces.append(source.read(copied, field.length))
        pieces.append(varint(sum(map(piece_length, content))))
        pieces += content
        copied = field.end
    if not pieces:
        return None
    pieces.append(source.read(copied, end))
    return pieces


def _is_clear(source: Source, start: int, end: int) -> bool:
    """Say whether tensors in an attribute can be told apart from what else it holds.

    Not where its tensor is there twice, which protobuf merges; nor, in a file, where it is a list
    of so many numbers that looking at each would take minutes.
    """
    found = 0
    for count, field in enumerate(fields(source, start, end)):
        found += field.number == _SINGLE_TENSOR
        if found > 1 or (count > _MOST_NUMBERS and isinstance(source, FileSource)):
            return False
    return True
