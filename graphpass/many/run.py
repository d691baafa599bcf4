"""`graphpass.optimize_many`: `optimize` for many models, here or on a cluster."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from graphpass.errors import UsageError
from graphpass.many import cluster, local
from graphpass.many.plan import Item, Place, folder_of, make_folders, place_of, plan
from graphpass.many.record import FOLDER
from graphpass.many.report import ManyReport
from graphpass.many.task import Outcome, Task, make
from graphpass.many.watch import Watch
from graphpass.report.data import plain
from graphpass.rewrite.registry import TUNED, without
from graphpass.run.optimization import optimize
from graphpass.run.result import Result
from graphpass.storage import remote
from graphpass.validate.options import ValidationOptions
from graphpass.validate.process.runtime import available_cpus

PerModel = Callable[[str], Mapping[str, Any]]

_SAVING = set(inspect.signature(Result.save).parameters) - {"self", "path"}
# defaults are spelled out, so that a record knows them for the same as what is given
_DEFAULTS = asdict(ValidationOptions()) | {
    name: parameter.default
    for function in (optimize, Result.save)
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in ("self", "path", "model", "progress", "sha256", "validation")
}


def optimize_many(
    models: Iterable[Place],
    out_dir: Place,
    passes: str | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    resume: bool = True,
    reproducers: Place | None = None,
    watch: Watch | None = None,
    per_model: PerModel | None = None,
    **options: Any,
) -> ManyReport:
    """Optimize models into a folder, each in a process of its own; what fails stops nothing else.

    Args:
        models: files, folders (every .onnx file below, structure kept) or URLs.
        out_dir: the folder that results go to, under the names of their models.
        passes: the name of a pipeline or a list such as `"clean-up,fold-batchnorm"`.
        jobs: how many at a time; each gets its share of the processors, unless `threads` is given.
        scheduler: address of a Dask scheduler whose workers are to do it, one thread each unless
            `threads` is given; all machines must see the same files under the same paths.
        resume: leave out what a former run has done, where the model with its data, the options,
            the versions of graphpass and ONNX Runtime, and the result are what they were.
        reproducers: a folder for the rewrites that are undone.
        watch: is told how it goes.
        per_model: is asked for `passes` and options of one model, by what it was called in `models`
            (below a folder, by its path); they go before `options`.
        options: those of `optimize` and of `Result.save`, as far as they are text and numbers.

    Models at `memory://` exist in this process only and are done in it, one after another.

    Raises:
        UsageError: what cannot be done for any of the models.
        OutputError: there can be no such folder.
    """
    start = time.perf_counter()
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    usual = None if options.get("tune") else "default"
    options = _complete({**options, "passes": passes or usual})
    folder = folder_of(out_dir)
    if remote.is_url(folder):
        remote.require(folder)
    items = plan(list(models), folder)
    in_memory = any("memory" in remote.protocols(place) for place in (folder, *_urls(items)))
    if in_memory and scheduler is not None:
        raise UsageError("memory:// is the memory of this process, which no worker sees")
    at_a_time = 1 if in_memory else min(jobs, len(items) or 1)
    share = 1 if scheduler is not None else max(1, available_cpus() // at_a_time)
    of_each = [
        options if per_model is None else _complete({**options, **per_model(item.model)})
        for item in items
    ]
    tasks = _tasks(items, folder, of_each, share, reproducers, resume)
    watch = watch or Watch()
    watch.planned(len(tasks))
    outcomes: dict[str, Outcome] = {}
    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            client = stack.enter_context(cluster.connect(scheduler))
            running = cluster.run(tasks, client, scheduler, watch.progress)
        elif in_memory:
            running = local.inline(tasks, watch.progress)
        else:
            running = local.run(tasks, jobs, watch.progress)
        make_folders(items, folder, FOLDER)
        stack.enter_context(contextlib.closing(running))
        for outcome in running:
            outcomes[outcome.output] = outcome
            watch.finished(outcome)
    return ManyReport(
        _in_order(tasks, outcomes),
        folder=folder,
        jobs=0 if scheduler is not None else jobs,
        scheduler=scheduler,
        started_at=started_at,
        total_s=time.perf_counter() - start,
    )


def _complete(options: Mapping[str, Any]) -> dict[str, Any]:
    """Spell out the defaults. Raises `TypeError` and `UsageError` for what does not exist."""
    if unknown := options.keys() - _DEFAULTS.keys():
        raise TypeError(f"optimize_many has no argument {sorted(unknown)[0]!r}")
    if options.get("tune_from") is not None:
        raise UsageError("--tune-from is the report of one model: tune many with --tune")
    told = {**_DEFAULTS, **options}
    without(TUNED if told["passes"] is None else told["passes"], told["skip"])
    return told


def _tasks(
    items: Sequence[Item],
    folder: str,
    of_each: Sequence[Mapping[str, Any]],
    share: int,
    reproducers: Place | None,
    resume: bool,
) -> list[Task]:
    """Describe each model so that any process can do it.

    `of_each`: its options. `share`: how many threads each is to have, unless that is given.
    """
    kept = None if reproducers is None else str(Path(reproducers).absolute())
    tasks = []
    for item, options in zip(items, of_each, strict=True):
        given = _absolute(options)
        given["threads"] = given["threads"] or share
        told = plain({name: given[name] for name in given if name not in _SAVING})
        saving = {name: given[name] for name in given if name in _SAVING}
        tasks.append(make(item, folder, told, saving, kept, resume))
    return tasks


def _urls(items: Iterable[Item]) -> list[str]:
    return [item.source for item in items if remote.is_url(item.source)]


def _absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with paths that mean the same in any working directory."""
    told = dict(options)
    inputs = told["inputs"]
    if isinstance(inputs, Mapping):
        raise UsageError("arrays cannot be given to many processes: give a file with inputs")
    if inputs is not None:
        told["inputs"] = str(Path(inputs).absolute())
    told["custom_ops"] = [str(Path(path).absolute()) for path in told["custom_ops"]]
    told["allow_external"] = [str(Path(path).absolute()) for path in told.get("allow_external", ())]
    return told


def _in_order(tasks: Sequence[Task], outcomes: Mapping[str, Outcome]) -> list[Outcome]:
    """Return outcomes in the order in which their models were given."""
    return [outcomes[place_of(task["folder"], task["name"])] for task in tasks]
