"""A report as JUnit XML, for CI."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from graphpass.report.data import Report
from graphpass.wording import visible_lines


def junit(report: Report) -> str:
    """Return the report as JUnit XML: a test case for each pass and one for the delivery."""
    suite = ElementTree.Element("testsuite", name="graphpass", time=f"{report.total_s:.3f}")
    for entry in report.passes:
        case = _case(suite, entry.name, entry.apply_s + entry.check_s)
        if entry.faulty:
            problems = [out.reason for out in entry.quarantined]
            problems += [entry.reason] if entry.reason else []
            _outcome(case, "failure", problems[0], "\n".join(problems))
        elif not report.validated and entry.outcome == "kept":
            _outcome(case, "skipped", "not validated")
    case = _case(suite, "written file", 0.0)
    if report.delivery is None:
        _outcome(case, "skipped", "nothing was written")
    elif not report.delivery.ok:
        _outcome(case, "failure", report.delivery.reason)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ElementTree.indent(suite)
    text: str = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
    return text + "\n"


def _case(suite: Any, name: str, seconds: float) -> Any:
    return ElementTree.SubElement(
        suite, "testcase", classname="graphpass", name=name, time=f"{seconds:.3f}"
    )


def _outcome(case: Any, kind: str, message: str, text: str = "") -> None:
    ElementTree.SubElement(case, kind, message=xml_safe(message)).text = xml_safe(text) or None


def xml_safe(text: str) -> str:
    """Return what XML can hold: node names are arbitrary."""
    return visible_lines(text)
