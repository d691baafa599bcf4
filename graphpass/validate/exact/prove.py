"""A rewrite once more in exact arithmetic: both sides are equal, without tolerance, or it is wrong.

Where a rule computed new constants, those of the window are drawn anew and the rule is applied
again; where it only moves or drops what is there, the window itself is computed. Two different
polynomials of degree d agree on a random point of a set of s values with probability d/s at most
(R. Zippel, EUROSAM 1979; J. T. Schwartz, J. ACM 27(4), 1980): after a few draws a wrong rewrite
has passed with a probability below 2⁻⁴⁰. Operators that are no polynomials are taken for arbitrary
functions, as in fingerprints of programs over finite fields (M. Wu et al., Mirage, OSDI 2025).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from graphpass.errors import GraphpassError, RuleError
from graphpass.ir.operators import Trait, named
from graphpass.ir.refusal import RefusedError
from graphpass.rewrite.making import Trial
from graphpass.rewrite.rule import Rule
from graphpass.rewrite.survey import Survey
from graphpass.rewrite.window import Window
from graphpass.validate.exact.evaluate import evaluate, same
from graphpass.validate.exact.field import Array, Fields
from graphpass.validate.exact.moves import MOVES
from graphpass.validate.exact.number import Bits, Number, Numbers, UnknownError
from graphpass.validate.exact.pieces import PIECES
from graphpass.validate.exact.redraw import EASIEST, LEVELS, Drawn, Level, Roles, redrawn
from graphpass.validate.exact.sides import (
    Inputs,
    Side,
    can_be_double,
    given_to,
    in_double,
    is_one_computation,
    union,
)
from graphpass.validate.exact.verdict import (
    DiffersError,
    ExactVerdict,
    Point,
    bits_of,
    difference,
    equal,
    rests_on,
)

ENOUGH_BITS = 40
_MOST_DRAWS = 64
MOST_ELEMENTS = 3 << 20  # of the constants of one site
_MOST_DRAWN = 1 << 24  # elements, for one site
# a float's numerator is below 2^53 and has two prime factors of 26 bits; one of many exponents
# more, and so has a difference of several of them
_FACTORS, _FACTORS_OF_FRACTIONS = 2, 12
_CLEARLY = 2.0**-20  # relative; rounding in float64 makes less of small integers
_NO_DOUBLE = frozenset("Conv ConvTranspose AveragePool GlobalAveragePool".split())
# what does not see how large a number beyond its bounds is
_BOUNDED = frozenset(named(Trait.CLAMPS))
# a difference that dividing by such counts, which no float holds exactly, may have made
_DIVIDING = frozenset(named(Trait.AVERAGES))

Shapes = Mapping[str, Sequence[int]]


def prove(
    rule: Rule | Survey | None,
    windows: Sequence[Window],
    shapes: Callable[[Window], Iterable[Shapes]],
    fields: Fields,
    first_level: int = 0,
    enough_bits: int = ENOUGH_BITS,
) -> tuple[ExactVerdict, int]:
    """Say of one rewrite whether it is right, and at which level of `LEVELS` that came out.

    `rule` made it, or a survey; None where something else did. `shapes`: the sizes that a window
    may be run with, the most natural ones first. `enough_bits`: draws end at this probability, or
    below.
    """
    attempt = _Attempt(rule, windows, shapes, fields, enough_bits)
    try:
        return attempt.verdict(first_level), attempt.level
    except UnknownError as unknown:
        reason = f"there is no exact arithmetic for {unknown}"
        return ExactVerdict("not replayed", reason=reason), attempt.level


class _Attempt:
    def __init__(
        self,
        rule: Rule | Survey | None,
        windows: Sequence[Window],
        shapes: Callable[[Window], Iterable[Shapes]],
        fields: Fields,
        enough_bits: int,
    ) -> None:
        self.rule = rule
        self.windows = windows
        self.shapes = shapes
        self.fields = fields
        self.enough_bits = enough_bits
        self.level = 0
        self.sides = [(Side(w.before), Side(w.after)) for w in windows]
        operators = {n.op_type for pair in self.sides for s in pair for n in s.graph.node}
        self.sizes = bool(operators & (PIECES.keys() | {"Sqrt", "Pow", "ReduceL2"}))
        self.divides = bool(operators & _DIVIDING)
        self.bounded = bool(operators & _BOUNDED)

    def verdict(self, first_level: int) -> ExactVerdict:
        elements = sum(before.elements for before, _ in self.sides)
        if elements > MOST_ELEMENTS:
            reason = f"its constants have {elements:,} elements, more than are drawn anew"
            return ExactVerdict("not replayed", reason=reason)
        if all(
            is_one_computation(*pair, window.output)
            for window, pair in zip(self.windows, self.sides, strict=True)
        ):
            return ExactVerdict("equal")
        if self._only_moves_constants():
            return self._bit_by_bit()
        if not self._has_new_floats():
            return self._as_they_are()
        if self.rule is None:
            return self._with_its_constants("a constant was computed, and rounded")
        try:
            return self._again(first_level)
        except RefusedError as refusal:
            return self._with_its_constants(f"with other constants the rule refuses: {refusal}")
        except _OtherwiseError as other:
            return self._with_its_constants(str(other))

    def _kind_of(self, draw: int) -> dict[str, bool]:
        """Return what inputs are fed in a draw, so that elements come onto every piece."""
        return {"below": self.sizes and draw % 2 == 1, "near_bounds": self.bounded}

    def _has_new_floats(self) -> bool:
        """Whether there are floats that are not there before: a rule computed them."""
        return any(
            set(after.contents.values()) - set(before.contents.values())
            for before, after in self.sides
        )

    # ------------------------------------------------------------------ the window as it is

    def _only_moves_constants(self) -> bool:
        """Whether nothing is fed and nothing computed: elements of constants move, if that."""
        return all(
            not side.graph.input
            and all(n.op_type in MOVES or n.op_type == "Constant" for n in side.graph.node)
            for pair in self.sides
            for side in pair
        )

    def _bit_by_bit(self) -> ExactVerdict:
        for window, pair in zip(self.windows, self.sides, strict=True):
            numbers = Bits(self.fields.of(0))
            one, other = (
                evaluate(side.graph, given_to(side, {}, {}, numbers), numbers, side.opset)
                for side in pair
            )
            if not same(one.get(window.output), other.get(window.output), numbers):
                return ExactVerdict("differs", reason="the constants differ, bit by bit")
        return ExactVerdict("equal")

    def _as_they_are(self) -> ExactVerdict:
        """Compute windows whose constants are the same on both sides; any others would do."""
        try:
            return self._all(real=False)
        except DiffersError:
            pass  # on their values it may rest that they are 1, or larger than others
        self.sizes = True  # they tell a mistake from what is rounded
        try:
            return self._all(real=True)
        except DiffersError as error:
            if error.arbitrary:
                return rests_on(error.arbitrary)
            if not all(side.is_finite for pair in self.sides for side in pair):
                return ExactVerdict("not replayed", reason="its constants are not finite")
            if self._has_rounded_attributes() and not error.relative > _CLEARLY:
                reason = "a number among its attributes is rounded, such as 1/6"
                return ExactVerdict("not replayed", reason=reason)
            return ExactVerdict("differs", reason="in exact arithmetic both sides are not equal")

    def _with_its_constants(self, otherwise: str) -> ExactVerdict:
        """Compute windows with the constants that they have: they may not have been rounded."""
        try:
            return self._all(real=True)
        except DiffersError as error:
            if error.arbitrary:
                return rests_on(error.arbitrary)
            return ExactVerdict("not replayed", reason=otherwise)

    def _all(self, *, real: bool) -> ExactVerdict:
        bits = [
            self._in_some_sizes(window, pair, real)
            for window, pair in zip(self.windows, self.sides, strict=True)
        ]
        return equal(bits)

    def _in_some_sizes(self, window: Window, pair: tuple[Side, Side], real: bool) -> float:
        problem = UnknownError("its sizes, which are not known")
        for shapes in self.shapes(window):
            try:
                return self._one(window, pair, shapes, real)
            except UnknownError as error:
                problem = error
        raise problem

    def _one(self, window: Window, pair: tuple[Side, Side], shapes: Shapes, real: bool) -> float:
        inputs = Inputs(pair, shapes)
        before, after = pair
        held = before.contents | after.contents

        def draw(number: int, rng: np.random.Generator, numbers: Numbers) -> Point:
            drawn = Drawn() if real else _drawn_alike(pair, rng, near_bounds=self.bounded)
            fed, free = inputs.drawn(rng, numbers, **self._kind_of(number))
            values = [
                evaluate(
                    side.graph, given_to(side, fed, drawn.arrays, numbers), numbers, side.opset
                )
                for side in pair
            ]
            one, other = (found.get(window.output) for found in values)
            return one, other, 1 / min(drawn.choices, free), drawn.narrow

        factors = _FACTORS_OF_FRACTIONS if real and held else _FACTORS
        return self._repeated(draw, factors, 1)

    def _repeated(
        self,
        draw: Callable[[int, np.random.Generator, Numbers], Point],
        factors: int,
        freedom: int,
    ) -> float:
        """Draw until it is certain enough; return how many bits the probability has."""
        bits = 0.0
        elements = 1 + sum(before.elements for before, _ in self.sides)
        for number in range(min(_MOST_DRAWS, max(2, _MOST_DRAWN // elements))):
            rng = np.random.default_rng([self.fields.seed, 9, number])
            numbers = Numbers(self.fields.of(number), sizes=self.sizes)
            one, other, wide, narrow = draw(number, rng, numbers)
            if not same(one, other, numbers):
                raise difference(one, other)
            bits += bits_of(one, other, wide, freedom * narrow, factors, freedom)
            # the rule, applied again to large constants, is what costs
            if bits >= (self.enough_bits if freedom > 1 else ENOUGH_BITS):
                break
        return bits

    # --------------------------------------------------------------------- the rule once more

    def _again(self, first_level: int) -> ExactVerdict:
        """Apply the rule to the window with other constants."""
        model = union([window.before for window in self.windows])
        before, after = (
            {node.op_type for pair in self.sides for node in pair[at].graph.node} for at in (0, 1)
        )
        # where ONNX Runtime has no kernel of double precision, rules do not make its operator
        if can_be_double(model) and not (after - before) & _NO_DOUBLE:
            try:
                return self._at_some_level(model, first_level, widen=True)
            except RefusedError:
                pass  # another reason may hold for this type alone
        return self._at_some_level(model, first_level, widen=False)

    def _at_some_level(
        self, model: onnx.ModelProto, first_level: int, *, widen: bool
    ) -> ExactVerdict:
        levels = LEVELS[53 if widen else _digits(model)]
        for self.level, level in enumerate(levels[first_level:], first_level):
            try:
                return self._at(model, level, widen)
            except DiffersError:
                continue
        self.sizes = True  # they tell a mistake from what is rounded
        try:
            return self._at(model, EASIEST, widen)
        except DiffersError as error:
            if error.arbitrary:
                return rests_on(error.arbitrary)
            if self._rounds(model) and not error.relative > _CLEARLY:
                reason = "what the rule computes of its constants is rounded, whatever they are"
                return ExactVerdict("not replayed", reason=reason)
            reason = "with other constants, in exact arithmetic, what it makes is not equal"
            return ExactVerdict("differs", reason=reason)

    def _rounds(self, model: onnx.ModelProto) -> bool:
        """Whether a rule that is right may have to round what it computes."""
        side = Side(model)
        kept = Roles.of(model.graph.node, side.opset).kept & side.contents.keys()
        plain = all(_is_plain(side.arrays[name]) for name in kept)
        rounded = self._has_rounded_attributes() or not can_be_double(model)
        return self.divides or not plain or rounded

    def _has_rounded_attributes(self) -> bool:
        """Whether an operator has a number of its own that no short float holds."""
        nodes = [node for pair in self.sides for side in pair for node in side.graph.node]
        floats = [a for n in nodes for a in n.attribute if a.type == onnx.AttributeProto.FLOAT]
        # an epsilon is drawn with its variance
        held = [a.f for a in floats if a.name not in ("epsilon", "momentum")]
        return any(n.op_type == "HardSwish" for n in nodes) or not _is_plain(np.array(held))

    def _at(self, model: onnx.ModelProto, level: Level, widen: bool) -> ExactVerdict:
        source = Side(model)
        bare = in_double(model, level.epsilon, widen=widen)
        trial, roles = Trial(bare), Roles.of(model.graph.node, source.opset)
        originals = {name: source.arrays[name] for name in source.contents}
        problem = UnknownError("its sizes, which are not known")
        whole = self.windows[0] if len(self.windows) == 1 else Window(model, model, (), "")
        for shapes in self.shapes(whole):
            inputs = Inputs([Side(bare)], shapes)
            try:
                return self._in_shapes(source, bare, level, trial, roles, originals, inputs)
            except UnknownError as error:
                problem = error
        raise problem

    def _in_shapes(
        self,
        source: Side,
        bare: onnx.ModelProto,
        level: Level,
        trial: Trial,
        roles: Roles,
        originals: Mapping[str, Array],
        inputs: Inputs,
    ) -> ExactVerdict:
        rule = self.rule
        assert rule is not None
        kinds = {
            tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            for tensor in bare.graph.initializer
        }
        opset = source.opset

        def draw(number: int, rng: np.random.Generator, numbers: Numbers) -> Point:
            drawn = redrawn(originals, roles, level, rng, near_bounds=self.bounded)
            arrays = {
                name: np.asarray(drawn.arrays.get(name, held), kinds[name])
                for name, held in originals.items()
            }
            try:
                made = trial.made_by(rule, arrays)
            except (RefusedError, MemoryError):
                raise
            except Exception as error:  # whatever a rule raises
                if isinstance(error, GraphpassError) and not isinstance(error, RuleError):
                    raise
                what = f"with other constants the rule fails: {type(error).__name__}: {error}"
                raise _OtherwiseError(what) from None
            if made is None:
                raise _OtherwiseError("the rule looks at what lies around its window")
            if not self._is_alike(made.nodes):
                raise _OtherwiseError("with other constants the rule makes other nodes")
            fed, free = inputs.drawn(rng, numbers, **self._kind_of(number))
            given = dict(fed)
            for tensor in bare.graph.initializer:
                array = arrays.get(tensor.name)
                if array is None:
                    given[tensor.name] = source.arrays[tensor.name]
                elif tensor.name in drawn.residues:
                    whole = drawn.arrays[tensor.name]
                    given[tensor.name] = Number(whole, whole, array.dtype)
                else:
                    degree = int(tensor.name in drawn.arrays)
                    given[tensor.name] = numbers.of(array, degree=degree)
            values = evaluate(bare.graph, given, numbers, opset)
            for name, array in made.constants.items():
                if name not in values:
                    values[name] = numbers.of(array) if array.dtype.kind not in "iub" else array
            after = evaluate(onnx.GraphProto(node=made.nodes), values, numbers, opset)
            ones = [values[old] for old in made.results]
            others = [after[new] for new in made.results.values()]
            return ones, others, 1 / min(drawn.choices, free), drawn.narrow

        whole = not set(originals) & roles.kept
        factors = _FACTORS if whole else _FACTORS_OF_FRACTIONS
        return equal([self._repeated(draw, factors, 2)])

    def _is_alike(self, nodes: Iterable[onnx.NodeProto]) -> bool:
        """Whether the rule does what it did at the site: the same nodes, attributes and all."""
        now = Counter(map(_signature, nodes))
        then = Counter(_signature(n) for _, after in self.sides for n in after.graph.node)
        kept = Counter(_signature(n) for before, _ in self.sides for n in before.graph.node)
        once = set(then)
        return set(now) - _PLAIN <= once and once <= set(now) | set(kept) | _PLAIN


def _digits(model: onnx.ModelProto) -> int:
    """Return how many binary digits the narrowest float of a model has, about."""
    narrow = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return 11 if any(t.data_type in narrow for t in model.graph.initializer) else 24


def _is_plain(array: Array) -> bool:
    """Whether numbers are so short that what is computed of them need not be rounded."""
    wide = array.astype(np.float64) * 2.0**8
    return bool((np.isfinite(wide) & (wide == np.rint(wide)) & (np.abs(wide) < 2.0**16)).all())


class _OtherwiseError(Exception):
    """The rule does not do what it did at the site; the message says why, as a sentence."""


def _signature(node: onnx.NodeProto) -> tuple[str, ...]:
    # floats among attributes may be computed of constants; epsilon is another
    held = sorted(
        f"{a.name}={a.i}{list(a.ints)}{a.s!r}"
        for a in node.attribute
        if a.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.STRING)
    )
    return (node.domain, node.op_type, *held)


_PLAIN = {("", "Identity"), ("", "Constant")}  # where a result is an output, or was


def _drawn_alike(pair: tuple[Side, Side], rng: np.random.Generator, *, near_bounds: bool) -> Drawn:
    """Draw the constants of both sides anew, those alike that hold the same."""
    first: dict[bytes, str] = {}
    originals: dict[str, Array] = {}
    also: dict[str, str] = {}
    kept = Roles()
    for side in pair:
        roles = Roles.of(side.graph.node, side.opset)
        kept.kept |= roles.kept
        kept.divisors |= roles.divisors
        for name, content in side.contents.items():
            if content not in first:
                first[content] = name
                originals[name] = side.arrays[name]
            else:
                also[name] = first[content]
    for name, original in also.items():
        if name in kept.kept:
            kept.kept.add(original)
        if name in kept.divisors:
            kept.divisors.add(original)
    drawn = redrawn(originals, kept, LEVELS[53][0], rng, near_bounds=near_bounds)
    for name, original in also.items():
        if original in drawn.arrays:
            drawn.arrays[name] = drawn.arrays[original]
    return drawn
