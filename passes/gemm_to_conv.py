"""gemm-to-conv: dense layers become convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graphpass import (
    Choice,
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    any_,
    attribute,
    label,
    operator,
    producer,
    require,
)
from graphpass.errors import UsageError
from graphpass.ir.refusal import POSITIONS
from graphpass.rewrite.survey import Survey

from .clean_up.layouts import DropTranspose, MergeTransposes
from .shared.attention_by_head import AttentionByHead
from .shared.dense import DENSE_ON_MAP, dense, dense_on_map, resolve
from .shared.fewer_axes import FEWER_AXES
from .shared.fewest_transposes import FewestTransposes
from .shared.flatten import FLATTEN_RULES
from .shared.integer_layers import IntegerDense, QuantizedGemm
from .shared.positions import DenseOnMergedPositions, DenseOnPositions
from .shared.reshapes import DropReshape, MergeReshapes
from .shared.rows import makes_rows_of_map, merging_view, recurrent, require_images
from .shared.views_between import VIEWS_BETWEEN

_TARGETS = ("dense", "features", "all")


@dataclass(frozen=True)
class DenseOnFeatureMap(Rule):
    """Gemm(Flatten(y[N, C, H, W]), W, b) = Flatten(Conv(y, W as [M, C, H, W], b)), unpadded.

    A row of W holds the weights of one output for every element of y, which is what a filter as
    large as y holds. A Transpose before the Flatten only reorders them.
    """

    positions: bool = False  # also where the rows are steps of a sequence

    choice = Choice.AS_ASKED
    pattern = DENSE_ON_MAP

    def rewrite(
        self,
        layer: Node,
        matrix: Tensor,
        bias: Tensor | None,
        add: Node | None,
        flatten: Node,
        transpose: Node | None,
        y: Tensor,
    ) -> Any:
        read = dense_on_map((flatten, transpose, y), layer, matrix, bias, add)
        if read is None:
            return None
        found, features = read
        steps = None if self.positions else recurrent(features.y)
        require(
            steps is None,
            f"the rows of '{layer.inputs[0].name}' are the steps of a sequence:"
            f" {label(steps or layer)} makes them",
            POSITIONS,
        )
        if not self.positions:
            require_images(layer, matrix, layer.inputs[0])
        return found.convolution(features.y, found.kernel(features.row, features.order))


@dataclass(frozen=True)
class DenseOnRows(Rule):
    """Gemm(x[N, K], W, b) = Flatten(Conv(Unsqueeze(x, [2, 3]), W as [M, K, 1, 1], b))."""

    positions: bool = False  # also where the rows are positions inside an image or sequence

    choice = Choice.AS_ASKED
    pattern = dense(any_("x"))

    def rewrite(
        self, layer: Node, matrix: Tensor, bias: Tensor | None, add: Node | None, x: Tensor
    ) -> Any:
        turned = operator(layer) == "Gemm" and attribute(layer, "transA") != 0
        if not turned and makes_rows_of_map(producer(x), layer):
            return None  # the other rule converts it, or says why not
        found = resolve(layer, matrix, bias, add)
        if found is None:
            return None
        merged = None if self.positions else merging_view(layer)
        require(
            merged is None,
            f"the rows of '{x.name}' are not images: {label(merged or layer)} makes them of a "
            "tensor with more axes",
            POSITIONS,
        )
        if not self.positions:
            require_images(layer, matrix, x)
        rows: Any = Op("Transpose", x, perm=[1, 0]) if turned else x
        pixels = Op("Unsqueeze", rows, axes=[2, 3])
        return found.convolution(pixels, found.kernel((found.inputs, 1, 1)))


# what puts Transposes and Reshapes around layers on positions together again
_LAYOUT: tuple[Rule, ...] = (
    DropTranspose(),
    MergeTransposes(),
    DropReshape(),
    MergeReshapes(),
)


@dataclass(frozen=True)
class GemmToConv(Pass):
    """Turn Gemm and MatMul layers into convolutions that compute the same.

    A layer on a flattened feature map gets a kernel as large as the map, one on plain rows
    [N, K] a 1x1 kernel between Unsqueeze and Flatten. `target` says which:
    "features": only heads on feature maps, with all layers that follow;
    "dense": also layers on plain rows (a network without any convolution gets slower by it);
    "all": also layers whose rows are the positions of a sequence or image, which become pixels;
    the Transposes that this takes move down until they meet their inverse, and what attention
    views in five axes is viewed in four. With `by_head`, attention is computed head by head, each
    with matrix products of its own.
    """

    name: ClassVar[str] = "gemm-to-conv"
    target: str = "dense"
    by_head: bool = False

    def __post_init__(self) -> None:
        if self.target not in _TARGETS:
            raise UsageError(
                f"the target of gemm-to-conv is one of {', '.join(_TARGETS)}, not {self.target!r}"
            )

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The rules that `target` asks for."""
        everything = self.target == "all"
        plain: tuple[Rule, ...] = ()
        if self.target != "features":
            plain = (
                DenseOnRows(everything),
                DenseOnPositions(everything),
                IntegerDense(everything),
                QuantizedGemm(everything),
            )
        if everything:
            plain = (DenseOnMergedPositions(), *plain, *FEWER_AXES, *VIEWS_BETWEEN, *_LAYOUT)
        if self.by_head:
            plain = (*plain, AttentionByHead())
        return (DenseOnFeatureMap(everything), *plain, *FLATTEN_RULES)

    @property
    def surveys(self) -> tuple[Survey, ...]:  # type: ignore[override]
        """What moves layers along a residual stream together."""
        return (FewestTransposes(),) if self.target == "all" else ()
