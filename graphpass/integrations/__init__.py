"""graphpass inside of other tools: pre-commit, GitHub Actions, onnx-ir, what calls onnxsim."""

from graphpass.integrations.onnxsim import simplify

__all__ = ["simplify"]
