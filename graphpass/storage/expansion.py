"""What a file becomes in memory, told before any of it is parsed.

Two bytes of a file can be an empty message or text, one byte a number: parsed, each takes up to a
hundred times that. Weights whose bytes are those of the array are left out: they stay in the file.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx

from graphpass.storage.protobuf import DEPTH_LIMIT, LENGTH_DELIMITED, FileSource, fields
from graphpass.storage.reference import WireError

# Bytes for each: no less than was measured, and no more than `ir/admission` counts. Numbers in a
# row are copied for inference, checks and the runtime; a field alone takes time to look at, too.
_MESSAGE, _FIELD, _SHORT, _LONG = 200, 150, 34, 64
_MOST_OF_A_BYTE = 100  # an empty message takes two
_MOST_BYTES = 900 << 20
_ENTERED_FROM_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_SHORT_KINDS = ("int32_data",)


def require_moderate_expansion(source: FileSource, size: int, shown: str) -> None:
    """Raise WireError where a model of `size` bytes takes too much memory besides its weights.

    It has to be well-formed only as far as this looks: what is wrong further on is found later.
    """
    if size * _MOST_OF_A_BYTE <= _MOST_BYTES:
        return
    for entered_from in (_ENTERED_FROM_BYTES, 0):  # the first time is enough for most
        count = _Count(source, shown, entered_from)
        count.message(onnx.ModelProto.DESCRIPTOR, 0, size, 0)
        if count.taken + count.at_most <= _MOST_BYTES:
            return


class _Count:
    """Adds up what the fields of a file take, and raises once that is too much."""

    def __init__(self, source: FileSource, shown: str, entered_from: int) -> None:
        """`entered_from`: messages of fewer bytes are taken for the worst that they can be."""
        self._source = source
        self._shown = shown
        self._entered_from = entered_from
        self.taken = 0  # surely
        self.at_most = 0  # beside that

    def message(self, kind: Any, start: int, end: int, depth: int) -> None:
        known = _fields_of(kind)
        for field in fields(self._source, start, end):
            what, each = known.get(field.number, ("", _FIELD))
            if field.wire_type != LENGTH_DELIMITED or what == "":
                self._take(_FIELD)
            elif what == "numbers":
                self._take(each * self._numbers(field.value, field.end))
            elif (length := field.end - field.value) < self._entered_from:
                self.at_most += _MESSAGE + _MOST_OF_A_BYTE * length
            else:
                self._take(_MESSAGE)
                if depth < DEPTH_LIMIT:
                    self.message(what, field.value, field.end, depth + 1)

    def _take(self, count: int) -> None:
        self.taken += count
        if self.taken > _MOST_BYTES:
            raise WireError(
                f"{self._shown} holds so many small parts (numbers as int32_data or int64_data, "
                f"texts, nodes) that more than {_MOST_BYTES >> 20} MiB of memory would be taken: "
                "weights written as raw_data or external data take none"
            )

    def _numbers(self, start: int, end: int) -> int:
        """Return how many numbers lie there: each ends with a byte below 128."""
        found = 0
        for at in range(start, end, _CHUNK_BYTES):
            chunk = self._source.peek(at, min(at + _CHUNK_BYTES, end))
            found += int(np.count_nonzero(np.frombuffer(chunk, np.uint8) < 0x80))
        return found


@functools.cache
def _fields_of(kind: Any) -> dict[int, tuple[Any, int]]:
    """Return what each field of a message is: another message, "numbers" or "", and its bytes."""
    found: dict[int, tuple[Any, int]] = {}
    for field in kind.fields:
        if field.message_type is not None:
            found[field.number] = field.message_type, _MESSAGE
        elif field.cpp_type in (field.CPPTYPE_STRING, field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            found[field.number] = "", _FIELD
        else:
            found[field.number] = "numbers", _SHORT if field.name in _SHORT_KINDS else _LONG
    return found
