"""Every fixture, through the same code as `graphpass test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpass.testing import fixture

FOLDER = Path(__file__).parents[1] / "fixtures"
CASES = list(fixture.find(FOLDER))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fixture(case: fixture.Fixture) -> None:
    problem = fixture.problem(case)
    assert problem is None, problem


def test_every_fixture_says_why_it_is_there() -> None:
    assert len(CASES) > 15
    assert not [case.name for case in CASES if not case.note]
    assert not [case.name for case in CASES if case.expectation == "the same numbers"]
