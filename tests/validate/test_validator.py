from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass.validate import (
    InputsError,
    ProviderUnavailableError,
    ReferenceCannotRunError,
    ValidationOptions,
    Validator,
    Verdict,
)
from graphpass.validate.compare import OutputComparison
from graphpass.validate.latency import is_settled, latency_of
from graphpass.validate.original import Original
from graphpass.validate.process import runtime as processes
from graphpass.validate.process.channel import Value
from graphpass.validate.process.runtime import Run, Runtime, Session

from .models import ALLOCATING, COUNTING, Array, convnet, parse


def check(
    original: onnx.ModelProto | str,
    candidate: onnx.ModelProto | str,
    options: ValidationOptions | None = None,
) -> Verdict:
    one, two = (parse(m) if isinstance(m, str) else m for m in (original, candidate))
    with Validator(one, options) as validator:
        return validator.check(two)


# Right and wrong rewrites


def unoptimized(verdict: Verdict) -> list[OutputComparison]:
    """The comparisons but for that with the candidate as its users run it."""
    return [c for c in verdict.comparisons if not c.feed.endswith(", default optimization")]


@pytest.mark.parametrize("seed", range(20))
def test_a_right_fold_is_within_tolerance(seed: int) -> None:
    verdict = check(
        convnet(seed=seed), convnet(seed=seed, folded=True), ValidationOptions(seed=seed)
    )
    assert verdict.ok and verdict.status == "within tolerance"
    assert "output 'y' differs by" in verdict.reason
    tolerances = [c.tolerance for c in unoptimized(verdict) if not c.feed.startswith("zeros")]
    assert len(tolerances) == 3 and max(tolerances) < 1e-5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("error", [0.01, -0.003])
def test_one_weight_of_one_channel_that_is_wrong_is_caught(seed: int, error: float) -> None:
    verdict = check(convnet(seed=seed), convnet(seed=seed, folded=True, weight_error=error))
    assert verdict.status == "differs" and not verdict.ok
    for part in ("output 'y' differs by", "noise floor", "on feed '", "provider cpu"):
        assert part in verdict.reason


def test_a_model_is_equal_to_itself_on_several_feeds() -> None:
    verdict = check(convnet(), convnet())
    assert verdict.status == "equal" and verdict.ok
    feeds = {c.feed for c in unoptimized(verdict)}
    assert feeds == {
        "normal, N=1, H=64, W=64",
        "large, N=2, H=96, W=64",
        "uniform, N=5, H=96, W=64",
        "zeros, N=1, H=96, W=64",
    }
    assert all(c.error == 0 and c.noise_floor and c.ok for c in unoptimized(verdict))


def test_two_validators_say_the_same_to_the_bit() -> None:
    one, two = (check(convnet(), convnet(folded=True)) for _ in range(2))
    assert one == two


def test_exchanged_axes_show_because_feeds_are_not_square() -> None:
    text = """g (float[N,C,H,W] x) => (float[P,Q,R,S] y) {
        t = Transpose <perm=[0,1,2,3]> (x) y = Relu (t) }"""
    original, candidate = parse(text), parse(text.replace("[0,1,2,3]", "[0,1,3,2]"))
    square = ValidationOptions(bind={"H": 1, "W": 1})
    assert check(original, candidate, square).status == "equal"
    verdict = check(original, candidate, ValidationOptions(bind={"N": 1}))
    assert verdict.status == "differs"


# Conditioning


