"""A process that does one model after another, so that a crash is the failure of one of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import graphpass
from graphpass import interrupt
from graphpass.many import task as tasks
from graphpass.resources import Closing
from graphpass.validate.process.channel import (
    Channel,
    ChannelClosedError,
    Head,
    end_with,
    over_standard_streams,
)

_PACKAGE_ROOT = Path(__file__).parents[2]
# The package root comes first, whatever the working directory holds; a checkout that is not
# installed has its passes outside of the package.
_BOOT = (
    "import sys, json; sys.path[0] = sys.argv[1]; import graphpass;"
    " graphpass.__path__[:] = json.loads(sys.argv[2]);"
    " from graphpass.many.process import serve; serve()"
)
_GRACE_S = 5.0  # for removing what is half done
_TELL_EVERY_S = 0.1


class Process(Closing):
    """Another Python process with graphpass, at work on one model at a time."""

    def __init__(self) -> None:
        """Start it."""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        paths = json.dumps(list(graphpass.__path__))
        command = [sys.executable, "-c", _BOOT, str(_PACKAGE_ROOT), paths, str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("GRAPHPASS_DEBUG") else self._stderr,
            # Ctrl-C reaches the parent alone, which then ends its processes in order
            start_new_session=True,
            env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is something to receive."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def begin(self, task: tasks.Task) -> None:
        """Have it do a model. Raises `ChannelClosedError` where it is dead."""
        self._channel.send(dict(task))

    def receive(self) -> Head:
        """Return `{"progress": [text, done]}` or `{"outcome": …}`, or wait for it.

        Raises `ChannelClosedError` where it is dead.
        """
        return self._channel.receive()[0]

    def why_it_died(self) -> str:
        """Return how the process ended, as the rest of a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL (by hand, or because the machine ran out of memory)"
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}{self._last_words()}"
        return f"ended ({code}){self._last_words()}"

    def stop(self) -> None:
        """Ask it to remove what is half done and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """End it, after a while by force; nothing of it stays behind."""
        self.stop()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        words = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
        return f": {words}" if words else ""


def serve() -> None:
    """Do what comes on standard input until it ends; this is what the process runs."""
    interrupt.end_on_signals(signal.SIGTERM)
    if not end_with(int(sys.argv[3]), signal.SIGTERM):  # with time to clean up
        sys.exit(1)
    channel = over_standard_streams(printed=2)
    with contextlib.suppress(ChannelClosedError):
        while True:
            outcome = tasks.run(channel.receive()[0], _Teller(channel))
            channel.send({"outcome": outcome.to_data()})


class _Teller:
    """Sends progress, though not more often than anybody can read."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, text: str, done: float) -> None:
        now = time.monotonic()
        if now - self._last >= _TELL_EVERY_S:
            self._last = now
            try:
                self._channel.send({"progress": [text, done]})
            except ChannelClosedError:
                sys.exit(1)  # nobody waits for it any more


def from_message(message: Head) -> tasks.Outcome | None:
    """Return the outcome in a message, None where it is something else."""
    told: Any = message.get("outcome")
    return None if told is None else tasks.Outcome(**told)
