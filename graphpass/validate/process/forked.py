"""A worker forked off early, for the `Runtime` to come.

A fresh interpreter with numpy takes 0.1 s of processor time, a fork of one that has both takes
next to nothing, and loads ONNX Runtime while its parent goes on. A fork copies one thread only, so
there must be no other; where there is, or the system is not Linux, nothing is forked.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from typing import IO

from graphpass import interrupt

# What is freed goes to the next run, not back to the kernel, which would clear each page again.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3}
_THREADS = "/proc/self/task"

_spare: list[Forked] = []


class Forked:
    """A child process with pipes, as much of `subprocess.Popen` as a worker's owner uses."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self.owner = os.getpid()
        self.returncode: int | None = None

    def wait(self) -> int:
        """Wait for its end; return its exit code, below 0 where a signal killed it."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def keep_freed_memory() -> None:
    """Set malloc in this process as `MALLOC` does for fresh ones."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of the GNU C library
    for name, value in MALLOC.items():
        if mallopt is not None and name not in os.environ:
            mallopt(_MALLOPT[name], int(value))


def start() -> None:
    """Fork a worker, where that is safe."""
    import numpy  # noqa: F401  # the child has it then

    if sys.platform != "linux" or _spare or not _has_one_thread():
        return
    requests, answers = os.pipe(), os.pipe()
    stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become_worker(parent_pid, requests[0], answers[1], stderr.fileno())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # whoever is first: it is killed as a group
    os.close(requests[0])
    os.close(answers[1])
    stdin, stdout = os.fdopen(requests[1], "wb", 0), os.fdopen(answers[0], "rb", 0)
    _spare.append(Forked(pid, stdin, stdout, stderr))


def _has_one_thread() -> bool:
    try:
        return len(os.listdir(_THREADS)) == 1  # noqa: PTH208
    except OSError:  # nobody can tell where there is no /proc
        return False


def take() -> Forked | None:
    """Return what was forked, once; None where there is nothing."""
    if not _spare or _spare[0].owner != os.getpid():  # it is not for who is forked later
        return None
    return _spare.pop()


def _become_worker(parent_pid: int, stdin: int, stdout: int, stderr: int) -> None:
    interrupt.forget()
    os.setpgid(0, 0)
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    keep_freed_memory()
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401  # while the parent goes on; what fails, fails again

    from graphpass.validate.process.worker import serve

    serve(parent_pid)
