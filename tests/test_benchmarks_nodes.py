"""What `benchmarks.nodes` makes of counts and times."""

from __future__ import annotations

import pytest

from benchmarks.nodes import Count, Row, _compare_times, _summary

RIGHT = Count(10, True)


def row(own: Count, **others: Count) -> Row:
    return Row("net", 20, {"graphpass, runtime": own, **others})


@pytest.mark.parametrize(
    ("other", "more"),
    [
        (Count(8, True), 2),
        (Count(12, True), 0),
        (Count(8, False), 0),
        (Count(8, True, ("com.microsoft",)), 0),
        (Count(None, False), 0),
    ],
)
def test_only_what_everybody_could_use_has_fewer_nodes(other: Count, more: int) -> None:
    assert row(RIGHT, onnxsim=other).more_nodes == more


def test_times_are_medians_of_sessions_and_a_zero_is_none() -> None:
    timed = row(RIGHT, onnxsim=RIGHT, onnxslim=RIGHT)
    fast = [[4.0, 2.0, 1.0, 4.0], [4.0, 2.0, 1.0, 4.0], [0.0, 9.0, 9.0, 9.0]]
    slow = [[4.0, 4.0, 4.0, 4.0]]
    names = ["original", "graphpass, runtime", "onnxsim", "onnxslim"]
    _compare_times(timed, names, [fast, fast, slow])
    assert timed.speedups == {"graphpass, runtime": 2, "onnxsim": 4, "onnxslim": 1}
    assert timed.to_fastest == 0.5 and timed.is_slower
    assert any("Slower: net" in line for line in _summary([timed], list(timed.counts)))


def test_what_is_as_fast_is_not_slower() -> None:
    timed = row(RIGHT, onnxsim=RIGHT)
    _compare_times(timed, ["original", "graphpass, runtime", "onnxsim"], [[[1.0, 1.02, 1.0]]])
    assert not timed.is_slower
    assert not any("Slower" in line for line in _summary([timed], list(timed.counts)))
