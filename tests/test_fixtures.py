"""Every fixture, through the same code as `graphpass test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpass.cli import run
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# note: \xff\n(float[1] x) => (float[1] y) { y = Relu(x) }", "is no text in UTF-8"),
        (
            b"# constant: w float[1000000000]\n(float[1] x) => (float[1] y) { y = Add(x, w) }",
            "the constant 'w' has more than",
        ),
    ],
)
def test_a_fixture_that_cannot_be_is_one_sentence(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clean-up").mkdir()
    (tmp_path / "clean-up" / "f.txt").write_bytes(content)
    (tmp_path / "labels.txt").write_bytes(b"caf\xe9")  # none of ours
    assert run(["test", "--fixtures", str(tmp_path)]) in (1, 2)
    told = capsys.readouterr()
    assert said in told.out + told.err
