"""The pre-commit hooks and the GitHub action: their files, and their commands in a repository."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graphpass.integrations.ci import changed, main
from graphpass.testing import graph

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
NET = "(float[1, 2] x) => (float[1, 2] y) { a = Identity(x) y = Relu(a) }"
ZEROS = "0" * 40


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one model that changed since the first commit, and one that did not."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    model = graph(NET).SerializeToString()
    (folder / "old model.onnx").write_bytes(model)
    (folder / "gone.onnx").write_bytes(model)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    (folder / "gone.onnx").unlink()
    (folder / "new é.onnx").write_bytes(model)
    (folder / "no model.txt").write_text("x")
    git("add", "-A")
    git("commit", "-qm", "two")
    return folder


def nodes(path: str) -> int:
    import onnx

    return len(onnx.load(path).graph.node)


def test_models_that_changed_since_a_commit() -> None:
    assert changed("HEAD~1") == ["new é.onnx"]
    assert changed("HEAD") == []
    assert changed(ZEROS) == ["new é.onnx", "old model.onnx"]


def test_the_reports_of_models_are_the_summary(repository: Path) -> None:
    code = main(
        ["--since", ZEROS, "--summary", "s.md", "--options=--pipeline fast --quiet", "optimize"]
    )
    assert code == 0
    assert nodes("old model.opt.onnx") == nodes("new é.opt.onnx") == 1
    told = Path("s.md").read_text(encoding="utf-8")
    assert told.count("## graphpass: ") == 2 and "2 → 1 node" in told and "new é.onnx" in told


def test_what_fails_keeps_no_other_from_being_done(capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.onnx").write_bytes(b"no model")
    code = main(["--summary", "s.md", "optimize", "--quiet", "bad.onnx", "old model.onnx"])
    assert code == 3 and nodes("old model.opt.onnx") == 1
    told = Path("s.md").read_text(encoding="utf-8")
    assert "## graphpass: `bad.onnx`: exit code 3" in told and "2 → 1 node" in told
    assert "bad.onnx" in capfd.readouterr().err


def test_check_says_what_a_target_does_not_take() -> None:
    Path("odd.onnx").write_bytes(
        graph("(float[2] x) => (float[2] y) { y = Asinh(x) }").SerializeToString()
    )
    arguments = ["--summary", "s.md", "check", "--target", "vitis-dpu"]
    assert main([*arguments, "odd.onnx"]) == 1
    told = Path("s.md").read_text(encoding="utf-8")
    assert "`odd.onnx`: exit code 1" in told and "Asinh" in told


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--since", "HEAD", "optimize"], 0, "no model has changed"),
        (["--since", "f" * 40, "optimize"], 2, "there is no commit 'ffff"),
        (["--since", "--output=x", "optimize"], 2, "there is no commit '--output=x'"),
        (["--options", "'", "optimize"], 2, "cannot read the options"),
        (["destroy"], 2, "'destroy' is not one of"),
        (["optimize", "--nope", "old model.onnx"], 2, "--nope"),
        (["--summary", "no/s.md", "optimize", "-q", "old model.onnx"], 5, "cannot write no/s.md"),
    ],
)
def test_one_sentence(
    capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert main(arguments) == code
    out, err = capfd.readouterr()
    assert text in out + err and (out + err).count("\n") == 1


def hooks() -> dict[str, Any]:
    listed = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return {hook["id"]: hook for hook in listed}


def run_hook(name: str, *arguments: str) -> int:
    entry = shlex.split(hooks()[name]["entry"])
    assert entry.pop(0) == "python"
    return subprocess.run([sys.executable, *entry, *arguments], check=False).returncode


def test_hooks_have_what_pre_commit_asks_for() -> None:
    for hook in hooks().values():
        assert {"id", "name", "entry", "language"} <= hook.keys()
        assert hook["language"] == "python" and hook["files"] == r"\.onnx$"


def test_the_examples_of_the_readme_name_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, second = (
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", readme, re.S)
    )
    assert {hook["id"] for hook in first["repos"][0]["hooks"]} <= hooks().keys()
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert second["steps"][1]["with"].keys() <= action["inputs"].keys()
    (command,) = re.findall(r"`python -m graphpass\.integrations\.ci (.*?)`", readme)
    arguments = shlex.split(command.replace("COMMIT", "HEAD~1").replace("FILE.md", "s.md"))
    assert main(arguments) == 0 and nodes("new é.opt.onnx") == 1


def test_the_hook_optimizes_in_place_and_then_has_nothing_to_do() -> None:
    models = ["new é.onnx", "old model.onnx"]
    assert run_hook("graphpass-optimize", "--pipeline", "fast", *models) == 0
    assert git("diff", "--name-only", "-z").rstrip("\0").split("\0") == models
    done = {name: Path(name).read_bytes() for name in models}
    assert run_hook("graphpass-optimize", "--pipeline", "fast", *models) == 0
    assert {name: Path(name).read_bytes() for name in models} == done


def test_the_hook_checks_against_a_target() -> None:
    assert run_hook("graphpass-check", "--target", "tensorrt", "new é.onnx") == 0
    assert run_hook("graphpass-check", "new é.onnx") == 2


def test_the_action_does_what_it_says(repository: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    steps = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    assert all("shell" in step for step in steps if "run" in step)
    inputs = {name: entry["default"] for name, entry in action["inputs"].items()}
    inputs["since"] = git("rev-parse", "HEAD~1")
    binaries = repository.parent / "bin"
    binaries.mkdir()
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (binaries / "python").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(repository.parent / "summary.md"),
    }
    for step in steps:
        if "run" not in step or "pip install" in step["run"]:
            continue
        assert "${{" not in step["run"]  # what is asked for comes in variables, as no script
        given = {
            name: inputs[text.removeprefix("${{ inputs.").removesuffix(" }}")]
            for name, text in step.get("env", {}).items()
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        subprocess.run(command, env=environment | given, check=True)
    assert nodes("new é.opt.onnx") == 1 and not Path("old model.opt.onnx").exists()
    told = (repository.parent / "summary.md").read_text(encoding="utf-8")
    assert "new é.onnx" in told and "2 → 1 node" in told
