"""Choices that are measured where the model will run, site by site, and kept only if they pay.

Sites that are alike are measured once. A report of what was decided decides the same again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphpass.errors import UsageError
from graphpass.ir.refusal import RefusalKind, RefusedError
from graphpass.report.data import LeftOut, PassReport, TunedSite, Tuning
from graphpass.rewrite.choice import Choice, Offer
from graphpass.rewrite.likeness import likeness
from graphpass.rewrite.window import Window
from graphpass.run.judge import Judge
from graphpass.run.recorded import read_report
from graphpass.run.tuning_cache import TuningCache
from graphpass.validate.latency import Latency

NOT_FASTER = RefusalKind("not-faster")
_BUDGET_S = 120.0  # for measuring sites; what comes later is not tried

_Key = tuple[str, str, str, str]


class Tuner:
    """Measures each kind of site once and lets those rewrites take place that pay."""

    def __init__(self, judge: Judge, cache: TuningCache | None) -> None:
        self._judge, self._cache = judge, cache
        self._known: dict[str, tuple[Latency, str]] = {}  # with where it comes from
        self._failed: dict[str, str] = {}
        self._spent_s = 0.0
        self._given_up = ""
        self._only: frozenset[str] | None = None
        provider = judge.options.providers[0]
        folder = "" if cache is None else str(cache.folder)
        self.tuning = Tuning(provider, judge.threads, folder)

    @property
    def has_kept(self) -> bool:
        """Whether any choice was made."""
        return any(site.kept for site in self.tuning.sites)

    @property
    def trouble(self) -> str:
        """Why measurements could not be kept, one sentence; "" where they could."""
        return "" if self._cache is None else self._cache.trouble

    def begin(self) -> None:
        """Forget which sites were met, not what was measured: the passes run anew."""
        self.tuning.sites.clear()

    def give_up(self, reason: str) -> None:
        """Make no choice any more."""
        self._given_up = self.tuning.given_up = reason

    @property
    def is_narrowed(self) -> bool:
        """Whether only some of the choices that pay are made."""
        return self._only is not None

    def promising(self) -> list[str]:
        """Return the kinds of sites that are kept, what they save together in falling order."""
        saved_ms: dict[str, float] = {}
        for site in self.tuning.sites:
            if site.kept and site.latency is not None:
                saving = site.latency.before_ms - site.latency.after_ms
                saved_ms[site.alike] = saved_ms.get(site.alike, 0.0) + saving
        return sorted(saved_ms, key=lambda kind: -saved_ms[kind])

    def keep_only(self, kinds: Collection[str]) -> None:
        """Make those choices alone whose sites are of these kinds, as far as they pay."""
        self._only = frozenset(kinds)

    def tries(self, choice: Choice) -> bool:
        """See `Chooser`."""
        return True

    def decide(self, offer: Offer) -> None:
        """See `Chooser`."""
        site = self._looked_at(offer)
        _note(self.tuning.sites, site)
        if not site.kept:
            raise RefusedError(site.reason, NOT_FASTER)

    def end(self, passes: Sequence[PassReport]) -> None:
        """Note which of the rewrites that pay were undone, as they were not right."""
        _settle(self.tuning, passes)

    def _looked_at(self, offer: Offer) -> TunedSite:
        windows = offer.windows()
        form = likeness(windows[0]) if windows else ""
        site = TunedSite(offer.step, offer.rule, offer.site, form, "", False, "not measured")
        reason = "the types of its tensors are unknown"
        for window in windows:
            shapes, reason = self._judge.site_shapes(window)
            if reason:
                continue
            alike = likeness(window, shapes)
            found = self._found(alike, window, shapes)
            if isinstance(found, str):
                reason = found
                continue
            return self._decided(replace(site, alike=alike), *found)
        return replace(site, reason=f"it was not measured: {reason}")

    def _decided(self, site: TunedSite, latency: Latency, source: str) -> TunedSite:
        reason = ""
        if not latency.pays:
            reason = "it is not faster here by more than the noise, as was measured"
        elif self._given_up:
            reason = self._given_up
        elif self._only is not None and site.alike not in self._only:
            reason = "it pays alone, but the whole model is no faster by it"
        return replace(site, kept=not reason, source=source, reason=reason, latency=latency)

    def _found(
        self, alike: str, window: Window, shapes: Mapping[str, Sequence[int]]
    ) -> tuple[Latency, str] | str:
        """Return what is known of a kind of site, and from where; why nothing is, otherwise."""
        if alike in self._known:
            return self._known[alike]
        if alike in self._failed:
            return self._failed[alike]
        kept = None if self._cache is None else self._cache.get(alike)
        if kept is not None:
            return self._known.setdefault(alike, (kept, "cache"))
        if self._spent_s > _BUDGET_S:
            return f"the {_BUDGET_S:g} s for measuring were up"
        start = time.perf_counter()
        found = self._judge.time_site(window, shapes)
        self._spent_s += time.perf_counter() - start
        if isinstance(found, str):
            return self._failed.setdefault(alike, found)
        if self._cache is not None:
            self._cache.put(alike, found)
        return self._known.setdefault(alike, (found, "measured"))


class Recorded:
    """Decides as a report says: nothing is measured."""

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        """Raises `UsageError` where `path` is no report of a run with --tune."""
        self._path = path
        told = _read(path)
        self._passes: Sequence[str] = told["settings"]["passes"]
        recorded = told["tuning"]
        self._sites = {_key_of(site): site for site in recorded["sites"]}
        self._met: set[_Key] = set()
        self.tuning = Tuning(provider, threads, "", given_up=recorded["given_up"])
        self.tuning.left_out = [LeftOut(**entry) for entry in recorded["left_out"]]

    def require_passes(self, spelled: Sequence[str]) -> None:
        """Raise `UsageError` where the report is one of other passes."""
        if list(spelled) != list(self._passes):
            raise UsageError(
                f"{self._path} is of a run of other passes: give --passes"
                f" '{','.join(self._passes)}'"
            )

    def tries(self, choice: Choice) -> bool:
        """See `Chooser`."""
        return True

    def decide(self, offer: Offer) -> None:
        """See `Chooser`. Raises `UsageError` where the report does not know the site."""
        windows = offer.windows()
        key = (offer.step, offer.rule, offer.site, likeness(windows[0]) if windows else "")
        told = self._sites.get(key)
        if told is None:
            raise UsageError(
                f"{self._path} does not fit the model: it does not say whether {offer.rule} at"
                f" '{offer.site}' pays; measure again with --tune"
            )
        self._met.add(key)
        kept, reason = bool(told["kept"]), str(told["reason"])
        _note(self.tuning.sites, TunedSite(*key, str(told["alike"]), kept, "report", reason=reason))
        if not kept:
            raise RefusedError(reason, NOT_FASTER)

    def end(self, passes: Sequence[PassReport]) -> None:
        """Raise `UsageError` where the report knows of sites that the model has not."""
        for key in self._sites.keys() - self._met:
            raise UsageError(
                f"{self._path} does not fit the model: it has no place for {key[1]} at '{key[2]}';"
                " measure again with --tune"
            )
        _settle(self.tuning, passes)


def _note(sites: list[TunedSite], site: TunedSite) -> None:
    """Add a site, or put it in the place of what was said of it before."""
    for index, known in enumerate(sites):
        if _key(known) == _key(site):
            sites[index] = site
            return
    sites.append(site)


def _settle(tuning: Tuning, passes: Sequence[PassReport]) -> None:
    undone = {
        (entry.name, out.rewrite.rule, out.rewrite.site): out.reason
        for entry in passes
        for out in entry.quarantined
    }
    for index, site in enumerate(tuning.sites):
        reason = undone.get((site.step, site.rule, site.site))
        if site.kept and reason is not None:
            tuning.sites[index] = replace(site, kept=False, reason=f"it was undone: {reason}")


def _key(site: TunedSite) -> _Key:
    return site.step, site.rule, site.site, site.form


def _key_of(site: Mapping[str, Any]) -> _Key:
    return site["step"], site["rule"], site["site"], site["form"]


def _read(path: Path) -> Mapping[str, Any]:
    told = read_report(path)
    if not told.get("tuning"):
        raise UsageError(f"{path} tells of no tuning: it is the report of a run without --tune")
    if not _is_whole(told):
        raise UsageError(f"{path} is no report of graphpass: its tuning is not complete")
    return told


def _is_whole(told: Mapping[str, Any]) -> bool:
    """Say whether all is there, and of its type, that is read of a report's tuning."""
    try:
        sites = [
            (*_key_of(site), site["reason"], site["alike"]) for site in told["tuning"]["sites"]
        ]
        kept = [site["kept"] for site in told["tuning"]["sites"]]
        left_out = [LeftOut(**entry) for entry in told["tuning"]["left_out"]]
        passes = told["settings"]["passes"]
        texts = [text for site in sites for text in site] + [told["tuning"]["given_up"], *passes]
    except (KeyError, TypeError):
        return False
    texts += [entry.step for entry in left_out]
    return (
        isinstance(passes, list)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(value, bool) for value in kept)
        and all(isinstance(entry.ratio, (int, float)) for entry in left_out)
    )
