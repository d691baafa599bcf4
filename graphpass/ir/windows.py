"""What a convolution or pooling slides over its input: kernel, stride, dilation, padding, sizes.

A window with kernel k, stride s, dilation d and padding p before the first cell reads, for its cell
i, the cells i·s − p + j·d (0 ≤ j < k) of its input (Dumoulin & Visin, "A guide to convolution
arithmetic for deep learning", 2016). `auto_pad` and `ceil_mode` are as ONNX Runtime has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.questions import attribute, constant, label, static_dim
from graphpass.ir.refusal import require


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis. `same`: "upper", "lower" or "" for explicit padding."""

    kernel: int
    stride: int = 1
    begin: int = 0
    end: int = 0
    dilation: int = 1
    ceil: bool = False
    same: str = ""

    def padding(self, size: int) -> tuple[int, int]:
        """Return the padding before and after, for an axis of `size` cells."""
        if not self.same:
            return self.begin, self.end
        cells = -(-size // self.stride)
        span = self.dilation * (self.kernel - 1) + 1
        total = max((cells - 1) * self.stride + span - size, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if self.same == "upper" else (large, small)

    def pads_nothing(self, size: int | None) -> bool:
        """Whether nothing is padded, for an axis of `size` cells, None where it is not known."""
        if not self.same:
            return not (self.begin or self.end)
        return self.kernel == 1 or (size is not None and self.padding(size) == (0, 0))

    def count(self, size: int) -> int:
        """Return the number of cells that come of `size`; 0 where none fits."""
        begin, end = self.padding(size)
        free = size + begin + end - self.dilation * (self.kernel - 1) - 1
        if free < 0:
            return 0
        if not self.ceil:
            return free // self.stride + 1
        cells = -(-free // self.stride) + 1
        # a window must begin inside the input or its left padding (as Caffe, PyTorch and ONNX
        # Runtime have it)
        return cells - 1 if (cells - 1) * self.stride >= size + begin else cells

    def covers(self, size: int) -> bool:
        """Whether this is one window over exactly the whole axis."""
        return self.kernel == size and self.dilation == 1 and self.padding(size) == (0, 0)


def windows_of(node: Node) -> tuple[Window, ...]:
    """Return the window of a Conv or pooling node along each spatial axis.

    Raises RefusedError where the kernel's size is not in the model.
    """
    kernel = kernel_of(node)
    axes = len(kernel)
    strides = _listed(node, "strides", axes, 1)
    dilations = _listed(node, "dilations", axes, 1)
    pads = _listed(node, "pads", 2 * axes, 0)
    auto = attribute(node, "auto_pad") or "NOTSET"
    if auto == "VALID":
        pads = [0] * (2 * axes)
    same = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(auto, "")
    ceil = bool(attribute(node, "ceil_mode") or 0)
    return tuple(
        Window(kernel[i], strides[i], pads[i], pads[axes + i], dilations[i], ceil, same)
        for i in range(axes)
    )


def kernel_of(node: Node) -> list[int]:
    """Return the kernel's size along each spatial axis. Raises RefusedError where it is unknown."""
    listed = node.attrs.get("kernel_shape")
    if listed:
        return [int(size) for size in listed]
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = weight.shape if weight is not None else None
    if shape is None and len(node.inputs) > 1:
        shape = node.inputs[1].shape
    require(
        shape is not None and all(isinstance(size, int) for size in shape),
        f"the kernel size of {label(node)} is not known",
    )
    assert shape is not None
    return [int(size) for size in shape[2:]]


def _listed(node: Node, name: str, count: int, default: int) -> list[int]:
    values: Sequence[Any] | None = attribute(node, name)
    return [int(value) for value in values] if values else [default] * count


def pads_nothing(node: Node, x: Tensor | None = None) -> bool:
    """Whether no window of `node` looks beyond the edge of its input, or of `x` in its place."""
    read = node.inputs[0] if x is None else x
    return all(
        window.pads_nothing(static_dim(read, 2 + axis))
        for axis, window in enumerate(windows_of(node))
    )