def amplifier(gain: float, error: float) -> onnx.ModelProto:
    """Return y = sin(gain x + error): an ulp of x moves y by about 1e-7 gain."""
    model = parse("""g (float[N,64] x) => (float[N,64] y) {
        wide = Mul (x, gain) moved = Add (wide, error) y = Sin (moved) }""")
    for name, value in {"gain": gain, "error": error}.items():
        array = np.array([value], np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_the_same_error_is_nothing_to_an_ill_conditioned_model_but_wrong_in_a_good_one() -> None:
    inputs = {"x": np.random.default_rng(0).uniform(1, 2, (4, 64)).astype(np.float32)}
    options = ValidationOptions(inputs=inputs)
    ill = check(amplifier(3e4, 0.0), amplifier(3e4, 1e-2), options)
    assert ill.status == "within tolerance"
    assert all(1e-3 < (c.noise_floor or 0) < 5e-2 for c in ill.comparisons)
    good = check(amplifier(3.0, 0.0), amplifier(3.0, 1e-2), options)
    assert good.status == "differs"
    assert ill.comparisons[0].error == pytest.approx(good.comparisons[0].error, rel=0.3)


def test_chaos_is_not_comparable_and_no_licence() -> None:
    inputs = {"x": np.random.default_rng(0).uniform(1, 2, (4, 64)).astype(np.float32)}
    verdict = check(amplifier(1e7, 0.0), amplifier(1e7, 1.0), ValidationOptions(inputs=inputs))
    assert verdict.status == "not comparable" and not verdict.ok
    assert "when the original's inputs move by one ulp" in verdict.reason


def test_half_precision_has_half_the_digits() -> None:
    def model(error: float) -> onnx.ModelProto:
        model = parse("g (float16[N,64] x) => (float16[N,64] y) { y = MatMul (x, w) }")
        weight = np.random.default_rng(0).standard_normal((64, 64)) * (1 + error)
        tensor = numpy_helper.from_array(weight.astype(np.float16), "w")
        model.graph.initializer.append(tensor)
        return model

    assert check(model(0.0), model(5e-4)).status == "within tolerance"
    assert check(model(0.0), model(0.1)).status == "differs"


def test_rtol_and_atol_replace_the_noise_floor() -> None:
    original, candidate = convnet(), convnet(folded=True, weight_error=0.01)
    assert check(original, candidate, ValidationOptions(rtol=1e-3)).status == "within tolerance"
    assert check(original, candidate, ValidationOptions(atol=10.0)).status == "within tolerance"
    right = convnet(folded=True)
    assert check(original, right, ValidationOptions(rtol=1e-9)).status == "differs"


def test_a_head_that_is_zero_throughout_has_no_scale_and_passes() -> None:
    text = "g (float[N,4] x) => (float[N,2] y) { a = Tanh (x) y = MatMul (a, w) }"
    original, candidate = (
        parse(text),
        parse(text.replace("(x)", "(b)").replace("{", "{ b = Neg (x)")),
    )
    for model in (original, candidate):
        zeros = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
        model.graph.initializer.append(zeros)
    assert check(original, candidate).status == "equal"


# What is left out, or cannot be said


def test_random_outputs_are_left_out_by_name() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        noise = RandomNormalLike (x) y = Add (x, noise) z = Neg (x) }"""
    verdict = check(text, text)
    assert verdict.status == "equal" and verdict.random_outputs == ("y",)
    assert {c.name for c in verdict.comparisons} == {"z"}
    assert check(text, text.replace("Neg", "Abs")).status == "differs"


def test_dropout_in_training_mode_is_random() -> None:
    text = """g (float[N,400] x) => (float[N,400] y) {
        half = Constant <value = float {0.5}> () train = Constant <value = bool {1}> ()
        y = Dropout (x, half, train) }"""
    verdict = check(text, text)
    assert verdict.status == "not comparable" and verdict.random_outputs == ("y",)
    assert verdict.reason == "every output differs between two runs of the original"


def test_integers_must_be_equal() -> None:
    text = "g (float[N,50] x) => (int64[N] y) { y = ArgMax <axis=1, keepdims=0> (x) }"
    assert check(text, text).status == "equal"
    verdict = check(text, text.replace("ArgMax", "ArgMin"))
    assert verdict.status == "differs"
    assert "output 'y' differs in 100.00% of its elements" in verdict.reason


def test_nan_alone_does_not_satisfy() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float one = {1}> {
        a = Abs (x) b = Neg (a) c = Sub (b, one) y = Log (c) }"""
    verdict = check(text, text)
    assert verdict.status == "not comparable"
    assert "'y' has no elements, or is NaN throughout, in the original" in verdict.reason


