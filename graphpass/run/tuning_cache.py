"""What was measured on this machine, kept in a folder: one small file for each kind of site.

`$GRAPHPASS_CACHE`, or `graphpass` in `$XDG_CACHE_HOME` or `~/.cache`, has a folder for each set of
versions, provider, threads and processor. It may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphpass.errors import OutputError
from graphpass.report.data import environment
from graphpass.run.judge import Judge
from graphpass.storage.text import write_text
from graphpass.validate.latency import Latency
from graphpass.validate.process.runtime import available_cpus


def cache_folder() -> Path:
    """Return the folder for all that is kept between runs, which need not be there."""
    own = os.environ.get("GRAPHPASS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphpass"


class TuningCache:
    """Measurements of one machine, by what `likeness` says of a site."""

    def __init__(self, folder: Path, provider: str, threads: int) -> None:
        """`folder`: of all machines. Nothing is made before there is something to keep."""
        self._about = _about(provider, threads)
        text = json.dumps(self._about, sort_keys=True)
        self.folder = folder / "tune" / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.trouble = ""  # why nothing can be kept, one sentence

    @classmethod
    def of(cls, judge: Judge) -> TuningCache:
        """Return the one for where a judge runs models."""
        return cls(cache_folder(), judge.options.providers[0], judge.threads)

    def get(self, alike: str) -> Latency | None:
        """Return what was measured at a site of this kind; None where that is not known."""
        # whoever changes such a file by hand, or half writes it, may put anything there
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads((self.folder / f"{alike}.json").read_text(encoding="utf-8"))
            found = Latency(**told["latency"])
            if told["measured_on"] == self._about and found.ratio_low <= found.ratio_high:
                return found
        return None

    def put(self, alike: str, latency: Latency) -> None:
        """Keep what was measured. Where that cannot be, `trouble` says so."""
        told = {"measured_on": self._about, "latency": asdict(latency)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / f"{alike}.json", json.dumps(told, indent=1) + "\n")
        except OSError as error:
            self.trouble = f"nothing is kept in {self.folder}: {error.strerror}"
        except OutputError as error:
            self.trouble = f"nothing is kept in {self.folder}: {error}"


def _about(provider: str, threads: int) -> Mapping[str, Any]:
    """Return what a measurement depends on, beside the site itself."""
    from graphpass import __version__

    return {
        "graphpass": __version__,
        "packages": environment(threads)["packages"],
        "provider": provider,
        "threads": threads,
        "cpus": available_cpus(),
        "processor": _processor(),
        # which device another provider runs on, this process does not know
        "host": "" if provider == "cpu" else platform.node(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
