"""Pages of the site that are made when it is built: the catalogue of passes, and files beside it.

Run by mkdocs (plug-in gen-files).
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

from graphpass.commands.catalogue import options_of
from graphpass.rewrite import registry
from graphpass.rewrite.rule import Pass

ROOT = Path(__file__).parents[1]
BESIDE = {  # files that readers of the repository find elsewhere
    "CONTRIBUTING.md": "tutorial/first-pass.md",
    "CHANGELOG.md": "reference/changes.md",
    "SECURITY.md": "explanation/security.md",
}
_SIGNS = re.compile(r"([*_\[\]|])")


def catalogue() -> Iterator[str]:
    """Yield the lines of the page of passes: options, and the law of every rule."""
    yield "# Passes and their laws"
    yield ""
    yield "What `graphpass passes NAME` prints, made from the rules themselves."
    yield ""
    yield "| pipeline | passes |"
    yield "|---|---|"
    for pipeline, steps in registry.PIPELINES.items():
        yield f"| `{pipeline}` | {', '.join(f'[{step}](#{step})' for step in steps)} |"
    for name in sorted(registry.builtin_types()):
        yield from _pass(registry.make(name))


def _pass(step: Pass) -> Iterator[str]:
    yield f"\n## {step.name}\n"
    yield _prose(type(step).__doc__)
    options = list(options_of(step))
    if options:
        yield ""
        yield from (f"- option `{option}`" for option in options)
    for rule in (*step.surveys, *step.rules):
        yield f"\n**{rule.name}**\n"
        yield _prose(type(rule).__doc__)


def _prose(docstring: str | None) -> str:
    """Return a docstring as Markdown in which signs of mathematics stay what they are."""
    parts = inspect.cleandoc(docstring or "").split("`")
    parts[::2] = [_SIGNS.sub(r"\\\1", html.escape(text, quote=False)) for text in parts[::2]]
    return "`".join(parts)


with mkdocs_gen_files.open("reference/passes.md", "w") as page:
    page.write("\n".join(catalogue()) + "\n")
for source, target in BESIDE.items():
    up = "../" * target.count("/")
    text = (ROOT / source).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)]+)\)", rf"]({up}\1)", text)
    text = re.sub(r"\[([^\]]+)\]\((?!https?:|#|\.\./)[^)]+\)", r"`\1`", text)
    with mkdocs_gen_files.open(target, "w") as page:
        page.write(text)
