"""What a user can do about a refusal, where something can be done."""

from __future__ import annotations

import re

# The first that fits is said. Whoever writes a rule need not know of these.
_ADVICE = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"in training mode", "export the model in inference mode: model.eval() in torch"),
        (
            r"may be overridden at run time",
            "give --freeze-initializers, if nobody overrides it, or export without weights among"
            " the inputs: keep_initializers_as_inputs=False in torch",
        ),
        (
            r"is not a constant",
            "run clean-up before, or export with do_constant_folding=True, if it can be computed"
            " without the inputs",
        ),
        (
            r"depend on the pixel",
            "run gemm-to-conv, which keeps the weights of each pixel",
        ),
        (
            r"rows of .* are (not images|the steps of a sequence)",
            "give gemm-to-conv{target=all}, if each position is to become a pixel",
        ),
        (
            r"is not fixed|known only when run|is not known|is unknown|is not known to have",
            "export with fixed sizes (only the batch left open), or run ONNX shape inference",
        ),
        (
            r"has no Conv of double|overflows float16|loses its digits|no Conv of",
            "export with float32 weights",
        ),
        (r"would make the file \d+ bytes larger", "nothing has to be done: it is smaller as it is"),
        (
            r"is from before opset|in opset \d+ there is no",
            "convert the model to a newer opset: onnx.version_converter",
        ),
        (r"is an output of the graph", "remove that output from the export, if nobody reads it"),
    )
)


def advice(reason: str) -> str:
    """Return one sentence on what would lift a refusal for `reason`; empty where nothing would."""
    return next((said for pattern, said in _ADVICE if pattern.search(reason)), "")
