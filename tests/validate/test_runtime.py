import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphpass.validate.process.runtime import (
    Limits,
    ProviderUnavailableError,
    RunError,
    Runtime,
    run_rounds,
)
from graphpass.validate.process.worker import (
    RefusalError,
    condense,
    resolve_provider,
    verify_provider,
)

from .models import ALLOCATING, COUNTING, RELU, parse

X = np.array([[-1, 0, 2]], np.float32)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(Limits(time_s=20, memory_mib=2048)) as runtime:
        yield runtime


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def test_it_runs_a_model(runtime: Runtime) -> None:
    with runtime.load(parse(RELU)) as session:
        run = session.run({"x": X})
    assert np.asarray(run.outputs["y"]).tolist() == [[0, 0, 2]]
    assert 0 < run.seconds < 10


def test_it_runs_a_file_with_external_data_beside_it(runtime: Runtime, tmp_path: Path) -> None:
    model = parse("g (float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Add (x, w) }")
    model.graph.initializer[0].raw_data = np.array([1, 2, 3], np.float32).tobytes()
    model.graph.initializer[0].ClearField("float_data")
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    with runtime.load(path) as session:
        run = session.run({"x": np.zeros(3, np.float32)})
    assert np.asarray(run.outputs["y"]).tolist() == [1, 2, 3]


def test_it_runs_a_skeleton(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"...." + np.array([1, 2, 3], np.float32).tobytes())
    model = parse("g (float[3] x) => (float[3] y) { y = Add (x, w) }")
    weight = TensorProto(name="w", dims=[3], data_type=1, data_location=TensorProto.EXTERNAL)
    location = str(tmp_path / "weights").lstrip("/")
    for key, value in {"location": location, "offset": "4", "length": "12"}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    with runtime.load(model) as session:
        run = session.run({"x": np.zeros(3, np.float32)})
    assert np.asarray(run.outputs["y"]).tolist() == [1, 2, 3]


def test_sequences_maps_strings_and_bfloat16_come_back(runtime: Runtime) -> None:
    sequence = parse("g (float[N] x) => (seq(float[M]) y) { y = SplitToSequence <keepdims=1> (x) }")
    with runtime.load(sequence) as session:
        [parts] = session.run({"x": np.array([1, 2], np.float32)}).outputs.values()
    assert isinstance(parts, list)
    assert [np.asarray(part).tolist() for part in parts] == [[1], [2]]
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]
    )
    zipped = parse("g (float[N,2] x) => (seq(float[M]) y) { }", '"ai.onnx.ml" : 3')
    zipped.graph.node.append(node)
    map_type = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(1, []))
    zipped.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(map_type))
    with runtime.load(zipped) as session:
        [maps] = session.run({"x": np.array([[0.5, 0.25]], np.float32)}).outputs.values()
    assert maps == [{"cat": 0.5, "dog": 0.25}]
    strings = parse("g (string[N] x) => (string[N] y) { y = Identity (x) }")
    with runtime.load(strings) as session:
        [texts] = session.run({"x": np.array(["a", "节"], dtype=object)}).outputs.values()
    assert np.asarray(texts).tolist() == ["a", "节"]
    brain = parse("g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity (x) }")
    with runtime.load(brain) as session:
        [floats] = session.run({"x": np.array([1, 3], ml_dtypes.bfloat16)}).outputs.values()
    assert isinstance(floats, np.ndarray)
    assert floats.dtype == ml_dtypes.bfloat16
    assert floats.astype(float).tolist() == [1, 3]


def test_what_ort_refuses_is_one_sentence(runtime: Runtime) -> None:
    with pytest.raises(RunError, match=r"^ONNX Runtime cannot load the model: .*Nonsense") as load:
        runtime.load(parse("g (float x) => (float y) { y = Nonsense (x) }"))
    assert load.value.kind == "load"
    with runtime.load(parse(RELU)) as session, pytest.raises(RunError) as run:
        session.run({"x": np.zeros((1, 4), np.float32)})
    assert run.value.kind == "run"
    assert str(run.value).startswith("ONNX Runtime cannot run the model: Got invalid dimensions")
    for error in (load.value, run.value):
        assert "\n" not in str(error)
        assert "onnxruntime_src" not in str(error)


def test_messages_of_ort_lose_their_source_files() -> None:
    raw = (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Relu node."
        " Name:'r' Status Message: /onnxruntime_src/onnxruntime/core/x.cc:360"
        " void* onnxruntime::F(size_t,\nbool)::<lambda()> Failed to\nallocate"
    )
    assert condense(raw) == "Relu node. Name:'r' Status Message: Failed to allocate"


def test_a_loop_without_end_is_stopped() -> None:
    with Runtime(Limits(time_s=1.0)) as runtime:
        session = runtime.load(parse(COUNTING))
        pid = runtime.worker().pid
        with pytest.raises(RunError, match="did not finish running the model within 1 s") as caught:
            session.run({"trips": np.int64(2**62), "x": np.float32(0)})
        assert caught.value.kind == "timeout"
        assert wait_until_gone(pid)


