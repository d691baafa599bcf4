"""Every model of a folder survives loading, writing and the passes: see corpus.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = os.environ.get("GRAPHPASS_CORPUS", "")
SCRIPT = Path(__file__).parent / "corpus.py"


@pytest.mark.slow
@pytest.mark.skipif(not CORPUS, reason="GRAPHPASS_CORPUS names no folder of .onnx files")
@pytest.mark.parametrize("passes", ["none", "clean-up", "default"])
def test_every_model_of_the_corpus(passes: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, CORPUS, "--passes", passes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
