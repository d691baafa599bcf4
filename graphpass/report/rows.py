"""What a report tells people, as rows of tables and as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphpass.report.data import Check, PassReport, Quarantined, Report, TunedSite
from graphpass.report.summary import counted
from graphpass.rewrite.applied import Failure, Refusal, described

if TYPE_CHECKING:
    from graphpass.ir.cost import Cost
    from graphpass.rewrite.window import WindowVerdict
    from graphpass.validate.compare import OutputComparison

Row = tuple[str, ...]

_FIGURE = re.compile(r"2\^-(\d+)")
_NAMED = re.compile(r"'[^']*'")
_REASONS = 3  # for refusals, likewise
_LISTED = 10  # so many of a kind are shown where nobody asked for all
OVERVIEW = ("", "before", "after", "")
REWRITES = ("", "rule", "nodes", "window error", "bound", "in exact arithmetic")
OUTPUTS = ("output", "error", "noise floor", "tolerance", "ulps", "cosine", "top-1")
CHOICES = ("choice", "site", "before", "after", "kept")
PASSES = ("pass", "rewrites", "refused", "error", "tolerance", "result")


def overview(report: Report) -> Iterator[Row]:
    """Yield what changed: a label, before, after, a remark."""
    before, after = report.input, report.output
    yield "nodes", f"{before.nodes:,}", f"{after.nodes:,}", ""
    for name in sorted({*before.operators, *after.operators}):
        old, new = before.operators.get(name, 0), after.operators.get(name, 0)
        if old != new:
            yield f"  {name}", f"{old:,}", f"{new:,}", ""
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
        yield "latency", duration(time.before_ms), duration(after_ms), ratio


def _costs(report: Report) -> Iterator[Row]:
    before, after = report.input.cost, report.output.cost
    if before is None or after is None:
        return
    old, new = before.multiply_adds, after.multiply_adds
    known = not before.uncounted and not after.uncounted
    remark = f"× {new / old:.2f}" if known and old and old != new else ""
    if not known:
        sides = [f"{c.uncounted:,} {side}" for c, side in ((before, "before"), (after, "after"))]
        remark = f"without nodes of unknown shapes: {', '.join(sides)}"
    yield "multiply-adds", _least(before, amount(old)), _least(after, amount(new)), remark
    yield "weights", size(before.weight_bytes), size(after.weight_bytes), ""
    written = [_least(cost, size(cost.activation_bytes)) for cost in (before, after)]
    yield "activations", *written, ""


def _least(cost: Cost, told: str) -> str:
    """Write a count that may lack nodes, since their shapes are not known."""
    return f"≥ {told}" if cost.uncounted else told


def passes(report: Report, *, everything: bool = True) -> Iterator[Row]:
    """Yield a row for each pass, for the model after all of them, and for the file written.

    Without `everything`, nothing for what changed nothing and for a file that is as it should be.
    """
    for entry in report.passes:
        if not everything and entry.outcome == "unchanged" and not entry.faulty:
            continue
        count = len(entry.rewrites) + len(entry.notes)
        yield entry.name, str(count), str(len(entry.refusals)), "", "", _result(entry)
    kept = [entry.check for entry in report.passes if entry.outcome == "kept"]
    check = next((check for check in reversed(kept) if check is not None), None)
    if check is not None:  # one check answers for all passes
        yield "model", "", "", *_figures(check), check.status
    if report.delivery is not None and (everything or not report.delivery.ok):
        yield "written file", "", "", *_figures(report.delivery), report.delivery.status


def choices(report: Report, *, everything: bool = True) -> Iterator[Row]:
    """Yield a row for each site that was measured to choose: how long it takes, and if it was kept.

    Without `everything`, one for those that are alike.
    """
    sites = _last_of_each(report.tuning.sites if report.tuning is not None else [])
    groups: dict[tuple[str, ...], list[TunedSite]] = {}
    for index, site in enumerate(sites):
        alike = site.alike if not everything and site.alike else str(index)
        groups.setdefault((site.step, site.rule, alike, str(site.kept)), []).append(site)
    for (step, rule, *_), alike_sites in groups.items():
        first = alike_sites[0]
        count = f"{len(alike_sites)} × " if len(alike_sites) > 1 else ""
        time = first.latency
        before = "" if time is None else f"{time.before_ms:.3g} ms"
        after = "" if time is None else f"{time.before_ms * time.ratio:.3g} ms"
        kept = "yes" if first.kept else "no"
        if first.latency is None and first.source != "report":
            kept = f"no: {first.reason}"
        yield f"{step}: {rule}", f"{count}'{first.site}'", before, after, kept


def _last_of_each(sites: Sequence[TunedSite]) -> list[TunedSite]:
    """Leave out what was not kept at a site that looked otherwise when it was met again."""
    last = {(site.step, site.rule, site.site): index for index, site in enumerate(sites)}
    return [
        site
        for index, site in enumerate(sites)
        if site.kept or last[site.step, site.rule, site.site] == index
    ]


def _tuned(report: Report) -> Iterator[str]:
    """Say what came of measuring, beyond the sites."""
    tuning = report.tuning
    if tuning is None:
        return
    if not tuning.sites:
        yield "--tune found nothing to choose from"
    if tuning.given_up:
        yield f"no choice was kept: {tuning.given_up}"
    for entry in tuning.left_out:
        yield f"{entry.step} was left out: the model took {entry.ratio:.2f} times as long by it"


def _figures(check: Check | None) -> tuple[str, str]:
    worst = None if check is None else check.worst
    if check is None or worst is None:
        return "", ""
    # ONNX Runtime's optimizations round otherwise; "equal" says that without them nothing differs
    error = 0.0 if check.status == "equal" else worst.error
    return f"{error:.2g}", f"{worst.tolerance:.2g}"


def _result(entry: PassReport) -> str:
    return entry.outcome + (f", {len(entry.quarantined)} undone" if entry.quarantined else "")


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
    yield from _tuned(report)
    yield from report.warnings
    if report.slower:
        yield _slower(report)
    yield from _refused(report) if not everything else ()
    if report.settings.get("pipeline") == "conv-only":
        yield from _dense(report, everything)


def _refused(report: Report) -> Iterator[str]:
    """Say what was refused, the most frequent reasons first, and how much is not said."""
    # what was measured has a table of its own
    told = [group for group in refusals(report) if group.code != "not-faster"]
    groups = sorted(told, key=lambda group: -len(group.nodes))
    yield from (f"refused: {group.told}" for group in groups[:_REASONS])
    if left := sum(len(group.nodes) for group in groups[_REASONS:]):
        yield f"refused: {counted(left, 'site')} more (-v says why)"


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


@dataclass
class Refused:
    """Refusals of one pass that say the same of different nodes. `nodes`: their labels."""

    step: str
    reason: str
    advice: str
    nodes: list[str]
    code: str = ""

    @property
    def told(self) -> str:
        """One line: how often, why, and what can be done."""
        count = f"{len(self.nodes)} × " if len(self.nodes) > 1 else f"{self.nodes[0]}: "
        return f"{self.step}: {count}{self.reason}" + (f" ({self.advice})" if self.advice else "")


def refusals(report: Report) -> list[Refused]:
    """Return what was refused, by pass and reason, the most frequent of a pass first."""
    return [group for entry in report.passes for group in by_reason(entry.name, entry.refusals)]


def by_reason(step: str, refused: Iterable[Refusal]) -> list[Refused]:
    """Return the refusals of one pass by reason, the most frequent first."""
    groups: dict[str, Refused] = {}
    for refusal in refused:
        kind = _NAMED.sub("…", refusal.reason)
        known = groups.get(kind)
        if known is None:
            groups[kind] = Refused(
                step, refusal.reason, refusal.advice, [refusal.node], refusal.code
            )
            continue
        known.nodes.append(refusal.node)
        if refusal.reason != known.reason:
            known.reason = kind
    return sorted(groups.values(), key=lambda group: -len(group.nodes))


def rewrites(report: Report) -> Iterator[Row]:
    """Yield a row for each rewrite that was kept: what it did, and its error on its own."""
    for entry in report.passes:
        for rewrite in entry.rewrites:
            after = ", ".join(rewrite.after) or "nothing"
            yield (
                str(rewrite.number),
                f"{entry.name}: {rewrite.rule}",
                f"{', '.join(rewrite.before)} → {after}",
                *proven(rewrite.proof),
                "" if rewrite.proof is None else rewrite.proof.exact,
            )


def proven(proof: WindowVerdict | None) -> tuple[str, str]:
    """Return error and bound at the worst element of a window."""
    if proof is None or proof.status == "not run":
        return "not run", ""
    if proof.bound == "equal":
        return "equal", "equal"
    return f"{proof.max_abs_error:.2g}", f"{proof.allowed:.2g}"


def exactly(report: Report) -> str:
    """Say in one sentence what exact arithmetic proves of the rewrites; "" if it was not asked."""
    found = [
        r.proof.exact for entry in report.passes for r in entry.rewrites if r.proof is not None
    ]
    asked = [text for text in found if text]
    if not asked:
        return ""
    equal = [text for text in asked if text.startswith("equal")]
    are = "is" if len(asked) == 1 else "are"
    told = f"in exact arithmetic {len(equal)} of {counted(len(asked), 'rewrite')} {are} equal"
    figures = [int(found[1]) for found in map(_FIGURE.search, equal) if found is not None]
    return f"{told}, wrong with probability < 2^-{min(figures)}" if figures else told


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


def duration(time_ms: float) -> str:
    """Write a time for people."""
    if time_ms < 999.5:
        return f"{time_ms:.3g} ms"
    return f"{time_ms / 1000:.3g} s" if time_ms < 999_500 else f"{time_ms / 1000:,.0f} s"


def size(count: int) -> str:
    """Write a number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
