"""A ConvTranspose whose windows do not overlap, as a 1x1 Conv and pixels that move."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import Choice, Node, Op, Rule, Tensor, Weight, any_, attribute, const, optional
from graphpass.ir.windows import windows_of

from ..shared.affine import FLOAT_TYPES
from ..shared.linear import is_read_elsewhere


class TransposedConvAsPixels(Rule):
    """ConvTranspose(x, W, b) = DepthToSpace(Conv1x1(x, V, [b b …]), k), kernel and strides k.

    Where nothing is padded or cut away; V[(i·k + j)·M + m, c] = W[c, m, i, j]. Each pixel is the
    same sum.
    """

    pattern = Op("ConvTranspose", any_("x"), const("weight"), optional(const("bias")), bind="conv")
    choice = Choice.MEASURED

    def rewrite(self, conv: Node, x: Tensor, weight: Weight, bias: Weight | None) -> Any:
        if weight.ndim != 4 or weight.dtype not in FLOAT_TYPES or attribute(conv, "group") != 1:
            return None
        windows = windows_of(conv)
        sizes = {(w.kernel, w.stride, w.dilation, w.begin, w.end) for w in windows}
        step = windows[0].kernel
        if sizes != {(step, step, 1, 0, 0)} or step < 2:
            return None
        if any(window.same for window in windows) or attribute(conv, "output_shape"):
            return None
        if any(attribute(conv, "output_padding") or []) or is_read_elsewhere(weight.origin):
            return None
        inputs, outputs = weight.shape[:2]
        if bias is not None and bias.shape != (outputs,):
            return None
        moved = weight.array().transpose(2, 3, 1, 0)  # i, j, m, c
        kernel = np.ascontiguousarray(moved).reshape(step * step * outputs, inputs, 1, 1)
        shift = None if bias is None else np.tile(bias.array(), step * step)
        pixels = Op("Conv", x, kernel, shift, kernel_shape=[1, 1])
        return Op("DepthToSpace", pixels, blocksize=step)
