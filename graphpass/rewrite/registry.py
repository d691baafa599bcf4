"""Passes and pipelines by name; built-in passes and plug-ins come in by the same door.

An entry point of the group `graphpass.passes` names a module; every `Pass` subclass that the
module lists in `__all__` (or, without one, defines) is a pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphpass.errors import RuleError, UsageError
from graphpass.rewrite import script
from graphpass.rewrite.guard import guarded
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.script import Script
from graphpass.wording import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PIPELINES: Mapping[str, tuple[str, ...]] = {
    "default": ("clean-up", "fold-batchnorm", "flatten-gemm-to-gap-conv", "gemm-to-conv"),
    "runtime": ("clean-up", "fold-batchnorm", "flatten-gemm-to-gap-conv{grow=false}"),
    "fast": (
        "clean-up",
        "fold-batchnorm",
        "drop-channels",
        "merge-branches",
        "move-linear",
        "merge-siblings",
    ),
    "conv-only": ("clean-up", "fold-batchnorm", "flatten-gemm-to-gap-conv", "gemm-to-conv"),
}

# what is run where choices are measured and nothing else is asked for: what may pay on any runtime
TUNED: tuple[str, ...] = (*PIPELINES["fast"], "flatten-gemm-to-gap-conv", "gemm-to-conv")

Step = str | Pass | Callable[[Any], Any]  # the last: a function of a `gs.Graph`
Passes = Step | Sequence[Step] | None

_GROUP = "graphpass.passes"
_OWN = "graphpass.passes"
_LONGEST_IMPORT_S = 300.0
# a pass by its name, or a pass or function of a file: FILE.py:NAME
_ITEM = re.compile(r"\s*([^,{}]+\.py:\w+|[A-Za-z0-9_.-]+)\s*(?:\{([^}]*)\})?\s*(?:,|$)")
# a comma that begins no other option belongs to a value
_BETWEEN_OPTIONS = re.compile(r";|,(?=\s*\w+\s*=|\s*$)")


@lru_cache(maxsize=1)
def builtin_types() -> dict[str, type[Pass]]:
    """Return graphpass's own pass classes by name."""
    return _types([import_module(_OWN)])


@lru_cache(maxsize=1)
def pass_types() -> dict[str, type[Pass]]:
    """Return every known pass class by name, built-in ones first. Raises `UsageError`."""
    from importlib.metadata import entry_points  # slow, and few ask for plug-ins

    return _types(map(_load, entry_points(group=_GROUP)), builtin_types())


def _types(
    modules: Iterable[Any], known: Mapping[str, type[Pass]] | None = None
) -> dict[str, type[Pass]]:
    found = dict(known or {})
    for module in modules:
        names = getattr(module, "__all__", None) or dir(module)
        for name in names:
            value = getattr(module, name)
            if not (isinstance(value, type) and issubclass(value, Pass) and value is not Pass):
                continue
            if value.name in found and found[value.name] is not value:
                raise UsageError(
                    f"two passes are called {value.name!r}: {found[value.name].__module__} and "
                    f"{value.__module__}; uninstall one of the packages"
                )
            found[value.name] = value
    return found


def _load(point: EntryPoint) -> Any:
    try:
        with guarded("it", _LONGEST_IMPORT_S):
            return import_module(point.value)
    except RuleError as error:
        raise UsageError(f"the plug-in {point.name} cannot be loaded: {error}") from error


def make(name: str, options: Mapping[str, str] | None = None) -> Pass:
    """Return the pass `name` with its options given as text. Raises `UsageError`.

    `name` may be FILE.py:NAME, a pass or a function of a `gs.Graph`.
    """
    if ".py:" in name:
        loaded = script.load(name)
        if isinstance(loaded, Script):
            return _script(name, loaded, options or {})
        kind: type[Pass] = loaded
    else:
        kind = _kind(name)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for key, text in (options or {}).items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            hint = nearest(key, fields)
            raise UsageError(f"pass {name} has no option {key!r}{hint}; its options: {known}")
        values[key] = _value(name, fields[key], text)
    try:
        with guarded(f"pass {name}"):
            return kind(**values)
    except RuleError as error:
        raise UsageError(str(error)) from error


