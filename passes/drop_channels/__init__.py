"""drop-channels: channels that are constant or that nobody reads are not computed.

Pruning by training leaves filters of zeros; nobody takes them out of the file. What such a channel
gives is its bias, the same at every pixel, or what the activation makes of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphpass import Graph, Pass, Survey, label
from graphpass.ir.refusal import RefusedError
from graphpass.rewrite.survey import Proposal, Refused

from .branches import DropConstantBranch
from .operators import part_of
from .regions import regions
from .tied import Wiring


class DropChannels(Survey):
    """l(f(m(x, W, b)), V, c) = the same without channels that are constant, or unread.

    l and m are Conv, Gemm or MatMul, several of each, f all that treats channels one by one:
    activations, sums of branches, pools, normalizations, depthwise Convs, Concat, Split. A channel
    goes from all tensors that it goes through, where all that read it have zeros for it in V, or
    know its value v, and then Σ V·v goes into c; at edges that are padded with zeros only if
    v = 0. A channel of zeros times an infinity, or times NaN, was NaN.
    """

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Proposal]:
        """See `Survey`."""
        wiring = Wiring(scope, part_of)
        kept = [
            (node, f"{count} channels of {label(node)} are constant, but {reason}")
            for node, count, reason in wiring.kept_constants()
        ]
        done: set[int] = set()
        for region in regions(wiring):
            nodes = {id(node) for node in region.nodes}
            # what shares a node with another one is looked at again in the next round
            if done.isdisjoint(nodes):
                done |= nodes
                proposal = region.proposal()
                if proposal is not None:
                    yield proposal
        for node, sentence in kept:
            if id(node) not in done:
                yield Refused(node, RefusedError(sentence))


class DropUnusedChannels(Pass):
    """Leave out channels that are constant, as pruning leaves them, or that nobody reads."""

    name = "drop-channels"
    rules = (DropConstantBranch(),)
    surveys = (DropChannels(),)


__all__ = ["DropUnusedChannels"]
