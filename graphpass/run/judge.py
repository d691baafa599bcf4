"""Who may pass: a candidate is let through if it is valid and computes what the original does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import onnx

from graphpass.errors import GraphpassError, RuntimeUnavailableError
from graphpass.report.data import Check
from graphpass.resources import Closing
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.storage.identity import difference
from graphpass.storage.wire import read_skeleton
from graphpass.validate.exact.check import Site
from graphpass.validate.exact.verdict import ExactVerdict
from graphpass.validate.options import ValidationOptions
from graphpass.validate.process.constants import runtime_for_constants
from graphpass.validate.process.runtime import RunError, available_cpus
from graphpass.validate.structure import check_structure
from graphpass.validate.validator import Latency, Validator

_LARGE_FILE_BYTES = 192 << 20
_OF_OUTPUTS = ("equal", "within tolerance", "differs", "not comparable")


class Judge(Closing):
    """Checks candidates against one original, in ONNX Runtime unless `validate` is False.

    Use as a context manager, or `close` it: a worker process runs the models. After `close`,
    the next check starts another one; the original's outputs are kept.
    """

    def __init__(
        self, original: onnx.ModelProto, options: ValidationOptions, *, validate: bool = True
    ) -> None:
        self.options = options
        self.validates = validate
        self.not_run = ""  # why the model as a whole tells nothing, where that is so
        self._runs = True  # whether it can be run all the same
        self._original = onnx.ModelProto()
        self._original.CopyFrom(original)  # passes go on patching theirs
        self._validator = Validator(self._original, options) if validate else None

    @property
    def original(self) -> onnx.ModelProto:
        """The skeleton that candidates are held against."""
        return self._original

    @property
    def runs(self) -> bool:
        """Whether the original can be run."""
        return self._validator is not None and self._runs

    @property
    def threads(self) -> int:
        """How many threads ONNX Runtime uses."""
        return self.options.threads or available_cpus()

    def prepare(self) -> None:
        """Run the original, so that what makes it unusable shows before any work is done.

        Raises `RuntimeUnavailableError` where it does not run, `UsageError` where the inputs or
        bindings that were given do not fit it.
        """
        if self._validator is not None:
            self._validator.prepare()

    def admit(self, candidate: onnx.ModelProto) -> None:
        """Hold a candidate that is a stranger to the limits of one.

        Raises `RuntimeUnavailableError` where it is not run unasked.
        """
        if self._validator is not None:
            self._validator.admit(candidate)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs that the original was run on first, if it was."""
        return {} if self._validator is None or not self._runs else self._validator.shapes()

    def nothing_to_compare(self) -> str:
        """Say why no output tells anything; "" where one does, or nothing is validated."""
        return self._validator.nothing_to_compare() if self._validator is not None else ""

    def do_without_reference(self, reason: str, *, runs: bool = False) -> None:
        """Let structure and the windows of the rewrites decide.

        `runs`: the original does run, so that a candidate has to, but its outputs tell nothing.
        """
        self.not_run, self._runs = reason, runs

    def check(
        self, candidate: onnx.ModelProto, *, interface_may_change: Interface | bool = False
    ) -> Check:
        """Compare a skeleton with the original."""
        if self._validator is not None and self._runs:
            verdict = self._validator.check(candidate, interface_may_change=interface_may_change)
            if not (self.not_run and verdict.status in _OF_OUTPUTS):
                return Check.of(verdict)
        problems = check_structure(
            self._original, candidate, interface_may_change=interface_may_change
        )
        if problems:
            return Check("invalid", False, problems[0])
        return self._unrun("valid ONNX with the same interface")

    def check_file(self, path: Path, checked: onnx.ModelProto) -> Check:
        """Say whether a file is what was checked, to the byte, and ONNX Runtime takes it.

        Without validation, what its weights hold is not read again. Of a large file ONNX Runtime
        is given all but the weights, which it takes from where they lie: of the file itself it
        makes two copies in memory.
        """
        try:
            written = read_skeleton(path)
            problem = difference(checked, written, contents=self.validates)
        except GraphpassError as error:
            return Check("invalid", False, str(error))
        if problem:
            return Check("differs", False, f"it is not the model that was checked: {problem}")
        if self._validator is None or not self._runs:
            return self._unrun("the model that was checked")
        try:
            is_large = path.stat().st_size > _LARGE_FILE_BYTES
            self._validator.load(written if is_large else path)
        except RunError as error:
            if error.kind != "load":  # it says nothing of the file
                raise RuntimeUnavailableError(
                    f"the written file was not checked: {error}"
                ) from None
            return Check("cannot run", False, str(error))
        return Check("equal", True, "to the byte the model that was checked; ONNX Runtime loads it")

    def _unrun(self, what: str) -> Check:
        if self.not_run:
            return Check("windows only", True, f"{what}; each rewrite was run, but not the whole")
        return Check("not validated", True, f"{what}; it was not run")

    def check_windows(self, windows: Sequence[Window | None]) -> list[WindowVerdict]:
        """Run rewrites on their own, each before and after (see `validate.windows`)."""
        if self._validator is None:
            return [WindowVerdict("not run", reason="nothing was run")] * len(windows)
        return self._validator.check_windows(windows)

    def check_exactly(self, sites: Sequence[Site]) -> list[ExactVerdict]:
        """Compute rewrites in exact arithmetic (see `validate.exact`)."""
        if self._validator is None:
            return [ExactVerdict("not replayed", reason="nothing was run")] * len(sites)
        return self._validator.check_exactly(sites)

    def evaluating(self) -> AbstractContextManager[None]:
        """Let passes compute constants, in the process that validates where there is one."""
        if self._validator is None:
            return runtime_for_constants()
        return self._validator.evaluating()

    def latency(self, before: onnx.ModelProto, after: onnx.ModelProto) -> Latency | None:
        """Time two skeletons in turn; None where that cannot be done."""
        if self._validator is None or not self._runs:
            return None
        try:
            return self._validator.latency(before, after)
        except RunError:
            return None  # runs without ONNX Runtime's optimizations, but not with them

    def site_shapes(self, window: Window) -> tuple[dict[str, list[int]], str]:
        """Return the shapes of a window's inputs in the user's run; {} and why not, if unknown."""
        if self._validator is None or not self._runs:
            return {}, "the model is not run, so that its sizes are not known"
        return self._validator.site_shapes(window)

    def time_site(self, window: Window, shapes: Mapping[str, Sequence[int]]) -> Latency | str:
        """Time one rewrite with its surroundings; a sentence where that cannot be done."""
        assert self._validator is not None
        try:
            return self._validator.time_site(window, shapes)
        except RunError as error:
            return str(error)

    def close(self) -> None:
        """End the worker process."""
        if self._validator is not None:
            self._validator.close()
