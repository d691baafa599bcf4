"""The built-in passes, in the order of the default pipeline."""

from .clean_up import CleanUp
from .conv_to_gemm import ConvToGemm
from .drop_channels import DropUnusedChannels
from .expand_functions import ExpandFunctions
from .extract import Extract
from .flatten_gemm_to_gap_conv import FlattenGemmToGapConv
from .fold_batchnorm import FoldBatchNorm
from .fuse_functions import FuseFunctions
from .gemm_to_conv import GemmToConv
from .merge_branches import MergeBranches
from .merge_siblings import MergeSiblings
from .move_linear import MoveLinear
from .pool_in_steps import PoolInSteps
from .score_map import (
    ClassActivationMap,
    DropSoftmax,
    FreeBatch,
    FreeResolution,
    PoolToGlobal,
    PoolToWindow,
    UnflattenHead,
)
from .set_opset import SetOpset
from .set_shape import SetShape
from .to_fp16 import ToFp16
from .write_out import WriteOut

__all__ = [
    "ClassActivationMap",
    "CleanUp",
    "ConvToGemm",
    "DropSoftmax",
    "DropUnusedChannels",
    "ExpandFunctions",
    "Extract",
    "FlattenGemmToGapConv",
    "FoldBatchNorm",
    "FreeBatch",
    "FreeResolution",
    "FuseFunctions",
    "GemmToConv",
    "MergeBranches",
    "MergeSiblings",
    "MoveLinear",
    "PoolInSteps",
    "PoolToGlobal",
    "PoolToWindow",
    "SetOpset",
    "SetShape",
    "ToFp16",
    "UnflattenHead",
    "WriteOut",
]
