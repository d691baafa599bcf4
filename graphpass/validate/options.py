"""The options of validation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from graphpass.errors import UsageError
from graphpass.validate.process.channel import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class ValidationOptions:
    """How to validate.

    providers: execution providers by short name (cpu, cuda, …); every one is compared.
    bind: numbers for symbolic dimensions, ``{"N": 4}``; one without a name is ``input[axis]``.
    inputs: arrays by name, an .npz, or a folder of .pb; inputs left out are drawn.
    rtol: tolerance relative to the output's scale; atol: absolute. Either replaces the noise floor.
    time_limit_s: for one request (load or run) to ONNX Runtime; None: no limit.
    memory_limit_mib: of its process; None: three quarters of what the machine has; where what a run
    takes depends on values, 768 MiB or eight times the model, and 10 s a run where it has loops.
    The memory limit does not hold with cuda, whose driver reserves more address space than memory.
    factor: how many times the noise floor an output may move.
    threads: of ONNX Runtime; None: as many as there are processors.
    custom_ops: libraries with operators of one's own, which ONNX Runtime loads.
    """

    providers: tuple[str, ...] = ("cpu",)
    seed: int = 0
    bind: Mapping[str, int] = field(default_factory=dict)
    inputs: Path | str | Mapping[str, Array] | None = None
    rtol: float | None = None
    atol: float | None = None
    time_limit_s: float | None = 300.0
    memory_limit_mib: int | None = None
    factor: float = 10.0
    threads: int | None = None
    custom_ops: tuple[Path, ...] = ()

    @classmethod
    def of(cls, **given: Unpack[ValidationArguments]) -> ValidationOptions:
        """Return the options that the arguments of a public function say."""
        arguments: dict[str, Any] = dict(given)
        inputs = given.get("inputs")
        arguments["inputs"] = Path(inputs) if isinstance(inputs, (str, os.PathLike)) else inputs
        arguments["providers"] = tuple(dict.fromkeys(given.get("providers", cls.providers)))
        arguments["bind"] = dict(given.get("bind") or {})
        arguments["custom_ops"] = tuple(map(library, given.get("custom_ops") or ()))
        return cls(**arguments)


def library(path: str | os.PathLike[str]) -> Path:
    """Return the file of a library of custom operators. Raises UsageError if it is not there."""
    found = Path(path).resolve()
    if not found.is_file():
        raise UsageError(f"there is no library of custom operators at '{path}'")
    return found


class ValidationArguments(TypedDict, total=False):
    """The fields of `ValidationOptions` as public functions take them."""

    providers: Sequence[str]
    seed: int
    bind: Mapping[str, int] | None
    inputs: str | os.PathLike[str] | Mapping[str, Array] | None
    rtol: float | None
    atol: float | None
    time_limit_s: float | None
    memory_limit_mib: int | None
    factor: float
    threads: int | None
    custom_ops: Sequence[str | os.PathLike[str]]
