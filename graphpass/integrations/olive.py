"""graphpass as a pass of Olive, among its own.

In a package configuration that `olive run --package-config FILE` takes beside Olive's own:

    {"passes": {"Graphpass": {
        "module_path": "graphpass.integrations.olive.Graphpass",
        "supported_providers": ["*"], "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [], "supported_quantization_encodings": []}}}

and in a workflow: `"passes": {"rewrite": {"type": "Graphpass", "pipeline": "fast"}}`.
Needs olive-ai.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from graphpass.run.optimization import optimize


class Graphpass(Pass):  # type: ignore[misc]  # where Olive is not installed its classes are unknown
    """A pipeline of graphpass over an ONNX model; every rewrite is checked."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        return {
            "pipeline": PassConfigParam(
                type_=str,
                default_value="runtime",
                description="A pipeline of graphpass, or passes with commas between.",
            ),
            "validate_rewrites": PassConfigParam(
                type_=bool,
                default_value=True,
                description="Run every rewrite in ONNX Runtime, before and after.",
            ),
            "strict": PassConfigParam(
                type_=bool,
                default_value=False,
                description="Fail where a rewrite would have to be undone.",
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        """See Olive. Raises what `graphpass.optimize` raises; then nothing is written."""
        source = Path(model.model_path)
        target = Path(resolve_onnx_path(output_model_path, source.name))
        options = {"validate": config.validate_rewrites, "strict": config.strict}
        with optimize(source, config.pipeline, **options) as result:
            written = result.save(target)
        if written.data is None:
            return ONNXModelHandler(model_path=str(target))
        return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)