def test_ten_gibibytes_are_refused_and_the_worker_goes_on(runtime: Runtime) -> None:
    session = runtime.load(parse(ALLOCATING))
    with pytest.raises(RunError, match="takes more memory than the limit of 2048 MiB") as caught:
        session.run({"n": np.array([10 << 28])})
    assert caught.value.kind == "memory"
    run = session.run({"n": np.array([2])})
    assert np.asarray(run.outputs["y"]).tolist() == [0, 0]


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_a_death_in_the_middle_of_a_run_is_one_sentence(
    runtime: Runtime, death: signal.Signals
) -> None:
    session = runtime.load(parse(COUNTING))
    pid = runtime.worker().pid
    end = threading.Event()

    def kill() -> None:  # each that begins: one that dies is tried again
        while not end.wait(0.5):
            for pids in Path("/proc/self/task").glob("*/children"):
                for child in pids.read_text().split():
                    os.kill(int(child), death)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunError, match=f"was killed by {death.name}.* while ") as caught:
        session.run({"trips": np.int64(2**62), "x": np.float32(0)})
    end.set()
    killer.join()
    assert caught.value.kind == "crash"
    assert wait_until_gone(pid)
    run = session.run({"trips": np.int64(3), "x": np.float32(0)})
    assert np.asarray(run.outputs["y"]) == 3


def test_what_a_worker_dies_of_once_is_tried_again(runtime: Runtime) -> None:
    session = runtime.load(parse(COUNTING))
    threading.Timer(0.2, os.kill, (runtime.worker().pid, signal.SIGKILL)).start()
    outputs = session.run({"trips": np.int64(400_000), "x": np.float32(0)}).outputs
    assert np.asarray(outputs["y"]) == 400_000


def test_a_worker_that_died_idle_is_replaced_without_a_word(runtime: Runtime) -> None:
    session = runtime.load(parse(RELU))
    os.kill(runtime.worker().pid, signal.SIGKILL)
    time.sleep(0.1)
    assert np.asarray(session.run({"x": X}).outputs["y"]).tolist() == [[0, 0, 2]]


def test_a_session_outlives_the_thread_that_opened_it(runtime: Runtime) -> None:
    sessions = []
    opener = threading.Thread(target=lambda: sessions.append(runtime.load(parse(RELU))))
    opener.start()
    opener.join()
    time.sleep(0.1)
    [session] = sessions
    assert np.asarray(session.run({"x": X}).outputs["y"]).tolist() == [[0, 0, 2]]


def test_close_leaves_nothing_behind() -> None:
    runtime = Runtime()
    runtime.load(parse(RELU))
    pid = runtime.worker().pid
    runtime.close()
    assert wait_until_gone(pid)


def test_a_runtime_that_is_forgotten_takes_its_worker_along() -> None:
    runtime = Runtime()
    pid = runtime.worker().pid
    del runtime
    assert wait_until_gone(pid)


PARENT = """
import sys
import numpy as np
from onnx import parser
from graphpass.validate.process.runtime import Limits, Runtime
runtime = Runtime(Limits(time_s=60))
session = runtime.load(parser.parse_model(sys.stdin.read()))
print(runtime.worker().pid, flush=True)
session.run({"trips": np.int64(2**62), "x": np.float32(0)})
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_a_parent_that_dies_in_the_middle_of_a_run_leaves_no_orphan(death: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(f'<ir_version: 9, opset_import: ["" : 17]> {COUNTING}')
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert is_running(pid)
    parent.send_signal(death)
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(pid)


def test_ort_prints_nothing(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    with runtime.load(parse(RELU)) as session:
        session.run({"x": X})
        with pytest.raises(RunError):
            session.run({"x": np.zeros((1, 4), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_modules_in_the_working_directory_do_not_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "onnxruntime", "json", "graphpass"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with Runtime() as runtime, runtime.load(parse(RELU)) as session:
        session.run({"x": X})


def test_sessions_are_timed_in_turn(runtime: Runtime) -> None:
    with (
        runtime.load(parse(RELU), level="all") as one,
        runtime.load(parse(RELU), level="all") as two,
    ):
        rounds = run_rounds([one, two], {"x": X}, min_rounds=3, max_rounds=7, budget_s=0)
    assert len(rounds) == 3
    assert all(len(pair) == 2 and min(pair) > 0 for pair in rounds)


def test_a_provider_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(RefusalError, match="no execution provider 'cuda'; available: azure, cpu"):
        resolve_provider("cuda", ["AzureExecutionProvider", "CPUExecutionProvider"])
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert resolve_provider("cuda", available) == "CUDAExecutionProvider"
    assert resolve_provider("CPUExecutionProvider", available) == "CPUExecutionProvider"


def test_a_silent_fallback_is_noticed() -> None:
    with pytest.raises(RefusalError, match=r"CUDAExecutionProvider did not load.*: cpu$"):
        verify_provider("CUDAExecutionProvider", ["CPUExecutionProvider"])
    verify_provider("CUDAExecutionProvider", ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_an_unknown_provider_reaches_the_caller(runtime: Runtime) -> None:
    with pytest.raises(ProviderUnavailableError, match=r"no execution provider 'abacus'.*cpu"):
        runtime.load(parse(RELU), "abacus")


@pytest.mark.cuda
def test_cuda_runs_without_tensorfloat32() -> None:
    with Runtime() as runtime:
        try:
            session = runtime.load(
                parse("g (float[N,N] x) => (float[N,N] y) { y = MatMul (x, x) }"), "cuda"
            )
        except ProviderUnavailableError as error:
            pytest.skip(str(error))
        x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
        y = np.asarray(session.run({"x": x}).outputs["y"])
    exact = x.astype(np.float64) @ x.astype(np.float64)
    # TensorFloat-32 would be off by about 1e-3.
    assert np.abs(y - exact).max() < 1e-5 * np.abs(exact).max()
