"""The errors that graphpass raises on purpose: one sentence each, and the exit code it ends in."""

from __future__ import annotations

from typing import Any

BUG_EXIT_CODE = 70
CRASH_EXIT_CODE = 71


class GraphpassError(Exception):
    """Base of every error that is the user's to read; `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(GraphpassError):
    """What was asked for does not exist or does not fit together."""

    exit_code = 2


class ModelError(GraphpassError):
    """The input is not a model that can be used."""

    exit_code = 3


class RuntimeUnavailableError(GraphpassError):
    """ONNX Runtime cannot run the model, so nothing could be validated."""

    exit_code = 4


class OutputError(GraphpassError):
    """The result could not be written."""

    exit_code = 5


class RuleError(GraphpassError):
    """A rule or a pass is at fault: it names the rule; the model is as it was."""

    exit_code = 1


class DifferenceError(GraphpassError):
    """What was to be delivered is not what the original computes; nothing was written.

    `report`: the `graphpass.report.Report` of the run up to there, or None.
    """

    exit_code = 1

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def bug(error: Exception) -> str:
    """Return one sentence on an error that nobody raised on purpose."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    ask = "please report it, with what GRAPHPASS_DEBUG=1 shows"
    return f"this is a bug in graphpass ({what}); {ask}"
