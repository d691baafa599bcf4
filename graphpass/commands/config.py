"""Options of a command from `graphpass.toml`, or `[tool.graphpass]` in `pyproject.toml`.

    pipeline = "fast"

    [models."detector-*.onnx"]
    skip = ["move-linear"]

The working folder's file is read, `graphpass.toml` before the other. Tables of `models` hold for
models whose path or file name matches, the later before the earlier, and the command line before
all. What a stronger layer says of `passes`, `pipeline` or `target` replaces what the weaker says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from graphpass.commands.options import options as joined
from graphpass.errors import UsageError
from graphpass.storage import toml
from graphpass.storage.text import read_text
from graphpass.wording import nearest

_FILE, _PROJECT = "graphpass.toml", "pyproject.toml"
_MODELS = "models"
_FOR_MANY = {"jobs", "scheduler", "force"}  # which mean nothing without --out-dir
_NOT_IN_FILES = {"config", "no-config", "help"}
# what a stronger layer says of the one leaves nothing of the others
_REPLACES = {
    "passes": {"pipeline"},
    "pipeline": {"passes"},
    "target": {"passes", "pipeline"},
    "output": {"in-place", "out-dir"},
    "in-place": {"output", "out-dir"},
    "out-dir": {"output", "in-place"},
}
# what no table of a model may say where there are many
_OF_ALL = {"output", "in-place", "out-dir", "report", "reproducers", "quiet", "verbose", *_FOR_MANY}
_TABLES = "graphpass.tables"  # in click's context
Settings = dict[str, Any]


_FROM_FILE = click.core.ParameterSource.DEFAULT_MAP
CONFIG = joined(
    click.option(
        "--config",
        metavar="FILE",
        expose_value=False,
        help="Options from this file.  [default: graphpass.toml or pyproject.toml, here]",
    ),
    click.option("--no-config", is_flag=True, expose_value=False, help="Read no such file."),
)


class Configured(click.Command):
    """A command over models whose options may also come from a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click. Raises `UsageError` where the file does not fit the command."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        given = self.make_parser(ctx).parse_args(list(args))[0]
        options = _options(self)
        typed = {key for key, option in options.items() if option.name in given}
        wanted = self.get_help_option(ctx)
        if "no_config" in given or (wanted is not None and wanted.name in given):
            return super().parse_args(ctx, args)
        where, content = _read(given.get("config"))
        models = given.get(_MODELS)
        try:
            found = _layered(content, models if isinstance(models, tuple) else (), options)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        many = "out-dir" in typed | set(found)
        if "out-dir" not in typed | set(found):
            found = {key: value for key, value in found.items() if key not in _FOR_MANY}
        found = _over(found, dict.fromkeys(typed))
        ctx.default_map = {str(options[key].name): found[key] for key in found if key not in typed}
        try:
            rest = super().parse_args(ctx, args)
        except click.BadParameter as error:
            name = error.param.name if error.param is not None else None
            if name is None or ctx.get_parameter_source(name) is not _FROM_FILE:
                raise
            raise UsageError(f"{where}: {error.format_message()}") from None
        if many and content.get(_MODELS):
            try:
                ctx.meta[_TABLES] = list(_tables(ctx, content[_MODELS], options, typed))
            except (UsageError, click.BadParameter) as error:
                raise UsageError(f"{where}: {_text_of(error)}") from None
        if ctx.default_map and not ctx.params["quiet"]:
            click.echo(f"options from {where}: {', '.join(sorted(set(found) - typed))}", err=True)
        return rest


def for_model(ctx: click.Context, model: str) -> dict[str, Any]:
    """Return the parameters of the command for one of many models, as tables of the file say."""
    params = dict(ctx.params)
    for pattern, settings in ctx.meta.get(_TABLES, ()):
        if _matches(model, pattern):
            params.update(settings)
    return params


