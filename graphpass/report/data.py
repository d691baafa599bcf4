"""What happened in a run, as data; `report.schema.json` describes its JSON.

Two runs on the same input give equal reports but for times: see `without_times`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphpass.wording import json_text

if TYPE_CHECKING:
    import onnx

    from graphpass.ir.cost import Cost
    from graphpass.rewrite.applied import Refusal, Rewrite
    from graphpass.validate.compare import OutputComparison
    from graphpass.validate.latency import Latency
    from graphpass.validate.verdict import Verdict

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).parents[1] / "report.schema.json"

Outcome = Literal["kept", "unchanged", "rolled back"]

_CHUNK_BYTES = 1 << 20
# Anything measured by a clock; all else is the same in every run on the same input.
_TIMES = {
    "started_at",
    "total_s",
    "load_s",
    "apply_s",
    "check_s",
    "latency",
    "slower_because_of",
    "tuning",
}


@dataclass(frozen=True)
class FileFacts:
    """A file as it was read or written; `sha256` is empty where it was not asked for."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """A model in figures.

    `operators`: how often each occurs, bodies and functions included. `parameters`: elements of
    all its constant tensors. `files`: the model file first, then its external data. `cost`: of one
    run, where that could be counted.
    """

    nodes: int
    operators: Mapping[str, int]
    parameters: int
    files: tuple[FileFacts, ...]
    cost: Cost | None = None

    @property
    def size_bytes(self) -> int:
        """The size of all its files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Check:
    """What validation said: a `Verdict` of the validator, or "not validated".

    `reason` is one sentence. `random_outputs` and `silent_outputs` were not compared (see
    `Verdict`); `dropped_feeds` did not run on the original either.
    """

    status: str
    ok: bool
    reason: str
    comparisons: tuple[OutputComparison, ...] = ()
    random_outputs: tuple[str, ...] = ()
    silent_outputs: tuple[str, ...] = ()
    dropped_feeds: tuple[str, ...] = ()

    @classmethod
    def of(cls, verdict: Verdict) -> Check:
        """Take over a verdict."""
        return cls(
            verdict.status,
            verdict.ok,
            verdict.reason,
            verdict.comparisons,
            verdict.random_outputs,
            verdict.silent_outputs,
            verdict.dropped_feeds,
        )

    @property
    def worst(self) -> OutputComparison | None:
        """The comparison that came nearest to its tolerance, or went furthest beyond it."""
        # where the original's own noise drowns everything, the figures say nothing
        telling = [c for c in self.comparisons if c.ok or c.comparable] or self.comparisons
        return max(
            telling,
            key=lambda c: (not c.ok, c.error / c.tolerance if c.tolerance else c.error),
            default=None,
        )


@dataclass(frozen=True)
class Quarantined:
    """A rewrite that was undone and is not tried again; `reason` is one sentence."""

    rewrite: Rewrite
    reason: str


@dataclass
class PassReport:
    """What one pass did, over all rounds; `refusals` are those that stood at the end.

    `reason`: why it was undone, one sentence; what it did in earlier rounds is kept.
    `notes`: what a pass without rules says it did. `check`: the last validation of a model that
    holds what it did, maybe what later passes did as well; `checks`: those made on its account.
    """

    name: str
    options: Mapping[str, Any]
    outcome: Outcome = "unchanged"
    reason: str = ""
    rewrites: list[Rewrite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    check: Check | None = None
    checks: int = 0
    apply_s: float = 0.0
    check_s: float = 0.0

    @property
    def faulty(self) -> bool:
        """Whether something that the pass did had to be undone."""
        return bool(self.reason or self.quarantined)


@dataclass(frozen=True)
class NotRun:
    """A level of validation that did not run, and why, in one sentence."""

    level: int
    reason: str


@dataclass(frozen=True)
class DenseNode:
    """A node that is no convolution and mixes features as one would; `reason`: why it stays."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class TunedSite:
    """A place where a rewrite may pay, and whether it was made.

    `form`: what tells sites of one name apart; `alike`: what sites share that are measured once.
    `source`: "measured", "cache", "report" or "not measured". `reason`: why it was not kept.
    `latency`: of the site with its surroundings, without and with the rewrite.
    """

    step: str
    rule: str
    site: str
    form: str
    alike: str
    kept: bool
    source: str
    reason: str = ""
    latency: Latency | None = None


@dataclass(frozen=True)
class LeftOut:
    """A pass that was left out, since the whole model took `ratio` times as long with it."""

    step: str
    ratio: float


@dataclass
class Tuning:
    """What was measured to choose between rewrites, on one provider.

    `whole`: the model without and with the choices that were kept. `given_up`: why none is, though
    some pay on their own. `cache`: the folder that measurements are kept in, or empty.
    """

    provider: str
    threads: int
    cache: str = ""
    sites: list[TunedSite] = field(default_factory=list)
    whole: Latency | None = None
    given_up: str = ""
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass
class Report:
    """A whole run: what went in, what was done to it, what came out.

    `validated`: whether what was done was run beside what it replaces, as a whole or rewrite by
    rewrite. `not_run`: the levels that have nothing to say.
    `not_done`: the changes of inputs or outputs that were asked for and refused or undone, a
    sentence each. `interface`: which are others now, and how, one sentence each. `tuning`: what
    was measured to choose between rewrites, where that was asked for.
    """

    settings: Mapping[str, Any]
    input: ModelFacts
    output: ModelFacts
    validated: bool
    not_run: list[NotRun] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    passes: list[PassReport] = field(default_factory=list)
    rounds: int = 0
    threads: int = 1
    delivery: Check | None = None
    latency: Latency | None = None
    slower_because_of: str = ""
    tuning: Tuning | None = None
    not_convolutional: list[DenseNode] = field(default_factory=list)
    interface: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    started_at: str = ""
    load_s: float = 0.0
    total_s: float = 0.0

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """What figures depend on; found out when somebody asks."""
        return environment(self.threads)

    @property
    def rewrites(self) -> int:
        """How many rewrites were kept."""
        return sum(len(entry.rewrites) for entry in self.passes)

    @property
    def levels_not_run(self) -> str:
        """Say in one sentence which levels of validation did not run and why; "" if all did."""
        if not self.not_run:
            return ""
        levels = ", ".join(str(entry.level) for entry in self.not_run)
        one = "level" if len(self.not_run) == 1 else "levels"
        return f"{one} {levels} of validation did not run: {self.not_run[-1].reason}"

    @property
    def slower(self) -> bool:
        """Whether the model takes longer than before, by more than noise and enough to matter."""
        return self.latency is not None and self.latency.matters

    @property
    def faulty(self) -> list[PassReport]:
        """The passes that had to be undone, wholly or in part."""
        return [entry for entry in self.passes if entry.faulty]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as `report.schema.json` has it; None for infinity and NaN."""
        from graphpass import __version__

        fields = {name: getattr(self, name) for name in _TOP_LEVEL}
        told = plain({"version": SCHEMA_VERSION, "graphpass": __version__, **fields})
        assert isinstance(told, dict)
        return told

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False)) + "\n"


