"""Run a command and measure what it took: wall clock, CPU time, memory, also of its children.

Nothing heavy is imported here: on Linux a child's peak memory starts from its parent's.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.004
_MIB_PER_KIB = 1 / 1024


@dataclass(frozen=True)
class Usage:
    """What one run of a command took, and how it ended."""

    wall_s: float
    #: User and system time of the process and of those that it started and waited for.
    cpu_s: float
    #: Peak resident memory of the process itself, mapped files included.
    peak_main_mib: float
    #: That of the largest process that it started; 0 where there was none.
    peak_worker_mib: float
    #: None, or what went wrong: the last line of its standard error, or "killed by signal 9".
    error: str | None


def measure(command: Sequence[str], timeout_s: float, *, memory_mib: int | None = None) -> Usage:
    """Run a command to its end (or kill it and its children after the time limit).

    `memory_mib`: of private memory that each of its processes may ask for.
    """
    # Modules of a checkout are compiled once, as those of an installed package are.
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    limited = ["prlimit", f"--data={memory_mib << 20}", *command] if memory_mib else command
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        child = subprocess.Popen(
            limited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=environment,
        )
        peaks_kib: dict[int, int] = {}
        late = False
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                for member in _family(child.pid):
                    # The latest reading, not the largest: until it executes its program, a new
                    # process shows the memory of the one that started it. 0: it has ended, but is
                    # not reaped.
                    peaks_kib[member] = _peak_kib(member) or peaks_kib.get(member, 0)
                late = late or time.perf_counter() - start > timeout_s
                if late:
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(_POLL_S)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # else it goes on, and is in all that follows
            raise
        wall_s = time.perf_counter() - start
        # Popen must not wait for a child that is reaped already.
        child.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    main_kib = peaks_kib.pop(child.pid, usage.ru_maxrss)
    return Usage(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_main_mib=main_kib * _MIB_PER_KIB,
        peak_worker_mib=max(peaks_kib.values(), default=0) * _MIB_PER_KIB,
        error=f"took over {timeout_s:g} s" if late else _error(child.returncode, text),
    )


def _error(exit_code: int, stderr: str) -> str | None:
    if exit_code == 0:
        return None
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if exit_code < 0:
        return f"killed by signal {-exit_code}"
    return lines[-1][:200] if lines else f"exit code {exit_code}"


def _family(pid: int) -> list[int]:
    """A process and all that descend from it; those that ended meanwhile are left out."""
    family = [pid]
    for member in family:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                family += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return family


def _peak_kib(pid: int) -> int:
    """The kernel's own high-water mark of a process's resident memory, in KiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
