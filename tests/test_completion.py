"""What shells are told when somebody presses the tabulator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from graphpass.cli import commands


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_what_completes(shell: str) -> None:
    command = [sys.executable, "-m", "graphpass"]
    environment = {**os.environ, "_GRAPHPASS_COMPLETE": f"{shell}_source"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert f"_GRAPHPASS_COMPLETE={shell}_complete".encode() in done.stdout
    asked = {"_GRAPHPASS_COMPLETE": f"{shell}_complete", "COMP_WORDS": "graphpass opt"}
    asked["COMP_CWORD"] = "opt" if shell == "fish" else "1"
    done = subprocess.run(command, env={**environment, **asked}, capture_output=True, check=True)
    assert b"optimize" in done.stdout


@pytest.mark.parametrize(
    ("before", "incomplete", "offered"),
    [
        ("optimize --pipeline", "f", {"fast"}),
        ("optimize --target", "t", {"tensorrt", "tidl"}),
        ("check --target", "vi", {"vitis-dpu"}),
        ("optimize --skip", "clean", {"clean-up"}),
        ("optimize --passes", "clean-up,fold", {"clean-up,fold-batchnorm"}),
        ("optimize m.onnx --passes", "gemm", {"gemm-to-conv"}),
        ("passes", "move", {"move-linear"}),
        ("inspect m.onnx --pipeline", "zzz", set()),
    ],
)
def test_names_are_completed(before: str, incomplete: str, offered: set[str]) -> None:
    shell = ShellComplete(commands, {}, "graphpass", "_GRAPHPASS_COMPLETE")
    assert {item.value for item in shell.get_completions(before.split(), incomplete)} == offered


@pytest.mark.parametrize("before", ["optimize", "optimize a -o", "compare", "compare a", "inspect"])
def test_models_are_files(before: str) -> None:
    shell = ShellComplete(commands, {}, "graphpass", "_GRAPHPASS_COMPLETE")
    (item,) = shell.get_completions(before.split(), "zoo/")
    assert (item.value, item.type) == ("zoo/", "file")
