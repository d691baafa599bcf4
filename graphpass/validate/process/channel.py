"""Messages between the parent and the worker: a JSON head, then the raw bytes of arrays.

A message is ``length of head (8 bytes, little-endian) | head | blob | blob | …``; the head holds
the length of each blob. Nothing is pickled, so a message can at worst be wrong, never executed.

A *value* is what ONNX passes along an edge: an array, a list of values (sequence), a dict (map)
or None (empty optional). Arrays of strings travel inside the head.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = "Array | list[Value] | dict[Any, Any] | None"
Head: TypeAlias = dict[str, Any]

_CHUNK = 1 << 20


class ChannelClosedError(Exception):
    """The other side is gone."""


class ChannelTimeoutError(Exception):
    """The other side did not answer in time."""


class Channel:
    """One end of a pair of pipes; ``deadline`` is a ``time.monotonic()`` instant or None."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                # The default of 64 KiB halves the speed; a user's quota may forbid more.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _CHUNK)

    def send(self, head: Head, blobs: Sequence[Any] = (), deadline: float | None = None) -> None:
        """Write one message. Raises ChannelClosedError, ChannelTimeoutError."""
        views = [memoryview(blob).cast("B") for blob in blobs]
        text = json.dumps({**head, "blobs": [view.nbytes for view in views]}).encode()
        for view in (memoryview(len(text).to_bytes(8, "little") + text), *views):
            self._write(view, deadline)

    def receive(self, deadline: float | None = None) -> tuple[Head, list[bytearray]]:
        """Read one message. Raises ChannelClosedError, ChannelTimeoutError."""
        length = int.from_bytes(self._read(8, deadline), "little")
        head: Head = json.loads(self._read(length, deadline))
        return head, [self._read(size, deadline) for size in head.pop("blobs")]

    def close(self) -> None:
        """Close both pipes."""
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _write(self, view: memoryview, deadline: float | None) -> None:
        while view:
            _wait(self._write_fd, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._write_fd, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise ChannelClosedError from error

    def _read(self, size: int, deadline: float | None) -> bytearray:
        buffer = bytearray(size)
        rest = memoryview(buffer)
        while rest:
            _wait(self._read_fd, select.POLLIN, deadline)
            try:
                count = os.readv(self._read_fd, [rest[:_CHUNK]])
            except BlockingIOError:
                continue
            if count == 0:
                raise ChannelClosedError
            rest = rest[count:]
        return buffer


def over_standard_streams(printed: int | None = None) -> Channel:
    """Keep the pipes of this process to ourselves: what libraries print must not get in between.

    It goes to the descriptor `printed`, or nowhere.
    """
    channel = Channel(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null if printed is None else printed, 1)
    os.close(null)
    return channel


def end_with(parent_pid: int, ending: signal.Signals) -> bool:
    """Have the kernel send `ending` when the parent goes, however; False where it has gone.

    Linux takes the thread that started this process for the parent. Should only that end, the
    next request finds a dead process and starts another.
    """
    if sys.platform == "linux":
        import ctypes  # only in the process at this end

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, ending)
    return os.getppid() == parent_pid


def _wait(fd: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, event)
    wait_ms = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
    if not poll.poll(wait_ms):
        raise ChannelTimeoutError


def encode(value: Value, blobs: list[Any]) -> Any:
    """Describe a value in JSON; the bytes of its arrays are appended to ``blobs``."""
    if value is None:
        return None
    if isinstance(value, list):
        return {"sequence": [encode(item, blobs) for item in value]}
    if isinstance(value, Mapping):
        return {"keys": list(value), "values": encode(np.asarray(list(value.values())), blobs)}
    if value.dtype.kind in "OUS":
        texts = [_text(item) for item in value.ravel().tolist()]
        return {"strings": texts, "shape": value.shape}
    blobs.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return {"dtype": value.dtype.name, "shape": value.shape, "blob": len(blobs) - 1}


def decode(description: Any, blobs: Sequence[Any]) -> Value:
    """Rebuild what ``encode`` described."""
    if description is None:
        return None
    if "sequence" in description:
        return [decode(item, blobs) for item in description["sequence"]]
    if "keys" in description:
        values = decode(description["values"], blobs)
        assert isinstance(values, np.ndarray)
        return dict(zip(description["keys"], values.tolist(), strict=True))
    if "strings" in description:
        texts: Array = np.array(description["strings"], dtype=object)
        array: Array = texts.reshape(description["shape"])
        return array
    dtype = dtype_of(description["dtype"])
    flat: Array = np.frombuffer(blobs[description["blob"]], dtype)
    array = flat.reshape(description["shape"])
    return array


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of that name, also the ones that numpy itself lacks (bfloat16, float8…)."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def _text(item: Any) -> str:
    # ORT hands out str; users' arrays may hold UTF-8 bytes.
    return item.decode("utf-8", "surrogateescape") if isinstance(item, bytes) else str(item)
