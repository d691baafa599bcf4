"""pytest plug-in: fixtures of passes as tests (`pytest --graphpass FOLDER`), models compared.

Loaded by pytest's entry point; nothing else of graphpass is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from graphpass.report.data import Check
    from graphpass.testing.fixture import Fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--graphpass FOLDER`."""
    parser.getgroup("graphpass").addoption(
        "--graphpass",
        action="append",
        default=[],
        metavar="FOLDER",
        help="Run the fixtures of passes in FOLDER as tests. May be repeated.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have the folders collected that were asked for."""
    config.args.extend(folder for folder in _folders(config) if folder not in config.args)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect fixtures of passes in the folders that were asked for."""
    folders = [Path(folder).resolve() for folder in _folders(parent.config)]
    root = next((folder for folder in folders if folder in file_path.resolve().parents), None)
    if root is None or file_path.suffix == ".py":
        return None
    found: _File = _File.from_parent(parent, path=file_path)
    found.root = root
    return found


def _folders(config: pytest.Config) -> list[str]:
    folders: list[str] = config.getoption("graphpass")
    return folders


class _File(pytest.File):
    """A file that may hold a fixture."""

    root: Path

    def collect(self) -> Iterator[pytest.Item]:
        from graphpass.testing.fixture import read_file

        case = read_file(self.path, self.root)
        if case is not None:
            yield _Item.from_parent(self, name=self.path.stem, case=case)


class _Item(pytest.Item):
    """A fixture as a test."""

    def __init__(self, *, case: Fixture, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.case = case

    def runtest(self) -> None:
        from graphpass.testing.fixture import problem

        found = problem(self.case)
        if found is not None:
            pytest.fail(found, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.case.name}: {self.case.note}"


@pytest.fixture
def graphpass_check() -> Callable[..., Check]:
    """Return a function that asserts that a model may stand in for another.

    `graphpass_check(before, after, **options)`: arguments as for `graphpass.compare`; returns its
    `Check`, with the error and tolerance of each output.
    """

    def check(before: Any, after: Any, **options: Any) -> Check:
        import graphpass

        found = graphpass.compare(before, after, **options)
        if not found.ok:
            pytest.fail(f"{found.status}: {found.reason}", pytrace=False)
        return found

    return check
