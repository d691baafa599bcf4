"""graphpass as a pass of onnx-ir, beside others or on what torch exports.

    import onnx_ir
    from graphpass.integrations.onnx_ir import GraphpassPass

    onnx_ir.passes.Sequential(GraphpassPass("fast"), …)(model)
    program = torch.onnx.export(network, inputs)
    GraphpassPass()(program.model)

Needs onnx-ir, which torch's exporter brings along.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx_ir

from graphpass.report.data import Report
from graphpass.rewrite.registry import Passes
from graphpass.run.optimization import optimize

_FIELDS = (
    "graph",
    "ir_version",
    "producer_name",
    "producer_version",
    "domain",
    "model_version",
    "doc_string",
    "device_configurations",
)


class GraphpassPass(onnx_ir.passes.InPlacePass):
    """A pipeline of graphpass over an onnx-ir model, in place; every rewrite is checked.

    `report` is that of the last model, None before the first. A model in which there is nothing
    to rewrite keeps its very graph. Another gets a new one, and new functions, with all weights in
    memory; what onnx-ir does not write into a file (`meta`) is not in it.
    """

    def __init__(self, passes: Passes = "runtime", **options: Any) -> None:
        """`passes` and `options` as `graphpass.optimize` takes them."""
        self.passes = passes
        self.options = options
        self.report: Report | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """See onnx-ir. Raises what `graphpass.optimize` raises; then the model is as it was."""
        with tempfile.TemporaryDirectory(prefix="graphpass-") as folder:
            # weights may be of any size, in other files and of other libraries: onnx-ir knows
            path = Path(folder) / "model.onnx"
            onnx_ir.save(model, path, external_data="weights")
            with optimize(path, self.passes, **self.options) as result:
                self.report = result.report
                if result.changed:
                    _take_over(model, onnx_ir.from_proto(result.model))
                return onnx_ir.passes.PassResult(model, modified=result.changed)


def _take_over(model: onnx_ir.Model, made: onnx_ir.Model) -> None:
    for name in _FIELDS:
        if hasattr(made, name):  # of what release of onnx-ir ever
            setattr(model, name, getattr(made, name))
    model.functions.clear()
    model.functions.update(made.functions)
    model.metadata_props.clear()
    model.metadata_props.update(made.metadata_props)
