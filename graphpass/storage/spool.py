"""Weights that a rewrite computed go to a temporary file, so that they need no memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from graphpass.resources import Closing
from graphpass.storage.reference import (
    BITS,
    Reference,
    WireError,
    WriteError,
    is_external,
    refer,
    tensors,
)
from graphpass.storage.wire import read_skeleton

_PREFIX = "graphpass-spool-"
_FILE = "weights"
_MAKING_S = 60  # longer than it takes to make a folder and the file in it
_ALIGNMENT_BYTES = 4096  # a page, so that the runtime can map what it reads
_CHUNK_BYTES = 1 << 24


class Spool(Closing):
    """A private folder with one file that new weights are appended to, gone with `close()`.

    What a killed process left behind is removed by the next Spool in the same folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, threshold: int = 1024) -> None:
        """Make the spool in `folder` (default: $TMPDIR, or the system's folder for large files).

        Arrays below `threshold` bytes are kept inline instead.

        Raises:
            WriteError: the folder cannot be written to.
        """
        parent = Path(folder or _default_folder())
        self._threshold = threshold
        self._models = 0
        try:
            _remove_abandoned(parent)
            self.folder, self._descriptor = _make(parent)
        except OSError as error:
            raise WriteError(f"cannot keep new weights in {parent}: {error.strerror}") from None
        self.path = self.folder / _FILE
        self._finalizer = weakref.finalize(
            self, _discard, self.folder, self._descriptor, os.getpid()
        )

    def close(self) -> None:
        """Remove the folder; references into it are void from now on."""
        self._finalizer()

    def add(self, array: npt.NDArray[Any], name: str, data_type: int | None = None) -> TensorProto:
        """Return `array` as a tensor: inline if it is small, else a reference into the spool.

        Args:
            array: any shape and any dtype that ONNX has; elements below a byte come one by one.
            name: the tensor's name.
            data_type: a TensorProto.DataType to convert to; by default that of the array's dtype.

        Raises:
            WriteError: the spool's disk is full.
        """
        if data_type is not None and data_type != TensorProto.STRING:
            array = array.astype(helper.tensor_dtype_to_np_dtype(data_type), copy=False)
        if array.dtype.kind in "OUS" or array.nbytes < self._threshold:
            return numpy_helper.from_array(array, name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        if BITS[kind] < 8:
            array = np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
        refer(tensor, self._append(array))
        return tensor

    def detach(
        self, model: onnx.ModelProto, folder: str | os.PathLike[str] | None = None
    ) -> onnx.ModelProto:
        """Return `model` as a skeleton, its large data in the spool; `model` stays as it is.

        Args:
            model: a model in memory.
            folder: where its external data is, if it has any that is not loaded.

        Raises:
            WireError: see `read_skeleton`.
            WriteError: the spool's disk is full.
        """
        self._models += 1
        path = self.folder / f"model-{self._models}.onnx"
        try:
            path.write_bytes(model.SerializeToString())
        except EncodeError:
            return self._detach_over_2_gib(model)
        except OSError as error:
            message = f"cannot keep a model in {self.folder.parent}: {error.strerror}"
            raise WriteError(message) from None
        shown = "the model in memory"
        return read_skeleton(path, threshold=self._threshold, data_folder=folder, shown=shown)

    def _detach_over_2_gib(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Do what `detach` does for a model that protobuf can hold, but not serialize."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in tensors(copy):
            if is_external(tensor):
                raise WireError(
                    f"tensor '{tensor.name}' of a model over 2 GiB is not loaded: load all or none"
                )
            if len(tensor.raw_data) >= self._threshold:
                placed = self._append(np.frombuffer(tensor.raw_data, np.uint8))
                explicit = tensor.HasField("data_location")
                refer(tensor, placed._replace(origin="raw_data", explicit_location=explicit))
        # A cleared field keeps its memory until its message is gone, so this is a new one.
        try:
            skeleton: onnx.ModelProto = onnx.ModelProto.FromString(copy.SerializeToString())
        except EncodeError:
            raise WireError("the model in memory is more than 2 GiB without its weights") from None
        return skeleton

    def _append(self, array: npt.NDArray[Any]) -> Reference:
        """Write the elements of `array` in C order, little-endian."""
        size = os.fstat(self._descriptor).st_size
        offset = position = -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        try:
            for chunk in chunks(array):
                while chunk:
                    written = os.pwrite(self._descriptor, chunk, position)
                    position += written
                    chunk = chunk[written:]
        except OSError as error:
            message = f"cannot keep new weights in {self.folder.parent}: {error.strerror}"
            raise WriteError(message) from None
        return Reference(str(self.path), offset, array.nbytes)


def _default_folder() -> str:
    """Return $TMPDIR or, rather than /tmp, which is often memory, /var/tmp, which is a disk."""
    large = "/var/tmp"
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK | os.X_OK):
        return large
    return tempfile.gettempdir()


def _make(parent: Path) -> tuple[Path, int]:
    """Make a spool; return its folder and a descriptor of its file, locked while we live."""
    while True:
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
        descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if (folder / _FILE).exists():  # else another process took it for abandoned just now
            return folder, descriptor
        os.close(descriptor)


def chunks(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of `array` in C order, little-endian; only what has to be moved is copied."""
    if sys.byteorder == "big":
        array = array.byteswap()
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8).data
        return
    rows = np.squeeze(array)
    step = max(1, _CHUNK_BYTES * len(rows) // array.nbytes)
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step]).reshape(-1).view(np.uint8).data


def _remove_abandoned(parent: Path) -> None:
    """Remove the spools in `parent` whose process is gone: its lock went with it."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            _remove_empty(folder)
            continue
        except OSError:  # somebody else's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            pass
        finally:
            os.close(descriptor)


def _remove_empty(folder: Path) -> None:
    """Remove a spool that has no file: its process was killed, unless it is just being made."""
    with contextlib.suppress(OSError):  # somebody else's, or no longer empty
        if time.time() - folder.stat().st_mtime > _MAKING_S:
            folder.rmdir()


def _discard(folder: Path, descriptor: int, owner: int) -> None:
    """Remove a spool, unless this is a forked child of the process that owns it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
