"""The built-in passes, each imported when it is first asked for.

Most runs need four of them, and to import all takes a tenth of a second.
"""

from importlib import import_module
from typing import Any

# by the name of a pass: its module, and its class there
PLACES = {
    "class-activation-map": ("score_map.class_activation_map", "ClassActivationMap"),
    "clean-up": ("clean_up", "CleanUp"),
    "conv-to-gemm": ("conv_to_gemm", "ConvToGemm"),
    "drop-softmax": ("score_map.drop_softmax", "DropSoftmax"),
    "drop-channels": ("drop_channels", "DropUnusedChannels"),
    "expand-functions": ("expand_functions", "ExpandFunctions"),
    "extract": ("extract", "Extract"),
    "flatten-gemm-to-gap-conv": ("flatten_gemm_to_gap_conv", "FlattenGemmToGapConv"),
    "fold-batchnorm": ("fold_batchnorm", "FoldBatchNorm"),
    "free-batch": ("score_map.free_batch", "FreeBatch"),
    "free-resolution": ("score_map.free_resolution", "FreeResolution"),
    "fuse-functions": ("fuse_functions", "FuseFunctions"),
    "gemm-to-conv": ("gemm_to_conv", "GemmToConv"),
    "merge-branches": ("merge_branches", "MergeBranches"),
    "merge-siblings": ("merge_siblings", "MergeSiblings"),
    "move-linear": ("move_linear", "MoveLinear"),
    "pool-in-steps": ("pool_in_steps", "PoolInSteps"),
    "pool-to-global": ("score_map.pool_to_global", "PoolToGlobal"),
    "pool-to-window": ("score_map.pool_to_window", "PoolToWindow"),
    "set-opset": ("set_opset", "SetOpset"),
    "set-shape": ("set_shape", "SetShape"),
    "to-fp16": ("to_fp16", "ToFp16"),
    "unflatten-head": ("score_map.unflatten_head", "UnflattenHead"),
    "write-out": ("write_out", "WriteOut"),
}

__all__ = [kind for _, kind in PLACES.values()]


def __getattr__(name: str) -> Any:
    for module, kind in PLACES.values():
        if kind == name:
            return getattr(import_module(f"{__name__}.{module}"), kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
