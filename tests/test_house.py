"""How the house is built: layers look down, nothing goes round, what is private stays so."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("graphpass", "passes") for path in (ROOT / folder).rglob("*.py")
)
# what Python's own classes call private and everybody uses
_PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}


def test_the_import_contracts_hold() -> None:
    # in a process of its own: it switches off the loggers of all that is imported already
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports;"
    code += "sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _foreign_private_names(tree: ast.Module) -> Iterator[str]:
    """Yield private names that a file uses and does not define itself."""
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            own.add(node.value)  # fields that are set through `__dict__`
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (name.name for name in node.names if _is_private(name.name))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            yield node.attr


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC


def test_a_private_name_of_another_file_is_found() -> None:
    used = ast.parse("from a import _b\nc._d()\nself._e = 1\nself._e\nos._exit(1)\n_x = 1\n_x")
    assert sorted(_foreign_private_names(used)) == ["_b", "_d"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_name_is_used_across_files(path: Path) -> None:
    assert not sorted(set(_foreign_private_names(ast.parse(path.read_text(encoding="utf-8")))))
