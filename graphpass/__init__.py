"""graphpass: graph-rewriting compiler passes for ONNX models, each rewrite checked.

    import graphpass
    result = graphpass.optimize("model.onnx")
    result.save("model.opt.onnx")

What a pass author needs is here as well: `Rule`, `Pass`, `Op`, `any_`, `const`, `optional`,
`either`, `each`, `siblings`, `require`, `needed` and the questions about nodes and tensors.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpass.dense.convolutionalize import DenseReport as DenseReport
    from graphpass.dense.convolutionalize import DenseResult as DenseResult
    from graphpass.dense.convolutionalize import convolutionalize as convolutionalize
    from graphpass.errors import GraphpassError as GraphpassError
    from graphpass.ir.model import Model as Model
    from graphpass.ir.nodes import Constant as Constant
    from graphpass.ir.nodes import Graph as Graph
    from graphpass.ir.nodes import Node as Node
    from graphpass.ir.nodes import Tensor as Tensor
    from graphpass.ir.nodes import Variable as Variable
    from graphpass.ir.questions import attribute as attribute
    from graphpass.ir.questions import axes_of as axes_of
    from graphpass.ir.questions import constant as constant
    from graphpass.ir.questions import dtype as dtype
    from graphpass.ir.questions import integers as integers
    from graphpass.ir.questions import is_output as is_output
    from graphpass.ir.questions import label as label
    from graphpass.ir.questions import needed as needed
    from graphpass.ir.questions import operator as operator
    from graphpass.ir.questions import opset as opset
    from graphpass.ir.questions import producer as producer
    from graphpass.ir.questions import rank as rank
    from graphpass.ir.questions import readers as readers
    from graphpass.ir.questions import require as require
    from graphpass.ir.questions import static_dim as static_dim
    from graphpass.ir.questions import static_shape as static_shape
    from graphpass.ir.weight import Weight as Weight
    from graphpass.many.report import ManyReport as ManyReport
    from graphpass.many.run import optimize_many as optimize_many
    from graphpass.rewrite.choice import Choice as Choice
    from graphpass.rewrite.pattern import Beyond as Beyond
    from graphpass.rewrite.pattern import Op as Op
    from graphpass.rewrite.pattern import any_ as any_
    from graphpass.rewrite.pattern import const as const
    from graphpass.rewrite.pattern import each as each
    from graphpass.rewrite.pattern import either as either
    from graphpass.rewrite.pattern import optional as optional
    from graphpass.rewrite.pattern import siblings as siblings
    from graphpass.rewrite.rule import Pass as Pass
    from graphpass.rewrite.rule import Rule as Rule
    from graphpass.rewrite.survey import Survey as Survey
    from graphpass.run.comparison import compare as compare
    from graphpass.run.optimization import optimize as optimize
    from graphpass.run.result import Result as Result

if os.name != "posix":
    raise ImportError(
        "graphpass needs Linux: it locks files, forks and sends signals as POSIX systems do. "
        "On Windows it runs in WSL or a container."
    )

__version__ = "0.1.0"

# who wants to hear of each pass and rewrite adds a handler; nobody else is told twice
logging.getLogger(__name__).addHandler(logging.NullHandler())

# where each name lives: importing graphpass must not cost onnx and numpy before they are needed
_HOMES = {
    "graphpass.run.comparison": ("compare",),
    "graphpass.run.optimization": ("optimize",),
    "graphpass.run.result": ("Result",),
    "graphpass.dense.convolutionalize": ("DenseReport", "DenseResult", "convolutionalize"),
    "graphpass.errors": ("GraphpassError",),
    "graphpass.ir.questions": (
        "attribute",
        "axes_of",
        "constant",
        "dtype",
        "integers",
        "is_output",
        "label",
        "needed",
        "operator",
        "opset",
        "producer",
        "rank",
        "readers",
        "require",
        "static_dim",
        "static_shape",
    ),
    "graphpass.ir.nodes": ("Constant", "Graph", "Node", "Tensor", "Variable"),
    "graphpass.many.report": ("ManyReport",),
    "graphpass.many.run": ("optimize_many",),
    "graphpass.ir.model": ("Model",),
    "graphpass.rewrite.choice": ("Choice",),
    "graphpass.rewrite.pattern": (
        "Beyond",
        "Op",
        "any_",
        "const",
        "each",
        "either",
        "optional",
        "siblings",
    ),
    "graphpass.rewrite.rule": ("Pass", "Rule"),
    "graphpass.rewrite.survey": ("Survey",),
    "graphpass.ir.weight": ("Weight",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'graphpass' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
