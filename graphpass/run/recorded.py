"""A delivered model is checked again later, as its report says that it was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphpass.errors import DifferenceError, UsageError
from graphpass.report.data import SCHEMA_VERSION, input_files
from graphpass.storage.text import read_text
from graphpass.storage.wire import read_skeleton
from graphpass.validate.options import ValidationArguments

# settings of a run that `graphpass.compare` takes as well
_SETTINGS = (*ValidationArguments.__annotations__, "freeze_initializers")


def settings(report: Path, original: Path, candidate: Path) -> dict[str, Any]:
    """Return the arguments for `graphpass.compare` in a report, its files verified first.

    Raises `UsageError` where `report` is none, `DifferenceError` where a file is another than
    the one in it, by SHA-256; external data is looked at as well.
    """
    told = read_report(report)
    _verify(original, told["input"]["files"], "read")
    _verify(candidate, told["output"]["files"], "wrote")
    recorded = told["settings"]
    found = {name: recorded[name] for name in _SETTINGS if name in recorded}
    found["providers"] = tuple(found.get("providers") or ("cpu",))
    given = recorded.get("inputs")
    if isinstance(given, list):
        raise UsageError(
            f"{report}: the run took arrays for {', '.join(given)}, which no report holds;"
            " give them with --inputs, and without --report"
        )
    if given is not None:
        found["inputs"] = _inputs(Path(given), report)
    return found


def read_report(report: Path) -> Mapping[str, Any]:
    """Return the data of a report. Raises `UsageError` where the file is none."""
    try:
        told = json.loads(read_text(report))
    except ValueError as error:
        raise UsageError(f"{report} is no report: {error}") from None
    except RecursionError:
        raise UsageError(f"{report} is no report: it is nested too deeply") from None
    if not isinstance(told, dict) or not {"input", "output", "settings"} <= set(told):
        raise UsageError(f"{report} is no report of graphpass")
    if told.get("version") != SCHEMA_VERSION:
        raise UsageError(f"{report} has version {told.get('version')}, not {SCHEMA_VERSION}")
    return told


def _inputs(path: Path, report: Path) -> Path:
    """Return where the inputs lie now: where they lay, or beside the report."""
    for place in (path, report.parent / path.name):
        if place.exists():
            return place
    raise UsageError(f"the inputs {path} of the run are not there; give them with --inputs")


def _verify(model: Path, recorded: Sequence[Mapping[str, Any]], did: str) -> None:
    if not recorded:
        raise UsageError(f"the report does not say which file the run {did}")
    if not all(facts["sha256"] for facts in recorded):
        raise UsageError(f"the report does not tell the SHA-256 of the files that the run {did}")
    found = input_files(read_skeleton(model), model)
    hashes = [file.sha256 for file in found]
    for file, facts in zip(found, recorded, strict=False):
        if file.sha256 != facts["sha256"]:
            raise DifferenceError(
                f"{file.name} is not the {facts['name']} that the run {did}: its SHA-256 is"
                f" {file.sha256[:16]}… instead of {facts['sha256'][:16]}…"
            )
    if len(hashes) != len(recorded):
        raise DifferenceError(
            f"{model} has {len(hashes)} files, while the run {did} {len(recorded)}"
        )
