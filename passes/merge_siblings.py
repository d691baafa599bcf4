"""merge-siblings: what is computed of one tensor side by side shares what it has in common."""

from __future__ import annotations

from typing import Any, NamedTuple

from graphpass import Node, Op, Pass, Rule, Tensor, any_, attribute, siblings

from .shared.linear import same_padding

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
    kernel = tuple(attribute(pool, "kernel_shape"))
    axes = len(kernel)
    steps = [*(attribute(pool, "strides") or []), *(attribute(pool, "dilations") or [])]
    if any(step != 1 for step in steps):
        return None
    mode = attribute(pool, "auto_pad")
    if mode == "NOTSET":
        pads = tuple(attribute(pool, "pads") or [0] * (2 * axes))
        return _Window(kernel, pads[:axes], pads[axes:])
    totals = [0 if mode == "VALID" else same_padding(size, 1, 1, size) or 0 for size in kernel]
    less, more = (tuple(total // 2 for total in totals), tuple(-(-t // 2) for t in totals))
    return _Window(kernel, more, less) if mode == "SAME_LOWER" else _Window(kernel, less, more)


def _beyond(outer: _Window, inner: _Window) -> _Window | None:
    """Return the window over results of `inner` that sees what `outer` sees, where there is one."""
    kernel = tuple(k - p + 1 for k, p in zip(outer.kernel, inner.kernel, strict=True))
    begins = tuple(k - p for k, p in zip(outer.begins, inner.begins, strict=True))
    ends = tuple(k - p for k, p in zip(outer.ends, inner.ends, strict=True))
    reach = zip(kernel, begins, ends, strict=True)
    # a window of one element is none, and each has to see something at the edge
    fits = max(kernel) > 1 and all(0 <= begin < k and 0 <= end < k for k, begin, end in reach)
    return _Window(kernel, begins, ends) if fits else None


class MergeSiblings(Pass):
    """Let what is computed of one tensor side by side share what it has in common."""

    name = "merge-siblings"
    rules = (NestedMaxPools(),)
