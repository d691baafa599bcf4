"""Which rewrite is to blame: binary search over their number, with the user's own check."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphpass.errors import OutputError, UsageError
from graphpass.ir.model import Model
from graphpass.report.data import PassReport
from graphpass.report.reproducer import write
from graphpass.rewrite.applied import Rewrite
from graphpass.rewrite.rule import Pass
from graphpass.run.blame import blamed
from graphpass.run.judge import Judge
from graphpass.run.pipeline import Pipeline, Progress
from graphpass.storage.writer import stage_model
from graphpass.validate.baseline import ReferenceCannotRunError
from graphpass.validate.options import ValidationOptions

Check = Callable[[Path], bool]

_TEST = '''"""The check holds before {what} and fails after it."""

import subprocess
from pathlib import Path

COMMAND = {command!r}
FOLDER = {folder!r}  # where the command was run
HERE = Path(__file__).resolve().parent


def test_the_check_holds_with_the_rewrite():
    command = [part.replace("{{model}}", str(HERE / "bad.onnx")) for part in COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER)
    assert done.returncode == 0, f"exit code {{done.returncode}}: {{done.stdout}}{{done.stderr}}"
'''


@dataclass(frozen=True)
class Blamed:
    """The first rewrite after which the check fails, of `total`; `step`: the pass that made it.

    `shown`: whether it differs from what it replaces on its own.
    """

    step: str
    rewrite: Rewrite
    total: int
    checks: int
    shown: bool = True


def command_check(command: str, time_limit_s: float | None = None) -> Check:
    """Return a check that runs `command`, `{model}` in it replaced: exit code 0 is good.

    Raises `UsageError` where the command names no `{model}` or cannot be started.
    """
    parts = shlex.split(command)
    if not any("{model}" in part for part in parts):
        raise UsageError("the command of --check has no {model} in it")

    def check(model: Path) -> bool:
        filled = [part.replace("{model}", str(model)) for part in parts]
        try:
            done = subprocess.run(
                filled,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=time_limit_s,
            )
        except subprocess.TimeoutExpired:
            return False
        except OSError as error:
            raise UsageError(f"{parts[0]} cannot be started: {error.strerror}") from None
        return done.returncode == 0

    return check


def compare_command(original: Path, options: ValidationOptions) -> str:
    """Return the command that does what the search does where the user gives no check."""
    parts = [sys.executable, "-m", "graphpass", "compare", str(original.resolve()), "{model}", "-q"]
    for name in ("rtol", "atol", "seed"):
        value = getattr(options, name)
        parts += [f"--{name}", str(value)] if value is not None else []
    parts += ["--inputs", str(options.inputs)] if options.inputs is not None else []
    for library in options.custom_ops:
        parts += ["--custom-ops", str(library)]
    for symbol, size in options.bind.items():
        parts += ["--bind", f"{symbol}={size}"]
    return shlex.join(parts)


class Bisection:
    """Runs the passes again and again, each time some rewrites further or less far."""

    def __init__(
        self,
        source: Path,
        steps: Sequence[Pass],
        check: Check,
        options: ValidationOptions | None = None,
        *,
        validate: bool = True,
        allow_external: Sequence[Path] = (),
        progress: Progress | None = None,
    ) -> None:
        """`validate`: leave out what validation undoes, as `optimize` does."""
        self.steps = steps
        self.checks = 0
        self._source, self._check = source, check
        self._options = options or ValidationOptions()
        self._validate = validate
        self._progress = progress or (lambda text, done: None)
        self._loaded = Model.load(source, allow_external=allow_external)
        self._undone: list[PassReport] | None = None

    def run(self, folder: Path) -> Blamed | None:
        """Find the rewrite; write it, and the models around it, to `folder`.

        Returns None where the check holds with all rewrites. Raises `UsageError` where it fails
        on the original, or where no rewrite is to blame; `OutputError`.
        """
        with tempfile.TemporaryDirectory(prefix="graphpass-") as name:
            scratch = Path(name)
            self._progress("applying all passes", 0.05)
            whole = self._pipeline(None, validate=self._validate)
            self._undone = whole.reports
            total = sum(len(entry.rewrites) for entry in whole.reports)
            if not self._holds(0, scratch):
                raise UsageError("the check fails on the original already")
            if self._good(whole, scratch):
                return None
            good, bad = 0, total
            if self._holds(total, scratch):
                raise UsageError("no rewrite is to blame: a pass changes more than its rules do")
            while bad - good > 1:
                middle = (good + bad) // 2
                self._progress(f"with {middle} of {total} rewrites", 0.9 * self.checks / 20)
                holds = self._holds(middle, scratch)
                good, bad = (middle, bad) if holds else (good, middle)
        return self._write(bad, total, folder)

    def _pipeline(self, count: int | None, *, validate: bool = False) -> Pipeline:
        model = self._loaded.copy()
        judge = Judge(model.proto, self._options, validate=validate)
        with judge, blamed(judge.original):
            try:
                judge.prepare()
            except ReferenceCannotRunError as error:
                judge.do_without_reference(str(error))
            pipeline = Pipeline(model, judge, self.steps, max_rewrites=count, keep_windows=True)
            if self._undone is not None:
                pipeline.leave_out(self._undone)
            pipeline.run()
        return pipeline

    def _holds(self, count: int, scratch: Path) -> bool:
        return self._good(self._pipeline(count), scratch)

    def _good(self, pipeline: Pipeline, scratch: Path) -> bool:
        self.checks += 1
        path = scratch / "model.onnx"
        _save(pipeline.model, path)
        return self._check(path)

    def _write(self, number: int, total: int, folder: Path) -> Blamed:
        bad = self._pipeline(number)
        step, rewrite = next(
            (entry, made)
            for entry in bad.reports
            for made in entry.rewrites
            if made.number == number
        )
        facts = {"pass": step.name, "number": number, "of": total, "reason": "the check fails"}
        settings = {"seed": self._options.seed, "rtol": self._options.rtol}
        shown = write(rewrite, folder, facts, {**settings, "atol": self._options.atol})
        _save(self._pipeline(number - 1).model, folder / "good.onnx")
        _save(bad.model, folder / "bad.onnx")
        return Blamed(step.name, rewrite, total, self.checks, shown)


def write_test(folder: Path, command: str, found: Blamed) -> None:
    """Write the pytest file that fails: the check on the model with the rewrite."""
    what = f"{found.rewrite.rule} at {found.rewrite.site!r}".replace('"', "'").replace("\\", "/")
    text = _TEST.format(what=what, command=shlex.split(command), folder=str(Path.cwd()))
    try:
        (folder / "test_check.py").write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from None


def _save(model: Model, path: Path) -> None:
    with stage_model(model.proto, path) as staged:
        staged.commit()


__all__ = [
    "Bisection",
    "Blamed",
    "command_check",
    "compare_command",
    "write_test",
]
