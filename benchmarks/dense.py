"""One dense pass of a fully convolutional network against a classifier on all of its crops.

    python -m benchmarks.dense [--networks alexnet,vgg16,resnet50] [--sizes 384,512] [--rounds 3]

Both answer the same question: the class scores of every window of the native size, one every 32
pixels. Prints a Markdown table to stdout; see README.md beside this file.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

import graphpass
from benchmarks.networks import NATIVE_PX, NETWORKS, multiply_adds

Image = npt.NDArray[np.float32]

#: What these three networks halve the resolution down to: their windows lie this far apart.
STRIDE_PX = 32


@dataclass(frozen=True)
class Result:
    """Median times for one image, in seconds, and what counting operations lets expect."""

    network: str
    side_px: int
    cells: int
    one_by_one_s: float
    batched_s: float
    dense_s: float
    #: Multiply-adds of all crops over those of the dense pass.
    limit: float

    def row(self) -> str:
        cells = (
            self.network,
            f"{self.side_px}x{self.side_px}",
            f"{self.cells}x{self.cells}",
            f"{self.one_by_one_s:.2f}",
            f"{self.batched_s:.2f}",
            f"{self.dense_s:.2f}",
            f"{self.one_by_one_s / self.dense_s:.1f}",
            f"{self.batched_s / self.dense_s:.1f}",
            f"{self.limit:.1f}",
        )
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| network | image | map | crops one by one, s | crops batched, s | dense, s "
    "| x, one by one | x, batched | limit by operations |\n"
    f"| {' | '.join(['---'] * 9)} |"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, convert and measure each network."""
    options = _parser().parse_args(arguments)
    print(f"ONNX Runtime {ort.__version__}, CPU, {options.threads} thread(s), batch size of the")
    print(f"batched crops at most {options.batch}, medians of {options.rounds} rounds\n")
    print(HEADER, flush=True)
    for name in options.networks:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            crops, dense = (Path(scratch) / f"{kind}.onnx" for kind in ("crops", "dense"))
            onnx.save(NETWORKS[name](), crops)
            print(f"{name}: converting", file=sys.stderr, flush=True)
            graphpass.convolutionalize(crops).save(dense)
            for side_px in options.sizes:
                print(f"{name}: {side_px} px", file=sys.stderr, flush=True)
                print(measure(name, crops, dense, side_px, options).row(), flush=True)
    return 0


def measure(
    name: str, crops: Path, dense: Path, side_px: int, options: argparse.Namespace
) -> Result:
    """Times of the three ways on one image, in turns, so that all see the same machine."""
    image = np.random.default_rng(0).standard_normal((1, 3, side_px, side_px), dtype=np.float32)
    windows = cut(image)
    classify, score = (_session(path, options.threads) for path in (crops, dense))
    map_shape = score(image).shape
    cells = (side_px - NATIVE_PX) // STRIDE_PX + 1
    if map_shape[2:] != (cells, cells):
        sys.exit(f"{name} at {side_px} px: a map of {cells}x{cells} expected, got {map_shape}")

    ways: dict[str, Callable[[], Any]] = {
        "one by one": lambda: [classify(windows[i : i + 1]) for i in range(len(windows))],
        "batched": lambda: [
            classify(windows[i : i + options.batch]) for i in range(0, len(windows), options.batch)
        ],
        "dense": lambda: score(image),
    }
    times_s: dict[str, list[float]] = {way: [] for way in ways}
    classify(windows[: options.batch])  # The runtime allocates on its first run.
    for _ in range(options.rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times_s[way].append(time.perf_counter() - start)
    one_by_one_s, batched_s, dense_s = map(statistics.median, times_s.values())
    counted = multiply_adds(crops, len(windows), NATIVE_PX), multiply_adds(dense, 1, side_px)
    limit = counted[0] / counted[1]
    return Result(name, side_px, cells, one_by_one_s, batched_s, dense_s, limit)


def cut(image: Image) -> Image:
    """Every window of the native size, row by row: [windows, 3, 224, 224]."""
    starts = range(0, image.shape[-1] - NATIVE_PX + 1, STRIDE_PX)
    crops = [image[:, :, y : y + NATIVE_PX, x : x + NATIVE_PX] for y in starts for x in starts]
    return np.ascontiguousarray(np.concatenate(crops))


def _session(path: Path, threads: int) -> Callable[[Image], Image]:
    """The model as a function, at the runtime's default optimization level."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Image) -> Image:
        scores: Image = session.run(None, {name: images})[0]
        return scores

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--networks", type=_networks, default=list(NETWORKS), metavar="A,B")
    parser.add_argument("--sizes", type=_sizes, default=[384, 512], metavar="PX,PX")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=36, help="crops in one batch (default 36)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="where models are written (default: /tmp)")
    return parser


def _networks(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(NETWORKS)}")
    return names


def _sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < NATIVE_PX:
        raise argparse.ArgumentTypeError(f"sizes start at the native {NATIVE_PX} px")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
