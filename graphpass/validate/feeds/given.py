"""The user's own inputs: arrays by name, an ``.npz``, a folder of ``.pb`` or of such folders."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphpass.errors import UsageError
from graphpass.validate.feeds.drawn import Feed
from graphpass.validate.feeds.sizes import Bindings
from graphpass.validate.feeds.specs import InputSpec
from graphpass.validate.process.channel import Array, Value


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
        return [_feed(path.name, _read_npz(path), specs)]
    raise InputsError(
        f"'{path}' is neither an .npz file nor a folder with input_0.pb, input_1.pb, …"
    )


def _read_npz(path: Path) -> dict[str, Value]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputsError(f"'{path}' cannot be read as .npz: {error}") from error


def _folder_feeds(path: Path, specs: Sequence[InputSpec]) -> list[Feed]:
    if _input_files(path):
        return [_feed(path.name, _read_folder(path, specs), specs)]
    folders = sorted(child for child in path.iterdir() if child.is_dir() and _input_files(child))
    if folders:
        return [_feed(folder.name, _read_folder(folder, specs), specs) for folder in folders]
    archives = sorted(path.glob("*.npz"))
    if archives:
        return [_feed(archive.name, _read_npz(archive), specs) for archive in archives]
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
        data = path.read_bytes()
        if spec.type_text == "optional":
            value: Value = numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
            return value
        if spec.kind == "sequence":
            return list(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        return numpy_helper.to_array(onnx.TensorProto.FromString(data))
    except Exception as error:
        raise InputsError(f"'{path}' cannot be read as input '{spec.name}': {error}") from error


def _feed(name: str, values: dict[str, Value], specs: Sequence[InputSpec]) -> Feed:
    known = {spec.name: spec for spec in specs}
    bindings: Bindings = {}
    for input_name, value in values.items():
        if input_name not in known:
            raise InputsError(
                f"inputs '{name}': the model has no input '{input_name}'"
                f" (it has {', '.join(repr(spec.name) for spec in specs)})"
            )
        values[input_name] = _fit(name, known[input_name], value, bindings)
    return Feed(name, values, bindings)


def _fit(feed: str, spec: InputSpec, value: Value, bindings: Bindings) -> Value:
    """Check type and shape of a tensor; note in `bindings` what it settles."""
    if spec.kind != "tensor" or spec.dtype is None:
        return value
    array = np.asarray(value)
    if array.dtype.kind in "US" and spec.dtype.kind == "O":
        array = array.astype(object)
    if array.dtype != spec.dtype:
        raise InputsError(
            f"inputs '{feed}': '{spec.name}' must be {_dtype_name(spec)}, but is {array.dtype}"
        )
    if spec.dims is None:
        return array
    wanted = ", ".join(map(str, spec.dims))
    if array.ndim != len(spec.dims):
        raise InputsError(
            f"inputs '{feed}': '{spec.name}' must be of shape [{wanted}],"
            f" but is {list(array.shape)}"
        )
    for size, dim in zip(array.shape, spec.dims, strict=True):
        if isinstance(dim, str) and "+" in dim:
            continue  # a sum settles none of its terms
        expected = bindings.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != expected:
            settled = f" ({dim} is {expected} elsewhere)" if isinstance(dim, str) else ""
            raise InputsError(
                f"inputs '{feed}': '{spec.name}' must be of shape [{wanted}],"
                f" but is {list(array.shape)}{settled}"
            )
    return array


def _dtype_name(spec: InputSpec) -> str:
    assert spec.dtype is not None
    return "str" if spec.dtype.kind == "O" else spec.dtype.name
