"""Whether two models are the same to the byte, wherever each of them keeps its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest

import onnx
from onnx import TensorProto

from graphpass.storage.reference import Reference, reference_of, remove_marks, tensors
from graphpass.wire import tensor_array

_CHUNK_BYTES = 1 << 20
_OPEN_FILES = 16  # some models keep every weight in a file of its own
# Where the data of a tensor is, and which of the fields it is in.
_PLACES = ("raw_data", "float_data", "double_data", "external_data", "data_location")


def difference(one: onnx.ModelProto, two: onnx.ModelProto, *, contents: bool = True) -> str:
    """Say in a few words what is not the same in two skeletons; "" where nothing is.

    Where a weight lies, inline or in which file, is no difference; what it holds is, to the bit,
    unless without `contents`: then what lies in files is not read. Raises WireError where the
    file of a weight is gone or has changed.
    """
    first, second = _copy(one), _copy(two)
    with _Files() as files:
        for here, there in zip(tensors(first), tensors(second), strict=False):
            ours, theirs = reference_of(here), reference_of(there)
            if ours is None and theirs is None:
                continue  # compared below, with all else
            if contents and not _are_equal(files.chunks(here, ours), files.chunks(there, theirs)):
                return f"tensor '{here.name}' holds other data"
            for tensor in (here, there):
                remove_marks(tensor)
                for field in _PLACES:
                    tensor.ClearField(field)
    if first.SerializeToString(deterministic=True) != second.SerializeToString(deterministic=True):
        return "something beside its weights is not the same"
    return ""


class _Files:
    """The files that weights lie in, the last few of them open; use as a context manager."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str | None], int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_all_but(0)

    def chunks(self, tensor: TensorProto, reference: Reference | None) -> Iterator[bytes]:
        """Yield the data of `tensor` in chunks, all but the last of the same size."""
        if reference is None:
            data = tensor.raw_data or tensor_array(tensor).tobytes()
            for start in range(0, len(data), _CHUNK_BYTES):
                yield data[start : start + _CHUNK_BYTES]
            return
        descriptor = self._descriptor(reference)
        end = reference.offset + reference.length
        for position in range(reference.offset, end, _CHUNK_BYTES):
            yield os.pread(descriptor, min(_CHUNK_BYTES, end - position), position)

    def _descriptor(self, reference: Reference) -> int:
        key = reference.path, reference.stamp
        if key not in self._open:
            self._close_all_but(_OPEN_FILES - 1)
            self._open[key] = reference.open()
        return self._open[key]

    def _close_all_but(self, count: int) -> None:
        while len(self._open) > count:
            os.close(self._open.pop(next(iter(self._open))))


def _are_equal(one: Iterator[bytes], two: Iterator[bytes]) -> bool:
    return all(here == there for here, there in zip_longest(one, two))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
