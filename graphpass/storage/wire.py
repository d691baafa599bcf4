"""An ONNX file becomes a skeleton: the model without its weights, which stay in their files.

A skeleton is an ordinary ModelProto whose large tensors refer to bytes in files (see `reference`).
Reading one costs as much as the model's graph does, not its weights; `tensor_array` fetches one.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.storage.expansion import require_moderate_expansion
from graphpass.storage.external import DataFiles
from graphpass.storage.filetype import describe
from graphpass.storage.protobuf import (
    LENGTH_DELIMITED,
    FileSource,
    MalformedError,
    Piece,
    fields,
    rewrite,
    varint,
)
from graphpass.storage.reference import (
    BITS,
    Reference,
    WireError,
    byte_count,
    is_external,
    location_of,
    refer,
    reference_of,
    remove_marks,
    sparse_tensors,
    stamp,
    tensors,
)

__all__ = ["WireError", "attach", "read_skeleton", "tensor_array", "tensors"]

_RAW = TensorProto.RAW_DATA_FIELD_NUMBER
_FLOAT = TensorProto.FLOAT_DATA_FIELD_NUMBER
_DOUBLE = TensorProto.DOUBLE_DATA_FIELD_NUMBER
# The fields whose bytes in the file are the bytes of the array, with the types that may use them.
PAYLOADS: dict[int, tuple[str, set[int]]] = {
    _RAW: ("raw_data", set(BITS)),
    _FLOAT: ("float_data", {TensorProto.FLOAT, TensorProto.COMPLEX64}),
    _DOUBLE: ("double_data", {TensorProto.DOUBLE, TensorProto.COMPLEX128}),
}
_BESIDE_PAYLOAD = {"dims", "data_type", "name", "doc_string", "metadata_props", "data_location"}
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
# How `data_location: EXTERNAL` is encoded. Where these bytes are missing, no tensor is external.
EXTERNAL_TAG = bytes([TensorProto.DATA_LOCATION_FIELD_NUMBER << 3, TensorProto.EXTERNAL])


def read_skeleton(
    path: str | os.PathLike[str],
    *,
    threshold: int = 1024,
    allow_external: Sequence[Path] = (),
    data_folder: str | os.PathLike[str] | None = None,
    shown: str = "",
) -> onnx.ModelProto:
    """Read a model, but leave tensors of `threshold` bytes and more in the file.

    Args:
        path: an .onnx file.
        threshold: smaller tensors are read, in bytes.
        allow_external: folders outside of the data folder that external data may lie in.
        data_folder: where external data is looked for; by default beside the model.
        shown: what errors call the file; by default its path.

    Raises:
        WireError: the file is no readable ONNX model, or its external data is not where it may be.
    """
    file = Path(path)
    shown = shown or str(file)
    content, own = _content(file, threshold, shown)
    model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    if not (model.graph.node or model.graph.output or model.graph.initializer):
        raise WireError(f"{shown} holds no graph: no nodes, no outputs, no initializers")
    if EXTERNAL_TAG in model.SerializeToString():
        folder = file.parent if data_folder is None else Path(data_folder)
        data_files = DataFiles(shown, folder, allow_external)
        for tensor in tensors(model):
            if is_external(tensor) and not _refers_to(tensor, own):
                refer(tensor, data_files.reference(tensor))
        for sparse in sparse_tensors(model):
            if is_external(sparse.values) or is_external(sparse.indices):
                raise WireError(
                    f"sparse tensor '{sparse.values.name}' in {shown} is kept in another file, "
                    "which is not supported"
                )
    return model


def graph_bytes(path: Path) -> bytes:
    """Return a model file but for its large weights; nothing if it is no model.

    External data is not looked for: the locations are what the file says.
    """
    try:
        return _content(path, 1024, str(path))[0]
    except WireError:
        return b""


def tensor_array(tensor: TensorProto) -> npt.NDArray[Any]:
    """Return the value of any tensor, inline or reference; elements below a byte come one by one.

    The array may be read-only. Nothing is kept: each call reads the data again.

    Raises:
        WireError: the tensor is malformed, or its file is gone, too short or has changed.
    """
    reference = reference_of(tensor)
    if reference is None:
        return _decode(tensor)
    if reference.length != byte_count(tensor.data_type, list(tensor.dims)):
        raise WireError(f"tensor '{tensor.name}' has {reference.length} bytes, unlike its shape")
    if BITS[tensor.data_type] < 8:
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
        packed.raw_data = read_bytes(reference)
        return _decode(packed)
    array = np.empty(tuple(tensor.dims), tensor_dtype_to_np_dtype(tensor.data_type))
    _read_into(reference, array.reshape(-1).view(np.uint8).data)
    return array.byteswap() if sys.byteorder == "big" else array


def attach(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `skeleton` that holds all its data itself, as `onnx.load` reads models.

    Raises:
        WireError: a file that it refers to is gone, too short or has changed.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    for tensor in tensors(model):
        reference = reference_of(tensor)
        if reference is not None:
            detached = restored(tensor, reference)
            tensor.CopyFrom(detached)
            field = payload_field(reference)
            header = varint(field << 3 | LENGTH_DELIMITED) + varint(reference.length)
            tensor.MergeFromString(header + read_bytes(reference))
    return model


def restored(tensor: TensorProto, reference: Reference) -> TensorProto:
    """Return `tensor` as it was before it became a reference, but without its data."""
    inline = TensorProto()
    inline.CopyFrom(tensor)
    remove_marks(inline)
    inline.ClearField("external_data")
    inline.ClearField("data_location")
    if reference.origin == "external" or reference.explicit_location:
        inline.data_location = TensorProto.DEFAULT
    return inline


def payload_field(reference: Reference) -> int:
    """Return the number of the field that holds the data when it is inline."""
    return {"float_data": _FLOAT, "double_data": _DOUBLE}.get(reference.origin or "", _RAW)


def read_bytes(reference: Reference) -> bytes:
    """Return the bytes that `reference` stands for.

    Raises:
        WireError: see `Reference.open`.
    """
    data = bytearray(reference.length)
    _read_into(reference, memoryview(data))
    return bytes(data)


def _read_into(reference: Reference, buffer: memoryview) -> None:
    """Fill `buffer` with the bytes that `reference` stands for."""
    descriptor = reference.open()
    try:
        done = 0
        while done < reference.length:
            count = os.preadv(descriptor, [buffer[done:]], reference.offset + done)
            if count == 0:
                raise WireError(f"{reference.path} became shorter while it was read")
            done += count
    except OSError as error:
        raise WireError(f"cannot read {reference.path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _decode(tensor: TensorProto) -> npt.NDArray[Any]:
    """Return the value of an inline tensor."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(f"tensor '{tensor.name}' is malformed: {error}") from None


