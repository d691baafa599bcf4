"""A report as a file: the ending of its name says in which format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphpass.report.data import Report

if TYPE_CHECKING:
    import onnx

SUFFIXES = (".html", ".json", ".md", ".xml")


def render(
    report: Report, path: Path, models: tuple[onnx.ModelProto, onnx.ModelProto] | None = None
) -> str:
    """Return the text of a report in the format that the name of its file asks for.

    `models`: skeletons before and after, which an HTML page draws.
    """
    suffix = path.suffix.lower()
    if suffix == ".html":
        from graphpass.report.page.page import page

        return page(report, models)
    if suffix == ".json":
        return report.to_json()
    if suffix == ".md":
        from graphpass.report.markdown import markdown

        return markdown(report)
    from graphpass.report.junit import junit

    return junit(report)
