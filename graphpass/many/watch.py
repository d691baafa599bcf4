"""Whoever wants to know how a run over many models goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphpass.many.task import Outcome


class Watch:
    """Is told how a run over many models goes; does nothing about it."""

    def planned(self, count: int) -> None:
        """Hear how many models there are."""

    def progress(self, model: str, text: str, done: float) -> None:
        """Hear which model is at which step, and how much of it is done (0 to 1).

        `model` is empty where it is about all of them.
        """

    def finished(self, outcome: Outcome) -> None:
        """Hear what came of a model."""
