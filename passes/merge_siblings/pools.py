"""MaxPools over one map, each from the last one."""

from __future__ import annotations

from typing import Any, NamedTuple

from graphpass import Node, Op, Rule, Tensor, any_, siblings
from graphpass.ir.windows import windows_of

Sizes = tuple[int, ...]


class NestedMaxPools(Rule):
    """MaxPool_k(x) = MaxPool_{k−p+1}(MaxPool_p(x)) for strides of 1 and k > p, as SPP has several.

    Windows of windows that overlap are windows; at the edges both end where x ends. Which of two
    zeros is picked, and what of NaN, ONNX leaves open, as it does for one MaxPool.
    """

    pattern = siblings(Op("MaxPool", any_("x"), bind="pools"), of="x")

    def rewrite(self, x: Tensor, pools: list[Node]) -> Any:
        found = [(window, index) for index, pool in enumerate(pools) if (window := _window(pool))]
        terms: list[Op | None] = [None] * len(pools)
        chain: list[tuple[_Window, int]] = []
        for window, index in sorted(found, key=lambda entry: sum(entry[0].kernel)):
            attributes: dict[str, Any] = dict(pools[index].attrs)
            source: Any = x
            if chain:
                inner, last = chain[-1]
                rest = _beyond(window, inner)
                if rest is None:
                    continue
                attributes |= {"auto_pad": None, "kernel_shape": list(rest.kernel)}
                attributes["pads"] = [*rest.begins, *rest.ends]
                source = terms[last]
            terms[index] = Op("MaxPool", source, **attributes)
            chain.append((window, index))
        return terms if len(chain) > 1 else None


class _Window(NamedTuple):
    """What a MaxPool with a stride of 1 looks at, by axis."""

    kernel: Sizes
    begins: Sizes
    ends: Sizes


def _window(pool: Node) -> _Window | None:
    """Return the window of `pool`; None where it moves in strides or has gaps."""
    windows = windows_of(pool)
    if any(window.stride != 1 or window.dilation != 1 for window in windows):
        return None
    # with a stride of 1, what SAME pads is the same for every size
    pads = [window.padding(window.kernel) for window in windows]
    kernel = tuple(window.kernel for window in windows)
    return _Window(kernel, *(tuple(side) for side in zip(*pads, strict=True)))


def _beyond(outer: _Window, inner: _Window) -> _Window | None:
    """Return the window over results of `inner` that sees what `outer` sees, where there is one."""
    kernel = tuple(k - p + 1 for k, p in zip(outer.kernel, inner.kernel, strict=True))
    begins = tuple(k - p for k, p in zip(outer.begins, inner.begins, strict=True))
    ends = tuple(k - p for k, p in zip(outer.ends, inner.ends, strict=True))
    reach = zip(kernel, begins, ends, strict=True)
    # a window of one element is none, and each has to see something at the edge
    fits = max(kernel) > 1 and all(0 <= begin < k and 0 <= end < k for k, begin, end in reach)
    return _Window(kernel, begins, ends) if fits else None
