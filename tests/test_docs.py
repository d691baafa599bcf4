"""What the documents show is what happens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import graphpass
from graphpass.cli import run

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def test_the_first_pass_of_the_contributing_guide_works() -> None:
    names: dict[str, Any] = {"__name__": "contributing"}
    for block in blocks("CONTRIBUTING.md", "python"):
        exec(block, names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_second_command_of_the_readme_is_what_the_contributing_guide_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = blocks("CONTRIBUTING.md", "")[0].strip()
    assert command in readme


def test_many_models_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo/sub").mkdir(parents=True)
    for name in ("digits.onnx", "zoo/sub/other.onnx"):
        shutil.copyfile(ROOT / "fixtures/digits.onnx", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Many models")[1].split("\n## ")[0]
    first = re.findall(r"```\n(.*?)\n", section)[0]
    assert run(first.split()[1:]) == 0
    assert {p.name for p in (tmp_path / "out").rglob("*.onnx")} == {"digits.onnx", "other.onnx"}
    assert json.loads((tmp_path / "out/all.json").read_text())["counts"]["written"] == 2
    names: dict[str, Any] = {"graphpass": graphpass}
    exec(re.findall(r"```python\n(.*?)```", section, flags=re.S)[0], names)
    assert names["report"].counts == {"written": 0, "skipped": 2, "failed": 0}
