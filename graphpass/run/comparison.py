"""`graphpass.compare`: the validator alone, on two models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from graphpass.ir.model import Model
from graphpass.report.data import (
    Check,
)
from graphpass.run.blame import blamed
from graphpass.run.judge import Judge
from graphpass.validate.options import ValidationArguments, ValidationOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

Source = Model | onnx.ModelProto | bytes | str | os.PathLike[str]


def compare(
    original: Source,
    candidate: Source,
    *,
    freeze_initializers: bool = False,
    allow_external: Sequence[str | os.PathLike[str]] = (),
    **validation: Unpack[ValidationArguments],
) -> Check:
    """Say whether `candidate` may stand in for `original`; arguments as for `optimize`.

    Raises `ModelError` where one of them is no usable model, `RuntimeUnavailableError` where
    ONNX Runtime cannot run the original, `UsageError` where the inputs do not fit it.
    """
    allowed = [Path(folder) for folder in allow_external]
    options = ValidationOptions.of(**validation)
    one = Model.load(original, allow_external=allowed, time_limit_s=options.time_limit_s)
    two = Model.load(candidate, allow_external=allowed, time_limit_s=options.time_limit_s)
    if freeze_initializers:
        one.freeze_initializers()
    with Judge(one.proto, options) as judge, blamed(judge.original):
        judge.prepare()
        judge.admit(two.proto)
        return judge.check(two.proto)