def test_what_tells_nothing_is_named_and_left_out() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z, int64[2,M] k)
        <float zero = {0}, float high = {9e9}> {
        a = Sub (x, x) y = Div (a, zero) z = Neg (x)
        b = Greater (x, high) k = NonZero (b) }"""
    verdict = check(text, text)
    assert verdict.status == "equal" and verdict.silent_outputs == ("k", "y")
    wrong = check(text, text.replace("Neg", "Abs"))
    assert wrong.status == "differs"


SCALED = "g (float[N,4] x) => (float[N,4] y) <float w = {3}> { y = Mul (x, w) }"


@pytest.mark.parametrize(
    "options",
    [
        ValidationOptions(bind={"N": 0}),
        ValidationOptions(inputs={"x": np.zeros((0, 4), np.float32)}),
    ],
)
def test_sizes_that_leave_nothing_to_compare_are_refused(options: ValidationOptions) -> None:
    with pytest.raises(InputsError, match="output 'y' has no elements, so that nothing could be"):
        check(SCALED, SCALED.replace("{3}", "{1}"), options)


def test_a_size_of_zero_is_no_matter_where_outputs_have_elements() -> None:
    text = """g (float[P,4] past, float[1,4] x) => (float[Q,4] y) {
        y = Concat <axis=0> (past, x) }"""
    assert check(text, text, ValidationOptions(bind={"P": 0})).status == "equal"


@pytest.mark.parametrize("rows", [0, 2])
def test_inputs_of_nan_say_nothing_and_others_beside_them_do(tmp_path: Path, rows: int) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((2, 4), np.nan, np.float32))
    if rows:
        np.savez(tmp_path / "b.npz", x=np.ones((rows, 4), np.float32))
    with Validator(parse(SCALED), ValidationOptions(inputs=tmp_path)) as validator:
        assert bool(validator.nothing_to_compare()) == (rows == 0)
        verdict = validator.check(parse(SCALED.replace("{3}", "{1}")))
    assert verdict.status == ("differs" if rows else "not comparable")


def test_nan_where_the_original_has_none_is_a_difference() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Abs (x) y = Sqrt (a) }"
    verdict = check(text, text.replace("Abs", "Identity"))
    assert verdict.status == "differs"
    assert "has NaN or infinity in other places" in verdict.reason


def test_sequences_are_compared_item_by_item() -> None:
    text = """g (float[N,4] x) => (seq(float[?,4]) y) {
        z = Neg (x) y = SequenceConstruct (x, z) }"""
    assert check(text, text).status == "equal"
    verdict = check(text, text.replace("Neg", "Abs"))
    assert verdict.status == "differs" and "output 'y[1]'" in verdict.reason
    verdict = check(text, text.replace("(x, z)", "(x)"))
    assert verdict.status == "differs" and "output 'y[1]' is missing" in verdict.reason


# Statuses that come before any comparison


def test_another_interface_is_told_before_anything_runs() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
    verdict = check(text, text.replace("float[N,4] x", "float[M,4] x"))
    assert verdict.status == "interface changed"
    assert verdict.reason == "input 'x' was [N, 4] float32 and is [M, 4] float32"
    assert check(text, text.replace("Relu", "Nonsense")).status == "invalid"


def test_a_candidate_without_a_kernel_cannot_run() -> None:
    one = "g (float[1,1,4,4] x) => (float[1,1,4,4] y) { y = Relu (x) }"
    two = """g (float[1,1,4,4] x) => (float[1,1,4,4] y) {
        d = Cast <to=11> (x) c = Conv (d, w) y = Cast <to=1> (c) }"""
    candidate = parse(two)
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1)), "w")
    candidate.graph.initializer.append(weight)
    verdict = check(one, candidate)
    assert verdict.status == "cannot run"
    assert "Could not find an implementation for Conv" in verdict.reason


def test_a_candidate_that_hangs_or_bursts_is_one_sentence() -> None:
    original = parse(COUNTING)
    inputs: dict[str, Array] = {"trips": np.array(3), "x": np.array(0, np.float32)}
    forever = parse(
        COUNTING.replace(
            "y = Loop (trips", "n = Constant <value = int64 {4611686018427387904}> () y = Loop (n"
        )
    )
    with Validator(original, ValidationOptions(inputs=inputs, time_limit_s=2)) as validator:
        verdict = validator.check(forever)
        assert verdict.status == "cannot run"
        assert "did not finish running the model within 2 s (provider cpu" in verdict.reason
        assert validator.check(original).status == "equal"
    bursting = ALLOCATING.replace("(n)", "(m)").replace(
        "{ ", "{ huge = Constant <value = int64[1] {2684354560}> () m = Mul (n, huge) "
    )
    options = ValidationOptions(inputs={"n": np.array([1])}, memory_limit_mib=1024)
    verdict = check(ALLOCATING, bursting, options)
    assert verdict.status == "cannot run"
    assert "takes more memory than the limit of 1024 MiB" in verdict.reason


def test_an_expensive_model_runs_on_its_first_feed_only_as_users_run_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphpass.validate.search._CHEAP_COST", 0)
    feeds = [c.feed for c in check(convnet(), convnet(folded=True)).comparisons]
    assert feeds[-1] == "normal, N=1, H=64, W=64, default optimization"
    assert feeds[:-1] and not any("normal" in feed for feed in feeds[:-1])
    wrong = check(convnet(), convnet(folded=True, weight_error=0.01))
    assert wrong.status == "differs" and "default" not in wrong.reason


def dense(text: str = "y = Gemm (x, w)") -> onnx.ModelProto:
    model = parse(f"g (float[N,4] x) => (float[N,3] y) {{ {text} }}")
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


@pytest.fixture
def all_is_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.validate.search._CHEAP_COST", 0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of x on which models are run, one after the other."""
    shapes: list[tuple[int, ...]] = []
    run = Session.run

    def noted(session: Session, feeds: Mapping[str, Value]) -> Run:
        shapes.append(np.shape(np.asarray(feeds["x"])))
        return run(session, feeds)

    monkeypatch.setattr(Session, "run", noted)
    return shapes


