"""How names that come from strangers are said: visibly, and no longer than somebody reads.

A name in a model, a path or a message of another library may hold anything: what a terminal takes
for a command, what turns the direction of text, megabytes. Whatever is shown goes through here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST_NAME = 160
_LONGEST_LINE = 4000
# A quoted name; what stands between two of them begins with a space.
_LONG_QUOTED = re.compile(rf"(?<!\w)'(?=\S)([^']{{{_LONGEST_NAME + 1},}})'")
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{c: f"\\{c}" for c in "\\`*[]|"}}
)


def visible(text: str) -> str:
    """Return one line of `text`: what cannot be seen is escaped, what is too long is cut."""
    if len(text) > _LONGEST_NAME:
        text = _LONG_QUOTED.sub(lambda name: f"'{_cut(name[1], _LONGEST_NAME)}'", text)
        text = _cut(text, _LONGEST_LINE)
    return text if text.isprintable() else "".join(map(_visible, text))


def visible_lines(text: str) -> str:
    """Return `text` as `visible` does, but with its lines."""
    return "\n".join(map(visible, text.split("\n")))


def markdown(text: str) -> str:
    """Return one line of `text` that Markdown, and HTML in it, shows as it is."""
    return visible(text).translate(_MARKDOWN)


def code_span(name: str) -> str:
    """Return a name as Markdown shows code."""
    return "`" + visible(name).replace("`", "'") + "`"


def json_text(text: str) -> str:
    """Return JSON with escapes in place of what cannot be seen; it says the same."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _utf16(c) for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` where a known name is near to one that is not, else ""."""
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name[:_LONGEST_NAME].lower(), by_lower, 1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _cut(text: str, longest: int) -> str:
    """Leave out the middle: how a sentence begins says what, how it ends says why."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}…({len(text)} characters)…{text[-half // 2 :]}"


def _utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
