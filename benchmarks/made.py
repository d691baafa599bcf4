"""Make a model whose size is known: `python -m benchmarks.made layers 16 OUT`, `chain 10000 OUT`.

`layers N [external] [folded]`: N layers of 64 MiB each, 1x1 Conv over 4096 channels and Relu; with
`folded` a BatchNormalization between them. `chain N`: N nodes in a row, a third of them Identity.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

_OPSET = 17
_CHANNELS = 4096
_WEIGHT_BYTES = 4 * _CHANNELS * _CHANNELS


def layers(count: int, path: Path, *, external: bool, folded: bool) -> None:
    """Write Conv, maybe BatchNormalization, and Relu `count` times over, float32.

    Weights go to the files one by one, so that making the model takes no more memory than one.
    """
    nodes, small = [], []
    value = "x"
    for number in range(count):
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"]))
        value = f"c{number}"
        if folded:
            names = [f"{kind}{number}" for kind in ("scale", "shift", "mean", "variance")]
            draw = np.random.default_rng(number).uniform(0.5, 1.5, (4, _CHANNELS))
            small += [
                numpy_helper.from_array(row.astype(np.float32), name)
                for row, name in zip(draw, names, strict=True)
            ]
            nodes.append(helper.make_node("BatchNormalization", [value, *names], [f"b{number}"]))
            value = f"b{number}"
        nodes.append(helper.make_node("Relu", [value], [f"r{number}"]))
        value = f"r{number}"
    weights = _weights(count)
    if external:
        data = path.with_name(f"{path.name}.data")
        with data.open("wb") as file:
            tensors = []
            for number, raw in enumerate(weights):
                tensor = _empty(f"w{number}")
                tensor.raw_data = b"-"  # what the helper asks for, and gives up again
                set_external_data(tensor, data.name, file.tell(), len(raw))
                tensor.ClearField("raw_data")
                tensors.append(tensor)
                file.write(raw)
    else:
        tensors = [_empty(f"w{number}") for number in range(count)]
        for tensor, raw in zip(tensors, weights, strict=True):
            tensor.raw_data = raw
    _save("layers", nodes, [*tensors, *small], value, path)


def chain(count: int, path: Path) -> None:
    """Write `count` nodes in a row: Add of a constant, Identity, Relu and so on, float32."""
    nodes = []
    value = "x"
    for number in range(count):
        kind = ("Add", "Identity", "Relu")[number % 3]
        inputs = [value, "one"] if kind == "Add" else [value]
        nodes.append(helper.make_node(kind, inputs, [f"v{number}"], name=f"n{number}"))
        value = f"v{number}"
    one = numpy_helper.from_array(np.float32(1).reshape(1), "one")
    _save("chain", nodes, [one], value, path)


def _weights(count: int) -> Iterator[bytes]:
    """Yield random bytes of weights: a file of zeros is not copied as others are."""
    random = np.random.default_rng(0)
    values = random.standard_normal(_WEIGHT_BYTES // 4, dtype=np.float32) / 64
    for number in range(count):
        yield np.roll(values, number).tobytes()


def _empty(name: str) -> onnx.TensorProto:
    dims = (_CHANNELS, _CHANNELS, 1, 1)
    return onnx.TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT)


def _save(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    output: str,
    path: Path,
) -> None:
    shape: list[str | int | None] = ["N", _CHANNELS, 1, 1]
    values = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each in ("x", output)
    ]
    graph = helper.make_graph(nodes, name, values[:1], values[1:], weights)
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    path.write_bytes(model.SerializeToString())


def main(arguments: list[str]) -> None:
    """Make what the arguments say."""
    kind, count, *options, path = arguments
    if kind == "chain":
        chain(int(count), Path(path))
    else:
        layers(int(count), Path(path), external="external" in options, folded="folded" in options)


if __name__ == "__main__":
    main(sys.argv[1:])