def _tables(
    ctx: click.Context,
    tables: Mapping[str, Any],
    options: Mapping[str, click.Option],
    typed: set[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of models with parameters as click converts them."""
    for pattern, table in tables.items():
        settings = _settings(table, options)
        if of_all := sorted(_OF_ALL & set(settings)):
            raise UsageError(
                f'[models."{pattern}"]: {of_all[0]} holds for all models of a run with --out-dir'
            )
        settings = _over(settings, dict.fromkeys(typed))
        settings = {key: value for key, value in settings.items() if key not in typed}
        params = {str(options[gone].name): None for key in settings for gone in _replaced(key)}
        for key, value in settings.items():
            params[str(options[key].name)] = options[key].process_value(ctx, value)
        yield pattern, params


def _replaced(key: str) -> set[str]:
    return _REPLACES.get(key, set())


def _text_of(error: UsageError | click.BadParameter) -> str:
    return error.format_message() if isinstance(error, click.BadParameter) else str(error)


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return a command's options by their long names, as files spell them."""
    return {
        name[2:]: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--") and name[2:] not in _NOT_IN_FILES
    }


def _read(path: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return the name and content of the file given, or of the working folder's."""
    own, project = Path(path or _FILE), Path(_PROJECT)
    if path is not None and own.name == _PROJECT:
        own, project = Path(_FILE), own
    elif path is not None or own.is_file():
        return str(own), toml.parse(read_text(own), str(own))
    if not project.is_file() and path is None:
        return "", {}
    tools = toml.parse(read_text(project), str(project)).get("tool", {})
    content = tools.get("graphpass", {}) if isinstance(tools, dict) else {}
    if not isinstance(content, dict):
        raise UsageError(f"{project}: tool.graphpass is no table")
    return f"{project} [tool.graphpass]", content


def _layered(
    content: Mapping[str, Any], models: Sequence[str], options: Mapping[str, click.Option]
) -> Settings:
    """Return what a file says of models; all of it is read, whatever the models are."""
    general = {key: value for key, value in content.items() if key != _MODELS}
    found = _settings(general, options)
    tables = content.get(_MODELS, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError('models holds tables: write [models."PATTERN"]')
    for pattern, table in tables.items():
        settings = _settings(table, options)
        if models and all(_matches(model, pattern) for model in models):
            found = _over(found, settings)
    return found


def _matches(model: str, pattern: str) -> bool:
    path = Path(model)
    return any(fnmatchcase(name, pattern) for name in (path.name, path.as_posix(), model))


def _over(weaker: Settings, stronger: Settings) -> Settings:
    gone: set[str] = set().union(*(_REPLACES.get(key, set()) for key in stronger))
    return {key: value for key, value in weaker.items() if key not in gone} | stronger


def _settings(table: Mapping[str, Any], options: Mapping[str, click.Option]) -> Settings:
    found = {}
    for spelled, value in table.items():
        key = spelled.replace("_", "-")
        if key not in options:
            hint = nearest(key, options)
            raise UsageError(f"there is no option {spelled!r}{hint}; there are {_listed(options)}")
        found[key] = _value(key, options[key], value)
    return found


def _value(key: str, option: click.Option, value: Any) -> Any:
    """Return a value as click takes it from the command line."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{key} is true or false, not {value!r}")
        return value
    if option.multiple:
        if isinstance(value, dict):  # bind = {N = 4}
            value = [f"{name}={number}" for name, number in value.items()]
        return [_text(key, each) for each in (value if isinstance(value, list) else [value])]
    if key == "passes" and isinstance(value, list):
        return ",".join(_text(key, each) for each in value)
    return _text(key, value)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"{key} is no text or number: {value!r}")
    if "\0" in str(value):
        raise UsageError(f"{key} has a NUL in it, as no name of a file can: {value!r}")
    return str(value)


def _listed(options: Iterable[str]) -> str:
    return ", ".join(sorted(options))
