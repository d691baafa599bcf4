"""Models at a URL (`s3://…`, `gs://…`, `https://…`), through fsspec: `graphpass[remote]`.

A model is copied to a temporary folder with the data files that it names, and a result is written
there first. On its way back the data goes before the model, and never over data that is there:
whoever reads the old model meanwhile still has what belongs to it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphpass.errors import GraphpassError, ModelError, OutputError, UsageError

if TYPE_CHECKING:
    from graphpass.storage.writer import WrittenFiles

# `simplecache::s3://…` is one as well; a single letter is a drive
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z][A-Za-z0-9+.-]+)*://")
_LOCAL = re.compile(r"(file|local)://")


def is_url(place: object) -> bool:
    """Say whether `place` is a URL of something else than a file of this machine."""
    return isinstance(place, str) and bool(_URL.match(place)) and not _LOCAL.match(place)


def local(place: str | os.PathLike[str]) -> Path:
    """Return a path, also where it is spelled as `file://…`. Raises `UsageError` for ""."""
    if place == "":  # which a path would take for the working folder
        raise UsageError("an empty name is no file")
    return Path(_LOCAL.sub("", place) if isinstance(place, str) else place)


def protocols(url: str) -> set[str]:
    """Return the protocols that a URL goes through."""
    return set(url.partition("://")[0].lower().split("::"))


def name_of(url: str) -> str:
    """Return the last part of a URL: the name of its file."""
    # of `zip://a.onnx::s3://…` the first part that has a path
    inner = next(part for part in url.split("::") if "://" in part)
    return posixpath.basename(_path(inner).partition("://")[2])


def join(folder: str, name: str) -> str:
    """Return the URL of what lies in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def fetch(url: str, folder: Path) -> Path:
    """Copy a model and the data files that it names into `folder`; return the model's path.

    Data outside of the model's own folder is not copied, so that reading the model refuses it.
    Raises `ModelError` where something cannot be read, `UsageError` where no one knows how.
    """
    name = name_of(url)
    if not name:
        raise ModelError(f"cannot read {url}: it names a folder")
    model = folder / name
    system, path = _system(url)
    with _told(ModelError, f"cannot read {url}"):
        system.get_file(path, str(model))
    for location in sorted(_locations(model)):
        data = folder / location
        data.parent.mkdir(parents=True, exist_ok=True)
        with _told(ModelError, f"cannot read {_sibling(url, location)}, the data of {url}"):
            system.get_file(_sibling(path, location), str(data))
    return model


