"""What bytes a model's files will have, decided before one of them is written."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable
from typing import Literal, NamedTuple

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from graphpass.storage.protobuf import (
    LENGTH_DELIMITED,
    PROTOBUF_LIMIT_BYTES,
    MemorySource,
    Piece,
    Splice,
    fields,
    piece_length,
    rewrite,
    varint,
)
from graphpass.storage.reference import (
    ORIGIN,
    Reference,
    WriteError,
    refer_to,
    reference_of,
    require_as_it_was,
    stamp,
)
from graphpass.storage.shapes import read_by_shape_inference
from graphpass.storage.wire import EXTERNAL_TAG, payload_field, restored

ExternalData = Literal["auto", "always", "never"]

# Large tensors begin at a page, so that the runtime maps them; padding small ones is a waste.
_PAGE_BYTES = 4096
_PAGED_FROM_BYTES = 1 << 16
_SMALL_ALIGNMENT_BYTES = 64
_SMALL_BYTES = 1024  # a tensor below that is not worth a place of its own


class Layout(NamedTuple):
    """The model file and, unless it is empty, the data file beside it, as pieces to put together.

    `sources` has the stamp of every file that pieces are spliced from.
    """

    model: list[Piece]
    data: list[Piece]
    sources: dict[str, str]


def lay_out(
    skeleton: onnx.ModelProto,
    data_name: str,
    external_data: ExternalData = "auto",
    size_threshold: int | None = None,
) -> Layout:
    """Decide what goes where.

    Args:
        skeleton: the model; it is not changed.
        data_name: the file name that the model will use for its external data.
        external_data: "never": all in one file. "always": tensors are external. "auto": each
            tensor as it was, new ones as the model has it; "always" if that is more than
            protobuf's limit of 2 GiB.
        size_threshold: tensors of fewer bytes stay in the model file; None: those of fewer than
            1024 where it is "always", none where each is as it was. What shape inference has to
            read (see `read_by_shape_inference`) stays whatever this says.

    Raises:
        WireError: a file that the skeleton refers to is gone, too short or has changed.
        WriteError: the model does not fit into 2 GiB.
    """
    content = _serialized(skeleton)
    if external_data == "always":
        least = _SMALL_BYTES if size_threshold is None else size_threshold
        outside: Outside = lambda _, size: size >= least  # noqa: E731
    elif external_data == "never":
        outside = lambda *_: False  # noqa: E731
    else:
        outside = _as_it_was(_EXTERNAL_MARK in content, size_threshold or 0)
    layout = _Plan(skeleton, content, data_name, outside, external_data == "always").layout()
    length = sum(map(piece_length, layout.model))
    if length <= PROTOBUF_LIMIT_BYTES:
        return layout
    if external_data == "auto":
        return lay_out(skeleton, data_name, "always", size_threshold)
    hint = "it needs external data" if external_data == "never" else "even with external data"
    raise WriteError(f"the model file would have {length} bytes, more than ONNX's 2 GiB: {hint}")


# Says whether a tensor of that size in bytes goes to the data file; no reference: it is inline.
Outside = Callable[["Reference | None", int], bool]
_EXTERNAL_MARK = onnx.StringStringEntryProto(key=ORIGIN, value="external").SerializeToString()


def _as_it_was(model_has_external_data: bool, least: int) -> Outside:
    def outside(reference: Reference | None, size: int) -> bool:
        if reference is None or size < least:
            return False
        if reference.origin is None:
            return model_has_external_data
        return reference.origin == "external"

    return outside


def _serialized(skeleton: onnx.ModelProto) -> bytes:
    try:
        content: bytes = skeleton.SerializeToString(deterministic=True)
        return content
    except (EncodeError, ValueError):
        raise WriteError("the model's graph alone is more than ONNX's 2 GiB") from None


class _Plan:
    """One pass over a serialized skeleton that puts each tensor's data in its place."""

    def __init__(
        self,
        skeleton: onnx.ModelProto,
        content: bytes,
        data_name: str,
        outside: Outside,
        inline_too: bool,
    ) -> None:
        """`content`: the skeleton, serialized.

        `inline_too`: tensors that hold their data themselves may have to go outside as well.
        """
        self._content = content
        self._kept = read_by_shape_inference(skeleton) if inline_too else frozenset()
        self._source = MemorySource(content)
        self._data_name = data_name
        self._outside = outside
        self._inline_too = inline_too
        self._externals = [match.start() for match in re.finditer(re.escape(EXTERNAL_TAG), content)]
        self._data: list[Piece] = []
        self._data_length = 0
        self._placed: dict[Splice, int] = {}
        self._sources: dict[str, os.stat_result] = {}

    def layout(self) -> Layout:
        """Return the layout."""
        end = len(self._content)
        model = rewrite(self._source, "ModelProto", 0, end, self._tensor, self._wanted)
        stamps = {path: stamp(status) for path, status in self._sources.items()}
        return Layout([self._content] if model is None else model, self._data, stamps)

    def _wanted(self, start: int, end: int) -> bool:
        if self._inline_too and self._outside(None, end - start):
            return True
        index = bisect_left(self._externals, start)
        return index < len(self._externals) and self._externals[index] < end

    def _tensor(self, start: int, end: int) -> list[Piece] | None:
        """Return the content of the tensor that lies there; None if it stays as it is."""
        tensor = TensorProto.FromString(self._content[start:end])
        reference = reference_of(tensor)
        kept = self._content[start:end] in self._kept
        if reference is None:
            size = len(tensor.raw_data)
            if kept or not (self._inline_too and size and self._outside(None, size)):
                return None
            payload: Piece = tensor.raw_data
            tensor.ClearField("raw_data")
        else:
            size = reference.length
            payload = Splice(reference.path, reference.offset, size)
            require_as_it_was(reference, self._sources)
            tensor = restored(tensor, reference)
            if kept or not self._outside(reference, size):
                return _inline(tensor, reference, payload)
        tensor.ClearField("data_location")
        refer_to(tensor, self._data_name, self._place(payload), size)
        return [tensor.SerializeToString(deterministic=True)]

    def _place(self, payload: Piece) -> int:
        """Append to the data file what is not there already; return its offset."""
        if isinstance(payload, Splice) and payload in self._placed:
            return self._placed[payload]
        length = piece_length(payload)
        alignment = _PAGE_BYTES if length >= _PAGED_FROM_BYTES else _SMALL_ALIGNMENT_BYTES
        padding = -self._data_length % alignment
        offset = self._data_length + padding
        self._data += [bytes(padding), payload]
        self._data_length = offset + length
        if isinstance(payload, Splice):
            self._placed[payload] = offset
        return offset


def _inline(tensor: TensorProto, reference: Reference, payload: Piece) -> list[Piece]:
    """Return the content of `tensor` with its data where a canonical serialization has it."""
    number = payload_field(reference)
    rest = tensor.SerializeToString(deterministic=True)
    later = (f.tag for f in fields(MemorySource(rest), 0, len(rest)) if f.number > number)
    split = next(later, len(rest))
    header = varint(number << 3 | LENGTH_DELIMITED) + varint(piece_length(payload))
    return [rest[:split] + header, payload, rest[split:]]