@pytest.mark.usefixtures("all_is_expensive")
def test_an_expensive_original_is_run_on_its_first_feeds_as_one_batch(
    runs: list[tuple[int, ...]],
) -> None:
    verdict = check(dense(), dense("z = MatMul (x, w) y = Identity (z)"))
    assert verdict.ok
    assert [c.feed for c in verdict.comparisons] == [
        "normal and large, N=2",
        "uniform, N=5",
        "zeros, N=1",
        "normal, N=1, default optimization",
    ]
    assert runs[0] == (2, 4) and len(runs) == 3 + 4, "the first is not run alone"
    wrong = check(dense(), dense("z = Gemm (x, w) y = Abs (z)"))
    assert wrong.status == "differs" and "normal and large" in wrong.reason


@pytest.mark.usefixtures("all_is_expensive")
def test_an_original_that_counts_its_batch_is_run_alone_when_that_shows(
    runs: list[tuple[int, ...]],
) -> None:
    text = "m = ReduceMean <axes=[0]> (x) d = Add (x, m) y = Gemm (d, w)"
    verdict = check(dense(text), dense(text))
    assert verdict.status == "equal"
    assert runs[-1] == (1, 4) and len(runs) == 3 + 4 + 1
    wrong = check(dense(text), dense(text.replace("Add (x, m)", "Add (x, x)")))
    assert wrong.status == "differs"


@pytest.mark.usefixtures("all_is_expensive")
def test_an_original_that_takes_no_batch_of_one_does_without() -> None:
    text = "f = Reshape (x, two) y = Gemm (f, w)"

    def pair() -> onnx.ModelProto:
        model = dense(text)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 4]), "two"))
        return model

    verdict = check(pair(), pair())
    assert verdict.status == "equal"
    assert {c.feed for c in verdict.comparisons} == {"normal and large, N=2"}


