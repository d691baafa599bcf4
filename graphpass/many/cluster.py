"""Many models on a Dask cluster; needs `graphpass[distributed]` here and on the workers.

Each worker does a model in a process of its own, so that a crash there is not the worker's, and
threads of a worker do not wait for each other. Should a worker go, Dask gives its models to others.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from graphpass.errors import CRASH_EXIT_CODE, OutputError, UsageError
from graphpass.many import local
from graphpass.many.task import Outcome, Task, failed
from graphpass.storage import remote

_CONNECT_S = 10.0
_VISIBLE_S = 5.0  # network file systems may show a new file late


def connect(address: str) -> Any:
    """Return a client of the scheduler at an address. Raises `UsageError` where there is none."""
    try:
        import distributed
    except ImportError:
        message = "--scheduler needs pip install 'graphpass[distributed]'"
        raise UsageError(message) from None
    client: Any = distributed.Client
    try:
        return client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"there is no Dask scheduler at {address}: {reason}") from None


def run(
    tasks: Sequence[Task], client: Any, address: str, tell: local.Tell
) -> Generator[Outcome, None, None]:
    """Yield outcomes as they come; what nobody waits for any more is not done."""
    if not client.scheduler_info()["workers"]:
        tell("", f"{address} has no workers yet: waiting for one", 0.0)
    killed = []
    with contextlib.closing(_run(tasks, client, address)) as first:
        for task, outcome in first:
            if outcome is None:
                killed.append(task)
            else:
                yield outcome
    # one by one, as not each of them need be to blame: all that a worker does dies with it
    for task in killed:
        with contextlib.closing(_run([task], client, address)) as second:
            (outcome,) = (outcome for _, outcome in second)
        message = "workers died over it again and again, also while nothing else was done"
        yield outcome or failed(task, message, CRASH_EXIT_CODE)


def _run(
    tasks: Sequence[Task], client: Any, address: str
) -> Generator[tuple[Task, Outcome | None], None, None]:
    """Yield each task with its outcome, or None where too many workers died over it."""
    import distributed

    in_order_of_completion: Any = distributed.as_completed
    futures = {_submit(client, task): task for task in tasks}
    try:
        for future in in_order_of_completion(futures, loop=client.loop):
            yield futures[future], _outcome(future, futures[future], address)
    finally:
        client.cancel(list(futures), force=True)


def on_worker(text: str) -> str:
    """Do a model that is described as JSON; return its outcome as JSON. Runs on a worker."""
    from graphpass import __version__

    task = json.loads(text)
    host = f"(on the worker {socket.gethostname()})"
    if task["graphpass"] != __version__:
        versions = f"has graphpass {__version__}, not {task['graphpass']}"
        outcome = failed(task, f"the worker {versions} {host}", UsageError.exit_code)
    else:
        (outcome,) = local.run([task], 1, lambda model, step, done: None, _cancelled())
    told = outcome.to_data()
    if outcome.status == "failed":
        told["message"] = f"{outcome.message} {host}"
    return json.dumps(told)


def _submit(client: Any, task: Task) -> Any:
    key = f"graphpass-{task['name']}-{uuid.uuid4().hex}"
    return client.submit(on_worker, json.dumps(task), key=key, pure=False)


def _cancelled() -> Any:
    """Return a function that says whether the client has gone or wants this task no more."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def cancelled() -> bool:
        state = worker.state.tasks.get(key)
        return state is None or state.state == "cancelled"

    return cancelled


def _outcome(future: Any, task: Task, address: str) -> Outcome | None:
    from distributed import KilledWorker

    try:
        outcome = Outcome(**json.loads(future.result()))
    except KilledWorker:
        return None
    except ModuleNotFoundError as error:
        message = f"the workers of {address} cannot import graphpass: {error}"
        return failed(task, message, UsageError.exit_code)
    except CancelledError:
        message = f"the Dask scheduler at {address} was lost before this was done"
        return failed(task, message, CRASH_EXIT_CODE)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return failed(task, f"a worker of {address} failed ({reason})", CRASH_EXIT_CODE)
    if outcome.status == "written" and not _is_here(outcome):
        message = (
            f"{outcome.output} was written by a worker, but is not here: paths need a file system"
            " that all machines share"
        )
        return failed(task, message, OutputError.exit_code)
    return outcome


def _is_here(outcome: Outcome) -> bool:
    """Say whether a result that a worker wrote to a path can be seen from here as well."""
    if remote.is_url(outcome.output) or outcome.report is None:
        return True
    path, size = Path(outcome.output), outcome.report["output"]["files"][0]["size_bytes"]
    deadline = time.monotonic() + _VISIBLE_S
    while True:
        next(path.parent.iterdir(), None)  # has a network file system look again
        if path.exists() and path.stat().st_size == size:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
