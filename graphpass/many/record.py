"""What was done, beside the results: `.graphpass/NAME.json` in their folder, one for each.

A record is written in one step after its result has its name, so that a run that is killed at
any moment leaves either the record of what is there or none that fits it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from graphpass.errors import GraphpassError, OutputError
from graphpass.many.plan import place_of
from graphpass.report.data import FileFacts, environment, file_facts, plain
from graphpass.storage import remote

FOLDER = ".graphpass"
_VERSION = 1
# what changes neither the result nor what is said of it
_WITHOUT_EFFECT = {
    *("threads", "latency", "allow_external", "inputs", "passes", "skip", "tune_cache"),
}


def settings(options: Mapping[str, Any], saving: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything but the model that a result depends on, as plain data.

    `options` are those of `graphpass.optimize`, `saving` those of `Result.save`. Versions of
    what checks the result are part of it, contents of files with inputs as well.
    """
    from graphpass import __version__
    from graphpass.rewrite.registry import PIPELINES, TUNED, without

    passes, skip = options.get("passes"), options.get("skip", ())
    steps = without(TUNED if passes is None else passes, skip)
    inputs = options.get("inputs")
    told: dict[str, Any] = plain(
        {
            "graphpass": __version__,
            "packages": environment(1)["packages"],
            "plug_ins": dict(sorted(_plug_ins())),
            "pipeline": passes if passes in PIPELINES else None,
            "passes": [[step.name, step.options, step.version] for step in steps],
            "options": {k: options[k] for k in sorted(options) if _counts(k, options[k])},
            "inputs": None if inputs is None else list(_contents(Path(inputs))),
            "saving": dict(sorted(saving.items())),
        }
    )
    return told


class Record:
    """The record of one result: of the model `name` in `folder`."""

    def __init__(self, folder: str, name: str) -> None:
        """`folder` is a path or a URL, `name` a path below it."""
        self._beside = place_of(folder, name.rpartition("/")[0]) if "/" in name else folder
        self._place = place_of(folder, f"{FOLDER}/{name}.json")

    def report_if_done(
        self, settings: Mapping[str, Any], read_from: Sequence[FileFacts]
    ) -> Mapping[str, Any] | None:
        """Return the report of the result if that is what a run would write; None if not.

        That is so if it was made with these `settings`, of files with these bytes, and if its own
        have not changed since; all are compared by SHA-256.
        """
        told = self._read()
        if told is None or told.get("settings") != settings:
            return None
        # whoever changes a record by hand may put anything there
        with contextlib.suppress(KeyError, TypeError):
            report: Mapping[str, Any] = told["report"]
            hashes = [file["sha256"] for file in report["input"]["files"]]
            if hashes == [file.sha256 for file in read_from] and all(
                self._hash(file["name"]) == file["sha256"] for file in report["output"]["files"]
            ):
                return report
        return None

    def write(self, settings: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Record a result that is written. Raises `OutputError`."""
        told = {"version": _VERSION, "settings": settings, "report": report}
        content = json.dumps(told, ensure_ascii=False).encode()
        if remote.is_url(self._place):
            remote.write_bytes(self._place, content)
            return
        # always the same name: what is left of a process that was killed is written over
        temporary = Path(f"{self._place}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(self._place)
        except OSError as error:
            raise OutputError(f"cannot write {self._place}: {error.strerror}") from None

    def _read(self) -> dict[str, Any] | None:
        place = self._place
        with contextlib.suppress(OSError, ValueError, GraphpassError):
            content = remote.read_bytes(place) if remote.is_url(place) else Path(place).read_bytes()
            told = json.loads(content or b"")
            if isinstance(told, dict) and told.get("version") == _VERSION:
                return told
        return None

    def _hash(self, file: str) -> str | None:
        place = place_of(self._beside, file)
        with contextlib.suppress(OSError, GraphpassError):
            return remote.sha256(place) if remote.is_url(place) else file_facts(Path(place)).sha256
        return None


def _counts(name: str, value: Any) -> bool:
    """Say whether an option has an effect on the result."""
    return name not in _WITHOUT_EFFECT and value is not None and value not in ({}, [])


def _contents(inputs: Path) -> Iterator[str]:
    """Yield the SHA-256 of each file with inputs."""
    files = [path for path in sorted(inputs.rglob("*")) if path.is_file()]
    for path in files if inputs.is_dir() else [inputs]:
        try:
            yield file_facts(path).sha256
        except OSError:  # reading the inputs says why
            yield ""


def _plug_ins() -> Iterator[tuple[str, str]]:
    for point in entry_points(group="graphpass.passes"):
        if point.dist is not None:
            yield point.dist.name, point.dist.version
