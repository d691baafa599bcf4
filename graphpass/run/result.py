"""What `graphpass.optimize` returns: the model, the report, and the way into a file."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import onnx

from graphpass.errors import DifferenceError, OutputError
from graphpass.ir.model import Model
from graphpass.report.data import (
    Check,
    FileFacts,
    Report,
    file_facts,
)
from graphpass.report.summary import verdict
from graphpass.resources import Closing
from graphpass.run.judge import Judge
from graphpass.run.pipeline import Progress
from graphpass.storage import remote
from graphpass.storage.layout import ExternalData
from graphpass.storage.provenance import other_than_hashed
from graphpass.storage.reference import reference_of, tensors
from graphpass.storage.writer import WrittenFiles, stage_model
from graphpass.wording import visible

# is told of a report when all but the renaming is done
BeforeCommit = Callable[[Report], None]


class Result(Closing):
    """An optimized model and the report on it. `save` delivers it.

    Use as a context manager, or `close` it, to end the process that ONNX Runtime runs in.
    """

    def __init__(
        self,
        model: Model,
        report: Report,
        judge: Judge,
        hashed: Mapping[str, str],
        sha256: bool,
        progress: Progress,
    ) -> None:
        """Made by `optimize`."""
        self.report = report
        self._model = model
        self._judge = judge
        self._hashed = hashed
        self._sha256 = sha256
        self._progress = progress

    @property
    def model(self) -> onnx.ModelProto:
        """The optimized model as an ordinary ModelProto, with every weight in it."""
        return self._model.to_proto()

    def html(self) -> str:
        """Return the report as one HTML page that draws the graph before and after."""
        from graphpass.report.page.page import page

        return page(self.report, self.skeletons)

    def __repr__(self) -> str:
        """Say in one line what was done."""
        return f"<Result {visible(verdict(self.report))}>"

    def _repr_html_(self) -> str:
        """Say it to a notebook, with tables."""
        from graphpass.report.notebook import notebook

        return notebook(self.report)

    @property
    def skeletons(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The model before and after, without large weights: for reports and tools that draw."""
        return self._judge.original, self._model.proto

    @property
    def changed(self) -> bool:
        """Whether any pass changed anything."""
        return any(entry.outcome == "kept" for entry in self.report.passes)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: ExternalData = "auto",
        external_data_size_threshold: int | None = None,
        before: BeforeCommit | None = None,
    ) -> WrittenFiles:
        """Write the model beside `path`, check the file as it is, and rename it into place.

        `external_data`: "never": all in one file; "always": weights in a file of their own;
        "auto": as the input had it, or where 2 GiB are not enough. Weights of fewer bytes than
        `external_data_size_threshold` stay in the model file; None: of fewer than 1024, but with
        "auto" each stays where it was. Raises `OutputError` where it
        cannot be written, `DifferenceError` where the file is not what was checked; then nothing
        is changed at `path`. Of what goes to a URL, names are returned in place of paths.
        `before` is called with the report when nothing is left to do but to rename: what it
        raises keeps the model from being delivered.
        """
        if isinstance(path, str) and remote.is_url(path):
            return self._upload(path, external_data, external_data_size_threshold, before)
        path = remote.local(path)
        start = time.perf_counter()
        self._progress("writing", 0.9)
        if external_data == "auto" and self._lost_external_data():
            external_data = "always"
        with stage_model(
            self._model.proto,
            path,
            external_data=external_data,
            size_threshold=external_data_size_threshold,
        ) as staged:
            self._check(staged.path, path)
            facts = [file_facts(file, sha256=self._sha256) for file in staged.files]
            self._delivered(facts, start)
            if before is not None:
                before(self.report)
            written = staged.commit()
        self._note_superseded(written)
        return written

    def _upload(
        self,
        url: str,
        external_data: ExternalData,
        size_threshold: int | None,
        before: BeforeCommit | None,
    ) -> WrittenFiles:
        with remote.delivery(url) as delivery:
            written = self.save(
                delivery.path,
                external_data=external_data,
                external_data_size_threshold=size_threshold,
                before=before,
            )
            published = delivery.publish(written)
        self._note_superseded(published)
        return published

    def _note_superseded(self, written: WrittenFiles) -> None:
        self.report.warnings.extend(
            f"the old data file {left} was left: another model may need it"
            for left in written.superseded
        )
        self.report.warnings.extend(
            f"{path} was left alone: graphpass did not put it there" for path in written.left_alone
        )

    def write(self, stream: IO[bytes]) -> int:
        """Write the model as one file to a stream, checked first; return its size in bytes.

        Raises as `save` does.
        """
        start = time.perf_counter()
        self._progress("writing", 0.9)
        with tempfile.TemporaryDirectory(prefix="graphpass-") as folder:
            path = Path(folder) / "model.onnx"
            with stage_model(self._model.proto, path, external_data="never") as staged:
                self._check(staged.path, None)
                facts = file_facts(staged.path, sha256=self._sha256)
                with staged.path.open("rb") as file:
                    try:
                        shutil.copyfileobj(file, stream, 1 << 20)
                        stream.flush()
                    except OSError as error:
                        reason = error.strerror or error
                        raise OutputError(f"cannot write the model: {reason}") from None
        self._delivered([FileFacts("-", facts.size_bytes, facts.sha256)], start)
        return facts.size_bytes

    def _lost_external_data(self) -> bool:
        """Whether the input had external data, and passes replaced every weight that was there."""
        references = filter(None, map(reference_of, tensors(self._model.proto)))
        left = any(reference.origin == "external" for reference in references)
        return len(self.report.input.files) > 1 and not left

    def _check(self, path: Path, destination: Path | None) -> None:
        """Check the file at `path`, for now; nobody but us knows that name."""
        self._progress("checking the written file", 0.95)
        check = self._judge.check_file(path, self._model.proto)
        if check.ok and self._hashed:
            other = other_than_hashed(self._model.proto, path, self._hashed)
            if other:
                reason = f"it does not hold the weights of {other} whose hash was taken"
                check = Check("differs", False, reason)
        if str(path) in check.reason:
            shown = "the model" if destination is None else str(destination)
            check = replace(check, reason=check.reason.replace(str(path), shown))
        self.report.delivery = check
        if not check.ok:
            message = f"the written file failed its check and was removed: {check.reason}"
            raise DifferenceError(message, self.report)

    def _delivered(self, files: list[FileFacts], start: float) -> None:
        self._progress("done", 1.0)
        self.report.output = replace(self.report.output, files=tuple(files))
        self.report.total_s += time.perf_counter() - start

    def close(self) -> None:
        """End the process that ONNX Runtime runs in."""
        self._judge.close()
