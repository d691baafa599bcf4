"""Functions of a `gs.Graph`, as people write them for onnx-graphsurgeon, as passes.

    graphpass optimize model.onnx --passes clean-up,my_script.py:simplify
    graphpass.optimize("model.onnx", [simplify])

The function gets the main graph, changes it, and returns None, the graph or another one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_graphsurgeon as gs

from graphpass.errors import RuleError, UsageError
from graphpass.ir.nodes import Graph
from graphpass.rewrite.guard import guarded
from graphpass.rewrite.rule import Pass


@dataclass(frozen=True)
class Script(Pass):
    """A function of a `gs.Graph`, validated like any other pass.

    `interface`: whether it may change inputs and outputs of the model.
    """

    function: Callable[[gs.Graph], Any]
    interface: bool = False
    place: str = field(default="")  # the file, as it was given

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function as `--passes` takes it."""
        called = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{self.place}:{called}" if self.place else called

    @property
    def changes_interface(self) -> bool:  # type: ignore[override]
        """Whether inputs and outputs may change."""
        return self.interface

    @property
    def options(self) -> dict[str, Any]:
        """Its options, by name."""
        return {"interface": True} if self.interface else {}

    @property
    def version(self) -> str:
        """The SHA-256 of its file."""
        return hashlib.sha256(Path(self.place).read_bytes()).hexdigest() if self.place else ""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return ((self.function.__doc__ or "").strip() or "A function of a graph.").splitlines()[0]

    def run(self, graph: Graph) -> list[str]:
        """Call the function on the main graph."""
        if graph.parent is not None or graph.is_function:
            return []
        made = self.function(graph)
        if isinstance(made, gs.Graph) and made is not graph:
            _take_over(graph, made)
        return []


def _take_over(graph: Graph, made: gs.Graph) -> None:
    """Let `graph` be what a function returned in its place; inputs and outputs go by name."""
    own = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        node.inputs.clear()
        node.outputs.clear()
    for node in made.nodes:
        for tensors in (node.inputs, node.outputs):
            for index, tensor in enumerate(tensors):
                if tensor.name in own:
                    tensors[index] = own[tensor.name]
    graph.nodes[:] = made.nodes
    for mine, theirs in ((graph.inputs, made.inputs), (graph.outputs, made.outputs)):
        mine[:] = [own.get(tensor.name, tensor) for tensor in theirs]


def load(text: str) -> Script | type[Pass]:
    """Return what `FILE.py:NAME` names: a function as a pass, or a class of passes.

    Raises `UsageError`.
    """
    place, _, name = text.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"cannot read {path}: there is no such file")
    module = _imported(path)
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Pass):
        return found
    if not callable(found):
        raise UsageError(f"{path} has no function or pass {name!r}")
    return Script(found, place=place)


def _imported(path: Path) -> ModuleType:
    # a name that no package has: what the file defines is looked up there by dataclasses
    spec = importlib.util.spec_from_file_location(f"graphpass script {path.resolve()}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # what it imports from beside itself
    try:
        with guarded("it"):
            spec.loader.exec_module(module)
    except RuleError as error:  # whatever a script does when it is imported
        raise UsageError(f"{path} cannot be loaded: {error}") from error
    finally:
        sys.path.pop(0)
    return module
