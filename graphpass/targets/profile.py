"""A profile: what a target takes, each fact with the public document that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from graphpass.errors import UsageError
from graphpass.storage import toml
from graphpass.storage.text import read_text
from graphpass.targets.expression import Expression
from graphpass.targets.facts import NAMES
from graphpass.wording import nearest

Dense = Literal["conv", "gemm", "keep"]
SCHEMA_PATH = Path(__file__).parents[1] / "target.schema.json"
_ANY = "*"
_KNOWN = frozenset(NAMES)
_TOP = {"title", "about", "dense", "passes", "sources", "operators", "limits"}


@dataclass(frozen=True)
class Source:
    """A public document. `date`: when it was issued, or as of when it was read."""

    title: str
    url: str
    date: str


@dataclass(frozen=True)
class Limit:
    """A condition on nodes of some operators ("*": of all), and what to do where it fails."""

    operators: frozenset[str]
    holds: Expression
    source: Source
    when: Expression | None = None
    advice: str = ""

    def concerns(self, name: str) -> bool:
        """Whether this is about nodes of the operator `name`."""
        return name in self.operators or _ANY in self.operators


@dataclass(frozen=True)
class Profile:
    """What one target takes.

    `operators`: those that it takes, each with the document that lists it; empty: no document
    lists them, and only limits are asked. `dense`: how it wants dense layers. `passes`: the
    pipeline that it implies, as `--passes` has it.
    """

    name: str
    title: str
    about: str
    dense: Dense
    passes: str
    operators: Mapping[str, Source]
    limits: tuple[Limit, ...]
    sources: tuple[Source, ...]


def names() -> list[str]:
    """Return the names of the built-in profiles."""
    found = files("graphpass.targets").iterdir()
    return sorted(
        entry.name.removesuffix(".toml") for entry in found if entry.name.endswith(".toml")
    )


def load(target: str) -> Profile:
    """Return a built-in profile by name, or one from a .toml file. Raises `UsageError`."""
    if target in names():
        text = files("graphpass.targets").joinpath(f"{target}.toml").read_text(encoding="utf-8")
        return read(text, target)
    path = Path(target)
    if path.suffix != ".toml":
        raise UsageError(
            f"there is no target {target!r}{nearest(target, names())}; there are "
            f"{', '.join(names())}, or give a .toml file"
        )
    return read(read_text(path), path.stem, where=str(path))


def read(text: str, name: str, *, where: str = "") -> Profile:
    """Return the profile that `text` is, in TOML. Raises `UsageError` with what is wrong in it."""
    where = where or f"target {name}"
    data = toml.parse(text, where)
    try:
        return _profile(data, name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _profile(data: Mapping[str, Any], name: str) -> Profile:
    if unknown := sorted(set(data) - _TOP):
        raise UsageError(f"there is no entry {unknown[0]!r}; there are {', '.join(sorted(_TOP))}")
    sources = {key: _source(key, entry) for key, entry in _table(data, "sources").items()}
    listed = {
        op: _named(sources, entry) for entry in _rows(data, "operators") for op in _ops(entry)
    }
    dense = data.get("dense", "keep")
    if dense not in ("conv", "gemm", "keep"):
        raise UsageError(f"dense is conv, gemm or keep, not {dense!r}")
    return Profile(
        name,
        _text(data, "title"),
        _text(data, "about"),
        dense,
        _text(data, "passes"),
        listed,
        tuple(_limit(entry, sources) for entry in _rows(data, "limits")),
        tuple(sources.values()),
    )


def _source(key: str, entry: Any) -> Source:
    if not isinstance(entry, dict):
        raise UsageError(f"sources.{key} is no table")
    for needed in ("title", "url", "date"):
        if not entry.get(needed):
            raise UsageError(f"the source {key!r} has no {needed}")
    if not str(entry["url"]).startswith("https://"):
        raise UsageError(f"the source {key!r} is at {entry['url']!r}, which is no https:// address")
    return Source(str(entry["title"]), str(entry["url"]), str(entry["date"]))


def _limit(entry: Mapping[str, Any], sources: Mapping[str, Source]) -> Limit:
    when = entry.get("when")
    return Limit(
        frozenset(_ops(entry)),
        Expression.read(_text(entry, "holds"), _KNOWN),
        _named(sources, entry),
        Expression.read(str(when), _KNOWN) if when is not None else None,
        str(entry.get("advice", "")),
    )


def _named(sources: Mapping[str, Source], entry: Mapping[str, Any]) -> Source:
    key = entry.get("source")
    if key not in sources:
        raise UsageError(f"{_first(entry)} names no source among {', '.join(sources) or 'none'}")
    return sources[str(key)]


def _first(entry: Mapping[str, Any]) -> str:
    told = entry.get("holds") or ", ".join(map(str, entry.get("names", ())[:3]))
    return f"the entry {told!r}"


def _ops(entry: Mapping[str, Any]) -> Iterator[str]:
    listed = entry.get("names")
    if not isinstance(listed, list) or not all(isinstance(op, str) for op in listed):
        raise UsageError(f"{_first(entry)} has no list `names` of operators")
    yield from listed


def _rows(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = data.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{key} is no list of tables: write [[{key}]]")
    return rows


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = data.get(key, {})
    if not isinstance(table, dict):
        raise UsageError(f"{key} is no table")
    return table


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"there is no text {key!r}")
    return value
