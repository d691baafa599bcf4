"""Whether two models are the same to the byte, wherever each of them keeps its weights."""

from __future__ import annotations

import os
from copy import deepcopy
from itertools import zip_longest

import onnx
from onnx import TensorProto

from graphpass.storage.protobuf import Piece, Splice
from graphpass.storage.reference import (
    Reference,
    reference_of,
    remove_marks,
    require_as_it_was,
    stamp,
    tensors,
)
from graphpass.storage.splice import Sources
from graphpass.storage.wire import tensor_array

# Where the data of a tensor is, and which of the fields it is in.
_PLACES = ("raw_data", "float_data", "double_data", "external_data", "data_location")


def difference(one: onnx.ModelProto, two: onnx.ModelProto, *, contents: bool = True) -> str:
    """Say in a few words what is not the same in two skeletons; "" where nothing is.

    Where a weight lies, inline or in which file, is no difference; what it holds is, to the bit,
    unless without `contents`: then what lies in files is not read. Raises WireError where the
    file of a weight is gone or has changed.
    """
    first, second = deepcopy(one), deepcopy(two)
    files: dict[str, os.stat_result] = {}
    pairs: list[tuple[str, Piece, Piece]] = []
    for here, there in zip(tensors(first), tensors(second), strict=False):
        ours, theirs = reference_of(here), reference_of(there)
        if ours is None and theirs is None:
            continue  # compared below, with all else
        if contents:
            data = payload(here, ours, files), payload(there, theirs, files)
            pairs.append((here.name, *data))
        for tensor in (here, there):
            remove_marks(tensor)
            for field in _PLACES:
                tensor.ClearField(field)
    if first.SerializeToString(deterministic=True) != second.SerializeToString(deterministic=True):
        return "something beside its weights is not the same"
    with Sources({path: stamp(status) for path, status in files.items()}) as sources:
        for name, one_piece, other_piece in pairs:
            chunks = zip_longest(sources.chunks(one_piece), sources.chunks(other_piece))
            if any(chunk != other for chunk, other in chunks):
                return f"tensor '{name}' holds other data"
    return ""


def payload(
    tensor: TensorProto, reference: Reference | None, files: dict[str, os.stat_result]
) -> Piece:
    """Return what a tensor holds, in memory or in a file, which is noted in `files`.

    Raises WireError where its file is gone or has changed.
    """
    if reference is None:
        return tensor.raw_data or tensor_array(tensor).tobytes()
    require_as_it_was(reference, files)
    return Splice(reference.path, reference.offset, reference.length)