def _content(file: Path, threshold: int, shown: str) -> tuple[bytes, Reference]:
    """Return the bytes of a skeleton of `file`, surely valid, and a reference to the whole file."""
    try:
        descriptor = _open_regular(file, shown)
        try:
            status = os.fstat(descriptor)
            path = "/" + location_of(os.path.realpath(file))
            own = Reference(path, 0, status.st_size, "raw_data", stamp(status))
            content = b""
            source = FileSource(descriptor)
            require_moderate_expansion(source, status.st_size, shown)
            content = _without_payloads(source, own, max(threshold, 1))
            _strict_model().FromString(content)
            return content, own
        except (MalformedError, DecodeError) as error:
            head = os.pread(descriptor, 4096, 0)
            raise WireError(_why_not_a_model(shown, head, content, error)) from None
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WireError(f"cannot read {shown}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise WireError(f"cannot read {file!r}: {error}") from None


@functools.cache
def _strict_model() -> Any:
    """Return a ModelProto whose parser refuses text that is not UTF-8.

    ONNX's own is proto2, which lets it pass and gives names of type bytes; proto3 does not.
    """
    file = descriptor_pb2.FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(file)
    file.syntax = "proto3"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    name = onnx.ModelProto.DESCRIPTOR.full_name
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _open_regular(file: Path, shown: str) -> int:
    """Open a regular file; a pipe or device, which could block or never end, is refused unread."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
    raise WireError(f"{shown} is {kind}, not an ONNX model")


def _without_payloads(source: FileSource, own: Reference, threshold: int) -> bytes:
    """Return the bytes of the model with references in the place of large inline data."""
    size = own.length
    if not any(field.number == _GRAPH for field in fields(source, 0, size)):
        raise MalformedError("it has no graph")

    def defer(start: int, end: int) -> list[Piece] | None:
        return _defer(source, start, end, own, threshold)

    def wanted(start: int, end: int) -> bool:
        return end - start >= threshold

    pieces = rewrite(source, "ModelProto", 0, size, defer, wanted)
    if pieces is None:
        return source.read(0, size)
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def _defer(
    source: FileSource, start: int, end: int, own: Reference, threshold: int
) -> list[Piece] | None:
    """Return a tensor's content with a reference in place of its data, None to keep it inline."""
    payloads = [
        field
        for field in fields(source, start, end)
        if field.number in PAYLOADS
        and field.wire_type == LENGTH_DELIMITED
        and field.end - field.value >= threshold
    ]
    if len(payloads) != 1:
        return None
    (payload,) = payloads
    rest = source.read(start, payload.tag) + source.read(payload.end, end)
    length = payload.end - payload.value
    origin, types = PAYLOADS[payload.number]
    tensor = TensorProto.FromString(rest)
    used = {descriptor.name for descriptor, _ in tensor.ListFields()}
    if is_external(tensor) or not used <= _BESIDE_PAYLOAD or tensor.data_type not in types:
        return None
    if length != byte_count(tensor.data_type, list(tensor.dims)):
        return None
    reference = own._replace(
        offset=payload.value,
        length=length,
        origin=origin,
        explicit_location=tensor.HasField("data_location"),
    )
    marks = TensorProto()
    refer(marks, reference)
    return [rest, marks.SerializeToString()]


def _why_not_a_model(shown: str, head: bytes, content: bytes, error: Exception) -> str:
    """Return a sentence on what is wrong with a file, of which `content` is left, if anything."""
    kind = describe(head)
    if kind is not None:
        return f"{shown} is not an ONNX model but {kind}"
    if content and _is_parsed(content):  # only the strict parser minds
        return f"{shown} is not a valid ONNX model: a name or text in it is not UTF-8"
    if isinstance(error, DecodeError):
        return (
            f"{shown} is not a valid ONNX model: it is damaged, or nested too deeply for protobuf"
        )
    return f"{shown} is not a valid ONNX model: {error}"


def _is_parsed(content: bytes) -> bool:
    try:
        onnx.ModelProto.FromString(content)
    except DecodeError:
        return False
    return True


def _refers_to(tensor: TensorProto, own: Reference) -> bool:
    """Say whether `tensor` is a reference made just now: a forged one cannot know the stamp."""
    try:
        reference = reference_of(tensor)
    except WireError:
        return False
    return reference is not None and (reference.path, reference.stamp) == (own.path, own.stamp)
