"""graphpass from a checkout: `python cli.py optimize model.onnx`, installed or not."""

from pathlib import Path

import graphpass
from graphpass.__main__ import main

# where the package is not installed, graphpass.passes is found as the folder beside it
graphpass.__path__.append(str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    main()
