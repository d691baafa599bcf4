"""The worker process: it alone loads ONNX Runtime, so that a crash there is only an answer here.

It imports nothing of this package but `channel` before it is needed: starting it costs one import
of onnxruntime.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphpass.validate.process.channel import (
    Array,
    Channel,
    ChannelClosedError,
    Head,
    Value,
    decode,
    encode,
    end_with,
    over_standard_streams,
)

# numpy has no dtype of its own for these; their bytes travel as unsigned integers.
_RAW_TYPES: dict[str, tuple[np.dtype[Any], int]] = {
    "bfloat16": (np.dtype(np.uint16), 16),
    "float8_e4m3fn": (np.dtype(np.uint8), 17),
    "float8_e4m3fnuz": (np.dtype(np.uint8), 18),
    "float8_e5m2": (np.dtype(np.uint8), 19),
    "float8_e5m2fnuz": (np.dtype(np.uint8), 20),
}
_ORT_NAMES = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
    "tensor(float8e4m3fnuz)": "float8_e4m3fnuz",
    "tensor(float8e5m2)": "float8_e5m2",
    "tensor(float8e5m2fnuz)": "float8_e5m2fnuz",
}
_PROVIDER_OPTIONS = {
    # TensorFloat-32 keeps 10 bits of mantissa: noise 1000 times that of float32.
    "CUDAExecutionProvider": {"use_tf32": "0"},
}


_ENOUGH = 1000  # characters, from either end of a message


class RefusalError(Exception):
    """A request that cannot be served; ``kind`` tells the parent which of its errors to raise."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def serve(parent_pid: int) -> None:
    """Answer requests from standard input on standard output until either closes."""
    _die_with(parent_pid)
    channel = over_standard_streams()
    requests: queue.SimpleQueue[tuple[Head, list[bytearray]]] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(channel, requests), daemon=True).start()
    sessions: dict[int, Any] = {}
    while True:
        head, blobs = requests.get()
        answer, out_blobs = _answer(sessions, head, blobs)
        try:
            channel.send(answer, out_blobs)
        except ChannelClosedError:
            os._exit(0)
        del head, blobs, answer, out_blobs


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent goes, and before that when memory does."""
    alive = end_with(parent_pid, signal.SIGKILL)
    if sys.platform == "linux":
        # Should memory run out, the kernel takes this process and not the one with the model.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("1000")
    if not alive:
        os._exit(0)


def _limit_memory(limit_mib: int) -> None:
    """Limit private writable memory; weights that are only mapped from a file do not count."""
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit_mib << 20, resource.getrlimit(kind)[1]))


def _read_requests(channel: Channel, requests: queue.SimpleQueue[Any]) -> None:
    # A thread of its own, so that the end of the parent is noticed in the middle of a run.
    try:
        while True:
            requests.put(channel.receive())
    except ChannelClosedError:
        os._exit(0)


def _answer(sessions: dict[int, Any], head: Head, blobs: list[bytearray]) -> tuple[Head, list[Any]]:
    try:
        if head["op"] == "open":
            return _open(sessions, head, blobs), []
        if head["op"] == "run":
            return _run(sessions[head["id"]], head, blobs)
        if head["op"] == "time":
            return _time([sessions[number] for number in head["ids"]], head, blobs), []
        if head["op"] == "close":
            sessions.pop(head["id"], None)
        return {}, []
    except RefusalError as refusal:
        return {"error": str(refusal), "kind": refusal.kind}, []
    except MemoryError:
        return {"error": "memory ran out", "kind": "memory"}, []
    except Exception as error:
        message = condense(str(error) or type(error).__name__)
        kind = "memory" if _is_out_of_memory(message) else "run"
        return {"error": message, "kind": kind}, []


def _open(sessions: dict[int, Any], head: Head, blobs: list[bytearray]) -> Head:
    import onnxruntime

    if head["memory_mib"]:
        _limit_memory(head["memory_mib"])

    onnxruntime.set_default_logger_severity(4)
    provider = resolve_provider(head["provider"], onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.intra_op_num_threads = head["threads"]
    options.inter_op_num_threads = 1
    # A spinning thread costs processor time and wins nothing in runs of milliseconds.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = {
        "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[head["level"]]
    disabled: list[str] = []
    if head["plain_weights"]:
        _return_freed_memory()
        disabled.append("NchwcTransformer")  # makes three more copies of a weight on the way
    if head["level"] == "none" or head["plain_weights"]:
        # Repacked weights are a second copy of them, made for many runs; here there are few.
        options.add_session_config_entry("session.disable_prepacking", "1")
    for library in head["custom_ops"]:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # whatever the loader says
            message = f"{library} holds no custom operators: {condense(str(error))}"
            raise RefusalError("load", message) from None
    source: Any = head.get("path")
    if source is None:
        source = bytes(blobs[0])
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", "/"
        )
    chain: list[Any] = [(provider, _PROVIDER_OPTIONS.get(provider, {}))]
    if provider != "CPUExecutionProvider":
        chain.append("CPUExecutionProvider")
    session = onnxruntime.InferenceSession(
        source, options, providers=chain, disabled_optimizers=disabled or None
    )
    verify_provider(provider, session.get_providers())
    sessions[head["id"]] = session
    return {}


def _return_freed_memory() -> None:
    """Give back to the system what was kept for the next run: heavy weights need the room."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def resolve_provider(name: str, available: list[str]) -> str:
    """Return ORT's name for ``cpu``, ``cuda``, …. Raises RefusalError, naming what there is."""
    wanted = name.lower().removesuffix("executionprovider")
    for full_name in available:
        if full_name.lower().removesuffix("executionprovider") == wanted:
            return full_name
    raise RefusalError(
        "provider",
        f"this ONNX Runtime has no execution provider '{name}'; available: {_short(available)}",
    )


