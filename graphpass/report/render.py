"""A report for people and for CI: terminal, Markdown, JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from graphpass.report.data import Check, PassReport, Quarantined, Report
from graphpass.rewrite.driver import Failure, described
from graphpass.wording import code_span, visible, visible_lines
from graphpass.wording import markdown as escaped

if TYPE_CHECKING:
    from rich.console import Console

    from graphpass.rewrite.driver import Refusal
    from graphpass.rewrite.window import WindowVerdict
    from graphpass.validate.compare import OutputComparison

Row = tuple[str, ...]

_LISTED = 10  # so many of a kind are shown where nobody asked for all
OVERVIEW = ("", "before", "after", "")
REWRITES = ("", "rule", "nodes", "window error", "bound")
OUTPUTS = ("output", "error", "noise floor", "tolerance", "ulps", "cosine", "top-1")
PASSES = ("pass", "rewrites", "refused", "error", "tolerance", "result")


# ----------------------------------------------------------------------------- what is told


def overview(report: Report) -> Iterator[Row]:
    """Yield what changed: a label, before, after, a remark."""
    before, after = report.input, report.output
    yield "nodes", str(before.nodes), str(after.nodes), ""
    for name in sorted({*before.operators, *after.operators}):
        old, new = before.operators.get(name, 0), after.operators.get(name, 0)
        if old != new:
            yield f"  {name}", str(old), str(new), ""
    yield "parameters", f"{before.parameters:,}", f"{after.parameters:,}", ""
    if before.files and after.files:
        yield "file size", size(before.size_bytes), size(after.size_bytes), ""
    yield from _costs(report)
    if report.latency is not None:
        time = report.latency
        ratio = f"× {time.ratio:.2f} ({time.ratio_low:.2f} to {time.ratio_high:.2f})"
        if not time.slower and not time.faster:
            ratio += ", not conclusive"
        # rounds are compared in pairs: the median of either side alone may say something else
        after_ms = time.before_ms * time.ratio
        yield "latency", f"{time.before_ms:.3g} ms", f"{after_ms:.3g} ms", ratio


def _costs(report: Report) -> Iterator[Row]:
    before, after = report.input.cost, report.output.cost
    if before is None or after is None:
        return
    old, new = before.multiply_adds, after.multiply_adds
    ratio = f"× {new / old:.2f}" if old and old != new else ""
    yield "multiply-adds", amount(old), amount(new), ratio
    yield "weights", size(before.weight_bytes), size(after.weight_bytes), ""
    yield "activations", size(before.activation_bytes), size(after.activation_bytes), ""


def passes(report: Report) -> Iterator[Row]:
    """Yield a row for each pass and one for the file that was written."""
    for entry in report.passes:
        yield (
            entry.name,
            str(len(entry.rewrites) + len(entry.notes)),
            str(len(entry.refusals)),
            *_figures(entry.check if entry.outcome == "kept" else None),
            _result(entry),
        )
    if report.delivery is not None:
        check = report.delivery
        yield "written file", "", "", *_figures(check), check.status


def _figures(check: Check | None) -> tuple[str, str]:
    worst = None if check is None else check.worst
    if check is None or worst is None:
        return "", ""
    # ONNX Runtime's optimizations round otherwise; "equal" says that without them nothing differs
    error = 0.0 if check.status == "equal" else worst.error
    return f"{error:.2g}", f"{worst.tolerance:.2g}"


def _result(entry: PassReport) -> str:
    if entry.outcome != "kept":
        return entry.outcome
    status = entry.check.status if entry.check is not None else ""
    undone = f", {len(entry.quarantined)} undone" if entry.quarantined else ""
    return status + undone


def remarks(report: Report, *, everything: bool = False) -> Iterator[str]:
    """Yield what a reader must know, one sentence each: what was undone, slower or not compared."""
    for entry in report.passes:
        if entry.reason:
            yield f"{entry.name} was undone: {entry.reason}"
        lines = [f"{entry.name}: {_told(out)}" for out in entry.quarantined]
        yield from _some(lines, everything)
    if not report.validated:
        yield "nothing was validated, as --no-validate asks"
    yield from report.interface
    yield from report.warnings
    if report.slower:
        yield _slower(report)
    if report.settings.get("pipeline") == "conv-only":
        yield from _dense(report, everything)


def _slower(report: Report) -> str:
    assert report.latency is not None
    told = f"the model takes {report.latency.ratio:.2f} times as long as before"
    name = report.slower_because_of
    if not name:
        return f"{told}; no single pass did it"
    return f"{told}, because of {name}: --skip {name} avoids it"


def _dense(report: Report, everything: bool) -> Iterator[str]:
    if not report.not_convolutional:
        yield "every layer is convolutional"
        return
    lines = [f"not convolutional: {node.node}: {node.reason}" for node in report.not_convolutional]
    yield from _some(lines, everything)


def _told(out: Quarantined) -> str:
    if not out.rewrite.number:  # it never came to a rewrite
        return described(Failure(out.rewrite, out.reason))
    return f"{out.rewrite.rule} at '{out.rewrite.site}' was undone: {out.reason}"


def refusals(report: Report) -> Iterator[tuple[str, Refusal]]:
    """Yield every refusal with the name of its pass."""
    for entry in report.passes:
        for refusal in entry.refusals:
            yield entry.name, refusal


def rewrites(report: Report) -> Iterator[Row]:
    """Yield a row for each rewrite that was kept: what it did, and its error on its own."""
    for entry in report.passes:
        for rewrite in entry.rewrites:
            after = ", ".join(rewrite.after) or "nothing"
            yield (
                str(rewrite.number),
                f"{entry.name}: {rewrite.rule}",
                f"{', '.join(rewrite.before)} → {after}",
                *_proven(rewrite.proof),
            )


def _proven(proof: WindowVerdict | None) -> tuple[str, str]:
    """Return error and bound at the worst element of a window."""
    if proof is None or proof.status == "not run":
        return "not run", ""
    if proof.bound == "equal":
        return "equal", "equal"
    return f"{proof.max_abs_error:.2g}", f"{proof.allowed:.2g}"


def outputs(report: Report) -> Iterator[Row]:
    """Yield a row for each output: how far the last check found it off, on its worst inputs."""
    checks = [report.delivery, *(entry.check for entry in reversed(report.passes))]
    last = next((check for check in checks if check is not None and check.comparisons), None)
    worst: dict[tuple[str, str], OutputComparison] = {}
    for found in last.comparisons if last is not None else ():
        known = worst.setdefault((found.name, found.provider), found)
        if found.error > known.error:
            worst[found.name, found.provider] = found
    for found in worst.values():
        figures = (found.error, found.noise_floor, found.tolerance, found.max_ulps)
        agreement = (found.cosine, found.top1_agreement)
        yield (
            f"{found.name} ({found.provider})",
            *("" if figure is None else f"{figure:.2g}" for figure in figures),
            *("" if figure is None else f"{figure:.6g}" for figure in agreement),
        )


def _some(lines: Sequence[str], everything: bool) -> Iterator[str]:
    shown = lines if everything else lines[:_LISTED]
    yield from shown
    if len(lines) > len(shown):
        yield f"… and {len(lines) - len(shown)} more (-v shows them)"


def amount(count: int) -> str:
    """Write a number of operations for people."""
    value, units = float(count), ["", " k", " M", " G", " T"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g}{units[0]}" if value < 999.5 else f"{value:.0f}{units[0]}"


def size(count: int) -> str:
    """Write a number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


