"""Whether a written file holds the very bytes whose hash was taken when the model was read.

Put back in the place that they were read from, the bytes of the written weights have to give the
same hash again. No time stamp is believed for that: who swaps weights between two looks at them,
and sets every clock back, would have to find a collision of SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path

import onnx

from graphpass.storage.identity import payload
from graphpass.storage.protobuf import Piece, Splice
from graphpass.storage.reference import reference_of, stamp, tensors
from graphpass.storage.splice import Sources
from graphpass.storage.wire import read_skeleton

_CHUNK_BYTES = 1 << 20

# where bytes were, first and beyond the last, and where they are now
Place = tuple[int, int, Piece]


def other_than_hashed(checked: onnx.ModelProto, path: Path, hashed: Mapping[str, str]) -> str:
    """Return the file whose weights are not, in the model at `path`, those that were hashed.

    `checked`: the skeleton that was written there; `hashed`: SHA-256 by the real path of a file.
    "" where all are. Raises WireError where a file is gone or has changed.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    files: dict[str, os.stat_result] = {}
    for before, after in zip(tensors(checked), tensors(read_skeleton(path)), strict=True):
        source = reference_of(before)
        if source is not None and os.path.realpath(source.path) in hashed:
            now = payload(after, reference_of(after), files)
            place = (source.offset, source.offset + source.length, now)
            places[source.path].append(place)
    files.update((name, os.stat(name)) for name in places)  # noqa: PTH116
    with Sources({name: stamp(status) for name, status in files.items()}) as sources:
        for name, found in places.items():
            digest = digest_of(name, files[name].st_size, found, sources)
            if digest != hashed[os.path.realpath(name)]:
                return name
    return ""


def digest_of(path: str, size: int, places: list[Place], sources: Sources) -> str | None:
    """Hash a file with other bytes in these places; None where two of them contradict."""
    digest = hashlib.sha256()
    for start, end, covering in _segments(size, places):
        for at in range(start, end, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, end - at)
            read = {
                b"".join(sources.chunks(_part(piece, at - first, length)))
                for first, _, piece in covering or [(0, size, Splice(path, 0, size))]
            }
            if len(read) > 1:
                return None
            digest.update(read.pop())
    return digest.hexdigest()


def _segments(size: int, places: list[Place]) -> Iterator[tuple[int, int, list[Place]]]:
    """Cut a file where places begin and end; yield each part with the places that cover it."""
    waiting = sorted(places, key=lambda place: place[:2], reverse=True)
    edges = sorted({0, size, *(edge for place in places for edge in place[:2])})
    covering: list[tuple[int, int, Place]] = []  # by where they end
    for number, (start, end) in enumerate(pairwise(edges)):
        while waiting and waiting[-1][0] <= start:
            place = waiting.pop()
            heappush(covering, (place[1], number * len(places) + len(waiting), place))
        while covering and covering[0][0] <= start:
            heappop(covering)
        yield start, end, [place for _, _, place in covering]


def _part(piece: Piece, start: int, length: int) -> Piece:
    if isinstance(piece, Splice):
        return Splice(piece.path, piece.offset + start, length)
    return piece[start : start + length]


__all__ = ["digest_of", "other_than_hashed"]
