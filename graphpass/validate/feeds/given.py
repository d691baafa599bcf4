"""The user's own inputs: arrays by name, an ``.npz``, a folder of ``.pb`` or of such folders."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import stat
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphpass.errors import UsageError
from graphpass.validate.feeds.drawn import Feed
from graphpass.validate.feeds.sizes import Bindings
from graphpass.validate.feeds.specs import InputSpec
from graphpass.validate.process.channel import Array, Value

_HEADER_BYTES = 1 << 14  # numpy writes a few dozen, and reads no more than 10,000
_LONGEST_NUMBER_BYTES = 10  # of an integer in a .pb
_BOMB_BYTES = 1 << 28
_BOMB_RATIO = 100  # compression wins no more on what somebody measured
_LISTED = 10


class InputsError(UsageError):
    """The user's inputs cannot be read or do not fit the model; one sentence."""


def require_symbols(bind: Mapping[str, int], known: Collection[str]) -> None:
    """Raise `InputsError` where a size is given for a dimension that the model does not have."""
    unknown = sorted(set(bind) - set(known))
    if unknown:
        have = ", ".join(map(repr, known)) or "none"
        raise InputsError(
            f"there is no symbolic dimension '{unknown[0]}' to bind (the model has {have})"
        )


def user_feeds(source: Path | str | Mapping[str, Array], specs: Sequence[InputSpec]) -> list[Feed]:
    """Read the user's feeds; inputs that they leave out are for the caller to draw.

    Each feed's bindings are the symbols that its arrays settle. Raises InputsError.
    """
    if isinstance(source, Mapping):
        return [_feed("inputs", dict(source), specs)]
    path = Path(source)
    if path.is_dir():
        return _folder_feeds(path, specs)
    if not path.exists():
        raise InputsError(f"there are no inputs at '{path}'")
    if path.suffix == ".npz":
        return [_feed(path.name, _read_npz(path, specs), specs)]
    raise InputsError(
        f"'{path}' is neither an .npz file nor a folder with input_0.pb, input_1.pb, …"
    )


