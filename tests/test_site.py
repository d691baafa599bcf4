"""The site builds without a warning, asks no server for anything; its commands do what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphpass.rewrite import registry

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "NO_MKDOCS_2_WARNING": "1",  # advertisements for other programs
    "DISABLE_MKDOCS_2_WARNING": "true",
}


def build(folder: Path) -> str:
    """Build the site into a folder; return what was said."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_site_is_whole(tmp_path: Path) -> None:
    assert build(tmp_path) == ""
    text = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert len(text) > 12
    for page in text.values():  # what a browser would fetch by itself
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', page)
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*//', page)
    catalogue = text[tmp_path / "reference/passes/index.html"]
    for name, step in registry.builtin_types().items():
        assert f'id="{name}"' in catalogue
        assert all(f"<strong>{rule.name}</strong>" in catalogue for rule in step().rules)
    commands = text[tmp_path / "reference/command-line/index.html"]
    assert "--tune-from" in commands and "convolutionalize" in commands
    assert "MergeScales" in text[tmp_path / "tutorial/first-pass/index.html"]


PAGES = ["index.md", "how-to.md", "tutorial/score-map.md", "tutorial/pipeline.md"]
_BLOCK = re.compile(r"(?:`([\w./-]+\.\w+)`:\n\n)?```(sh|python|toml)\n(.*?)```", re.S)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_site(page: str, tmp_path: Path) -> None:
    for name in ("digits.onnx", "branches.onnx", "digits_inputs.npz"):
        shutil.copyfile(ROOT / "fixtures" / name, tmp_path / name)
    tests = False
    found = _BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert found
    for name, language, code in found:
        if language == "toml":
            name = name or "graphpass.toml"
        if name:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code, encoding="utf-8")
            tests = tests or Path(name).name.startswith("test_")
            continue
        command = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        _run(command, tmp_path)
    if tests:
        _run([str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "tests"], tmp_path)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


def test_every_page_with_commands_is_run() -> None:
    with_commands = {
        str(page.relative_to(ROOT / "docs"))
        for page in (ROOT / "docs").rglob("*.md")
        if "```sh\n" in page.read_text(encoding="utf-8")
    }
    assert with_commands == set(PAGES)
