"""Options from `graphpass.toml` and `pyproject.toml`: which hold, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from graphpass.cli import run
from graphpass.testing import graph

NET = "m (float[N, 2] x) => (float[N, 2] y) { a = Identity(x) b = Relu(a) y = Neg(b) }"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").mkdir()
    for name in ("net.onnx", "zoo/head.onnx"):
        (tmp_path / name).write_bytes(graph(NET).SerializeToString())
    return tmp_path


def settings(*arguments: str, model: str = "net.onnx") -> dict[str, Any]:
    """Run `optimize` quietly; return what its report says that it ran with."""
    code = run(["optimize", model, "-q", "-o", "out.onnx", "--report", "r.json", *arguments])
    assert code == 0
    told: dict[str, Any] = json.loads(Path("r.json").read_text())["settings"]
    return told


def config(text: str, name: str = "graphpass.toml") -> None:
    Path(name).write_text(text)


def test_every_kind_of_option_comes_from_the_file() -> None:
    config("""
        passes = ["clean-up{fold_budget=9}", "gemm-to-conv"]
        skip = "gemm-to-conv"
        provider = ["cpu"]
        rtol = 0.5
        seed = 7
        memory_limit = 4000
        strict = true
        bind = {N = 3}
    """)
    told = settings()
    assert [step.partition("{")[0] for step in told["passes"]] == ["clean-up"]
    assert "fold_budget=9" in told["passes"][0]
    expected = {"rtol": 0.5, "seed": 7, "memory_limit_mib": 4000, "strict": True, "bind": {"N": 3}}
    assert expected.items() <= told.items()
    assert settings("--no-config")["pipeline"] == "default"


def test_the_budget_for_folding_is_an_option_of_clean_up() -> None:
    told = settings("--fold-budget", "9", "--passes", "gemm-to-conv{target=all},clean-up")
    assert "fold_budget=9" in told["passes"][1] and "target=all" in told["passes"][0]
    assert "fold_budget=9" in settings("--fold-budget", "9")["passes"][0]
    assert "fold_budget=0" in settings()["passes"][0]
    refused = ["optimize", "net.onnx", "-q", "--passes", "gemm-to-conv", "--fold-budget", "9"]
    assert run(refused) == 2


@pytest.mark.parametrize(
    ("arguments", "model", "pipeline", "seed"),
    [
        ((), "net.onnx", "fast", 1),
        ((), "zoo/head.onnx", "conv-only", 2),
        (("--pipeline", "default"), "zoo/head.onnx", "default", 2),
        (("--seed", "5"), "zoo/head.onnx", "conv-only", 5),
        (("--no-config",), "zoo/head.onnx", "default", 0),
        (("--config", "other.toml"), "zoo/head.onnx", "default", 9),
    ],
)
def test_tables_of_models_go_before_the_rest_and_the_command_line_before_all(
    arguments: tuple[str, ...], model: str, pipeline: str, seed: int
) -> None:
    config("""
        pipeline = "fast"
        seed = 1
        [models."nothing*"]
        seed = 99
        [models."head.*"]
        passes = "clean-up"
        [models."zoo/*.onnx"]
        pipeline = "conv-only"
        seed = 2
    """)
    config("seed = 9", "other.toml")
    told = settings(*arguments, model=model)
    assert (told["pipeline"], told["seed"]) == (pipeline, seed)


@pytest.mark.parametrize("chosen", [("--passes", "clean-up"), ("--target", "tensorrt")])
def test_what_is_given_replaces_other_ways_to_say_what_runs(chosen: tuple[str, str]) -> None:
    config('pipeline = "conv-only"')
    assert settings(*chosen)["pipeline"] != "conv-only"


def test_pyproject_is_read_where_there_is_no_file_of_our_own() -> None:
    config('[project]\nname = "x"\n[tool.graphpass]\nseed = 3', "pyproject.toml")
    assert settings()["seed"] == 3
    config("seed = 4")
    assert settings()["seed"] == 4
    assert settings("--config", "pyproject.toml")["seed"] == 3
    config('[project]\nname = "x"', "pyproject.toml")
    assert settings("--config", "pyproject.toml")["seed"] == 0


def test_it_is_said_what_the_file_sets(capsys: pytest.CaptureFixture[str]) -> None:
    config("seed = 3\nno-latency = true\njobs = 2")
    assert run(["optimize", "net.onnx", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == "options from graphpass.toml: no-latency\n" and "latency" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pases = 'x'", "there is no option 'pases' (did you mean passes?); there are"),
        ("providers = ['cpu']", "(did you mean provider?)"),
        ("config = 'x'", "there is no option 'config'"),
        ("[models.'zzz*']\nsede = 1", "there is no option 'sede' (did you mean seed?)"),
        ("models = 1", 'write [models."PATTERN"]'),
        ("[models]\nseed = 1", 'write [models."PATTERN"]'),
        ("strict = 1", "strict is true or false, not 1"),
        ("rtol = true", "rtol is no text or number: True"),
        ("skip = [['x']]", "skip is no text or number: ['x']"),
        (r'report = "a\u0000.json"', "report has a NUL in it"),
        ("rtol = 'much'", "'much' is not a valid float"),
        ("rtol = -1", "-1"),
        ("bind = ['N']", "'N' is not NAME=NUMBER"),
        ("report = 'x.pdf'", "ends in none"),
        ("passes = ", "is no TOML"),
        ("passes = 'clean-up'\npipeline = 'fast'", "either --passes or --pipeline"),
    ],
)
def test_what_a_file_gets_wrong_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    before = sorted(folder.iterdir())
    for name, prefix in (("graphpass.toml", ""), ("pyproject.toml", "[tool.graphpass]\n")):
        if prefix and "[models" in text:
            text = text.replace("[models", "[tool.graphpass.models")
        config(prefix + text, name)
        assert run(["optimize", "net.onnx", "-q"]) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and not out
        assert name in err or "either" in err
        (folder / name).unlink()
    assert sorted(folder.iterdir()) == before


def test_a_file_that_is_named_has_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", "net.onnx", "--config", "no.toml"]) == 2
    assert "cannot read no.toml: No such file" in capsys.readouterr().err


def test_a_project_whose_table_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config("[tool]\ngraphpass = 1", "pyproject.toml")
    assert run(["optimize", "net.onnx", "-q"]) == 2
    assert "pyproject.toml: tool.graphpass is no table" in capsys.readouterr().err
    config("tool = 1", "pyproject.toml")
    assert run(["optimize", "net.onnx", "-q"]) == 0


def test_help_is_shown_whatever_the_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    config("nonsense = 1")
    for wish in ("-h", "--help"):
        assert run(["optimize", wish]) == 0
        assert "--no-config" in capsys.readouterr().out


def test_the_example_of_the_readme_is_read() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.S)
    config(example)
    Path("detector-1.onnx").write_bytes(Path("net.onnx").read_bytes())
    told = settings(model="detector-1.onnx")
    assert told["pipeline"] == "fast" and told["rtol"] == 1e-4
    assert "move-linear" not in told["passes"] and "merge-branches" in told["passes"]
    assert run(["optimize", "net.onnx"]) == 0
    assert "move-linear" in Path("report.md").read_text() and Path("report.html").is_file()


def test_the_command_line_wins_over_what_is_switched_on_in_the_file() -> None:
    config("strict = true\nno-validate = true\nstrip-metadata = true\nfreeze-initializers = true")
    told = settings()
    assert told["strict"] and told["strip_metadata"] and not told["validate"]
    told = settings("--no-strict", "--validate", "--no-strip-metadata", "--no-freeze-initializers")
    assert told["validate"] and not told["strict"] and not told["strip_metadata"]
    assert not told["freeze_initializers"]


def many(*arguments: str) -> dict[str, dict[str, Any]]:
    """Run `optimize --out-dir` and return the settings of each model."""
    assert run(["optimize", "net.onnx", "zoo", "--report", "r.json", "-q", *arguments]) == 0
    told = json.loads(Path("r.json").read_text())["models"]
    return {Path(entry["model"]).name: entry["report"]["settings"] for entry in told}


def test_many_models_have_tables_of_their_own() -> None:
    config("""
        out-dir = "out"
        passes = "clean-up"
        seed = 1
        [models."zoo/*"]
        pipeline = "conv-only"
        strict = true
        bind = {N = 3}
        [models."head.*"]
        seed = 2
    """)
    told = many()
    assert told["net.onnx"]["seed"] == 1 and told["head.onnx"]["seed"] == 2
    assert told["net.onnx"]["pipeline"] is None and not told["net.onnx"]["strict"]
    assert told["head.onnx"]["pipeline"] == "conv-only" and told["head.onnx"]["strict"]
    assert told["head.onnx"]["bind"] == {"N": 3}
    told = many("--passes", "fold-batchnorm", "--no-strict", "--force")
    assert {tuple(entry["passes"]) for entry in told.values()} == {("fold-batchnorm",)}
    assert not told["head.onnx"]["strict"] and told["head.onnx"]["seed"] == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("jobs = 2", 'graphpass.toml: [models."zoo/*"]: jobs holds for all models of a run'),
        ("report = 'a.md'", 'graphpass.toml: [models."zoo/*"]: report holds for all'),
        ("rtol = 'much'", "graphpass.toml: "),
    ],
)
def test_what_a_table_of_many_gets_wrong(
    capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    config(f"out-dir = 'out'\n[models.'zoo/*']\n{table}")
    assert run(["optimize", "net.onnx", "zoo"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not Path("out").exists()


def test_what_is_for_many_goes_with_out_dir(capsys: pytest.CaptureFixture[str]) -> None:
    config("out-dir = 'out'\nno-validate = true\nquiet = true")
    assert run(["optimize", "net.onnx", "zoo"]) == 0
    assert {path.name for path in Path("out").glob("*.onnx")} == {"net.onnx", "head.onnx"}
