"""How a skeleton says where a tensor's data is.

A reference is an ordinary external tensor whose `location` is the absolute path of a file without
its leading slash, so that ONNX Runtime finds it below the folder "/". It may point anywhere into
any file, an .onnx file included. What the tensor was before is marked in its `metadata_props`, and
the marks are gone again in whatever is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import onnx
from onnx import TensorProto

from graphpass.errors import ModelError, OutputError

ORIGIN = "graphpass.origin"
EXPLICIT_LOCATION = "graphpass.data_location"
STAMP = "graphpass.stamp"
_MARKS = {ORIGIN, EXPLICIT_LOCATION, STAMP}

_BITS_BY_NAME = {
    **dict.fromkeys(("COMPLEX128",), 128),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), 8),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
}
BITS = {
    number: _BITS_BY_NAME[name]
    for name, number in TensorProto.DataType.items()
    if name in _BITS_BY_NAME
}


class WireError(ModelError):
    """A model file, or the data that it refers to, cannot be read."""


class WriteError(OutputError):
    """A file, or temporary data, cannot be written."""


class Reference(NamedTuple):
    """Where the bytes of a tensor are.

    `origin` is the field that held them ("raw_data", "float_data", "double_data"), "external" for
    data that was in a file of its own already, or None for a tensor that is new. `stamp` tells
    whether the file has changed since; None where nobody else writes to it.
    """

    path: str
    offset: int
    length: int
    origin: str | None = None
    stamp: str | None = None
    explicit_location: bool = False

    def open(self) -> int:
        """Return a descriptor of the file, for reading.

        Raises:
            WireError: the file is gone, has changed since it was read, or is too short.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise WireError(f"cannot read {self.path}: {error.strerror}") from None
        try:
            self.check(os.fstat(descriptor))
        except WireError:
            os.close(descriptor)
            raise
        return descriptor

    def check(self, status: os.stat_result) -> None:
        """Raise WireError unless `status` is that of the file that this reference was made for."""
        if self.stamp is not None and stamp(status) != self.stamp:
            raise WireError(f"{self.path} has changed since it was read")
        if self.offset + self.length > status.st_size:
            raise WireError(
                f"{self.path} ends at byte {status.st_size}, before the weight at bytes "
                f"{self.offset} to {self.offset + self.length}"
            )


def require_as_it_was(reference: Reference, known: dict[str, os.stat_result]) -> None:
    """Raise WireError unless the file is still there as it was; `known`: files looked at so far."""
    if reference.path not in known:
        descriptor = reference.open()
        known[reference.path] = os.fstat(descriptor)
        os.close(descriptor)
    reference.check(known[reference.path])


def stamp(status: os.stat_result) -> str:
    """Return what changes when a file does: its size, times of change (ns) and inode.

    Anybody can set `mtime` back, nobody `ctime`.
    """
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def location_of(path: str) -> str:
    """Return the location under which ONNX Runtime finds the absolute `path` below "/".

    Raises:
        WireError: the path cannot be written in a protobuf string.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        raise WireError(f"the path {shown} is not valid UTF-8, as ONNX requires") from None
    return path.lstrip("/")


def refer(tensor: TensorProto, reference: Reference) -> None:
    """Let `tensor` refer to its data, in place of the raw data or file that it had."""
    refer_to(tensor, location_of(reference.path), reference.offset, reference.length)
    if reference.origin is not None:
        tensor.metadata_props.add(key=ORIGIN, value=reference.origin)
        if reference.explicit_location:
            tensor.metadata_props.add(key=EXPLICIT_LOCATION, value="DEFAULT")
        if reference.stamp is not None:
            tensor.metadata_props.add(key=STAMP, value=reference.stamp)


def refer_to(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make `tensor` an external one, in place of the raw data or file that it had."""
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.EXTERNAL


def reference_of(tensor: TensorProto) -> Reference | None:
    """Return where the data of `tensor` is, or None if the tensor holds it itself.

    Raises:
        WireError: it is external, but not a reference as a skeleton has them.
    """
    if not is_external(tensor):
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        path, offset, length = entries["location"], entries["offset"], entries["length"]
        marks = {mark.key: mark.value for mark in tensor.metadata_props[first_mark(tensor) :]}
        return Reference(
            f"/{path}",
            int(offset),
            int(length),
            marks.get(ORIGIN),
            marks.get(STAMP),
            EXPLICIT_LOCATION in marks,
        )
    except (KeyError, ValueError):
        raise WireError(f"tensor '{tensor.name}' does not say where its data is") from None


def is_external(tensor: TensorProto) -> bool:
    """Say whether the data of `tensor` is outside of it."""
    return tensor.data_location == TensorProto.EXTERNAL


def first_mark(tensor: TensorProto) -> int:
    """Return where in the metadata our marks begin; entries of a user's own come before."""
    keys = [entry.key for entry in tensor.metadata_props]
    if ORIGIN not in keys:
        return len(keys)
    return len(keys) - 1 - keys[::-1].index(ORIGIN)


def remove_marks(tensor: TensorProto) -> None:
    """Remove what `refer` noted in the metadata of `tensor`."""
    first = first_mark(tensor)
    kept = [entry for entry in tensor.metadata_props[first:] if entry.key not in _MARKS]
    del tensor.metadata_props[first:]
    tensor.metadata_props.extend(kept)


def byte_count(data_type: int, dims: list[int]) -> int | None:
    """Return how many bytes raw data of this type and shape takes, None if there is none."""
    bits = BITS.get(data_type)
    if bits is None or any(dim < 0 for dim in dims):
        return None
    if 0 in dims:
        return 0
    for dim in dims:
        bits *= dim
        if bits > 1 << 66:  # more than any file; dims may be many, and the product huge
            return None
    return (bits + 7) // 8


Message = onnx.ModelProto | onnx.GraphProto | onnx.FunctionProto


def tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every dense tensor in `message`: initializers and attributes, at any depth."""
    for holder in _holders(message):
        if isinstance(holder, onnx.GraphProto):
            yield from holder.initializer
        else:
            if holder.HasField("t"):
                yield holder.t
            yield from holder.tensors


def sparse_tensors(message: Message) -> Iterator[onnx.SparseTensorProto]:
    """Yield every sparse tensor in `message`, at any depth."""
    for holder in _holders(message):
        if isinstance(holder, onnx.GraphProto):
            yield from holder.sparse_initializer
        else:
            if holder.HasField("sparse_tensor"):
                yield holder.sparse_tensor
            yield from holder.sparse_tensors


def _holders(message: Message) -> Iterator[onnx.GraphProto | onnx.AttributeProto]:
    """Yield every graph and attribute in `message`: what can hold a tensor. Iterative."""
    graphs: list[onnx.GraphProto | onnx.FunctionProto]
    if isinstance(message, onnx.ModelProto):
        graphs = [message.graph, *message.functions]
        for training in message.training_info:
            graphs += [training.initialization, training.algorithm]
    else:
        graphs = [message]
    graphs.reverse()
    while graphs:
        graph = graphs.pop()
        if isinstance(graph, onnx.GraphProto):
            yield graph
        else:
            yield from graph.attribute_proto
        for node in graph.node:
            for attribute in node.attribute:
                yield attribute
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
