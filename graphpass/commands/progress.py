"""A progress bar on stderr that shows itself only when something takes more than a second."""

from __future__ import annotations

import threading
from typing import Any

from graphpass.resources import Closing
from graphpass.wording import visible

_AFTER_S = 1.0


class Bar(Closing):
    """Shows what is being done and how much of the whole (0 to 1) is done; gone at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._done = "", 0.0
        self._bar: Any = None
        self._task: Any = None
        self._ended = False
        # a single step may take long: the bar must not wait for the next
        self._timer = threading.Timer(_AFTER_S, self._start)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, text: str, done: float) -> None:
        """Show `text`; the bar never goes back."""
        with self._lock:
            self._text, self._done = visible(text), max(self._done, done)
            self._update()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        with self._lock:
            if self._ended:
                return
            self._bar, self._task = bar, bar.add_task(self._text, total=1.0)
            bar.start()
            self._update()

    def _update(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=self._text, completed=self._done)

    def close(self) -> None:
        """Take it away."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._bar is not None:
                self._bar.stop()
