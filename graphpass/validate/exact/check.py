"""Level 2, without tolerance: each rewrite of a run in exact arithmetic, alike ones once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from graphpass.ir.operators import Trait, traits
from graphpass.rewrite.rule import Rule
from graphpass.rewrite.survey import Survey
from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.validate.exact.field import Fields
from graphpass.validate.exact.number import UnknownError
from graphpass.validate.exact.prove import ENOUGH_BITS, Shapes, prove
from graphpass.validate.exact.verdict import ExactVerdict
from graphpass.validate.window.alike import form_of
from graphpass.validate.window.every_row import with_every_row
from graphpass.validate.window.prepare import Terms, inputs_of, needs_real_shapes, prepare

_SITE_WORK = 1 << 17  # elements that could be drawn in the time that a rule takes
_NODE_WORK = 1 << 12
FEWER_BITS = 20  # of one draw, which has to do for so many elements:
_LARGE = 1 << 20
_LARGE_AGAIN = 1 << 18  # where one that is alike but for sizes was looked at more closely
_MOST_ELEMENTS = 1 << 20  # of all inputs of a window


@dataclass(frozen=True)
class Site:
    """A rewrite to be proven: its rule or survey, None for what else did it, and its windows."""

    rule: Rule | Survey | None
    name: str
    windows: tuple[Window | None, ...]


def work_for(model: onnx.ModelProto) -> float:
    """Return how many elements may be drawn in a run over `model`, beside the first of a kind.

    So that it stays a tenth of what the run takes, which grows with nodes and weights.
    """
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    return float(_NODE_WORK * len(model.graph.node) + weights // 32)


class Prover:
    """Proves the rewrites of a run; what is alike is proven once."""

    def __init__(self, seed: int, work: float = math.inf) -> None:
        """`work`: what may be spent on rewrites that are alike but for sizes (`work_for`)."""
        self._fields = Fields(seed)
        self._work = work
        self._known: dict[tuple[str, ...], ExactVerdict] = {}
        self._levels: dict[str, int] = {}
        self._kinds: dict[tuple[str, ...], int] = {}

    def check(
        self,
        sites: Sequence[Site],
        shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]],
        symbols: Mapping[str, int],
    ) -> list[ExactVerdict]:
        """Return a verdict for each site. `shapes`, `symbols`: see `check_windows`."""
        unknown = ExactVerdict("not replayed", reason="the types of its tensors are unknown")
        found: list[ExactVerdict] = []
        waiting: dict[int, tuple[Site, tuple[str, ...]]] = {}
        for index, site in enumerate(sites):
            windows = [with_every_row(window) for window in site.windows if window is not None]
            found.append(unknown)
            if windows and len(windows) == len(site.windows):
                site = replace(site, windows=tuple(windows))
                waiting[index] = site, (site.name, *map(form_of, windows))
        new = {key: site for site, key in waiting.values() if key not in self._known}
        names = {
            name
            for site in new.values()
            for window in site.windows
            if window is not None and needs_real_shapes(window)
            for name in inputs_of(window)
        }
        terms = Terms(shapes=shapes(names) or None if names else None, symbols=symbols)
        for index, (site, key) in waiting.items():
            known = self._known.get(key)
            # nobody is accused for what another one did
            if known is None or known.status == "differs":
                known = self._known[key] = self._proven(site, terms)
            found[index] = known
        return found

    def _proven(self, site: Site, terms: Terms) -> ExactVerdict:
        windows = [window for window in site.windows if window is not None]
        kind = (site.name, *(form_of(window, sizes=False) for window in windows))
        alike = self._kinds.get(kind, 0)
        elements = sum(math.prod(t.dims) for w in windows for t in w.before.graph.initializer)
        if alike >= ENOUGH_BITS:
            self._work -= _SITE_WORK + elements
            if self._work < 0 and elements:
                return ExactVerdict("equal", 0, alike_bits=alike)
        large = _LARGE_AGAIN if alike >= ENOUGH_BITS else _LARGE
        verdict, level = prove(
            site.rule,
            windows,
            lambda window: _shapes(window, terms),
            self._fields,
            self._levels.get(site.name, 0),
            FEWER_BITS if elements > large else ENOUGH_BITS,
        )
        if verdict.status != "equal":
            return verdict
        self._levels[site.name] = level
        if verdict.bits >= alike:
            self._kinds[kind] = verdict.bits
            return verdict
        return replace(verdict, alike_bits=alike) if verdict.bits else verdict


def with_exact(verdict: WindowVerdict, exact: ExactVerdict) -> WindowVerdict:
    """Return what is said of a rewrite with what exact arithmetic says: the stricter counts."""
    if exact.status != "differs" or not verdict.ok:
        return replace(verdict, exact=exact.text)
    return replace(verdict, status="differs", reason=exact.reason, exact=exact.text)


def _shapes(window: Window, terms: Terms) -> Iterator[Shapes]:
    """Yield what may be fed, the most natural first."""
    sizes: Sequence[tuple[int, int]] | None = None
    while sizes is None or sizes:
        item = prepare(window, 0, terms, sizes)
        if not item.verdict.was_run:
            if not _is_of_any_shape(window):
                raise UnknownError(f"its sizes: {item.verdict.reason}")
            yield dict.fromkeys(inputs_of(window), (2, 3))
            return
        if sum(math.prod(shape) for shape in item.shapes.values()) > _MOST_ELEMENTS:
            raise UnknownError("inputs of this size")
        yield item.shapes
        sizes = item.sizes[1:]


def _is_of_any_shape(window: Window) -> bool:
    """Whether each element is computed for itself, so that ranks that are unknown do not matter."""
    nodes = (*window.before.graph.node, *window.after.graph.node)
    held = (*window.before.graph.initializer, *window.after.graph.initializer)
    return all(
        Trait.ELEMENTWISE in traits(node.op_type, node.domain) for node in nodes
    ) and not any(tensor.dims for tensor in held)
