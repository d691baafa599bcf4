"""What came of many models, as data and as text; `many.schema.json` describes its JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from graphpass.many.task import Outcome
from graphpass.report.junit import xml_safe
from graphpass.report.markdown import markdown_table
from graphpass.report.rows import Row, size
from graphpass.wording import json_text
from graphpass.wording import markdown as escaped

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).parents[1] / "many.schema.json"

HEADER = ("model", "outcome", "rewrites", "nodes", "file size", "latency", "seconds")
NUMBERS = (2, 6)


@dataclass
class ManyReport:
    """A run over many models: an outcome for each, in the order in which they were given.

    `jobs` is how many processes were used, 0 for those of the cluster at `scheduler`.
    """

    outcomes: Sequence[Outcome]
    folder: str = ""
    jobs: int = 1
    scheduler: str | None = None
    started_at: str = ""
    total_s: float = 0.0
    counts: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        found = Counter(outcome.status for outcome in self.outcomes)
        self.counts = {status: found[status] for status in ("written", "skipped", "failed")}

    @property
    def exit_code(self) -> int:
        """The exit code of the run: 0, or the highest of those of its models."""
        return max((outcome.exit_code for outcome in self.outcomes), default=0)

    @property
    def failed(self) -> list[Outcome]:
        """The models that nothing came of."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as `many.schema.json` has it."""
        from graphpass import __version__

        return {
            "version": SCHEMA_VERSION,
            "graphpass": __version__,
            "started_at": self.started_at,
            "total_s": self.total_s,
            "folder": self.folder,
            "jobs": self.jobs,
            "scheduler": self.scheduler,
            "exit_code": self.exit_code,
            "counts": dict(self.counts),
            "models": [
                {name: value for name, value in told.items() if name != "renderings"}
                for told in (outcome.to_data() for outcome in self.outcomes)
            ],
        }

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False)) + "\n"

    def summary(self) -> str:
        """Return how many there are of each outcome, in words."""
        told = [f"{count} {status}" for status, count in self.counts.items() if count]
        return ", ".join(told) or "nothing to do"

    def rows(self) -> Iterator[Row]:
        """Yield a row for each model, as `HEADER` says."""
        for outcome in self.outcomes:
            yield outcome.model, outcome.status, *figures(outcome), f"{outcome.seconds:.1f}"


def figures(outcome: Outcome) -> tuple[str, str, str, str]:
    """Return rewrites, nodes, file size and latency, before and after."""
    report = outcome.report
    if report is None or outcome.status == "failed":
        return "", "", "", ""
    before, after = report["input"], report["output"]
    rewrites = sum(len(entry["rewrites"]) + len(entry["notes"]) for entry in report["passes"])
    nodes = f"{before['nodes']} → {after['nodes']}"
    sizes = f"{_size(before)} → {_size(after)}"
    time = report["latency"]
    latency = f"{time['before_ms']:.3g} → {time['after_ms']:.3g} ms" if time else ""
    return str(rewrites), nodes, sizes, latency


def _size(facts: Mapping[str, Any]) -> str:
    return size(sum(file["size_bytes"] for file in facts["files"]))


def render(report: ManyReport, suffix: str) -> str:
    """Return the text of a report in the format of files that end in `suffix`."""
    if suffix == ".md":
        return markdown(report)
    return junit(report) if suffix == ".xml" else report.to_json()


def markdown(report: ManyReport) -> str:
    """Return the report as Markdown: a table of all, then what was done to each."""
    lines = [f"# graphpass: {report.summary()}", "", *markdown_table(HEADER, report.rows())]
    lines += [
        f"- **{escaped(outcome.model)}**: {escaped(outcome.message)}" for outcome in report.failed
    ]
    for outcome in report.outcomes:
        lines += ["", outcome.renderings.get("markdown", "").strip()]
    return "\n".join(lines).strip() + "\n"


def junit(report: ManyReport) -> str:
    """Return the report as JUnit XML: a test suite for each model, a test case for each pass."""
    root = ElementTree.Element("testsuites", name="graphpass", time=f"{report.total_s:.3f}")
    for outcome in report.outcomes:
        root.append(_suite(outcome))
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return text + "\n"


def _suite(outcome: Outcome) -> ElementTree.Element:
    told = outcome.renderings.get("junit")
    suite = ElementTree.fromstring(told) if told else ElementTree.Element("testsuite")
    suite.set("name", xml_safe(outcome.model))
    suite.set("time", f"{outcome.seconds:.3f}")
    if outcome.status != "written":
        case = ElementTree.SubElement(suite, "testcase", classname="graphpass", name="model")
        skipped = outcome.status == "skipped"
        message = "done already, and nothing has changed" if skipped else outcome.message
        kind = "skipped" if skipped else "failure"
        ElementTree.SubElement(case, kind, message=xml_safe(message))
    for count, found in (("tests", "."), ("failures", "failure"), ("skipped", "skipped")):
        cases = suite.findall("testcase" if found == "." else f"testcase/{found}")
        suite.set(count, str(len(cases)))
    return suite