def _read_npz(path: Path, specs: Sequence[InputSpec]) -> dict[str, Value]:
    """Read an archive; what does not fit the model is refused before it is decompressed."""
    known = {spec.name: spec for spec in specs}
    bindings: Bindings = {}
    values: dict[str, Value] = {}
    try:
        with _open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                spec = _known(path.name, name, known)
                dtype, shape = _header(archive, member)
                if spec.kind == "tensor":
                    _require_fit(path.name, spec, dtype, shape, bindings)
                _require_worth(path.name, name, member)
                with archive.open(member) as stream:
                    values[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except InputsError:
        raise
    except Exception as error:  # the archive's format, its compression, encryption, numpy's format
        what = f"{error}" or type(error).__name__
        raise InputsError(f"'{path}' cannot be read as .npz: {what}") from error
    if not values:
        raise InputsError(f"'{path}' holds no arrays")
    return values


def _open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; a pipe, which may never give anything, is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputsError(f"'{path}' is not a regular file")
    return os.fdopen(descriptor, "rb")


def _header(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of an array in an archive, reading no more than its header."""
    with archive.open(member) as stream:
        head = stream.read(_HEADER_BYTES)
    start = io.BytesIO(head)
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"'{member.filename}' is of version {version}")
    length = int.from_bytes(head[8 : 10 if version == (1, 0) else 12], "little")
    if length > _HEADER_BYTES // 2:
        raise ValueError(f"'{member.filename}' has a header of {length} bytes")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise ValueError(f"'{member.filename}' holds Python objects")
    if any(size < 0 for size in shape):
        raise ValueError(f"'{member.filename}' has a negative size")
    needed = math.prod(shape) * dtype.itemsize
    if needed != member.file_size - start.tell():
        held = member.file_size - start.tell()
        raise ValueError(f"'{member.filename}' holds {held} bytes, its shape needs {needed}")
    return dtype, shape


def _require_worth(feed: str, name: str, member: zipfile.ZipInfo) -> None:
    """Refuse what is nearly nothing in the file and would fill memory."""
    size, packed = member.file_size, member.compress_size
    if size > _BOMB_BYTES and size > _BOMB_RATIO * packed:
        raise InputsError(f"inputs '{feed}': '{name}' would grow from {packed} to {size} bytes")


def _folder_feeds(path: Path, specs: Sequence[InputSpec]) -> list[Feed]:
    if _input_files(path):
        return [_feed(path.name, _read_folder(path, specs), specs)]
    folders = sorted(child for child in path.iterdir() if child.is_dir() and _input_files(child))
    if folders:
        return [_feed(folder.name, _read_folder(folder, specs), specs) for folder in folders]
    archives = sorted(path.glob("*.npz"))
    if archives:
        return [_feed(path.name, _read_npz(path, specs), specs) for path in archives]
    raise InputsError(f"folder '{path}' holds neither input_0.pb, nor folders with it, nor .npz")


def _input_files(folder: Path) -> list[Path]:
    numbered = [
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if (match := re.fullmatch(r"input_(\d+)\.pb", path.name))
    ]
    return [path for _, path in sorted(numbered)]


def _read_folder(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Value]:
    files = _input_files(folder)
    # ONNX's own test data leaves out or includes inputs that have a default.
    targets = [spec for spec in specs if not spec.overridable]
    if len(files) > len(targets):
        targets = list(specs)
    if len(files) > len(targets):
        raise InputsError(
            f"folder '{folder}' holds {len(files)} inputs, but the model has {len(targets)}"
        )
    return {spec.name: _read_pb(path, spec) for spec, path in zip(targets, files, strict=False)}


def _read_pb(path: Path, spec: InputSpec) -> Value:
    try:
        with _open_regular(path) as file:
            _require_size(path, os.fstat(file.fileno()).st_size, spec)
            data = file.read()
        if spec.type_text == "optional":
            value: Value = numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
            return value
        if spec.kind == "sequence":
            return list(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        tensor = onnx.TensorProto.FromString(data)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("its data is in another file")
        return numpy_helper.to_array(tensor)
    except InputsError:
        raise
    except Exception as error:
        raise InputsError(f"'{path}' cannot be read as input '{spec.name}': {error}") from error


def _require_size(path: Path, size: int, spec: InputSpec) -> None:
    """Refuse a file that cannot hold what is expected, unread."""
    most = _BOMB_BYTES
    if spec.kind == "tensor" and spec.dims is not None and spec.dtype is not None:
        sizes = [dim for dim in spec.dims if isinstance(dim, int)]
        each = max(spec.dtype.itemsize, _LONGEST_NUMBER_BYTES)
        if spec.dtype.kind != "O" and len(sizes) == len(spec.dims):
            most = math.prod(sizes) * each + _HEADER_BYTES
    if size > most:
        raise InputsError(f"'{path}' has {size} bytes, more than input '{spec.name}' can have")


def _known(feed: str, name: str, specs: Mapping[str, InputSpec]) -> InputSpec:
    if name not in specs:
        listed = ", ".join(map(repr, itertools.islice(specs, _LISTED)))
        more = ", …" if len(specs) > _LISTED else ""
        raise InputsError(
            f"inputs '{feed}': the model has no input '{name}' (it has {listed}{more})"
        )
    return specs[name]


def _feed(name: str, values: dict[str, Value], specs: Sequence[InputSpec]) -> Feed:
    known = {spec.name: spec for spec in specs}
    bindings: Bindings = {}
    for input_name, value in values.items():
        values[input_name] = _fit(name, _known(name, input_name, known), value, bindings)
    return Feed(name, values, bindings)


def _fit(feed: str, spec: InputSpec, value: Value, bindings: Bindings) -> Value:
    """Check type and shape of a tensor; note in `bindings` what it settles."""
    if spec.kind != "tensor" or spec.dtype is None:
        return value
    array = np.asarray(value)
    if array.dtype.kind in "US" and spec.dtype.kind == "O":
        array = array.astype(object)
    _require_fit(feed, spec, array.dtype, array.shape, bindings)
    return array


def _require_fit(
    feed: str,
    spec: InputSpec,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    bindings: Bindings,
) -> None:
    """Raise InputsError unless type and shape fit; note in `bindings` what the shape settles."""
    if spec.dtype is None:
        return
    if dtype != spec.dtype and not (dtype.kind in "US" and spec.dtype.kind == "O"):
        raise InputsError(
            f"inputs '{feed}': '{spec.name}' must be {_dtype_name(spec)}, but is {dtype}"
        )
    if spec.dims is None:
        return
    wanted = ", ".join(map(str, spec.dims))
    if len(shape) != len(spec.dims):
        raise InputsError(
            f"inputs '{feed}': '{spec.name}' must be of shape [{wanted}], but is {list(shape)}"
        )
    for size, dim in zip(shape, spec.dims, strict=True):
        if isinstance(dim, str) and "+" in dim:
            continue  # a sum settles none of its terms
        expected = bindings.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != expected:
            settled = f" ({dim} is {expected} elsewhere)" if isinstance(dim, str) else ""
            raise InputsError(
                f"inputs '{feed}': '{spec.name}' must be of shape [{wanted}],"
                f" but is {list(shape)}{settled}"
            )


def _dtype_name(spec: InputSpec) -> str:
    assert spec.dtype is not None
    return "str" if spec.dtype.kind == "O" else spec.dtype.name
