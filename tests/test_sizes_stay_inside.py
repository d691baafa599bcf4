"""What shape inference reads stays in the model file, whatever the size threshold."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphpass.storage.writer import stage_model
from graphpass.testing import graph

RESHAPE = graph(
    "(float[N,4] x) => (float[N,2,2] y) { h = Mul(x, w) y = Reshape(h, to) }",
    w=(4,),
    to=np.array([0, 2, 2]),
)
RESIZE = graph(
    "(float[1,1,4,4] x) => (float[1,1,8,8] y) { h = Mul(x, w) y = Resize(h, , scales) }",
    w=(1, 1, 4, 4),
    scales=np.array([1, 1, 2, 2], np.float32),
)
BODY = graph(
    """(float[2] x, bool c) => (float[1,2] y) {
        y = If(c) <
            then_branch = t () => (float[1,2] p) <int64[1] zero = {0}, float[2] w = {1, 2}> {
                q = Mul(x, w) p = Unsqueeze(q, zero) },
            else_branch = e () => (float[1,2] r) {
                axis = Constant<value = int64[1] {0}>() r = Unsqueeze(x, axis) }>
    }"""
)


@pytest.mark.parametrize(("model", "inside"), [(RESHAPE, "to"), (RESIZE, "scales"), (BODY, "zero")])
@pytest.mark.parametrize("threshold", [0, 8])
def test_a_model_that_is_all_external_loads(
    model: onnx.ModelProto, inside: str, threshold: int, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    with stage_model(model, path, external_data="always", size_threshold=threshold) as staged:
        staged.commit()
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    written = onnx.load(path, load_external_data=False)
    branch = next((a.g for n in written.graph.node for a in n.attribute if a.g.initializer), None)
    held = {t.name: t for t in (written.graph if branch is None else branch).initializer}
    assert held[inside].data_location == onnx.TensorProto.DEFAULT
    if branch is None:  # as raw bytes: the text syntax writes others, which stay where they are
        assert held["w"].data_location == onnx.TensorProto.EXTERNAL
