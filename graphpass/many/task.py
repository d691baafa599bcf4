"""One model of many: optimized in whatever process this is, unless it is done already."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from graphpass.errors import BUG_EXIT_CODE, GraphpassError, OutputError, bug
from graphpass.many.plan import Item, place_of
from graphpass.many.record import Record, settings
from graphpass.report.data import FileFacts, input_files
from graphpass.storage import remote

Status = Literal["written", "skipped", "failed"]
Tell = Callable[[str, float], None]

# Plain data, so that it can be sent to any process as JSON: see `make`.
Task = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    `status`: "written"; "skipped", since it was done already and nothing has changed; "failed",
    for the reason in `message`, one sentence, with the exit code that it would have ended in.
    `report` is that of the run that wrote it, as plain data. `renderings` of it, for what this
    run did, are text by kind: "terminal", "markdown", "junit".
    """

    model: str
    output: str
    status: Status
    message: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    report: Mapping[str, Any] | None = None
    renderings: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_data(self) -> dict[str, Any]:
        """Return it as data that `Outcome(**data)` takes."""
        return asdict(self)


def make(
    item: Item,
    folder: str,
    options: Mapping[str, Any],
    saving: Mapping[str, Any],
    reproducers: str | None,
    resume: bool,
) -> Task:
    """Return all that is to be known to do one model, as plain data."""
    from graphpass import __version__

    return {
        "graphpass": __version__,
        **item._asdict(),
        "folder": folder,
        "options": dict(options),
        "saving": dict(saving),
        "reproducers": reproducers,
        "resume": resume,
    }


def run(task: Task, tell: Tell) -> Outcome:
    """Do one model; whatever happens to it is in the outcome."""
    start = time.perf_counter()
    try:
        done = _run(task, tell)
    except GraphpassError as error:
        report = getattr(error, "report", None)
        done = failed(task, str(error), error.exit_code)
        if report is not None:
            _write_reproducers(report, task)
            done = replace(done, report=report.to_dict(), renderings=_renderings(report))
    except Exception as error:
        if os.environ.get("GRAPHPASS_DEBUG"):
            traceback.print_exc(file=sys.stderr)
        done = failed(task, bug(error), BUG_EXIT_CODE)
    return replace(done, seconds=time.perf_counter() - start)


def failed(task: Task, message: str, exit_code: int) -> Outcome:
    """Return the outcome of a model that nothing came of."""
    return Outcome(task["model"], _target(task), "failed", message, exit_code)


def clean_up(task: Task) -> None:
    """Remove what a process that was killed left beside a result."""
    from graphpass.storage.staging import Claim

    target = _target(task)
    if not remote.is_url(target):
        with contextlib.suppress(GraphpassError, OSError):
            Claim(Path(target)).release()


def _run(task: Task, tell: Tell) -> Outcome:
    from graphpass.run import optimization
    from graphpass.validate.process import forked

    source, target = task["source"], _target(task)
    options = dict(task["options"])
    wanted = settings(options, task["saving"])
    with contextlib.ExitStack() as stack:
        tell("reading", 0.0)
        url = remote.is_url(source)
        model = stack.enter_context(remote.fetched(source)) if url else Path(source)
        record = Record(task["folder"], task["name"])
        if task["resume"] and (done := record.report_if_done(wanted, _files(model, options))):
            return Outcome(task["model"], target, "skipped", report=done)
        if options.get("validate", True):
            forked.start()
        result = stack.enter_context(optimization.optimize(model, progress=tell, **options))
        result.save(target, **task["saving"])
        report = result.report.to_dict()
        record.write(wanted, report)
        _write_reproducers(result.report, task)
        renderings = _renderings(result.report)
    return Outcome(task["model"], target, "written", report=report, renderings=renderings)


def _target(task: Task) -> str:
    return place_of(task["folder"], task["name"])


def _files(model: Path, options: Mapping[str, Any]) -> list[FileFacts]:
    """Return facts on all files of a model; reads them."""
    from graphpass.storage.wire import read_skeleton

    allowed = [Path(folder) for folder in options.get("allow_external", ())]
    return input_files(read_skeleton(model, allow_external=allowed), model)


def _write_reproducers(report: Any, task: Task) -> None:
    from graphpass.report.reproducer import write_all

    if task["reproducers"] is None:
        return
    folder = Path(task["reproducers"], task["name"].removesuffix(".onnx"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from None
    write_all(report, folder)


def _renderings(report: Any) -> dict[str, str]:
    import io

    from rich.console import Console

    from graphpass.report.junit import junit
    from graphpass.report.markdown import markdown
    from graphpass.report.terminal import terminal

    console = Console(file=io.StringIO(), width=200, highlight=False)
    terminal(report, console, verbose=True)
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return {"terminal": shown, "markdown": markdown(report), "junit": junit(report)}