@pytest.mark.usefixtures("all_is_expensive")
@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x, float[4] b) => (float[N,4] y) { y = Add (x, b) }",  # no batch
        "g (float[N,4] x) => (float[4] y) { y = ReduceMean <axes=[0], keepdims=0> (x) }",
        "g (float[N,H,W,3] x) => (float[N,H,W,3] y) { y = Relu (x) }",  # other sizes to try
        "g (float[1,4] x) => (float[1,4] y) { y = Relu (x) }",
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            y = Relu (x) r = RandomUniformLike (x) z = Add (x, r) }""",  # two runs are compared
    ],
)
def test_what_is_no_batch_is_run_feed_by_feed(text: str) -> None:
    verdict = check(text, text)
    assert verdict.status == "equal"
    assert not any("normal and" in c.feed for c in verdict.comparisons)


def test_what_differs_only_on_the_first_feed_is_found_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphpass.validate.search._CHEAP_COST", 0)
    original = "g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
    # twice as much, but only of batches of one
    wrong = """g (float[N,4] x) => (float[N,4] y) {
        one = Constant <value = int64[1] {1}> () zero = Constant <value = int64[1] {0}> ()
        s = Shape (x) n = Slice (s, zero, one) e = Equal (n, one) f = Cast <to = 1> (e)
        r = Relu (x) t = Mul (r, f) y = Add (r, t) }"""
    assert check(original, original).status == "equal"
    verdict = check(original, wrong)
    assert verdict.status == "differs" and "feed 'normal, N=1'" in verdict.reason
    right = wrong.replace("t = Mul (r, f)", "t = Sub (r, r)")
    assert check(original, right).ok


# The original


def test_an_original_that_ort_cannot_load_is_told() -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = vendor.Op (x) }", '"vendor" : 1')
    with (
        Validator(model) as validator,
        pytest.raises(ReferenceCannotRunError, match=r"^the original model does not run: .*vendor"),
    ):
        validator.prepare()


def test_an_original_that_takes_no_input_we_find_names_the_way_out() -> None:
    text = """g (float[N,7] x, float[M,7] z) => (float[N,7] y) {
        b = Concat <axis=0> (x, z, z) y = Reshape (b, s) }"""
    model = parse(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array([31, 7]), "s"))
    with Validator(model) as validator, pytest.raises(ReferenceCannotRunError) as caught:
        validator.prepare()
    for part in ("no inputs were found", "Reshape", "--inputs", "--bind"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_that_the_original_insists_on_are_found() -> None:
    model = parse("g (float[N,3,H,W] x) => (float[N,5] y) { f = Flatten (x) y = MatMul (f, w) }")
    weight = np.random.default_rng(0).standard_normal((3 * 28 * 28, 5)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    verdict = check(model, model)
    assert verdict.status == "equal"
    assert {c.feed for c in unoptimized(verdict)} == {
        "normal, N=1, H=28, W=28",
        "large, N=2, H=28, W=28",
        "uniform, N=5, H=28, W=28",
        "zeros, N=1, H=28, W=28",
    }


def test_a_batch_that_the_original_refuses_is_listed_once() -> None:
    model = parse("g (float[N,4] x) => (float[4] y) { y = Reshape (x, s) }")
    model.graph.initializer.append(numpy_helper.from_array(np.array([4]), "s"))
    verdict = check(model, model)
    assert verdict.status == "equal" and len(unoptimized(verdict)) == 5
    assert len(verdict.dropped_feeds) == 1
    assert verdict.dropped_feeds[0].startswith("large, N=2: ONNX Runtime cannot run the model")


def test_bound_sizes_are_used() -> None:
    verdict = check(convnet(), convnet(), ValidationOptions(bind={"N": 4, "H": 10}))
    assert all("N=4, H=10" in c.feed for c in verdict.comparisons)


def test_token_ids_become_embeddings_with_a_floor_of_their_own() -> None:
    text = "g (int64[N,S] ids) => (float[N,S,3] y) { e = Gather (table, ids) y = MatMul (e, w) }"
    model = parse(text)
    rng = np.random.default_rng(0)
    for name, shape in {"table": (11, 8), "w": (8, 3)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    verdict = check(model, model)
    assert verdict.status == "equal"
    assert all(1e-8 < (c.noise_floor or 0) < 1e-5 for c in verdict.comparisons)


def test_integers_are_made_small_until_the_original_takes_them() -> None:
    text = "g (float[8] x, int64[3] where) => (float[3] y) { d = Abs (x) y = Gather (d, where) }"
    verdict = check(text, text)
    assert verdict.status == "equal" and len(unoptimized(verdict)) == 4


def test_values_that_must_not_be_negative_are_drawn_from_0_to_1() -> None:
    text = """g (float[1,1,4,4] x, float[4] scales) => (float[A,B,C,D] y) {
        y = Resize <mode="nearest"> (x, , scales) }"""
    verdict = check(text, text, ValidationOptions(seed=2))
    assert verdict.status == "equal"
    assert verdict.silent_outputs == ()  # scales below 1 leave no pixel
    assert {c.feed for c in unoptimized(verdict)} >= {"one to two"}


def test_defaults_are_overridden_once() -> None:
    text = """g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1, 2, 3}> {
        y = Mul (x, w) }"""
    verdict = check(text, text)
    assert [c.feed for c in unoptimized(verdict)][-1] == "normal, N=1, defaults overridden"
    frozen = """g (float[N,3] x, float[3] w) => (float[N,3] y)
        <float[3] w = {1, 2, 3}, float[3] v = {1, 2, 3}> { y = Mul (x, v) }"""
    verdict = check(text, frozen)
    assert verdict.status == "differs" and "defaults overridden" in verdict.reason


def test_a_provider_that_is_not_there_is_refused() -> None:
    options = ValidationOptions(providers=("abacus",))
    with (
        Validator(convnet(), options) as validator,
        pytest.raises(
            ProviderUnavailableError, match=r"no execution provider 'abacus'; available:"
        ),
    ):
        validator.prepare()


@pytest.mark.cuda
def test_a_fold_is_within_tolerance_on_cuda_too() -> None:
    options = ValidationOptions(providers=("cpu", "cuda"))
    with Validator(convnet(), options) as validator:
        try:
            verdict = validator.check(convnet(folded=True))
        except ProviderUnavailableError as error:
            pytest.skip(str(error))
    assert verdict.ok
    assert {c.provider for c in verdict.comparisons} == {"cpu", "cuda"}


# Latency


def test_latency_is_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[float]] = []

    def run_rounds(sessions: Any, *args: Any, **options: Any) -> list[list[float]]:
        assert len(sessions) == 2
        ran.extend(processes.run_rounds(sessions, *args, **options))
        return ran

    monkeypatch.setattr("graphpass.validate.validator.run_rounds", run_rounds)
    with Validator(convnet(depth=2)) as validator:
        found = validator.latency(convnet(depth=2), convnet(depth=20), budget_s=0.3)
    assert found.rounds == len(ran) >= 5 and found.feed.startswith("normal")
    assert found.ratio == np.median([after / before for before, after in ran])
    assert found.before_ms > 0 and found.ratio_low <= found.ratio <= found.ratio_high


def test_slower_is_what_exceeds_the_noise() -> None:
    steady = latency_of([[1.0, 1.2]] * 20, "normal", "cpu")
    assert steady.slower and not steady.faster
    assert (steady.before_ms, steady.after_ms) == (1000, 1200)
    noisy = latency_of([[1.0, 1.2], [1.2, 1.0]] * 10, "normal", "cpu")
    assert not noisy.slower and not noisy.faster
    assert latency_of([[1.0, 0.5]] * 20, "normal", "cpu").faster


@pytest.mark.parametrize(
    ("rounds", "settled"),
    [
        pytest.param([[0.04, 0.04]] * 6, True, id="as fast"),
        pytest.param([[0.04, 0.08]] * 6, True, id="slower"),
        pytest.param([[0.08, 0.04]] * 6, True, id="faster"),
        pytest.param([[0.04, 0.04]] * 5, False, id="too few"),
        pytest.param([[1e-4, 1e-4]] * 900, False, id="too short"),
        pytest.param([[0.04, 0.042]] * 50, False, id="at the limit"),
        pytest.param([[0.04, 0.04], [0.04, 0.05]] * 5, False, id="noisy"),
        pytest.param([[0.04, 0.04], [0.04, 0.05], [0.04, 0.04]] * 30, True, id="noisy for long"),
    ],
)
def test_latency_is_settled_when_more_rounds_tell_no_more(
    rounds: list[list[float]], settled: bool
) -> None:
    assert is_settled(rounds) is settled


# Where the original itself jumps, and what it hands on


def test_what_the_original_gives_at_one_of_its_levels_is_not_wrong() -> None:
    model = convnet()
    with Runtime() as runtime:
        original = Original(model, ValidationOptions(), runtime)
        point = original.points("cpu")[0]
        assert original.given_at(point, point.outputs)
        assert not original.given_at(point, {"y": np.asarray(point.outputs["y"]) * 1.5})


def kinds(verdict: Verdict) -> set[str]:
    return {c.feed.split(",")[0] for c in verdict.comparisons}


def test_nan_infinities_zeros_and_large_integers_are_fed_where_they_are_handed_on() -> None:
    text = """g (float[N,64] x, int64[N,64] k) => (float[N,64] y, int64[N,64] n) {
        y = Abs (x) n = Neg (k) }"""
    verdict = check(text, text)
    assert verdict.status == "equal" and "special" in {
        c.feed.split(",")[0] for c in verdict.comparisons
    }
    twice = text.replace("n = Neg (k)", "a = Cast <to=6> (k) b = Cast <to=7> (a) n = Neg (b)")
    assert check(text, twice).status == "differs"  # 32 bits do for all but that
    relu = text.replace("y = Abs (x)", "a = Relu (x) b = Neg (x) c = Relu (b) y = Add (a, c)")
    assert check(text.replace("Abs", "Identity"), relu).status == "differs"
    summed = "g (float[N,64] x) => (float[N] y) { y = ReduceSum <keepdims=0> (x) }"
    assert "special" not in kinds(check(summed, summed))
