"""The command line: exit codes, one-sentence errors, nothing half-written, pipes."""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from graphpass.cli import run
from graphpass.errors import OutputError
from graphpass.report.data import Check
from graphpass.rewrite import registry
from graphpass.run import optimization
from graphpass.run.judge import Judge
from graphpass.storage.writer import StagedModel
from graphpass.testing import graph
from graphpass.validate import Runtime

from .toys import KINDS, chain

ROOT = Path(__file__).parents[1]
# the command line with the toy passes, in a process of its own
TOY_CLI = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from graphpass.rewrite import registry
from tests.toys import KINDS
registry.pass_types = lambda: KINDS
registry.PIPELINES = {{"default": ("tidy", "negate"), "conv-only": ("tidy",)}}
from graphpass.cli import main
main()
"""
Command = Callable[..., SimpleNamespace]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "pass_types", lambda: KINDS)
    pipelines = {"default": ("tidy", "negate"), "conv-only": ("tidy",)}
    monkeypatch.setattr(registry, "PIPELINES", pipelines)
    monkeypatch.setattr(optimization, "PIPELINES", pipelines)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(chain(), path)
    return path


@pytest.fixture
def graphpass(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: str | Path) -> SimpleNamespace:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return command


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", TOY_CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------- optimize


def test_the_result_lies_beside_the_input_which_stays(graphpass: Command, model: Path) -> None:
    before = model.read_bytes()
    done = graphpass("optimize", model)
    assert done.code == 0 and done.err == ""
    assert names(model.parent) == ["net.onnx", "net.opt.onnx"]
    assert model.read_bytes() == before
    assert done.out.startswith(f"{model} → ") and "every check passed" in done.out
    written = onnx.load(model.with_name("net.opt.onnx"))
    assert {node.op_type for node in written.graph.node} == {"Sub", "Relu"}


def test_quiet_prints_nothing(graphpass: Command, model: Path) -> None:
    done = graphpass("optimize", model, "-q", "--passes", "negate{wrong=c1},tidy")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_verbose_lists_rewrites(graphpass: Command, model: Path) -> None:
    done = graphpass("optimize", model, "-v", "--skip", "negate", "--no-latency")
    assert "tidy: 1. DropIdentity: Identity of 'i0' → nothing" in done.out
    assert "latency" not in done.out


def test_passes_are_chosen_with_their_options(graphpass: Command, model: Path) -> None:
    report = model.with_name("r.json")
    done = graphpass("optimize", model, "--passes", "negate{wrong=c2}", "--report", report)
    assert done.code == 0
    data = json.loads(report.read_text())
    assert data["settings"]["passes"] == ["negate{wrong=c2}"]
    assert data["settings"]["pipeline"] is None
    assert [out["rewrite"]["site"] for out in data["passes"][0]["quarantined"]] == ["a2"]


def test_settings_reach_the_validator(graphpass: Command, model: Path) -> None:
    report = model.with_name("r.json")
    inputs = model.with_name("x.npz")
    np.savez(inputs, x=np.ones((3, 7), np.float32))
    options = ["--rtol", "0.1", "--seed", "7", "--timeout", "20", "--bind", "N=3"]
    options += ["--memory-limit", "4000", "--inputs", str(inputs), "--max-rewrites", "2"]
    done = graphpass("optimize", model, *options, "--report", report)
    assert done.code == 0
    settings = json.loads(report.read_text())["settings"]
    assert settings["rtol"] == 0.1 and settings["seed"] == 7 and settings["bind"] == {"N": 3}
    assert settings["time_limit_s"] == 20 and settings["memory_limit_mib"] == 4000
    assert settings["inputs"] == str(inputs) and settings["max_rewrites"] == 2


def test_no_validate_is_said(graphpass: Command, model: Path) -> None:
    done = graphpass("optimize", model, "--no-validate")
    assert done.code == 0 and "nothing was validated" in done.out


def test_conv_only_says_what_is_not_convolutional(graphpass: Command, tmp_path: Path) -> None:
    path = tmp_path / "dense.onnx"
    text = "(float[N,4] x) => (float[N,5] y) { i = Identity(x) y = MatMul(i, W) }"
    onnx.save(graph(text, W=(4, 5)), path)
    done = graphpass("optimize", path, "--pipeline", "conv-only")
    assert "not convolutional: MatMul of 'y'" in done.out
    assert "not convolutional" not in graphpass("optimize", path).out


def test_optimizing_a_result_again_changes_no_byte(graphpass: Command, model: Path) -> None:
    graphpass("optimize", model)
    once = model.with_name("net.opt.onnx")
    done = graphpass("optimize", once)
    assert done.code == 0
    assert model.with_name("net.opt.opt.onnx").read_bytes() == once.read_bytes()


def test_two_runs_write_the_same_bytes_and_reports(graphpass: Command, model: Path) -> None:
    from graphpass.report.data import without_times

    written, reports = [], []
    for _ in range(2):
        report = model.with_name("r.json")
        graphpass("optimize", model, "--report", report)
        written.append(model.with_name("net.opt.onnx").read_bytes())
        reports.append(without_times(json.loads(report.read_text())))
    assert written[0] == written[1] and reports[0] == reports[1]


def test_in_place_replaces_the_input_in_one_step(graphpass: Command, model: Path) -> None:
    old = model.stat()
    held = model.open("rb")  # who has the old file open still has the old file
    before = model.read_bytes()
    link = model.with_name("link.onnx")
    link.symlink_to(model)
    assert graphpass("optimize", link, "--in-place").code == 0
    assert link.is_symlink() and model.stat().st_ino != old.st_ino
    assert held.read() == before != model.read_bytes()
    held.close()
    onnx.checker.check_model(onnx.load(model))
    assert names(model.parent) == ["link.onnx", "net.onnx"]


def test_in_place_leaves_the_input_where_the_check_fails(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.read_bytes()

    def check_file(judge: Judge, path: Path, checked: onnx.ModelProto) -> Check:
        return Check("differs", False, "tensor 'W' holds other data")

    monkeypatch.setattr(Judge, "check_file", check_file)
    done = graphpass("optimize", model, "--in-place")
    assert done.code == 1 and "tensor 'W' holds other data" in done.err
    assert model.read_bytes() == before and names(model.parent) == ["net.onnx"]


@pytest.mark.parametrize("suffix", ["json", "md", "xml"])
def test_reports_in_every_form(graphpass: Command, model: Path, suffix: str) -> None:
    report = model.with_name(f"r.{suffix}")
    assert graphpass("optimize", model, "-q", "--report", report).code == 0
    assert "tidy" in report.read_text()
    assert names(model.parent) == ["net.onnx", "net.opt.onnx", f"r.{suffix}"]


def test_files_are_hashed_only_where_a_report_tells_of_it(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "sha256")
        assert graphpass("optimize", model).code == 0
    told = model.with_name("r.json")
    assert graphpass("optimize", model, "--report", told).code == 0
    (file,) = json.loads(told.read_text())["output"]["files"]
    delivered = model.with_name("net.opt.onnx")
    assert file["sha256"] == sha256(delivered.read_bytes()).hexdigest()


def test_external_data_where_asked_for(graphpass: Command, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = "(float[N,64] x) => (float[N,64] y) { i = Identity(x) y = MatMul(i, W) }"
    onnx.save(graph(text, W=(64, 64)), path)
    assert graphpass("optimize", path, "--external-data", "always").code == 0
    assert names(tmp_path) == ["m.onnx", "m.opt.onnx", "m.opt.onnx.data"]
    more = ("--external-data", "always", "--external-data-size-threshold")
    assert graphpass("optimize", path, *more, "16385").code == 0
    assert names(tmp_path) == ["m.onnx", "m.opt.onnx"]
    assert graphpass("optimize", path, *more, "16384").code == 0
    assert names(tmp_path) == ["m.onnx", "m.opt.onnx", "m.opt.onnx.data"]


# ----------------------------------------------------------------------- exit codes, errors


def failed(done: SimpleNamespace, code: int, text: str) -> None:
    assert done.code == code, done.err
    assert text in done.err
    assert done.err.startswith("graphpass: ") and done.err.count("\n") == 1
    assert done.out == "" and "Traceback" not in done.err


def test_1_strict_stops_at_a_difference(graphpass: Command, model: Path) -> None:
    report = model.with_name("r.xml")
    options = ("--strict", "--passes", "tidy,negate{wrong=c1}", "--report", report)
    done = graphpass("optimize", model, *options)
    failed(done, 1, "pass negate: AddIsSub at 'a1': off by")
    assert names(model.parent) == ["net.onnx", "r.xml"]
    assert "AddIsSub" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nope"], "--nope"),
        (["-o", "MODEL"], "is the input: --in-place replaces it"),
        (["-o", "FOLDER/./net.onnx"], "is the input"),
        (["-o", "x.onnx", "--in-place"], "either --output or --in-place"),
        (["--passes", "tidy", "--pipeline", "default"], "either --passes or --pipeline"),
        (["--passes", "nope"], "there is no pass 'nope'"),
        (["--passes", "tidy{x=1}"], "pass tidy has no option 'x'"),
        (["--pipeline", "nope"], "there is no pipeline 'nope'"),
        (["--skip", "nope"], "there is no pass 'nope' to skip"),
        (["--bind", "N"], "is not NAME=NUMBER"),
        (["--bind", "M=2"], "no symbolic dimension 'M'"),
        (["--inputs", "nope.npz"], "nope.npz"),
        (["--report", "r.pdf"], ".json"),
        (["--report", "MODEL"], "ends in none"),
        (["--timeout", "0"], "timeout"),
    ],
)
def test_2_usage(graphpass: Command, model: Path, arguments: list[str], text: str) -> None:
    filled = [
        a.replace("MODEL", str(model)).replace("FOLDER", str(model.parent)) for a in arguments
    ]
    failed(graphpass("optimize", model, *filled), 2, text)
    assert names(model.parent) == ["net.onnx"]


def test_2_a_hard_link_to_the_input_is_the_input(graphpass: Command, model: Path) -> None:
    other = model.with_name("other.onnx")
    other.hardlink_to(model)
    failed(graphpass("optimize", model, "-o", other), 2, "is the input")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (b"\x08\x07\x12", "not a valid ONNX model"),
        (b"just text", "text"),
    ],
)
def test_3_no_usable_model(
    graphpass: Command, tmp_path: Path, content: bytes | None, text: str
) -> None:
    path = tmp_path / "in.onnx"
    if content is not None:
        path.write_bytes(content)
    failed(graphpass("optimize", path), 3, text)
    failed(graphpass("compare", path, path), 3, text)
    failed(graphpass("inspect", path), 3, text)
    assert names(tmp_path) == ([] if content is None else ["in.onnx"])


def test_4_what_does_not_run_is_not_written(graphpass: Command, tmp_path: Path) -> None:
    path = tmp_path / "custom.onnx"
    text = "(float[2] x) => (float[2] y) { a = Identity(x) y = other.Thing(a) }"
    onnx.save(graph(text, domains={"other": 1}), path)
    failed(graphpass("optimize", path, "--passes", "mysterious"), 4, "--no-validate")
    failed(graphpass("optimize", path, "--strict"), 4, "the original model does not run")
    assert names(tmp_path) == ["custom.onnx"]
    assert graphpass("optimize", path, "--no-validate").code == 0
    assert len(onnx.load(tmp_path / "custom.opt.onnx").graph.node) == 1
    done = graphpass("optimize", path)  # what it does to it can be run
    assert done.code == 0 and "each rewrite was run on its own" in done.out
    quiet = graphpass("optimize", path, "-q")
    assert quiet.code == 0 and quiet.out == ""
    assert quiet.err.startswith("graphpass: levels 3, 4 of validation did not run: the original")


def test_what_was_asked_of_the_interface_and_refused_is_told_however_quiet(
    graphpass: Command, tmp_path: Path
) -> None:
    mixing, plain = tmp_path / "mixing.onnx", tmp_path / "plain.onnx"
    onnx.save(graph("(float[1,3] x) => (float[1,3] y) { y = CumSum(x, i) }", i=np.int64(0)), mixing)
    onnx.save(graph("(float[1,3] x) => (float[1,3] y) { y = Relu(x) }"), plain)
    refused = graphpass("optimize", mixing, "--passes", "free-batch", "-q")
    assert refused.code == 0 and refused.out == ""  # what is written is valid, and as it was
    assert refused.err.startswith("graphpass: free-batch changed nothing: CumSum ")
    assert refused.err.count("\n") == 1
    done = graphpass("optimize", plain, "--passes", "free-batch", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_passes_are_known_by_their_own_names() -> None:
    places = importlib.import_module("graphpass.passes").PLACES
    assert list(registry.builtin_types()) == list(places)


def test_a_pass_is_imported_where_it_is_asked_for() -> None:
    asked = "from graphpass.rewrite.registry import make; make('fold-batchnorm')"
    told = (
        f"import sys; {asked}; print(*(n for n in sys.modules if n.startswith('graphpass.passes')))"
    )
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert "graphpass.passes.fold_batchnorm" in found
    assert "graphpass.passes.to_fp16" not in found and "graphpass.passes.score_map" not in found


@pytest.mark.parametrize("killed", [1, 2])
def test_4_a_process_that_dies_twice_while_the_result_is_checked(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    load, worker, left = Runtime.load, Runtime.worker, [killed]

    def deadly(runtime: Runtime) -> Any:
        found = worker(runtime)
        if left[0]:
            left[0] -= 1
            os.kill(found.pid, signal.SIGKILL)
        return found

    def loading(runtime: Runtime, source: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(source, Path):  # the written file
            monkeypatch.setattr(Runtime, "worker", deadly)
        return load(runtime, source, *arguments, **options)

    monkeypatch.setattr(Runtime, "load", loading)
    done = graphpass("optimize", model, "--passes", "tidy")
    if killed == 1:
        assert done.code == 0
        return
    failed(done, 4, "SIGKILL")
    assert names(model.parent) == ["net.onnx"]


def test_4_a_provider_that_is_not_there(graphpass: Command, model: Path) -> None:
    failed(graphpass("optimize", model, "--provider", "nope"), 4, "nope")


def test_5_output_that_cannot_be_written(graphpass: Command, model: Path) -> None:
    failed(graphpass("optimize", model, "-o", model.parent / "no/such.onnx"), 5, "no folder")
    failed(graphpass("optimize", model, "-o", model.parent), 5, "is a folder")
    report = model.parent / "no/r.json"
    failed(graphpass("optimize", model, "--report", report), 5, "no folder")
    assert names(model.parent) == ["net.onnx"]


def test_5_standard_output_that_ends(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", TOY_CLI, "optimize", str(model), "-o", "-"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert done.returncode == 5 and b"Traceback" not in done.stderr


def test_a_bug_is_one_sentence_and_a_traceback_only_on_request(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise KeyError("oops\nand more")

    monkeypatch.setattr(optimization, "optimize", broken)
    failed(graphpass("optimize", model), 70, "this is a bug in graphpass (KeyError")
    monkeypatch.setenv("GRAPHPASS_DEBUG", "1")
    with pytest.raises(KeyError):
        graphpass("optimize", model)


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "slow.onnx"
    text = """(float[2] x, int64 n) => (float[2] y) {
        c = Constant<value = bool {1}>()
        y = Loop(n, c, x) <body = b (int64 i, bool k, float[2] a) => (bool l, float[2] z) {
            l = Identity(k) z = Add(a, a) }>
    }"""
    model = graph(text)
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(10**12), "n"))
    onnx.save(model, path)
    # whoever runs the tests may have the signal ignored
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", heard + TOY_CLI, "optimize", str(path), "--in-place"]
    command += ["--memory-limit", "2000"]  # a Loop of so many trips is not run unasked
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    before = path.read_bytes()
    while not psutil.Process(running.pid).children():  # what runs the model
        assert running.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130
    assert out == b"" and err.strip() == b"graphpass: interrupted"
    assert names(tmp_path) == ["slow.onnx"] and path.read_bytes() == before


# ------------------------------------------------------------------------- order of things


@pytest.mark.parametrize("place", ["folder.md", "none/r.md", "pipe.json"])
def test_a_report_that_cannot_be_written_is_known_before_the_run(
    place: str, graphpass: Command, model: Path
) -> None:
    (model.parent / "folder.md").mkdir()
    os.mkfifo(model.parent / "pipe.json")
    before = names(model.parent)
    done = graphpass("optimize", model, "--report", model.parent / place)
    assert done.code == 5 and f"cannot write {model.parent / place}" in done.err
    assert names(model.parent) == before


def test_a_report_whose_disk_is_full_keeps_the_model_from_being_written(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if "r.json" in path.name and "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    done = graphpass("optimize", model, "--report", model.parent / "r.json")
    assert done.code == 5 and "No space left on device" in done.err
    assert names(model.parent) == ["net.onnx"]


def test_where_the_model_cannot_be_delivered_no_report_says_so(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(staged: object) -> None:
        raise OutputError("cannot write it")

    monkeypatch.setattr(StagedModel, "commit", refuse)
    assert graphpass("optimize", model, "--report", model.parent / "r.json").code == 5
    assert names(model.parent) == ["net.onnx"]


def test_reproducers_that_have_no_place_are_known_before_the_run(
    graphpass: Command, model: Path
) -> None:
    done = graphpass("optimize", model, "--reproducers", model / "x")
    assert done.code == 5 and "is not a folder" in done.err
    assert names(model.parent) == ["net.onnx"]


def test_names_that_are_only_ours_are_not_shown(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(judge: Judge, path: Path, checked: object) -> Check:
        return Check("invalid", False, f"{path} is damaged")

    monkeypatch.setattr(Judge, "check_file", damaged)
    done = graphpass("optimize", model)
    assert f"{model.with_name('net.opt.onnx')} is damaged" in done.err
    assert ".graphpass" not in done.err


# ------------------------------------------------------------------------------------ pipes


@pytest.mark.parametrize("original_first", [True, False])
def test_what_comes_through_a_pipe_is_compared(model: Path, original_first: bool) -> None:
    made = process("optimize", model, "-q", "-o", "-").stdout
    other = graph("(float[2] x) => (float[2] y) { y = Neg(x) }").SerializeToString()
    files = (model, "-") if original_first else ("-", model)
    for content, code in ((made, 0), (other, 1), (b"", 3)):
        done = process("compare", *files, input=content)
        assert done.returncode == code, done.stderr


def test_passes_chain_in_a_shell_pipe(graphpass: Command, model: Path) -> None:
    content = model.read_bytes()
    first = process("optimize", "-", "--passes", "tidy", input=content)
    assert first.returncode == 0
    assert b"standard input \xe2\x86\x92 standard output" in first.stderr
    second = process("optimize", "-", "-q", "--passes", "negate", input=first.stdout)
    assert second.returncode == 0 and second.stderr == b""
    graphpass("optimize", model)
    assert second.stdout == model.with_name("net.opt.onnx").read_bytes()


def test_standard_input_to_a_file_and_a_file_to_standard_output(model: Path) -> None:
    target = model.with_name("out.onnx")
    assert process("optimize", "-", "-o", target, input=model.read_bytes()).returncode == 0
    assert process("optimize", model, "-o", "-").stdout == target.read_bytes()


def test_standard_input_that_is_no_model(model: Path) -> None:
    done = process("optimize", "-", input=b"")
    assert done.returncode == 3 and done.stdout == b""
    assert done.stderr.startswith(b"graphpass: ") and b"Traceback" not in done.stderr


def test_a_terminal_is_not_sent_a_model(
    graphpass: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    code = run(["optimize", str(model), "-o", "-"])
    assert code == 2


# ----------------------------------------------------------------------------- plug-ins

PLUG_IN = '''
from dataclasses import dataclass
from graphpass import Op, Pass, Rule, any_

class TwoRelus(Rule):
    """Relu(Relu(x)) = Relu(x)."""

    pattern = Op("Relu", Op("Relu", any_("x")))

    def rewrite(self, x):
        return Op("Relu", x)

@dataclass(frozen=True)
class Plugged(Pass):
    """One Relu is enough."""

    name = "plugged"
    rules = (TwoRelus(),)
'''


def installed(folder: Path, source: str) -> dict[str, str]:
    """Put a plug-in where an installer would; return the environment that has it."""
    (folder / "plugged.py").write_text(source)
    (folder / "plugged-1.dist-info").mkdir()
    (folder / "plugged-1.dist-info" / "METADATA").write_text("Name: plugged\nVersion: 1\n")
    entry = "[graphpass.passes]\nmine = plugged\n"
    (folder / "plugged-1.dist-info" / "entry_points.txt").write_text(entry)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_plug_in_is_found_and_runs_only_when_asked_for(tmp_path: Path) -> None:
    environment = installed(tmp_path, PLUG_IN)
    text = "(float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }"
    onnx.save(graph(text), tmp_path / "in.onnx")

    def graphpass(*arguments: str) -> str:
        command = [sys.executable, str(ROOT / "cli.py"), *arguments]
        done = subprocess.run(
            command, capture_output=True, cwd=tmp_path, env=environment, text=True, check=True
        )
        return done.stdout

    assert "One Relu is enough." in graphpass("passes")
    told = graphpass("optimize", "in.onnx", "--passes", "fold-batchnorm", "--no-latency")
    assert "in: nothing to rewrite in 2 nodes" in told
    assert "within" not in graphpass("optimize", "in.onnx", "--passes", "plugged", "--no-latency")
    assert len(onnx.load(tmp_path / "in.opt.onnx").graph.node) == 1


def test_a_broken_plug_in_is_named_where_it_is_needed(tmp_path: Path) -> None:
    environment = installed(tmp_path, "import nothing_of_that_name")

    def graphpass(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "cli.py"), *arguments]
        return subprocess.run(command, capture_output=True, env=environment, text=True, check=False)

    done = graphpass("passes")
    assert done.returncode == 2 and done.stdout == ""
    assert "the plug-in mine cannot be loaded: it failed: ModuleNotFoundError" in done.stderr
    assert graphpass("passes", "clean-up").returncode == 0


# ------------------------------------------------------------------------ the other commands


def test_compare_finds_a_difference(graphpass: Command, model: Path) -> None:
    other = model.with_name("other.onnx")
    onnx.save(chain(), other)
    done = graphpass("compare", model, other)
    assert done.code == 0 and done.out.startswith("equal: ")
    changed = chain()
    changed.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full(7, 2.0, np.float32), "c0")
    )
    onnx.save(changed, other)
    done = graphpass("compare", model, other)
    assert done.code == 1 and done.out.startswith("differs: output 'y' differs by")
    assert graphpass("compare", model, other, "--atol", "100").code == 0


def test_inspect_shows_what_would_be_done(graphpass: Command, model: Path) -> None:
    before = model.read_bytes()
    done = graphpass("inspect", model)
    assert done.code == 0
    assert "12 nodes, 28 parameters; opset" in done.out
    assert re.search(r"^Add +4 +28", done.out, re.MULTILINE)
    assert "tidy: 4 rewrites, 0 refused" in done.out
    assert "4 × DropIdentity: " in done.out
    assert "DropIdentity: Identity of 'i0' → nothing" in graphpass("inspect", model, "-v").out
    assert model.read_bytes() == before and names(model.parent) == ["net.onnx"]


def test_inspect_lists_nodes_and_prints_json(graphpass: Command, model: Path) -> None:
    listed = graphpass("inspect", model, "a1", "--cost").out.splitlines()
    assert " parameters multiply-adds weights activations" in listed[0]
    assert listed[1].split() == ["a1", "Add", "[1,", "7]", "float32", "7", "28", "B", "28", "B"]
    told = json.loads(graphpass("inspect", model, "--json").out)
    assert told["inputs"] == [{"name": "x", "type": "[N, 7] float32"}]
    assert told["operators"] == {"Add": 4, "Identity": 4, "Relu": 4}
    assert [node["node"] for node in told["nodes"]][:3] == ["a0", "i0", "r0"]
    assert told["nodes"][0]["dtype"] == "float32" and told["nodes"][0]["parameters"] == 7
    (tidy,) = [step for step in told["passes"] if step["name"] == "tidy"]
    assert len(tidy["rewrites"]) == 4 and tidy["error"] is None
    one = json.loads(graphpass("inspect", model, "i2", "--json").out)
    assert [node["node"] for node in one["nodes"]] == ["i2"]
    assert [len(step["rewrites"]) for step in one["passes"] if step["name"] == "tidy"] == [1]
    assert json.loads(graphpass("inspect", model, "--json", "--cost").out)["passes"] == []


def test_inspect_one_node_says_why_not(graphpass: Command, model: Path) -> None:
    changed = onnx.load(model)
    changed.graph.initializer[1].name = "c_kept"
    changed.graph.node[3].input[1] = "c_kept"
    onnx.save(changed, model)
    done = graphpass("inspect", model, "a1")
    assert done.code == 0
    assert done.out.splitlines()[0] == "a1 = Add(r0, c_kept)"
    assert "Add of 'a1' stays: 'c_kept' is not to be negated (AddIsSub)" in done.out
    assert "'a0'" not in done.out
    failed(graphpass("inspect", model, "nope"), 2, "there is no node or tensor 'nope'")


def test_passes_are_listed_and_explained(graphpass: Command) -> None:
    listed = graphpass("passes")
    assert listed.code == 0 and "Drops Identities, which is right." in listed.out
    shown = graphpass("passes", "negate")
    assert "wrong (str, default )" in shown.out
    assert "AddIsSub: Add(x, c) = Sub(x, -c)" in shown.out
    failed(graphpass("passes", "nope"), 2, "there is no pass 'nope'")


def fixture(folder: Path, name: str, header: str) -> None:
    text = "(float[N,7] x) => (float[N,7] y) {\n  i = Identity(x)\n  y = Add(i, c)\n}\n"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"{header}\n# constant: c float[7]\n{text}")


def test_fixtures_say_what_is_not_as_expected(graphpass: Command, tmp_path: Path) -> None:
    fixture(tmp_path / "tidy", "right.txt", "# note: why\n# after: Add")
    fixture(tmp_path / "tidy", "wrong.txt", "# after: Identity Add")
    fixture(tmp_path / "negate", "other.txt", "# after: Sub\n# exact")
    done = graphpass("test", "--fixtures", tmp_path)
    assert done.code == 1
    assert "ok   tidy/right.txt: after: Add" in done.out
    assert "FAIL tidy/wrong.txt: after: Identity Add" in done.out
    assert "expected: Identity Add" in done.out and "found:    Add" in done.out
    assert done.out.endswith("2 of 3 as expected\n")
    only = graphpass("test", "negate", "--fixtures", tmp_path, "-v")
    assert only.code == 0 and only.out.endswith("1 of 1 as expected\n")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("# refused: no reason", "expected a refusal, but"),
        ("# pass: nope", "there is no pass 'nope'"),
        ("# after: Add\n# constant: d float[2] = [1]", "cannot be read"),
        ("# untouched", "rewritten: ['DropIdentity']"),
        ("# pass: untidy, negate\n# after: Sub", "run again, it changes more"),
        ("# pass: negate{wrong=c}", "output y: error"),
    ],
)
def test_a_fixture_fails_where_it_should(
    graphpass: Command, tmp_path: Path, header: str, problem: str
) -> None:
    fixture(tmp_path / "tidy", "case.txt", header)
    done = graphpass("test", "--fixtures", tmp_path)
    assert done.code == 1 and problem in done.out, done.out


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("# afterwards: Add", "line 1: 'afterwards'"),
        ("# after: Add\n# untouched", "expects more than one"),
        ("# bind: N", "is not NAME=NUMBER"),
    ],
)
def test_a_header_that_makes_no_sense_is_usage(
    graphpass: Command, tmp_path: Path, header: str, text: str
) -> None:
    fixture(tmp_path / "tidy", "case.txt", header)
    failed(graphpass("test", "--fixtures", tmp_path), 2, text)
    failed(graphpass("test", "--fixtures", tmp_path / "none"), 2, "there is no folder")


def test_help_is_quick() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "cli.py", "--help"],
        capture_output=True,
        check=True,
        text=True,
    )
    # no time is taken, the machine may be busy: what is imported is what it takes
    assert "optimize" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"numpy", "onnx", "onnxruntime", "rich", "google.protobuf"}
