"""Numbers for symbolic dimensions: plausible ones, the same symbol bound alike everywhere."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

from graphpass.validate.feeds.specs import InputSpec

Bindings = dict[str, int]

BATCH, CHANNELS, SPATIAL, LENGTH, RANK = "batch", "channels", "spatial", "length", "rank"

# In the order in which they are tried. Small sizes first where they are no less telling; 64
# pixels leave 2 x 2 after the usual reduction by 32. Fixed heads want the sizes further on.
_CANDIDATES: Mapping[str, Sequence[int]] = {
    BATCH: (1, 2, 4),
    CHANNELS: (3, 1, 4),
    SPATIAL: (
        64,
        224,
        32,
        28,
        299,
        227,
        256,
        128,
        112,
        48,
        24,
        12,
        96,
        192,
        320,
        416,
        512,
        640,
        8,
        16,
    ),
    RANK: (2, 4, 1, 3, 0, 5),
    LENGTH: (16, 8, 32, 64, 128, 512, 4000, 4, 2, 1, 3, 5, 10, 256, 1024, 80, 224, 16000),
}
# How late a further candidate of a kind is tried, against the others' candidates.
_PATIENCE = {BATCH: 8, CHANNELS: 5, SPATIAL: 1, LENGTH: 1, RANK: 2}
# A second size for symbols that took the first: not square, so that exchanged axes show.
_OTHER_SIZES = {SPATIAL: ((3, 2), (1, 1), (2, 1)), LENGTH: ((3, 4), (1, 2), (2, 1))}


def classify(specs: Sequence[InputSpec]) -> dict[str, str]:
    """Map each symbol to what it seems to count: batch, channels, spatial or length."""
    classes: dict[str, str] = {}
    for spec in specs:
        if spec.dims is None:
            classes[rank_symbol(spec.name)] = RANK
        for axis, size in enumerate(spec.dims or ()):
            for symbol in _symbols(size):
                if symbol not in classes:
                    classes[symbol] = _class_of(spec.name, symbol, axis, spec.dims or ())
    return classes


def size_of(dim: int | str, bindings: Mapping[str, int]) -> int:
    """Return the size of a dimension: a number, a symbol, or a sum (``past + 1``)."""
    if isinstance(dim, int):
        return dim
    return sum(int(term) if term.isdecimal() else bindings[term] for term in _terms(dim))


def _symbols(dim: int | str) -> list[str]:
    return [] if isinstance(dim, int) else [term for term in _terms(dim) if not term.isdecimal()]


def _terms(dim: str) -> list[str]:
    return [term.strip() for term in dim.split("+")]


def rank_symbol(input_name: str) -> str:
    """Return the symbol that stands for the rank of an input which declares no shape."""
    return f"rank({input_name})"


def _class_of(input_name: str, symbol: str, axis: int, dims: tuple[int | str, ...]) -> str:
    name = "" if symbol.endswith(f"[{axis}]") else symbol.lower()
    if "batch" in name or (axis == 0 and re.search(r"^n$|^bs$|^b$", name)):
        return BATCH
    if re.search(r"height|width|^h$|^w$|pixel", name):
        return SPATIAL
    if _is_recurrent_state(input_name, dims) and axis == 1:
        return BATCH
    if re.search(r"seq|len|time|steps|frames|samples|tokens", name):
        return LENGTH
    if axis == 0 and len(dims) > 1:
        return BATCH
    if len(dims) >= 4:
        channels_last = dims[-1] in (1, 3, 4) and dims[1] not in (1, 3, 4)
        return CHANNELS if axis == (len(dims) - 1 if channels_last else 1) else SPATIAL
    return LENGTH


def _is_recurrent_state(input_name: str, dims: tuple[int | str, ...]) -> bool:
    """Whether the dimensions are layers and directions, batch, hidden."""
    if len(dims) != 3 or not isinstance(dims[0], int) or not isinstance(dims[2], int):
        return False
    return dims[0] > 1 or bool(re.search(r"^[hc](_?0|n)?$|state|hidden|cell", input_name.lower()))


def first_bindings(classes: Mapping[str, str], fixed: Mapping[str, int]) -> Iterator[Bindings]:
    """Yield bindings to try until the model takes one; `fixed` symbols keep their value."""
    free = {symbol: kind for symbol, kind in classes.items() if symbol not in fixed}
    kinds = sorted(set(free.values()))
    # Alike symbols get alike sizes. Combinations near the start of all lists come first.
    ranges = [range(len(_CANDIDATES[kind])) for kind in kinds]
    patience = [_PATIENCE[kind] for kind in kinds]
    for choice in sorted(
        itertools.product(*ranges), key=lambda c: sum(map(operator.mul, c, patience))
    ):
        sizes = {kind: _CANDIDATES[kind][index] for kind, index in zip(kinds, choice, strict=True)}
        yield {**{symbol: sizes[kind] for symbol, kind in free.items()}, **fixed}


def with_batch(
    bindings: Bindings, classes: Mapping[str, str], fixed: Mapping[str, int], batch: int
) -> Bindings:
    """Return the bindings with another batch size."""
    return {
        symbol: batch if classes[symbol] == BATCH and symbol not in fixed else size
        for symbol, size in bindings.items()
    }


def resized(bindings: Bindings, classes: Mapping[str, str], fixed: Mapping[str, int]) -> Bindings:
    """Return bindings with other spatial sizes and lengths, neighbours by unlike factors.

    A kind for which the first candidate failed is left alone: the model insists on a size.
    """
    sizes = dict(bindings)
    for kind, factors in _OTHER_SIZES.items():
        symbols = [s for s, found in classes.items() if found == kind and s not in fixed]
        if any(bindings[symbol] != _CANDIDATES[kind][0] for symbol in symbols):
            continue
        for symbol, (up, down) in zip(symbols, itertools.cycle(factors), strict=False):
            sizes[symbol] = max(1, bindings[symbol] * up // down)
    return sizes