@contextlib.contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Copy a model as `fetch` does, for the time of a `with`; errors name the URL."""
    from graphpass.storage.spool import Spool

    # as a spool, the folder is removed by the next run where this one is killed
    with Spool() as spool:
        folder = spool.folder / "input"
        folder.mkdir()
        with as_if_at(url, folder):
            yield fetch(url, folder)


@contextlib.contextmanager
def as_if_at(url: str, folder: Path) -> Iterator[None]:
    """Let errors name the URL, not the copy in `folder` that is gone when they are read."""
    try:
        yield
    except GraphpassError as error:
        error.args = (str(error).replace(f"{folder}/", f"{_sibling(url, '')}"),)
        raise


class Delivery:
    """A place to write a model in, on its way to a URL."""

    def __init__(self, url: str, folder: Path) -> None:
        """`folder` is temporary and empty."""
        self._url = url
        self._system, self._at = _system(url)
        self.path = folder / name_of(url)
        self.taken = tuple(self._keep_taken_names())

    def _keep_taken_names(self) -> Iterator[Path]:
        """Have the writer avoid the names of data files that are at the URL already."""
        from graphpass.storage.staging import free_data_name

        with _told(OutputError, f"cannot write {self._url}"):
            self._system.invalidate_cache()
            while self._system.exists(_sibling(self._at, name := free_data_name(self.path))):
                (self.path.parent / name).touch()
                yield Path(name)

    def publish(self, written: WrittenFiles) -> WrittenFiles:
        """Copy what was written to `path` to the URL; return it with names in place of paths."""
        from graphpass.storage.writer import WrittenFile, WrittenFiles

        files = [WrittenFile(Path(file.path.name), file.size_bytes) for file in written.files]
        with _told(OutputError, f"cannot write {self._url}"):
            with contextlib.suppress(NotImplementedError):  # object stores need no folders
                self._system.makedirs(posixpath.dirname(self._at), exist_ok=True)
            for file in reversed(written.files):
                self._system.put_file(str(file.path), _sibling(self._at, file.path.name))
        return WrittenFiles(files[0], files[1] if len(files) > 1 else None, self.taken)


@contextlib.contextmanager
def delivery(url: str) -> Iterator[Delivery]:
    """Give a place to write a model in before it goes to a URL; gone at the end of the `with`."""
    from graphpass.storage.spool import Spool

    if not name_of(url):
        raise OutputError(f"cannot write {url}: it names a folder")
    with Spool() as spool:
        folder = spool.folder / "output"
        folder.mkdir()
        with as_if_at(url, folder):
            yield Delivery(url, folder)


def matches(pattern: str) -> list[str]:
    """Return the URLs that fit one with `*` in it, sorted."""
    system, path = _system(pattern)
    with _told(ModelError, f"cannot list {pattern}"):
        return sorted(str(system.unstrip_protocol(found)) for found in system.glob(path))


def read_bytes(url: str) -> bytes | None:
    """Return the content of a small file, None where there is none."""
    system, path = _system(url)
    with _told(ModelError, f"cannot read {url}"):
        try:
            content: bytes = system.cat_file(path)
        except FileNotFoundError:
            return None
        return content


def write_bytes(url: str, content: bytes) -> None:
    """Write a small file."""
    system, path = _system(url)
    with _told(OutputError, f"cannot write {url}"):
        with contextlib.suppress(NotImplementedError):
            system.makedirs(posixpath.dirname(path), exist_ok=True)
        system.pipe_file(path, content)


def sha256(url: str) -> str | None:
    """Return the SHA-256 of what is at a URL, None where there is nothing."""
    import hashlib

    digest = hashlib.sha256()
    system, path = _system(url)
    with _told(ModelError, f"cannot read {url}"):
        try:
            with system.open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except FileNotFoundError:
            return None
    return digest.hexdigest()


def require(*urls: str) -> None:
    """Raise `UsageError` where a URL is of a kind that nothing here can read."""
    for url in urls:
        _system(url)


def _system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path there. Raises `UsageError`."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UsageError(f"{url} is a URL, which needs pip install 'graphpass[remote]'") from None
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known"
        raise UsageError(f"cannot open {url}: {_line(error)}") from None
    except Exception as error:  # whatever a file system does to find its credentials
        raise ModelError(f"cannot open {url}: {_line(error)}") from None
    return system, path


@contextlib.contextmanager
def _told(kind: type[GraphpassError], what: str) -> Iterator[None]:
    """Turn what a file system raises, which may be anything, into one sentence."""
    try:
        yield
    except GraphpassError:
        raise
    except FileNotFoundError:
        raise kind(f"{what}: there is no such file") from None
    except Exception as error:
        raise kind(f"{what}: {_line(error)}") from None


def _line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (" ".join(reason.split()) or type(error).__name__)[:300]


def _path(url: str) -> str:
    """Return a URL without the query that HTTP knows."""
    return re.split(r"[?#]", url)[0] if protocols(url) & {"http", "https"} else url


def _sibling(path: str, name: str) -> str:
    """Return where `name` lies beside `path`, which may be a URL."""
    folder, slash, _ = _path(path).rpartition("/") if "://" in path else path.rpartition("/")
    return f"{folder}{slash}{name}"


def _locations(model: Path) -> set[str]:
    """Return where a model in a file says that its data is, but for what leaves its folder."""
    import onnx

    from graphpass.storage.reference import is_external, tensors
    from graphpass.storage.wire import graph_bytes

    found = {
        entry.value
        for tensor in tensors(onnx.ModelProto.FromString(graph_bytes(model)))
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found.discard(os.path.realpath(model).lstrip("/"))  # what lies in the model's own file
    return {at for at in found if at and not at.startswith("/") and ".." not in Path(at).parts}
