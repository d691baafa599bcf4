"""`optimum-cli graphpass MODEL …`: `graphpass optimize` among the commands of Optimum.

    python -m graphpass.integrations.optimum           # once: tells Optimum; --remove takes it back
    optimum-cli graphpass onnx/model.onnx --pipeline fast -o onnx/model.opt.onnx

Optimum looks for commands in a folder of its own, so that a file of two lines is put there; nothing
of graphpass is in the way where Optimum is not installed. Needs optimum.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

_REGISTERED = """# written by graphpass.integrations.optimum
from graphpass.integrations.optimum import REGISTER_COMMANDS
"""


class GraphpassCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # unknown where not installed
    """Rewrites an ONNX model, each rewrite checked, with the options of `graphpass optimize`."""

    COMMAND = CommandInfo(
        name="graphpass", help="Rewrite an ONNX model; every rewrite is checked in ONNX Runtime."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take all that follows the model, as `graphpass optimize` does."""
        parser.add_argument("model", help="An ONNX file, or several with --out-dir.")
        parser.add_argument("options", nargs=argparse.REMAINDER, help="See graphpass optimize -h.")

    def run(self) -> None:
        """Run it; ends the process with the exit code of graphpass where that is not 0."""
        from graphpass.cli import run

        code = run(["optimize", self.args.model, *self.args.options])
        if code:
            sys.exit(code)


REGISTER_COMMANDS = [GraphpassCommand]


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the file where Optimum looks for commands, or remove it."""
    parser = argparse.ArgumentParser(prog="python -m graphpass.integrations.optimum")
    parser.add_argument("--remove", action="store_true", help="take the command away again")
    options = parser.parse_args(arguments)
    commands = importlib.util.find_spec("optimum.commands")
    assert commands is not None and commands.submodule_search_locations
    folder = Path(next(iter(commands.submodule_search_locations))) / "register"
    target = folder / "register_graphpass.py"
    if options.remove:
        target.unlink(missing_ok=True)
    else:
        folder.mkdir(exist_ok=True)
        target.write_text(_REGISTERED, encoding="utf-8")
    print(f"{'removed' if options.remove else 'wrote'} {target}")


if __name__ == "__main__":
    main()
