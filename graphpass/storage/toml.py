"""TOML that users write: what cannot be read is a `UsageError` of one sentence."""

from __future__ import annotations

import sys
from typing import Any

from graphpass.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse(text: str, where: str) -> dict[str, Any]:
    """Return what TOML says; `where` names it in errors."""
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is one, too
        raise UsageError(f"{where} is no TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply") from None
    return content
