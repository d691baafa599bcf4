"""A worker that was forked off early is like any other. Each case has an interpreter of its own,
for this one may have threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from .test_runtime import wait_until_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")

BEGINNING = """
    import os, signal, sys, threading
    from pathlib import Path
    from graphpass.validate.process import forked

    def children():
        return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()

    def load_all():
        global Limits, Runtime, RunError, model
        from graphpass.validate.process.runtime import Limits, RunError, Runtime
        import onnx
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) {y = Relu (x)}'
        )

    def run(runtime):
        import numpy as np
        with runtime.load(model) as session:
            return session.run({"x": np.array([-1, 2], np.float32)}).outputs["y"].tolist()
"""


def printed_by(script: str, *, stdin: bytes = b"", one_thread: bool = True) -> list[str]:
    """Run a script in an interpreter of its own; return the lines that it prints."""
    code = textwrap.dedent(BEGINNING) + textwrap.dedent(script)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1" if one_thread else "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=stdin, capture_output=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_the_runtime_takes_what_was_forked() -> None:
    lines = printed_by("""
        forked.start()
        forked.start()
        print(len(children()))
        load_all()
        runtime = Runtime()
        print([str(runtime.worker().pid)] == children())
        print(run(runtime))
        runtime.close()
        print(children(), runtime.worker().is_alive(), run(runtime))
        runtime.close()
        print(children())
    """)
    assert lines == ["1", "True", "[0.0, 2.0]", "[] True [0.0, 2.0]", "[]"]


def test_nothing_is_forked_beside_a_thread() -> None:
    lines = printed_by("""
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        forked.start()
        print(children())
        load_all()
        with Runtime() as runtime:
            print(run(runtime))
    """)
    assert lines == ["[]", "[0.0, 2.0]"]


def test_nothing_is_forked_where_threads_cannot_be_counted() -> None:
    lines = printed_by("""
        forked._THREADS = "/nowhere"
        forked.start()
        print(children())
    """)
    assert lines == ["[]"]


def test_it_leaves_the_standard_input_of_its_parent_alone() -> None:
    lines = printed_by(
        """
        forked.start()
        load_all()
        with Runtime() as runtime:
            print(run(runtime), sys.stdin.read())
        """,
        stdin=b"a model",
    )
    assert lines == ["[0.0, 2.0] a model"]


def test_its_memory_is_limited_like_that_of_any_other() -> None:
    lines = printed_by("""
        forked.start()
        load_all()
        import resource
        with Runtime(Limits(memory_mib=2048)) as runtime:
            print(run(runtime))
            print(resource.prlimit(runtime.worker().pid, resource.RLIMIT_DATA)[0] >> 20)
    """)
    assert lines == ["[0.0, 2.0]", "2048"]


def test_a_death_is_one_sentence_and_another_worker_takes_over() -> None:
    lines = printed_by("""
        forked.start()
        load_all()
        with Runtime() as runtime:
            session = runtime.load(model)
            os.kill(runtime.worker().pid, signal.SIGSEGV)
            import numpy as np
            for attempt in range(2):
                try:
                    print(session.run({"x": np.array([-1, 2], np.float32)}).outputs["y"].tolist())
                except RunError as error:
                    print(error)
    """)
    assert lines[-1] == "[0.0, 2.0]"
    assert lines[:-1] in (
        [],  # it was gone before it was asked
        ["[0.0, 2.0]"],
    )


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)"])
def test_it_goes_with_its_parent(ending: str) -> None:
    code = textwrap.dedent(BEGINNING) + textwrap.dedent(f"""
        forked.start()
        print(*children(), flush=True)
        {ending}
    """)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    (pid,) = done.stdout.split()
    assert wait_until_gone(int(pid))


def test_the_command_line_forks_its_worker(tmp_path: object) -> None:
    lines = printed_by(f"""
        load_all()
        import subprocess
        def never(*args, **options):
            raise AssertionError("a fresh interpreter was started")
        subprocess.Popen = never
        onnx_file = Path({str(tmp_path)!r}) / "model.onnx"
        onnx_file.write_bytes(model.SerializeToString())
        from graphpass.cli import run as command
        print(command(["optimize", str(onnx_file), "-q"]), len(forked._spare))
        print(command(["optimize", str(onnx_file), "-q", "--no-validate"]), len(children()))
    """)
    assert lines == ["0 0", "0 0"]
