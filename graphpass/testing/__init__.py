"""Test a pass: a graph before, what must come of it, numbers in ONNX Runtime: see `checks`."""

from graphpass.testing.checks import (
    apply_to,
    check,
    check_equal,
    check_operators,
    check_refused,
    check_replay,
    check_untouched,
    check_valid,
    feeds,
    graph,
    operators,
    session,
    with_integers,
)

__all__ = [
    "apply_to",
    "check",
    "check_equal",
    "check_operators",
    "check_refused",
    "check_replay",
    "check_untouched",
    "check_valid",
    "feeds",
    "graph",
    "operators",
    "session",
    "with_integers",
]