_TOP_LEVEL = (
    "started_at",
    "total_s",
    "load_s",
    "environment",
    "settings",
    "input",
    "output",
    "validated",
    "not_run",
    "rounds",
    "passes",
    "delivery",
    "latency",
    "slower_because_of",
    "tuning",
    "not_convolutional",
    "interface",
    "warnings",
)


def plain(value: Any) -> Any:
    """Return JSON data for `value`: dataclasses as objects, None for infinity and NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        named.pop("window", None)  # models, not data
        named.pop("further", None)
        named.pop("is_removal", None)
        if hasattr(value, "needed_tolerance"):
            named["needed_tolerance"] = value.needed_tolerance
        return plain(named)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def without_times(report: Any) -> Any:
    """Return the data of a report without what a clock measured, for comparing two runs."""
    if isinstance(report, dict):
        return {key: without_times(item) for key, item in report.items() if key not in _TIMES}
    if isinstance(report, list):
        return [without_times(item) for item in report]
    return report


# ------------------------------------------------------------------------------- facts


def model_facts(model: onnx.ModelProto, files: Iterable[FileFacts] = ()) -> ModelFacts:
    """Count what is in a skeleton. `files`: those that it was read from or written to."""
    from graphpass.storage.wire import tensors

    counts = Counter(operator_name(node) for node in nodes_of(model))
    parameters = sum(math.prod(tensor.dims) for tensor in tensors(model))
    return ModelFacts(sum(counts.values()), dict(sorted(counts.items())), parameters, tuple(files))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of bodies and functions included."""
    stack = [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop(0):
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g.node)
                stack.extend(body.node for body in attribute.graphs)


def operator_name(node: onnx.NodeProto) -> str:
    """Return the operator of a node, with its domain where it is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def input_files(model: onnx.ModelProto, path: Path, *, sha256: bool = True) -> list[FileFacts]:
    """Return facts on a model file and the external data files that its skeleton refers to."""
    return [file_facts(file, sha256=sha256) for file in input_paths(model, path)]


def input_paths(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Return a model file and the external data files that its skeleton refers to."""
    from graphpass.storage.reference import reference_of
    from graphpass.storage.wire import tensors

    references = filter(None, map(reference_of, tensors(model)))
    data = sorted({r.path for r in references if r.origin == "external"})
    return [path, *map(Path, data)]


def bytes_facts(content: bytes) -> FileFacts:
    """Return the size and SHA-256 of a model that came as bytes."""
    return FileFacts("-", len(content), hashlib.sha256(content).hexdigest())


def file_facts(path: Path, *, sha256: bool = True) -> FileFacts:
    """Return the size of a file and, unless it is not asked for, its SHA-256."""
    if not sha256:
        return FileFacts(path.name, path.stat().st_size, "")
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileFacts(path.name, size, digest.hexdigest())


def environment(threads: int) -> dict[str, Any]:
    """Return the versions and the machine that figures in a report depend on."""
    packages = ("onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "packages": {name: found for name in packages if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
