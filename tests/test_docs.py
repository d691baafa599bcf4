"""What the documents show is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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
