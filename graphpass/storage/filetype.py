"""What a file is that somebody took for an ONNX model."""

from __future__ import annotations

import codecs
from collections.abc import Callable


def describe(head: bytes) -> str | None:
    """Return what the file that begins with `head` is, None if it is nothing known."""
    return next((kind for test, kind in _KINDS if test(head)), None)


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text)


_KINDS: list[tuple[Callable[[bytes], bool], str]] = [
    (lambda head: not head, "an empty file"),
    (lambda head: head.startswith(b"version https://git-lfs"), "a Git LFS pointer: fetch the file"),
    (lambda head: head.startswith(b"PK\3\4"), "a zip archive, as PyTorch saves its own models"),
    (lambda head: head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5", "a Python pickle"),
    (lambda head: head.startswith(b"\x1f\x8b"), "compressed by gzip: unpack it first"),
    (lambda head: head.startswith(b"\x89HDF"), "HDF5, as Keras saves its own models"),
    (lambda head: head.startswith(b"GGUF"), "GGUF"),
    (lambda head: head[4:8] == b"ORTM", "ONNX Runtime's own .ort format"),
    (lambda head: head[4:8] == b"TFL3", "TensorFlow Lite"),
    (lambda head: head[8:10] == b'{"', "safetensors"),
    (lambda head: head.lstrip()[:1] in (b"{", b"["), "JSON text"),
    (_is_text, "text"),
]
