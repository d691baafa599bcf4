"""Lets atheris (coverage-guided) look for files that the wire reader and onnx read differently.

`python -m tests.fuzz_wire FOLDER [options of libFuzzer]`, where atheris is installed; models to
begin with are put into FOLDER.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path


def main() -> None:
    """Run until libFuzzer has enough; what is found ends in a traceback and another exit code."""
    import atheris

    with atheris.instrument_imports(include=["graphpass.storage"]):
        from tests.test_wire import check_against_onnx, seeds

    folder = Path(sys.argv[1])
    corpus, work = folder / "corpus", folder / "work"
    corpus.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    for index, content in enumerate(seeds(work)):
        (corpus / f"seed-{index}").write_bytes(content)
    warnings.filterwarnings("ignore", "Ignoring unknown external data")
    # long inputs make every run slow, and hold nothing that short ones cannot
    options = ["-max_len=4096", "-rss_limit_mb=1024", "-timeout=10", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: check_against_onnx(data, work))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
