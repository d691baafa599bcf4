"""Fixtures: a small model in ONNX text syntax, headed by what a pass must make of it.

    # pass: fold-batchnorm
    # note: each group of a grouped convolution has scales of its own
    # constant: W float[4,3,3,3]
    # constant: var float[4] = positive
    # after: Conv<group=2>
    (float[N,6,8,8] x) => (float[N,4,6,6] y) {
        c = Conv<group=2>(x, W)
        y = BatchNormalization(c, scale, shift, mean, var)
    }

Header lines:
  pass        what to run, as `--passes` takes it; default: the name of the folder
  note        why this fixture is there
  constant    NAME TYPE[DIMS], an initializer; `= normal` (default for floats), `positive`,
              `integers` (from -3 to 3; default for integers and where `exact`), a number to fill
              it with, or all values as a list
  after       the operators that must come of it, in order, with the attributes that matter
  interface   for a pass that changes them: inputs and outputs afterwards, (…) => (…); what they
              hold may be something else then, and no numbers are compared
  refused     part of the sentence with which the pass must refuse; the model stays as it is
  untouched   the pass must leave the model as it is, silently
  exact       outputs must be equal to the bit: inputs are small integers, too
  bind        NAME=NUMBER …, sizes of symbolic dimensions; default: 1, 2 and 3 in turn
  rtol        tolerance relative to an output's largest magnitude; default: 1e-5
  opset       of the model; default: 17. Other domains: `domain: NAME=VERSION`
Whatever the expectation, numbers are compared in ONNX Runtime, and the pass is run twice: the
second time it must find nothing to do.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphpass import testing
from graphpass.errors import GraphpassError, UsageError
from graphpass.ir.type_text import type_text
from graphpass.rewrite.registry import parse, split
from graphpass.rewrite.rule import Pass
from graphpass.storage.text import read_text

_SUFFIXES = {".txt", ".onnxtxt"}
_SINGLE = {"pass", "note", "after", "refused", "untouched", "interface", "exact", "rtol", "opset"}
_REPEATED = {"constant", "bind", "domain"}
_EXPECTATIONS = ("after", "refused", "untouched")
_MOST_ELEMENTS = 1 << 22
_CONSTANT = re.compile(r"(\S+)\s+(\w+)\s*(?:\[([\d,\s]*)\])?\s*(?:=\s*(.+))?$")


@dataclass(frozen=True)
class Fixture:
    """A fixture as it was read. `name` is its path below the folder that was searched.

    `spec`: the passes that it is for, as `--passes` takes them.
    """

    name: str
    spec: str
    text: str
    header: dict[str, str] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    dims: dict[str, int] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)

    @property
    def pass_names(self) -> set[str]:
        """The names of the passes that it is for."""
        return {name for name, _ in split(self.spec)}

    @property
    def passes(self) -> list[Pass]:
        """The passes that it is for. Raises `UsageError` where there is no such pass."""
        return parse(self.spec)

    @property
    def note(self) -> str:
        """Why the fixture is there."""
        return self.header.get("note", "")

    @property
    def expectation(self) -> str:
        """What must come of it, as one line."""
        for key in _EXPECTATIONS:
            if key in self.header:
                return f"{key}: {self.header[key]}".removesuffix(": ")
        return "the same numbers"

    def model(self) -> onnx.ModelProto:
        """Build the model. Raises `UsageError` where its text or a constant cannot be read."""
        exact = "exact" in self.header
        rng = np.random.default_rng(0)
        try:
            constants: dict[str, Any] = dict(_constant(c, exact, rng) for c in self.constants)
            return testing.graph(
                self.text,
                opset=int(self.header.get("opset", 17)),
                domains=self.domains,
                **constants,
            )
        except (ValueError, onnx.parser.ParseError) as error:
            raise UsageError(f"{self.name} cannot be read: {error}") from None


def find(folder: Path | None, passes: Sequence[str] = ()) -> Iterator[Fixture]:
    """Yield the fixtures in `folder`, those of `passes` only where any are named.

    Raises `UsageError` where the folder does not exist or a header makes no sense.
    """
    where = default_folder() if folder is None else folder
    if where is None or not where.is_dir():
        raise UsageError(f"there is no folder {where or 'fixtures'}: name one with --fixtures")
    for path in sorted(where.rglob("*")):
        case = read_file(path, where)
        if case is not None and (not passes or case.pass_names & set(passes)):
            yield case


def read_file(path: Path, root: Path) -> Fixture | None:
    """Read a fixture below the folder `root`; None where the file holds something else.

    Raises `UsageError` where its header makes no sense.
    """
    if path.suffix not in _SUFFIXES or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(1) != b"#":
            return None  # another text, such as the labels of a data set
    return read(read_text(path), str(path.relative_to(root)), path.parent.name)


def default_folder() -> Path | None:
    """Return ./fixtures, or else those that graphpass comes with."""
    package = Path(__file__).parents[1]
    for folder in (Path("fixtures"), package / "fixtures", package.parent / "fixtures"):
        if folder.is_dir():
            return folder
    return None


def read(text: str, name: str, default_pass: str = "") -> Fixture:
    """Read a fixture. Raises `UsageError` with the name and the line that makes no sense."""
    lines = text.splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#") or not line.strip(), lines))
    single: dict[str, str] = {}
    repeated: dict[str, list[str]] = {key: [] for key in _REPEATED}
    for number, line in enumerate(head, start=1):
        key, _, value = (part.strip() for part in line.lstrip("# ").partition(":"))
        if key in _REPEATED:
            repeated[key].append(value)
        elif key in _SINGLE and key not in single:
            single[key] = value
        elif line.strip():
            known = ", ".join(sorted(_SINGLE | _REPEATED))
            raise UsageError(f"{name}, line {number}: {key!r} is given twice or none of {known}")
    if sum(key in single for key in _EXPECTATIONS) > 1:
        raise UsageError(f"{name} expects more than one of {', '.join(_EXPECTATIONS)}")
    return Fixture(
        name,
        single.get("pass", default_pass),
        "\n".join(lines[len(head) :]),
        single,
        tuple(repeated["constant"]),
        _numbers(name, repeated["bind"]),
        _numbers(name, repeated["domain"]),
    )


def _numbers(name: str, texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for word in " ".join(texts).replace(",", " ").split():
        key, equals, number = word.partition("=")
        if not (equals and number.isdecimal()):
            raise UsageError(f"{name}: {word!r} is not NAME=NUMBER")
        found[key] = int(number)
    return found


def _constant(text: str, exact: bool, rng: np.random.Generator) -> tuple[str, npt.NDArray[Any]]:
    match = _CONSTANT.match(text)
    if match is None:
        raise UsageError(f"the constant {text!r} is not NAME TYPE[DIMS] = VALUES")
    name, kind, dims, fill = match.groups()
    shape = tuple(int(size) for size in (dims or "").split(",") if size.strip())
    if math.prod(shape) > _MOST_ELEMENTS:
        raise UsageError(f"the constant '{name}' has more than {_MOST_ELEMENTS} elements")
    data_type = onnx.TensorProto.DataType.Value(kind.upper())
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    floating = dtype.kind not in "biu"
    values = _values(fill or ("normal" if floating and not exact else "integers"), shape, rng)
    return name, values.astype(dtype)


def _values(fill: str, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[Any]:
    if fill == "normal":
        return rng.normal(size=shape)
    if fill == "positive":
        return rng.uniform(0.5, 2.0, shape)
    if fill == "integers":
        return rng.integers(-3, 4, shape)
    values = np.asarray(json.loads(fill))
    return np.full(shape, values) if values.ndim == 0 else values.reshape(shape)


def problem(case: Fixture) -> str | None:
    """Run a fixture; return what is not as expected, None if all is."""
    try:
        _run(case, case.model())
    except (AssertionError, GraphpassError) as failure:
        return str(failure) or type(failure).__name__
    except Exception as error:  # a model that the checker or ONNX Runtime refuses
        return f"{type(error).__name__}: {error}"
    return None


def _run(case: Fixture, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    if "refused" in case.header:
        testing.check_refused(case.passes, model, case.header["refused"])
        return
    if "untouched" in case.header:
        testing.check_untouched(case.passes, model)
        return
    run = _with_interface if "interface" in case.header else _checked
    result = run(case, model)
    again, applied = testing.apply_to(case.passes, result)
    more = [f"{rewrite.rule} at {rewrite.site}" for rewrite in applied.rewrites]
    assert again == result, f"run again, it changes more: {', '.join(more) or applied.notes}"


def _with_interface(case: Fixture, model: onnx.ModelProto) -> onnx.ModelProto:
    result, applied = testing.apply_to(case.passes, model)
    reasons = [refusal.reason for refusal in applied.refusals]
    assert applied.changed, f"nothing is changed: {reasons}"
    testing.check_operators(result, case.header.get("after", testing.operators(result)))
    onnx.checker.check_model(result, full_check=True)
    testing.session(result)
    wanted = onnx.parser.parse_graph(f"wanted {case.header['interface']} {{}}")
    for kind in ("input", "output"):
        found, expected = getattr(result.graph, kind), getattr(wanted, kind)
        shown = ", ".join(f"{value.name} {type_text(value.type)}" for value in found)
        assert list(found) == list(expected), f"{kind}s: {shown}"
    return result


def _checked(case: Fixture, model: onnx.ModelProto) -> onnx.ModelProto:
    return testing.check(
        case.passes,
        model,
        case.header.get("after"),
        exact="exact" in case.header,
        rtol=float(case.header.get("rtol", 1e-5)),
        dims=case.dims or None,
    )
