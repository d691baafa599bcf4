"""graphpass in the place of other tools: a pass of onnx-ir or Olive; where onnxsim is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.errors import ModelError, UsageError
from graphpass.integrations import simplify
from graphpass.testing import check_equal, graph

OLIVE = Path(__file__).parents[1] / "graphpass/integrations/olive.py"
NET = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    i = Identity(x)
    c = Conv(i, W)
    b = BatchNormalization(c, s, t, m, v)
    y = Relu(b)
}"""


@pytest.fixture
def network() -> onnx.ModelProto:
    ones = np.ones(4, np.float32)
    model = graph(NET, W=(4, 3, 3, 3), s=(4,), t=(4,), m=(4,), v=2 * ones)
    model.metadata_props.add(key="who", value="me")
    model.producer_name, model.doc_string = "test", "kept"
    return model


def test_simplify_as_onnxsim_is_called(network: onnx.ModelProto) -> None:
    before = network.SerializeToString()
    made, ok = simplify(network)
    assert ok and [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
    assert network.SerializeToString() == before
    check_equal(network, made)
    assert simplify(network, "clean-up", validate=False)[1] is False
    with pytest.raises(UsageError, match="no pass 'nope'"):
        simplify(network, "nope")
    with pytest.raises(ModelError):
        simplify(b"no model")


class TestOnnxIr:
    @pytest.fixture
    def ir(self) -> Any:
        return pytest.importorskip("onnx_ir")

    def graphpass_pass(self, *arguments: Any, **options: Any) -> Any:
        from graphpass.integrations.onnx_ir import GraphpassPass

        return GraphpassPass(*arguments, **options)

    def test_it_runs_beside_others_in_place(self, ir: Any, network: onnx.ModelProto) -> None:
        from onnx_ir.passes.common import IdentityEliminationPass

        model = ir.from_proto(network)
        step = self.graphpass_pass("runtime", seed=3)
        result = ir.passes.Sequential(IdentityEliminationPass(), step)(model)
        assert result.modified and result.model is model
        made = ir.to_proto(model)
        assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
        assert made.producer_name == "test" and made.doc_string == "kept"
        assert model.metadata_props == {"who": "me"}
        assert step.report.settings["seed"] == 3 and step.report.rewrites == 1
        check_equal(network, made)

    def test_what_has_nothing_to_rewrite_keeps_its_graph(
        self, ir: Any, network: onnx.ModelProto
    ) -> None:
        model = ir.from_proto(network)
        step = self.graphpass_pass("gemm-to-conv")
        own = model.graph
        result = step(model)
        assert not result.modified and result.model is model and model.graph is own

    def test_a_failure_leaves_the_model_as_it_was(self, ir: Any, network: onnx.ModelProto) -> None:
        model = ir.from_proto(network)
        own, before = model.graph, ir.to_proto(model).SerializeToString()
        with pytest.raises(UsageError, match="no pass 'nope'"):
            self.graphpass_pass("nope")(model)
        assert model.graph is own and ir.to_proto(model).SerializeToString() == before

    def test_weights_in_other_files_are_found(
        self, ir: Any, network: onnx.ModelProto, tmp_path: Path
    ) -> None:
        saved = onnx.ModelProto()
        saved.CopyFrom(network)  # which onnx turns into one that refers to files
        onnx.save(saved, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
        model = ir.load(tmp_path / "m.onnx")
        assert self.graphpass_pass()(model).modified
        for file in tmp_path.iterdir():
            file.unlink()  # nothing of the result lies there
        check_equal(network, ir.to_proto(model))

    def test_functions_stay(self, ir: Any) -> None:
        model = onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
            m (float[2] x) => (float[2] y) { a = Identity(x) b = own.Twice(a) y = own.Twice(b) }
            <domain: "own", opset_import: ["" : 17]>
            Twice (x) => (y) { a = Add(x, x) y = Abs(a) }
        """)
        held = ir.from_proto(model)
        assert self.graphpass_pass("clean-up")(held).modified
        check_equal(model, ir.to_proto(held))
        assert [name for _, name, _ in held.functions] == ["Twice"]

    @pytest.mark.slow
    def test_it_takes_what_torch_exports(self, ir: Any, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        example = torch.randn(2, 3, 8, 8)
        program = torch.onnx.export(layers.eval(), (example,), dynamo=True, optimize=False)
        before = ir.to_proto(program.model)
        assert self.graphpass_pass()(program.model).modified
        program.save(tmp_path / "m.onnx")
        after = onnx.load(tmp_path / "m.onnx")
        assert "BatchNormalization" not in {node.op_type for node in after.graph.node}
        check_equal(before, after)


class TestOlive:
    def run(self, tmp_path: Path, model: onnx.ModelProto, **config: Any) -> Any:
        olive_model = pytest.importorskip("olive.model")
        from olive.hardware.accelerator import AcceleratorSpec
        from olive.package_config import OlivePackageConfig

        example = OLIVE.read_text(encoding="utf-8").split("own:\n\n")[1].split("\n\nand")[0]
        package = OlivePackageConfig.model_validate(json.loads(example))
        step = package.import_pass_module("Graphpass")
        accelerator = AcceleratorSpec("cpu", "CPUExecutionProvider")
        source = tmp_path / "source.onnx"
        onnx.save(model, source, save_as_external_data=bool(config.pop("external", False)))
        settings = step.generate_config(accelerator, config, disable_search=True)
        handler = olive_model.ONNXModelHandler(model_path=str(source))
        return step(accelerator, settings).run(handler, str(tmp_path / "out" / "result"))

    @pytest.mark.parametrize("external", [False, True])
    def test_a_pass_of_olive(
        self, tmp_path: Path, network: onnx.ModelProto, external: bool
    ) -> None:
        handler = self.run(tmp_path, network, external=external)
        made = handler.load_model()
        assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
        check_equal(network, made)

    def test_its_options_arrive(self, tmp_path: Path, network: onnx.ModelProto) -> None:
        handler = self.run(tmp_path, network, pipeline="clean-up", validate_rewrites=False)
        kept = ["Conv", "BatchNormalization", "Relu"]
        assert [node.op_type for node in handler.load_model().graph.node] == kept


def test_a_command_of_optimum(tmp_path: Path, network: onnx.ModelProto) -> None:
    pytest.importorskip("optimum.commands")
    onnx.save(network, tmp_path / "net.onnx")
    tell = [sys.executable, "-m", "graphpass.integrations.optimum"]
    cli = [sys.executable, "-m", "optimum.commands.optimum_cli", "graphpass"]

    def done(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done(tell).returncode == 0
    try:
        told = done([*cli, "net.onnx", "--pipeline", "runtime", "-q", "-o", "small.onnx"])
        assert told.returncode == 0, told.stderr
        made = onnx.load(tmp_path / "small.onnx")
        assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
        assert done([*cli, "gone.onnx"]).returncode == 3
    finally:
        assert done([*tell, "--remove"]).returncode == 0
    assert done([*cli, "net.onnx", "-q"]).returncode == 2
