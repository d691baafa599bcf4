"""Many models on this machine: so many processes at once, each done with one model at a time."""

from __future__ import annotations

import contextlib
import functools
import select
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from graphpass.errors import CRASH_EXIT_CODE
from graphpass.many.process import Process, from_message
from graphpass.many.task import Outcome, Task, clean_up, failed
from graphpass.many.task import run as run_task
from graphpass.validate.process.channel import ChannelClosedError

# is told which model is at which step, and how much of it is done (0 to 1)
Tell = Callable[[str, str, float], None]

_LOOK_EVERY_MS = 500


class StoppedError(Exception):
    """Nobody wants the result any more."""


def inline(tasks: Sequence[Task], tell: Tell) -> Generator[Outcome, None, None]:
    """Do models one after another in this very process."""
    for task in tasks:
        yield run_task(task, functools.partial(tell, task["model"]))


def run(
    tasks: Sequence[Task], jobs: int, tell: Tell, stopped: Callable[[], bool] = lambda: False
) -> Generator[Outcome, None, None]:
    """Yield outcomes as they come; a model whose process dies is tried once more, alone.

    Close the iterator, or let it end, to end the processes. Raises `StoppedError` soon after
    `stopped` says so.
    """
    crashed: list[Task] = []
    with contextlib.closing(_run(tasks, jobs, tell, stopped)) as first:
        for task, done in first:
            if isinstance(done, Outcome):
                yield done
            else:
                crashed.append(task)
    # one by one, now that nothing else needs the memory that may have been lacking
    with contextlib.closing(_run(crashed, 1, tell, stopped)) as second:
        for task, done in second:
            if isinstance(done, Outcome):
                yield done
            else:
                clean_up(task)
                yield failed(task, f"its process {done}, twice", CRASH_EXIT_CODE)


class _Work(NamedTuple):
    process: Process
    task: Task


def _run(
    tasks: Sequence[Task], jobs: int, tell: Tell, stopped: Callable[[], bool]
) -> Generator[tuple[Task, Outcome | str], None, None]:
    """Yield each task with its outcome, or with how its process died."""
    waiting, idle = deque(tasks), list[Process]()
    busy: dict[int, _Work] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                process, task = idle.pop() if idle else Process(), waiting.popleft()
                busy[process.fileno()] = _Work(process, task)
                tell(task["model"], "starting", 0.0)
                with contextlib.suppress(ChannelClosedError):  # as below, when it is read from
                    process.begin(task)
            for number in _readable(busy):
                process, task = busy[number]
                try:
                    message = process.receive()
                except ChannelClosedError:
                    del busy[number]
                    why = process.why_it_died()
                    process.close()
                    yield task, why
                    continue
                if (outcome := from_message(message)) is not None:
                    del busy[number]
                    idle.append(process)
                    yield task, outcome
                else:
                    text, done = message["progress"]
                    tell(task["model"], text, done)
            if stopped():
                raise StoppedError
    finally:
        everyone = [*idle, *(work.process for work in busy.values())]
        for process in everyone:  # all first, so that they clean up at the same time
            process.stop()
        for process in everyone:
            process.close()


def _readable(busy: dict[int, _Work]) -> list[int]:
    poll = select.poll()
    for number in busy:
        poll.register(number, select.POLLIN)
    return [number for number, _ in poll.poll(_LOOK_EVERY_MS)]
