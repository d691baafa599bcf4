"""The built-in passes, in the order of the default pipeline."""

from .clean_up import CleanUp
from .convolutionalize import (
    ClassActivationMap,
    DropSoftmax,
    FreeBatch,
    FreeResolution,
    PoolToGlobal,
    PoolToWindow,
    UnflattenHead,
)
from .fold_batchnorm import FoldBatchNorm

__all__ = [
    "ClassActivationMap",
    "CleanUp",
    "DropSoftmax",
    "FoldBatchNorm",
    "FreeBatch",
    "FreeResolution",
    "PoolToGlobal",
    "PoolToWindow",
    "UnflattenHead",
]
