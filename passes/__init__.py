"""The built-in passes, in the order of the default pipeline."""

from .clean_up import CleanUp
from .convolutionalize import (
    DropSoftmax,
    FreeResolution,
    PoolToGlobal,
    PoolToWindow,
    UnflattenHead,
)
from .fold_batchnorm import FoldBatchNorm

__all__ = [
    "CleanUp",
    "DropSoftmax",
    "FoldBatchNorm",
    "FreeResolution",
    "PoolToGlobal",
    "PoolToWindow",
    "UnflattenHead",
]