# --------------------------------------------------------------------------------- terminal


def terminal(report: Report, console: Console, *, title: str = "", verbose: bool = False) -> None:
    """Print a report; `verbose`: with every rewrite and refusal."""
    if title:
        say(console, title, style="bold")
    if any(entry.outcome == "kept" for entry in report.passes):
        print_table(console, OVERVIEW, overview(report), right=(1, 2))
    print_table(console, PASSES, passes(report), right=(1, 2, 3, 4))
    if verbose:
        _print_details(report, console)
    for line in remarks(report, everything=verbose):
        say(console, line, style="yellow")


def _print_details(report: Report, console: Console) -> None:
    for entry in report.passes:
        for rewrite in entry.rewrites:
            after = ", ".join(rewrite.after) or "nothing"
            error, bound = _proven(rewrite.proof)
            proof = f"{error}, allowed {bound}" if bound not in ("", "equal") else error
            nodes = f"{', '.join(rewrite.before)} → {after}"
            text = f"{rewrite.number}. {rewrite.rule}: {nodes} ({proof})"
            say(console, f"{entry.name}: {text}")
        for note in entry.notes:
            say(console, f"{entry.name}: {note}")
        for refusal in entry.refusals:
            say(console, f"{entry.name}: {refusal.node} stays: {refusal.reason} ({refusal.rule})")


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print lines as they are: names in a model may look like markup, and are not broken."""
    text = visible_lines(text)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)


def print_table(
    console: Console, header: Row, rows: Iterator[Row], *, right: Sequence[int] = ()
) -> None:
    """Print columns; those in `right` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


# ------------------------------------------------------------------------------ Markdown, XML


def markdown(report: Report) -> str:
    """Return the report as Markdown, for a pull request."""
    names = [facts.files[0].name if facts.files else "" for facts in (report.input, report.output)]
    lines = ["## graphpass: " + " → ".join(code_span(name) for name in names if name), ""]
    lines += markdown_table(OVERVIEW, overview(report))
    lines += markdown_table(PASSES, passes(report))
    lines += [f"- {escaped(line)}" for line in remarks(report)]
    lines += _folded("outputs", markdown_table(OUTPUTS, outputs(report)))
    lines += _folded("rewrites", markdown_table(REWRITES, rewrites(report)))
    refused = list(refusals(report))
    if refused:
        lines += ["", f"<details><summary>{len(refused)} refusals</summary>", ""]
        lines += [f"- {escaped(f'{name}: {r.node}: {r.reason}')}" for name, r in refused]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _folded(name: str, table: list[str]) -> list[str]:
    """Return a table to be opened by a click, nothing where it has no rows."""
    count = len(table) - 3
    if count < 1:
        return []
    return ["", f"<details><summary>{count} {name}</summary>", "", *table, "</details>"]


def markdown_table(header: Row, rows: Iterator[Row]) -> list[str]:
    """Return the lines of a table, and an empty one."""
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(escaped(cell.strip()) for cell in row)} |" for row in rows]
    return [*lines, ""]


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
