"""merge-siblings: what is computed of one tensor side by side shares what it has in common."""

from __future__ import annotations

from graphpass import Pass

from .focus import FocusAsStride, SpaceToDepthAsStride
from .layers import (
    SiblingActivatedConvs,
    SiblingBiasedProducts,
    SiblingConvs,
    SiblingGemms,
    SiblingProducts,
)
from .moved_channels import MovedChannelsIntoReader
from .pools import NestedMaxPools
from .shuffles import ShuffleIntoReader, ShuffleIntoWeights
from .transposed import TransposedConvAsPixels


class MergeSiblings(Pass):
    """Let what is computed of one tensor side by side share what it has in common."""

    name = "merge-siblings"
    rules = (
        NestedMaxPools(),
        ShuffleIntoWeights(),
        ShuffleIntoReader(),
        MovedChannelsIntoReader(),
        FocusAsStride(),
        SpaceToDepthAsStride(),
        SiblingConvs(),
        SiblingActivatedConvs(),
        SiblingProducts(),
        SiblingBiasedProducts(),
        SiblingGemms(),
        TransposedConvAsPixels(),
    )


__all__ = ["MergeSiblings"]
