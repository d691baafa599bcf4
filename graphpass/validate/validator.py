"""Level 3 and 4: a candidate through ONNX Runtime beside the original, output by output."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from graphpass.resources import Closing
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.validate.baseline import FULL_NOISE, Point, ReferenceCannotRunError
from graphpass.validate.compare import (
    OutputComparison,
    Place,
    Policy,
    compare_leaf,
    measure_noise,
)
from graphpass.validate.distance import identical, leaves
from graphpass.validate.growth import limits_unasked
from graphpass.validate.half import beyond_half, computes_in_half
from graphpass.validate.latency import Latency, latency_of
from graphpass.validate.logits import softmax_outputs, with_logits
from graphpass.validate.noise import HALF_EPSILON, base_tolerance, moved_by_ulp
from graphpass.validate.options import ValidationOptions
from graphpass.validate.original import Original
from graphpass.validate.process.channel import Value
from graphpass.validate.process.constants import runtime_for_constants
from graphpass.validate.process.runtime import (
    Limits,
    RunError,
    Runtime,
    Session,
    run_rounds,
    share_of_memory_mib,
)
from graphpass.validate.references import (
    Shapes,
    at_shapes,
    fixed_shapes,
    options_for,
    set_batch,
    values_of,
)
from graphpass.validate.resolutions import Resolutions
from graphpass.validate.rows import Rows, shaped_like
from graphpass.validate.structure import check_structure, interface_problems
from graphpass.validate.verdict import Status, Verdict, accusation, acquittal, incomparable

if TYPE_CHECKING:
    from graphpass.validate.exact.check import Prover, Site
    from graphpass.validate.exact.verdict import ExactVerdict

# Added to the name of a feed on which a candidate ran as its users run it.
_OPTIMIZED = ", default optimization"

__all__ = ["Latency", "Validator", "Verdict"]


class Validator(Closing):
    """Compares candidates with one original. Use as a context manager, or `close` it.

    The original is run when first needed, once for each feed and provider.
    Raises ReferenceCannotRunError, ProviderUnavailableError, InputsError.
    """

    def __init__(
        self,
        reference: onnx.ModelProto,
        options: ValidationOptions | None = None,
        *,
        epsilon: float | None = None,
    ) -> None:
        """`epsilon`: of the type that candidates compute in, where that is a coarser one."""
        self.options = options or ValidationOptions()
        limited = all(provider == "cpu" for provider in self.options.providers)
        limits = Limits(
            self.options.time_limit_s,
            (self.options.memory_limit_mib or share_of_memory_mib()) if limited else None,
        )
        self._runtime = Runtime(limits, self.options.threads, self.options.custom_ops)
        self._original = Original(reference, self.options, self._runtime, epsilon)
        self._prover: Prover | None = None
        self._ones_may_move = False
        self._logits: dict[tuple[str, ...], Validator] = {}
        self._at_shapes: dict[str, Validator] = {}
        self._in_half: Validator | None = None
        self._freed: onnx.ModelProto | None = None  # the last that was right at sizes that vary
        self._freed_count = 0
        self._latest = self  # who was asked last: at the sizes that the model has now
        self._first_shapes: Mapping[str, Sequence[int]] | None = None
        self._policy = Policy(
            base_tolerance(self._original.epsilon),
            self.options.factor,
            self.options.rtol,
            self.options.atol,
        )

    def prepare(self) -> None:
        """Run the original now."""
        for provider in self.options.providers:
            self._original.points(provider)

    def admit(self, candidate: onnx.ModelProto) -> None:
        """Limit what running a stranger may take, unless limits were given.

        Raises `GrowthError`.
        """
        if self.options.memory_limit_mib is None:
            limits = limits_unasked(candidate, self._runtime.limits, self.shapes())
            self._runtime.restrict(limits)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs in the first feed that the original took."""
        return self._original.points(self.options.providers[0])[0].feed.shapes

    def nothing_to_compare(self) -> str:
        """Say why no candidate can be told from the original, on no provider; "" if one can."""
        reasons = [self._original.silence(provider) for provider in self.options.providers]
        return reasons[0] if all(reasons) else ""

    def check(
        self, candidate: onnx.ModelProto, *, interface_may_change: Interface | bool = False
    ) -> Verdict:
        """Compare a skeleton with the original.

        Both run without ONNX Runtime's optimizations on every feed, and the candidate on the
        first as its users will run it, at the default level; one that is expensive to run is not
        run on that feed twice, and one that is costly is run at the default level alone, unless it
        is found to differ there.
        `interface_may_change`: what of the interface may be another. Outputs are compared by
        position, further ones are not, and axes of size 1 may come and go (a map of one cell is
        the answer for the image). A batch that varies now is run with several rows against the
        original's single runs, a resolution at other sizes; where an output may be its logits,
        they are the original's own. Where sizes are fixed, the original is declared for them; a
        part gets what the original computes at its inputs, and must give what it does at its
        outputs. Where the precision may be another, a candidate in float16 is held against the
        noise of that, and the original has nothing of what it computes so beyond that range.
        """
        original = self._original.model
        allowed = Interface.of(interface_may_change)
        if Interface.PRECISION in allowed:
            allowed &= ~Interface.PRECISION
            if computes_in_half(candidate):
                return self._check_in_half(candidate, allowed)
            interface_may_change = allowed
        if Interface.LOGITS in allowed:
            dropped = tuple(_without_softmax(original, candidate))
            if dropped:
                return self._beside_logits(dropped).check(
                    candidate, interface_may_change=allowed & ~Interface.LOGITS
                )
        problems = check_structure(original, candidate, interface_may_change=interface_may_change)
        if problems:
            changed = bool(interface_problems(original, candidate)) and not interface_may_change
            status: Status = "interface changed" if changed else "invalid"
            return Verdict(status, problems[0], problems=tuple(problems))
        self._latest = self
        if Interface.PART in allowed and _is_part(original, candidate):
            return self._check_part(candidate)
        shapes = fixed_shapes(original, candidate) if Interface.FIXED in allowed else {}
        if shapes:
            return self._check_at(candidate, shapes, allowed & ~Interface.FIXED | Interface.OTHER)
        self._ones_may_move = bool(allowed)
        comparisons: list[OutputComparison] = []
        for provider in self.options.providers:
            points = self._original.points(provider)
            try:
                comparisons.extend(self._compare(candidate, provider, points))
                if Interface.SIZES in allowed and not _has_failed(comparisons):
                    further, problem = self._elsewhere(candidate, points[0])
                    comparisons.extend(further)
                    if problem:
                        return self._verdict("differs", problem, comparisons)
            except RunError as error:
                reason = f"{error} (provider {provider}, where the original runs)"
                return self._verdict("cannot run", reason, comparisons)
            if _has_failed(comparisons):
                break
        verdict = self._judge(comparisons)
        if verdict.ok and Interface.SIZES in allowed:
            self._freed, self._freed_count = onnx.ModelProto(), self._freed_count + 1
            self._freed.CopyFrom(candidate)
        return verdict

    def _elsewhere(
        self, candidate: onnx.ModelProto, point: Point
    ) -> tuple[list[OutputComparison], str]:
        """Compare with several rows and at other sizes, where the candidate takes them."""
        original = self._original
        random = original.random_outputs(point.provider)
        rows = self._rows(point)
        about = (original.model, self._runtime, point.provider, point.feed.values)
        sizes = Resolutions(*about, self._policy, original.epsilon, self.options.seed)
        done: list[OutputComparison] = []
        for judge in (rows, sizes):
            compared, problem = judge.compare(candidate, random)
            done += compared
            if problem or _has_failed(compared):
                return done, problem
        return done, ""

    def _beside_logits(self, outputs: tuple[str, ...]) -> Validator:
        """Return a validator whose original gives the logits of `outputs`."""
        if outputs not in self._logits:
            self._logits[outputs] = Validator(
                with_logits(self._original.model, outputs), self.options
            )
        return self._logits[outputs]

    def _check_in_half(self, candidate: onnx.ModelProto, allowed: Interface) -> Verdict:
        """Compare with the noise of half precision, in whose range all must lie."""
        if self._in_half is None:
            model = self._original.model
            self._in_half = Validator(model, self.options, epsilon=HALF_EPSILON)
        there = self._latest = self._in_half
        for provider in self.options.providers:
            for point in there._original.points(provider):
                about = there._original.model, candidate, point.feed.values
                problem = beyond_half(*about, self._runtime, provider)
                if problem:
                    return self._verdict("differs", f"{problem} ({point.feed.name})", [])
        return there.check(candidate, interface_may_change=allowed)

    def _check_at(self, candidate: onnx.ModelProto, shapes: Shapes, allowed: Interface) -> Verdict:
        """Compare at the sizes that `candidate` fixes, with the original declared for them."""
        there = self._beside(shapes)
        batch = set_batch(self._original.model, shapes)
        try:
            if batch is None:
                self._latest = there
                return there.check(candidate, interface_may_change=allowed)
            with contextlib.suppress(ReferenceCannotRunError):
                there.prepare()
                self._latest = there
            alone = {name: ("", *sizes[1:]) for name, sizes in shapes.items()}
            return self._beside(alone).check_rows(candidate, *batch)
        except ReferenceCannotRunError as error:
            if self._freed is None:
                return self._verdict("cannot run", f"at the sizes that are set, {error}", [])
        return self._check_freed(candidate, shapes, allowed)

    def _check_freed(
        self, candidate: onnx.ModelProto, shapes: Shapes, allowed: Interface
    ) -> Verdict:
        """Compare at sizes that the original does not run at, with what was found to be its like.

        That was held against the original where it runs, and against parts of images elsewhere.
        """
        self._latest = self._beside(shapes, self._freed)
        try:
            return self._latest.check(candidate, interface_may_change=allowed)
        except ReferenceCannotRunError as error:
            return self._verdict("cannot run", f"at the sizes that are set, {error}", [])

    def check_rows(self, candidate: onnx.ModelProto, names: Sequence[str], count: int) -> Verdict:
        """Compare `count` rows in the inputs `names` with what the original says of each alone."""
        comparisons: list[OutputComparison] = []
        for provider in self.options.providers:
            point = self._original.points(provider)[0]
            random = self._original.random_outputs(provider)
            done, problem = self._rows(point).compare_at(candidate, random, names, (count,))
            comparisons += done
            if problem:
                return self._verdict("differs", problem, comparisons)
        return self._judge(comparisons)

    def _rows(self, point: Point) -> Rows:
        original = self._original
        about = (original.model, self._runtime, point.provider, point.feed.values)
        cheap, seed = original.is_cheap(point), self.options.seed
        return Rows(*about, self._policy, original.epsilon, cheap, seed)

    def _beside(self, shapes: Shapes, model: onnx.ModelProto | None = None) -> Validator:
        """Return a validator whose original is declared for the sizes that a candidate fixes.

        `model`: in place of the original.
        """
        key = f"{0 if model is None else self._freed_count} {shapes}"
        if key not in self._at_shapes:
            model = at_shapes(model or self._original.model, shapes)
            self._at_shapes[key] = Validator(model, options_for(model, self.options))
        return self._at_shapes[key]

    def _check_part(self, candidate: onnx.ModelProto) -> Verdict:
        """Compare a part with what the original computes there, from what it computes before."""
        comparisons: list[OutputComparison] = []
        for provider in self.options.providers:
            for point in self._original.points(provider):
                try:
                    comparisons.extend(self._compare_part(candidate, point))
                except RunError as error:
                    return self._verdict("cannot run", f"{error}", comparisons)
        return self._judge(comparisons)

    def _compare_part(self, candidate: onnx.ModelProto, point: Point) -> list[OutputComparison]:
        held = {tensor.name for tensor in candidate.graph.initializer}
        inputs = [value.name for value in candidate.graph.input if value.name not in held]
        outputs = [value.name for value in candidate.graph.output]
        model, provider = self._original.model, point.provider
        feed = point.feed.values
        values = values_of(model, [*inputs, *outputs], feed, self._runtime, provider)
        moved = moved_by_ulp(feed, self._original.epsilon, self.options.seed + 1)
        other = values
        if moved is not None:
            other = values_of(model, outputs, moved, self._runtime, provider)
        expected = {name: values[name] for name in outputs if name in values}
        measured = measure_noise(expected, {name: other[name] for name in expected})
        with self._runtime.load(candidate, provider) as session:
            given = {name: values[name] for name in inputs if name in values}
            found, again = (leaves(session.run(given).outputs) for _ in range(2))
        return [
            compare_leaf(
                Place(name, provider, point.feed.name),
                leaves(expected)[name],
                found[name],
                noise=measured.get(name),
                policy=self._policy,
                fallback_scale=lambda: 1.0,
            )
            for name in expected
            if identical(found[name], again[name])
        ]

    def load(self, model: Path | onnx.ModelProto) -> None:
        """Have ONNX Runtime load a file, or a skeleton of one, everywhere. Raises RunError."""
        for provider in self.options.providers:
            self._runtime.load(model, provider, whole=True).close()

    def check_windows(self, windows: Sequence[Window | None]) -> list[WindowVerdict]:
        """Run each rewrite on its own, on the CPU, against the bound derived from it."""
        from graphpass.validate.window.check import check_windows

        return check_windows(
            windows,
            self._runtime,
            seed=self.options.seed,
            rtol=self.options.rtol or 0.0,
            atol=self.options.atol or 0.0,
            shapes=self._latest._original.shapes,
            symbols=self._latest._original.bindings,
        )

    def check_exactly(self, sites: Sequence[Site]) -> list[ExactVerdict]:
        """Compute each rewrite in exact arithmetic, where a right one is equal."""
        if self._prover is None:
            from graphpass.validate.exact.check import Prover, work_for

            self._prover = Prover(self.options.seed, work_for(self._original.model))
        there = self._latest._original
        return self._prover.check(sites, there.shapes, there.bindings)

    def latency(
        self,
        before: onnx.ModelProto,
        after: onnx.ModelProto,
        *,
        min_rounds: int = 5,
        max_rounds: int = 2000,
        budget_s: float = 0.6,
    ) -> Latency:
        """Time both on the first feed, in turn. Raises RunError.

        A model of microseconds takes as many rounds as fit into moods of the scheduler, which
        last longer than tens of its runs and would look like a difference.
        """
        provider = self.options.providers[0]
        feed = self._latest._original.points(provider)[0].feed
        with (
            self._runtime.load(before, provider, "all", whole=True) as one,
            self._runtime.load(after, provider, "all", whole=True) as two,
        ):
            rounds = run_rounds(
                [one, two],
                feed.values,
                min_rounds=min_rounds,
                max_rounds=max_rounds,
                budget_s=budget_s,
            )
        return latency_of(rounds, feed.name, provider)

    def site_shapes(self, window: Window) -> tuple[dict[str, list[int]], str]:
        """Return the shapes of a window's inputs in the first run; {} and why not, if unknown."""
        from graphpass.validate.window.prepare import Terms, real_shapes

        first = self._latest._original.points(self.options.providers[0])[0]
        terms = Terms(symbols=first.feed.bindings)
        found, unknown = real_shapes(window, terms)
        if not unknown:
            return found, ""
        return real_shapes(window, replace(terms, shapes=self._latest._all_shapes(first)))

    def _all_shapes(self, point: Point) -> Mapping[str, Sequence[int]]:
        """Return the shapes of all values at once: a run for each site would be too much."""
        if self._first_shapes is None:
            graph = self._original.model.graph
            names = {name for node in graph.node for name in node.output}
            names.update(value.name for value in graph.input)
            self._first_shapes = self._original.shapes(names, point)
        return self._first_shapes

    def time_site(self, window: Window, shapes: Mapping[str, Sequence[int]]) -> Latency:
        """Time a window, on the first provider, with inputs of these shapes. Raises RunError."""
        from graphpass.validate.window.timing import time_window

        return time_window(window, shapes, self._runtime, self.options.providers[0])

    def evaluating(self) -> AbstractContextManager[None]:
        """Let passes compute constants with the runtime, inside of the block."""
        return runtime_for_constants(self._runtime)

    def close(self) -> None:
        """End the worker process."""
        self._runtime.close()
        half = [] if self._in_half is None else [self._in_half]
        for other in (*self._logits.values(), *self._at_shapes.values(), *half):
            other.close()

    def _compare(
        self, candidate: onnx.ModelProto, provider: str, points: list[Point]
    ) -> list[OutputComparison]:
        first, *others = points
        if self._original.is_costly(first):
            return self._compare_costly(candidate, points)
        in_full = points if self._original.is_cheap(first) or not others else others
        done = self._compare_plain(candidate, provider, in_full)
        if _has_failed(done):
            return done
        (outputs,) = self._run_as_users_do(candidate, [first]) or (None,)
        if outputs is not None:
            compared = self._compare_point(first, outputs, _OPTIMIZED)
            if first.is_assumed and not all(c.ok for c in compared):
                if not self._original.is_run_alone(first):
                    return done
                compared = self._compare_point(first, outputs, _OPTIMIZED)
            if all(c.ok for c in compared):
                return done + compared
        if in_full is others:
            if not self._original.is_run_alone(first):
                return done
            done = self._compare_plain(candidate, provider, [first]) + done
        if outputs is None or _has_failed(done):
            return done
        return done + self._compare_optimized(first, outputs)

    def _compare_costly(
        self, candidate: onnx.ModelProto, points: list[Point]
    ) -> list[OutputComparison]:
        """Run as users do, and without ONNX Runtime's optimizations only where that differs."""
        found = self._run_as_users_do(candidate, points)
        done: list[OutputComparison] = []
        for point, outputs in zip(points, found, strict=False):
            done.extend(self._compare_point(point, outputs, _OPTIMIZED))
        if found and all(c.ok for c in done):
            return done
        done = self._compare_plain(candidate, points[0].provider, points)
        for point, outputs in zip(points, found, strict=False):
            if _has_failed(done):
                break
            done.extend(self._compare_optimized(point, outputs))
        return done

    def _compare_plain(
        self, candidate: onnx.ModelProto, provider: str, points: list[Point]
    ) -> list[OutputComparison]:
        done: list[OutputComparison] = []
        suspects: list[tuple[Point, dict[str, Value]]] = []
        with self._runtime.load(candidate, provider) as session:
            for point in points:
                outputs = self._outputs(session, point)
                compared = self._compare_point(point, outputs)
                if point.noise_level < FULL_NOISE and not all(c.ok for c in compared):
                    suspects.append((point, outputs))
                    continue
                done.extend(compared)
                if _has_failed(compared):
                    return done
        # Only now the noise, so that never more than two sessions hold weights.
        for point, outputs in suspects:
            compared = self._compare_point(point, outputs)
            while not all(c.ok for c in compared) and self._original.deepen(point):
                compared = self._compare_point(point, outputs)
            if not all(c.ok for c in compared) and self._original.given_at(point, outputs):
                compared = self._compare_point(replace(point, outputs=outputs), outputs)
            done.extend(compared)
            if _has_failed(compared):
                break
        return done

    def _run_as_users_do(
        self, model: onnx.ModelProto, points: Sequence[Point]
    ) -> list[dict[str, Value]]:
        """Run at ORT's default level; none where the original does not run so either."""
        try:
            with self._runtime.load(model, points[0].provider, "all") as session:
                return [self._outputs(session, point) for point in points]
        except RunError:
            if any(self._original.as_users_run_it(point) is None for point in points):
                return []
            raise

    def _compare_optimized(self, point: Point, outputs: dict[str, Value]) -> list[OutputComparison]:
        """Compare what a plain run does not accuse: ORT's optimizer may be wrong about a rewrite.

        With the optimized original, which may be off the plain one, too: quantized models are.
        """
        original = self._original.as_users_run_it(point)
        if original is None:
            return []
        while True:
            compared = self._compare_point(
                replace(original, noise=point.noise), outputs, _OPTIMIZED
            )
            if all(c.ok for c in compared):
                return compared
            if not self._original.deepen(point):
                break
        if self._original.given_at(point, outputs):
            return self._compare_point(replace(point, outputs=outputs), outputs, _OPTIMIZED)
        return compared

    def _outputs(self, session: Session, point: Point) -> dict[str, Value]:
        outputs = session.run(point.feed.values).outputs
        if self._ones_may_move and len(outputs) >= len(point.outputs):
            pairs = zip(point.outputs.items(), outputs.values(), strict=False)
            return {name: shaped_like(expected, value) for (name, expected), value in pairs}
        if len(outputs) != len(point.outputs):
            return outputs
        # By position: where a pass may change the interface, names may differ.
        return dict(zip(point.outputs, outputs.values(), strict=True))

    def _compare_point(
        self, point: Point, outputs: dict[str, Value], how: str = ""
    ) -> list[OutputComparison]:
        random = self._original.random_outputs(point.provider)
        reference, candidate = leaves(point.outputs), leaves(outputs)
        return [
            compare_leaf(
                Place(name, point.provider, point.feed.name + how),
                reference.get(name),
                candidate.get(name),
                noise=(point.noise or {}).get(name),
                policy=self._policy,
                fallback_scale=partial(self._original.fallback_scale, point, name),
            )
            for name in dict.fromkeys([*reference, *candidate])
            if name not in random
        ]

    def _judge(self, comparisons: list[OutputComparison]) -> Verdict:
        # Which outputs are random may have come out later than the first comparisons.
        comparisons = [
            c for c in comparisons if c.name not in self._original.random_outputs(c.provider)
        ]
        failed = [c for c in comparisons if not c.ok and c.comparable]
        if failed:
            return self._verdict("differs", accusation(failed), comparisons)
        settled = {(c.name, c.provider) for c in comparisons if c.ok and not c.blank}
        unsettled = [
            c
            for c in comparisons
            if (c.name, c.provider) not in settled
            and c.name not in self._original.silent_outputs(c.provider)
        ]
        if not unsettled and not settled:
            unsettled = comparisons
        if unsettled:
            return self._verdict("not comparable", incomparable(unsettled[0]), comparisons)
        if not comparisons:
            reason = "every output differs between two runs of the original"
            return self._verdict("not comparable", reason, comparisons)
        plain = [c for c in comparisons if not c.feed.endswith(_OPTIMIZED)]
        if plain and all(c.error == 0 for c in plain):
            return self._verdict(
                "equal", "all outputs are equal where ONNX Runtime optimizes nothing", comparisons
            )
        return self._verdict("within tolerance", acquittal(comparisons), comparisons)

    def _silent(self) -> set[str]:
        found = self._original.silent_outputs
        return {name for provider in self.options.providers for name in found(provider)}

    def _verdict(self, status: Status, reason: str, comparisons: list[OutputComparison]) -> Verdict:
        random = {
            name
            for provider in self.options.providers
            for name in self._original.random_outputs(provider)
        }
        return Verdict(
            status,
            reason,
            tuple(comparisons),
            tuple(sorted(random)),
            tuple(sorted(self._silent())),
            tuple(self._original.dropped),
        )


def _has_failed(comparisons: list[OutputComparison]) -> bool:
    return any(not c.ok and c.comparable for c in comparisons)


def _is_part(original: onnx.ModelProto, candidate: onnx.ModelProto) -> bool:
    """Whether inputs or outputs are other tensors."""
    return any(
        [value.name for value in one] != [value.name for value in two]
        for one, two in (
            (original.graph.input, candidate.graph.input),
            (original.graph.output, candidate.graph.output),
        )
    )


def _without_softmax(original: onnx.ModelProto, candidate: onnx.ModelProto) -> list[str]:
    """Return the outputs that end in a Softmax in the original, and do not in the candidate."""
    still = set(softmax_outputs(candidate))
    return [name for name in softmax_outputs(original) if name not in still]
