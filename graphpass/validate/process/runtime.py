"""ONNX Runtime behind a process boundary: a crash, a hang or a memory bomb is an exception here."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import onnx

from graphpass.errors import GraphpassError, RuntimeUnavailableError
from graphpass.resources import Closing
from graphpass.validate.process import forked
from graphpass.validate.process.channel import (
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
    Head,
    Value,
    decode,
    encode,
)
from graphpass.validate.process.pieces import Piece, pieces_of

if TYPE_CHECKING:
    import subprocess

_Answer = TypeVar("_Answer")
Level = Literal["none", "extended", "all"]
FailureKind = Literal["load", "run", "memory", "timeout", "crash"]

_PACKAGE_ROOT = Path(__file__).parents[3]
# The package root comes first, whatever the working directory holds.
_BOOT = (
    "import sys; sys.path[0] = sys.argv[1]; from graphpass.validate.process.worker import serve;"
    " serve(int(sys.argv[2]))"
)


class RunError(GraphpassError):
    """ORT could not load or run a model; the text is one sentence, ``kind`` says in which way."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ProviderUnavailableError(RuntimeUnavailableError):
    """The execution provider asked for is not there; the text names what is."""


@dataclass(frozen=True)
class Run:
    """Outputs by name, in the model's order, and the time that ORT took for them."""

    outputs: dict[str, Value]
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What one request to the worker may take; None: no limit of that kind.

    `note`: on the time, for whom it is not enough.
    """

    time_s: float | None = 300.0
    memory_mib: int | None = None
    note: str = field(default="", compare=False)


class Runtime(Closing):
    """A worker process with ONNX Runtime, started when first needed, restarted after a crash.

    `load` takes a model as ModelProto (a skeleton, whose external data is given by absolute
    paths without the leading '/') or the path of a file. Sessions outlive a restart: they are
    opened again when next used.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        threads: int | None = None,
        custom_ops: Sequence[Path] = (),
    ) -> None:
        """`limits`: by default as long as `Limits` says, and three quarters of the memory.

        `custom_ops`: libraries with operators that are not ONNX Runtime's own.
        """
        self.limits = limits or Limits(memory_mib=share_of_memory_mib())
        self.custom_ops = tuple(str(path) for path in custom_ops)
        self.threads = threads or available_cpus()
        self._worker: _Worker | None = None
        self._numbers = itertools.count()

    def load(
        self,
        model: onnx.ModelProto | Path,
        provider: str = "cpu",
        level: Level = "none",
        *,
        whole: bool = False,
    ) -> Session:
        """Open a session. Raises RunError, ProviderUnavailableError.

        A skeleton with heavy weights runs in pieces, of which one is in memory at a time, unless
        `whole`; what is wrong with it shows when it is run.
        """
        pieces: list[Piece] = []
        if isinstance(model, onnx.ModelProto) and provider == "cpu" and not whole:
            pieces = pieces_of(model)
        session = self._session(model, provider, level, pieces=pieces)
        if not pieces:
            session.ensure_open()
        return session

    def load_piece(self, piece: Piece, level: Level) -> Session:
        """Open a session of one piece. Raises RunError."""
        session = self._session(piece.model, "cpu", level, plain_weights=piece.is_heavy)
        session.ensure_open()
        return session

    def _session(
        self,
        model: onnx.ModelProto | Path,
        provider: str,
        level: Level,
        *,
        plain_weights: bool = False,
        pieces: Sequence[Piece] = (),
    ) -> Session:
        head: Head = {
            "op": "open",
            "id": next(self._numbers),
            "provider": provider,
            "level": level,
            "threads": self.threads,
            "memory_mib": self.limits.memory_mib,
            "custom_ops": self.custom_ops,
            "plain_weights": plain_weights,
        }
        blobs: list[Any] = []
        if isinstance(model, onnx.ModelProto):
            blobs.append(model.SerializeToString())
        else:
            head["path"] = str(Path(model).resolve())
        return Session(self, head, blobs, pieces)

    def restrict(self, limits: Limits) -> None:
        """Hold to these limits from now on."""
        self.limits = limits
        if self._worker is not None:
            self._worker.limits = limits

    def close(self) -> None:
        """Kill the worker; nothing of it stays behind."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def worker(self) -> _Worker:
        """Return the living worker, a new one if the last has died."""
        if self._worker is None or not self._worker.is_alive():
            self.close()
            self._worker = _Worker(self.limits)
        return self._worker


class Session(Closing):
    """A model loaded in the worker. Use as a context manager, or `close` to free its memory.

    What the worker dies of is tried once more, in another one. With `pieces` there is nothing
    loaded between two runs.
    """

    def __init__(
        self, runtime: Runtime, head: Head, blobs: list[Any], pieces: Sequence[Piece] = ()
    ) -> None:
        self._runtime, self._head, self._blobs = runtime, head, blobs
        self._pieces = pieces
        self._home: _Worker | None = None

    @property
    def number(self) -> int:
        """The number by which the worker knows the session."""
        return int(self._head["id"])

    @property
    def runs_alone(self) -> bool:
        """Whether it computes in one thread of the processor, so that this tells its time."""
        return bool(self._head["provider"] == "cpu" and self._head["threads"] == 1)

    def ensure_open(self) -> _Worker:
        """Open the session if the worker that held it is gone; return the worker."""
        return _tried_again(self._open)

    def _open(self) -> _Worker:
        worker = self._runtime.worker()
        if self._home is not worker:
            worker.request(self._head, self._blobs, "loading")
            self._home = worker
        return worker

    def run(self, feeds: Mapping[str, Value]) -> Run:
        """Run the model once on these inputs. Raises RunError."""
        if self._pieces:
            try:
                return self._run_pieces(feeds)
            except RunError as error:
                if error.kind not in ("load", "run"):
                    raise
                self._pieces = ()  # it is for the whole model to say what is wrong
        answer, raw = self._run(feeds, {})
        outputs = {name: decode(description, raw) for name, description in answer["outputs"]}
        return Run(outputs, answer["seconds"])

    def shapes(self, feeds: Mapping[str, Value]) -> dict[str, list[int]]:
        """Run the model once; return the shapes of those outputs that are arrays."""
        if self._pieces:
            found = self.run(feeds).outputs.items()
            return {name: list(v.shape) for name, v in found if isinstance(v, np.ndarray)}
        shapes: dict[str, list[int]] = self._run(feeds, {"shapes_only": True})[0]["shapes"]
        return shapes

    def _run(self, feeds: Mapping[str, Value], options: Head) -> tuple[Head, list[bytearray]]:
        blobs: list[Any] = []
        described = {name: encode(value, blobs) for name, value in feeds.items()}
        head = {"op": "run", "id": self.number, "feeds": described, **options}
        return _tried_again(lambda: self._open().request(head, blobs, "running"))

    def _run_pieces(self, feeds: Mapping[str, Value]) -> Run:
        values = dict(feeds)
        seconds = 0.0
        for piece in self._pieces:
            with self._runtime.load_piece(piece, self._head["level"]) as session:
                run = session.run({name: values[name] for name in piece.inputs if name in values})
            values |= run.outputs
            seconds += run.seconds
        return Run({name: values[name] for name in self._pieces[-1].results}, seconds)

    def close(self) -> None:
        """Free what the session holds in the worker."""
        if self._home is not None and self._home.is_alive():
            with contextlib.suppress(RunError):
                self._home.request({"op": "close", "id": self.number}, (), "closing")
        self._home = None


def _tried_again(ask: Callable[[], _Answer]) -> _Answer:
    """Ask once more where the process died: it may have been killed for what others do."""
    try:
        return ask()
    except RunError as error:
        if error.kind != "crash":
            raise
    return ask()


def run_rounds(
    sessions: Sequence[Session],
    feeds: Mapping[str, Value],
    *,
    min_rounds: int,
    max_rounds: int,
    budget_s: float,
    decide_at: float | None = None,
) -> list[list[float]]:
    """Time two sessions of one Runtime in turn, after one run of each for warming up.

    Ends early once more rounds would tell nothing (see `latency.is_settled`, `decide_at` as well).
    With one thread on the CPU, its own time counts; otherwise that of the clock.
    Returns a list of rounds, each with the seconds of both sessions. Raises RunError.
    """
    worker = [session.ensure_open() for session in sessions][-1]
    blobs: list[Any] = []
    head = {
        "op": "time",
        "ids": [session.number for session in sessions],
        "feeds": {name: encode(value, blobs) for name, value in feeds.items()},
        "min_rounds": min_rounds,
        "max_rounds": max_rounds,
        "budget_s": budget_s,
        "decide_at": decide_at,
        "alone": all(session.runs_alone for session in sessions),
    }
    answer, _ = worker.request(head, blobs, "timing")
    rounds: list[list[float]] = answer["rounds"]
    return rounds


def share_of_memory_mib() -> int | None:
    """Return three quarters of the memory that this process may use; None where nobody says."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    with contextlib.suppress(OSError, ValueError):  # of a container it may be less
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(found * 3 // 4 >> 20, 1) if found > 0 else None


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """One worker process and the pipes to it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process, self._stderr = _start()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._finalizer = weakref.finalize(self, _kill, self._process, self._stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        """Look without reaping: its number must not be given away before the group is killed."""
        if self._process.returncode is not None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is None

    def kill(self) -> None:
        self._finalizer()

    def request(self, head: Head, blobs: Sequence[Any], doing: str) -> tuple[Head, list[bytearray]]:
        """Send a request and wait for its answer. Raises RunError, ProviderUnavailableError."""
        limit_s = self.limits.time_s
        deadline = None if limit_s is None else time.monotonic() + limit_s
        try:
            self._channel.send(head, blobs, deadline)
            answer, answer_blobs = self._channel.receive(deadline)
        except ChannelTimeoutError:
            self.kill()
            said = f"ONNX Runtime did not finish {doing} the model within {limit_s:g} s"
            raise RunError("timeout", said + self.limits.note) from None
        except ChannelClosedError:
            raise self._death(doing) from None
        except BaseException:
            # An interrupted exchange leaves half a message in the pipe.
            self.kill()
            raise
        if "error" in answer:
            raise self._failure(answer, doing)
        return answer, answer_blobs

    def _failure(self, answer: Head, doing: str) -> Exception:
        message, kind = answer["error"], answer["kind"]
        if kind == "provider":
            return ProviderUnavailableError(message)
        if kind == "memory":
            limit = self.limits.memory_mib
            room = f" than the limit of {limit} MiB (--memory-limit)" if limit else " than there is"
            return RunError(
                "memory", f"{doing.capitalize()} the model takes more memory{room}: {message}"
            )
        if doing == "loading":
            return RunError("load", f"ONNX Runtime cannot load the model: {message}")
        return RunError("run", f"ONNX Runtime cannot run the model: {message}")

    def _death(self, doing: str) -> RunError:
        deadline = time.monotonic() + 5
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        said = self._last_words()
        self.kill()
        code = self._process.wait()
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        if -code == signal.SIGKILL:
            what += " (by hand, or because the machine ran out of memory)"
        tail = f": {said}" if said else ""
        return RunError("crash", f"ONNX Runtime's process {what} while {doing} the model{tail}")

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _start() -> tuple[subprocess.Popen[bytes] | forked.Forked, IO[bytes]]:
    """Return a worker process and the file that holds what it prints."""
    child = forked.take()
    if child is not None:
        return child, child.stderr
    import subprocess

    stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, str(_PACKAGE_ROOT), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        # numpy only hands arrays on there: threads for its linear algebra cost 0.1 s
        env={**forked.MALLOC, **os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    return process, stderr


def _kill(process: subprocess.Popen[bytes] | forked.Forked, stderr: IO[bytes]) -> None:
    # The whole group: a provider may have started helpers of its own.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