def verify_provider(wanted: str, active: list[str]) -> None:
    """Refuse a session that has silently fallen back to another provider."""
    if wanted not in active:
        raise RefusalError(
            "provider",
            f"{wanted} did not load (its libraries or its device are missing), ONNX Runtime fell"
            f" back to what is available: {_short(active)}",
        )


def _short(providers: list[str]) -> str:
    return ", ".join(name.removesuffix("ExecutionProvider").lower() for name in providers)


def _run(session: Any, head: Head, blobs: list[bytearray]) -> tuple[Head, list[Any]]:
    feeds = _to_ort(head["feeds"], blobs)
    names = [output.name for output in session.get_outputs()]
    start = time.perf_counter()
    if any(output.type in _ORT_NAMES for output in session.get_outputs()):
        wrapped = {name: _wrap(value) for name, value in feeds.items()}
        values = [_raw(value) for value in session.run_with_ort_values(names, wrapped)]
    else:
        values = session.run(names, feeds)
    seconds = time.perf_counter() - start
    if head.get("shapes_only"):
        arrays = zip(names, values, strict=True)
        return {"shapes": {n: v.shape for n, v in arrays if isinstance(v, np.ndarray)}}, []
    out_blobs: list[Any] = []
    outputs = [[name, _encode(value, out_blobs)] for name, value in zip(names, values, strict=True)]
    return {"outputs": outputs, "seconds": seconds}, out_blobs


def _time(sessions: list[Any], head: Head, blobs: list[bytearray]) -> Head:
    """Run the sessions in turn, so that whatever else the machine does falls on all alike."""
    from graphpass.validate.latency import is_settled

    feeds = _to_ort(head["feeds"], blobs)
    # what runs in this thread alone is not slower for what the processor does in between
    clock = time.thread_time if head["alone"] else time.perf_counter
    for session in sessions:
        session.run(None, feeds)
    rounds: list[list[float]] = []
    look_at = head["min_rounds"]
    start = time.perf_counter()
    while len(rounds) < head["max_rounds"] and (
        len(rounds) < head["min_rounds"] or time.perf_counter() - start < head["budget_s"]
    ):
        rounds.append([_seconds(session, feeds, clock) for session in sessions])
        if len(rounds) >= look_at:
            if is_settled(rounds, head.get("decide_at")):
                break
            look_at = max(look_at + 1, look_at * 5 // 4)
    return {"rounds": rounds}


def _seconds(session: Any, feeds: Mapping[str, Any], clock: Callable[[], float]) -> float:
    start = clock()
    session.run(None, feeds)
    return clock() - start


def _to_ort(descriptions: Mapping[str, Any], blobs: list[bytearray]) -> dict[str, Any]:
    return {name: _feed(description, blobs) for name, description in descriptions.items()}


def _feed(description: Any, blobs: list[bytearray]) -> Any:
    raw = description and _RAW_TYPES.get(description.get("dtype", ""))
    if not raw:
        return decode(description, blobs)
    import onnxruntime

    dtype, onnx_type = raw
    array = np.frombuffer(blobs[description["blob"]], dtype).reshape(description["shape"])
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx_type)


def _wrap(value: Any) -> Any:
    import onnxruntime

    if isinstance(value, np.ndarray):
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    return value


def _raw(value: Any) -> tuple[str, Array] | Value:
    """Return the array of an OrtValue; (dtype name, raw integers) for what numpy cannot name."""
    name = _ORT_NAMES.get(value.data_type())
    if name is None:
        result: Array = value.numpy()
        return result
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return name, np.frombuffer(data, _RAW_TYPES[name][0]).reshape(value.shape())


def _encode(value: Any, blobs: list[Any]) -> Any:
    if not isinstance(value, tuple):
        return encode(np.asarray(value) if np.isscalar(value) else value, blobs)
    name, raw = value
    return {**encode(raw, blobs), "dtype": name}


def _is_out_of_memory(message: str) -> bool:
    return "Failed to allocate memory" in message or "bad_alloc" in message


def condense(message: str) -> str:
    """Reduce ORT's message to one line that says what is wrong, without source files and codes."""
    if len(message) > 2 * _ENOUGH:  # names in a model have any length, and patterns take their time
        message = f"{message[:_ENOUGH]} … {message[-_ENOUGH:]}"
    message = " ".join(message.split())
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", message)
    message = re.sub(
        r"(?<!\S)\S{0,200}/onnxruntime_src/\S{1,300}:\d+ .*?\)(::<lambda\(\)>)? (?=\S)", "", message
    )
    message = re.sub(r"Non-zero status code returned while running ", "", message)
    message = re.sub(r"Name:'' ", "", message)
    return message if len(message) <= 400 else message[:397] + "…"
