"""graphpass: graph-rewriting compiler passes for ONNX models, each rewrite checked.

    import graphpass
    result = graphpass.optimize("model.onnx")
    result.save("model.opt.onnx")

What a pass author needs is here as well: `Rule`, `Pass`, `Op`, `any_`, `const`, `optional`,
`either`, `require` and the questions about nodes and tensors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpass.api import Result as Result
    from graphpass.api import compare as compare
    from graphpass.api import optimize as optimize
    from graphpass.dense.convolutionalize import DenseReport as DenseReport
    from graphpass.dense.convolutionalize import DenseResult as DenseResult
    from graphpass.dense.convolutionalize import convolutionalize as convolutionalize
    from graphpass.errors import GraphpassError as GraphpassError
    from graphpass.graph import attribute as attribute
    from graphpass.graph import axes_of as axes_of
    from graphpass.graph import constant as constant
    from graphpass.graph import dtype as dtype
    from graphpass.graph import integers as integers
    from graphpass.graph import is_output as is_output
    from graphpass.graph import label as label
    from graphpass.graph import operator as operator
    from graphpass.graph import opset as opset
    from graphpass.graph import producer as producer
    from graphpass.graph import rank as rank
    from graphpass.graph import readers as readers
    from graphpass.graph import require as require
    from graphpass.graph import static_dim as static_dim
    from graphpass.graph import static_shape as static_shape
    from graphpass.ir import Constant as Constant
    from graphpass.ir import Graph as Graph
    from graphpass.ir import Node as Node
    from graphpass.ir import Tensor as Tensor
    from graphpass.ir import Variable as Variable
    from graphpass.many.report import ManyReport as ManyReport
    from graphpass.many.run import optimize_many as optimize_many
    from graphpass.model import Model as Model
    from graphpass.pattern import Op as Op
    from graphpass.pattern import any_ as any_
    from graphpass.pattern import const as const
    from graphpass.pattern import either as either
    from graphpass.pattern import optional as optional
    from graphpass.rule import Pass as Pass
    from graphpass.rule import Rule as Rule
    from graphpass.weight import Weight as Weight

__version__ = "0.1.0"

# where each name lives: importing graphpass must not cost onnx and numpy before they are needed
_HOMES = {
    "graphpass.api": ("Result", "compare", "optimize"),
    "graphpass.dense.convolutionalize": ("DenseReport", "DenseResult", "convolutionalize"),
    "graphpass.errors": ("GraphpassError",),
    "graphpass.graph": (
        "attribute",
        "axes_of",
        "constant",
        "dtype",
        "integers",
        "is_output",
        "label",
        "operator",
        "opset",
        "producer",
        "rank",
        "readers",
        "require",
        "static_dim",
        "static_shape",
    ),
    "graphpass.ir": ("Constant", "Graph", "Node", "Tensor", "Variable"),
    "graphpass.many.report": ("ManyReport",),
    "graphpass.many.run": ("optimize_many",),
    "graphpass.model": ("Model",),
    "graphpass.pattern": ("Op", "any_", "const", "either", "optional"),
    "graphpass.rule": ("Pass", "Rule"),
    "graphpass.weight": ("Weight",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'graphpass' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