def _value(name: str, field: dataclasses.Field[Any], text: str) -> Any:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "str")
    readers: dict[str, Any] = {"int": int, "float": float, "str": str}
    if kind == "bool":
        return _flag(name, field.name, text)
    try:
        return readers.get(kind, str)(text)
    except ValueError:
        raise UsageError(
            f"option {field.name} of pass {name} is of type {kind}: {text!r}"
        ) from None


def _kind(name: str) -> type[Pass]:
    own = import_module(_OWN)
    if name in own.PLACES:  # it alone is imported
        kind: type[Pass] = getattr(own, own.PLACES[name][1])
        return kind
    kinds = pass_types()  # a plug-in that is broken harms only those who ask for plug-ins
    if name not in kinds:
        hint = nearest(name, [*kinds, *PIPELINES])
        raise UsageError(f"there is no pass {name!r}{hint}; there are: {', '.join(kinds)}")
    return kinds[name]


def _script(name: str, loaded: Script, options: Mapping[str, str]) -> Script:
    given = {"interface": "false", **options}
    if len(given) > 1:
        raise UsageError(f"{name} has no option but interface=true")
    return dataclasses.replace(loaded, interface=_flag(name, "interface", given["interface"]))


def _flag(name: str, option: str, text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise UsageError(f"option {option} of pass {name} is true or false, not {text!r}")


def parse(text: str) -> list[Pass]:
    """Read `a,b{option=value,other=1},c` into passes. Raises `UsageError`."""
    return [make(name, options) for name, options in split(text)]


def split(text: str) -> list[tuple[str, dict[str, str]]]:
    """Read `a,b{option=value,other=1},c` into names and options. Raises `UsageError`.

    Between options `;` does as well as `,`.
    """
    steps: list[tuple[str, dict[str, str]]] = []
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None:
            raise UsageError(
                f"cannot read the pass list at {text[position:]!r}; write a,b{{option=value}},c"
            )
        options = {}
        for part in filter(str.strip, _BETWEEN_OPTIONS.split(item.group(2) or "")):
            key, equals, value = part.partition("=")
            if not equals:
                raise UsageError(f"option {part!r} of pass {item.group(1)} needs =value")
            options[key.strip()] = value.strip()
        steps.append((item.group(1), options))
        position = item.end()
    if not steps:
        raise UsageError("the pass list is empty")
    return steps


def require_pipeline(name: str) -> None:
    """Raise `UsageError` where there is no pipeline of that name."""
    if name not in PIPELINES:
        hint = nearest(name, PIPELINES)
        raise UsageError(f"there is no pipeline {name!r}{hint}; there are {', '.join(PIPELINES)}")


def pipeline(name: str) -> list[Pass]:
    """Return the passes of a named pipeline. Raises `UsageError`."""
    require_pipeline(name)
    return parse(",".join(PIPELINES[name]))


def passes_of(what: Passes) -> list[Pass]:
    """Return passes from a pipeline name, a pass list in text, passes, or None (the default).

    A function of a `gs.Graph` is a pass as well.
    """
    if what is None:
        return pipeline("default")
    if isinstance(what, Pass):
        return [what]
    if isinstance(what, str):
        return pipeline(what) if what in PIPELINES else parse(what)
    if callable(what):
        return [Script(what)]
    return [
        step
        for item in what
        for step in (parse(item) if isinstance(item, str) else passes_of(item))
    ]


def without(what: Passes, skip: Sequence[str]) -> list[Pass]:
    """Return passes as `passes_of` does, but for those named in `skip`. Raises `UsageError`."""
    steps = passes_of(what)
    names = [step.name for step in steps]
    for name in skip:
        if name not in names:
            hint = nearest(name, names)
            raise UsageError(f"there is no pass {name!r}{hint} to skip among {', '.join(names)}")
    return [step for step in steps if step.name not in skip]
