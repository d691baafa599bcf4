"""Which model is written where, decided before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from graphpass.errors import OutputError, UsageError
from graphpass.storage import remote

Place = str | os.PathLike[str]


class Item(NamedTuple):
    """A model and where it goes.

    `model` is what the user called it, `source` a URL or an absolute path, `name` the path of the
    result below the folder of all results.
    """

    model: str
    source: str
    name: str


def folder_of(out_dir: Place) -> str:
    """Return the folder for results as a URL or an absolute path."""
    if remote.is_url(out_dir):
        return str(out_dir).rstrip("/")
    return str(remote.local(out_dir).absolute())


def place_of(folder: str, name: str) -> str:
    """Return where a result or a record goes, as a URL or an absolute path."""
    return remote.join(folder, name) if remote.is_url(folder) else str(Path(folder) / name)


def plan(models: Sequence[Place], folder: str) -> list[Item]:
    """Return what is to be done, in the order given; `folder` is as `folder_of` has it.

    A folder stands for every .onnx file below it and keeps its structure; a URL may have `*` in
    it. Raises `UsageError` where two models would be written to one file, or one over an input.
    """
    items: dict[str, Item] = {}
    for item in (item for model in models for item in _items(model, folder)):
        other = items.setdefault(item.name, item)
        if _identity(other.source) != _identity(item.source):
            raise UsageError(
                f"{other.model} and {item.model} would both be written to"
                f" {place_of(folder, item.name)}: give the folder that holds both, which keeps"
                " its structure, or run them one after the other"
            )
    _refuse_overwriting(items.values(), folder)
    return list(items.values())


def make_folders(items: Iterable[Item], folder: str, *below: str) -> None:
    """Make the folders that results, and what is kept in `below`, will lie in."""
    if remote.is_url(folder):
        return
    names = {str(PurePosixPath(item.name).parent) for item in items}
    for path in (Path(folder, part, name) for name in sorted(names) for part in ("", *below)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from None


def _items(model: Place, folder: str) -> Iterator[Item]:
    if remote.is_url(model):
        url = str(model)
        found = remote.matches(url) if "*" in url else [url]
        if not found:
            raise UsageError(f"there is nothing at {url}")
        for one in found:
            remote.require(one)
            yield Item(one, one, remote.name_of(one))
        return
    if str(model) == "-":
        raise UsageError("standard input has no name: with --out-dir, give files")
    path = remote.local(model)
    if not path.is_dir():
        yield Item(os.fspath(model), str(path.absolute()), path.name)
        return
    names = sorted(_models_below(path, folder))
    if not names:
        raise UsageError(f"there is no .onnx file below {path}")
    for name in names:
        yield Item(str(path / name), str((path / name).absolute()), name)


def _models_below(path: Path, folder: str) -> Iterator[str]:
    """Yield the names of models below a folder, but for hidden ones and former results."""
    for found in path.rglob("*.onnx"):
        name = found.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if found.is_file() and not hidden and not found.resolve().is_relative_to(_real(folder)):
            yield name.as_posix()


def _refuse_overwriting(items: Iterable[Item], folder: str) -> None:
    inputs = {_identity(item.source): item.model for item in items}
    for item in items:
        target = place_of(folder, item.name)
        if (model := inputs.get(_identity(target))) is not None:
            raise UsageError(f"{model} is an input and would be overwritten: give another folder")


def _identity(place: str) -> object:
    """Return what two names of one file have in common, hard links included."""
    if remote.is_url(place):
        return place
    try:
        status = Path(place).stat()
    except OSError:
        return _real(place)
    return status.st_dev, status.st_ino


def _real(place: str) -> str:
    return place if remote.is_url(place) else os.path.realpath(place)
