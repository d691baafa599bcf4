import numpy as np
import onnx
import pytest

from graphpass.validate import ReferenceCannotRunError, Validator
from graphpass.validate.cost import work
from graphpass.validate.feeds.drawn import Recipe, draw_feed, overrides
from graphpass.validate.feeds.sizes import classify, first_bindings, resized, with_batch
from graphpass.validate.feeds.specs import input_specs

from .models import convnet, parse

IMAGE = parse("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }")


def recipe(model: onnx.ModelProto, kind: str = "normal") -> Recipe:
    return Recipe(kind, next(first_bindings(classify(input_specs(model)), {})))


def test_symbols_are_classified_by_name_and_place() -> None:
    model = parse(
        "g (float[N,3,H,W] image, float[batch,seq] tokens, float[2,?,64] state, float[T] samples)"
        " => (float[N,3,H,W] y) { y = Relu (image) }"
    )
    assert classify(input_specs(model)) == {
        "N": "batch",
        "H": "spatial",
        "W": "spatial",
        "batch": "batch",
        "seq": "length",
        "state[1]": "batch",
        "T": "length",
    }


def test_channels_may_come_last() -> None:
    model = parse("g (float[A,P,Q,3] x) => (float[A,P,Q,3] y) { y = Relu (x) }")
    assert classify(input_specs(model)) == {"A": "batch", "P": "spatial", "Q": "spatial"}


def test_a_dimension_without_a_name_is_called_after_its_input() -> None:
    model = parse("g (float[3,4] x) => (float[3,4] y) { y = Relu (x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert [spec.dims for spec in input_specs(model)] == [("x[0]", 4)]


def test_question_marks_are_no_names() -> None:
    model = parse("g (float[3,4] x) => (float[3,4] y) { y = Relu (x) }")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    assert [spec.dims for spec in input_specs(model)] == [("x[0]", "x[1]")]


def test_a_sum_of_symbols_is_the_sum_of_their_sizes() -> None:
    model = parse("g (float[N,past] x, float[N,past] mask) => (float[N,past] y) { y = Relu (x) }")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "past + 1"
    feed = draw_feed(input_specs(model), Recipe("normal", {"N": 2, "past": 7}), 0)
    assert classify(input_specs(model)) == {"N": "batch", "past": "length"}
    assert np.asarray(feed.values["mask"]).shape == (2, 8)


def test_one_symbol_has_one_value_in_all_inputs() -> None:
    model = parse("g (float[N,3] a, float[N,5] b) => (float[N,3] y) { y = Relu (a) }")
    for bindings in list(first_bindings(classify(input_specs(model)), {}))[:3]:
        feed = draw_feed(input_specs(model), Recipe("normal", bindings), 0)
        a, b = (np.asarray(feed.values[name]) for name in "ab")
        assert a.shape == (bindings["N"], 3)
        assert b.shape == (bindings["N"], 5)


def test_bound_symbols_keep_their_value_in_every_variation() -> None:
    classes = classify(input_specs(IMAGE))
    fixed = {"N": 4, "H": 20}
    bindings = next(first_bindings(classes, fixed))
    assert (bindings["N"], bindings["H"]) == (4, 20)
    varied = with_batch(resized(bindings, classes, fixed), classes, fixed, 3)
    assert (varied["N"], varied["H"]) == (4, 20)
    assert varied["W"] != bindings["W"]


def test_variations_change_the_batch_and_are_not_square() -> None:
    classes = classify(input_specs(IMAGE))
    bindings = next(first_bindings(classes, {}))
    varied = with_batch(resized(bindings, classes, {}), classes, {}, 2)
    assert bindings["N"] == 1 and varied["N"] == 2
    assert varied["H"] != varied["W"]


def test_drawing_is_seeded_and_kinds_differ() -> None:
    specs, same = input_specs(IMAGE), recipe(IMAGE)
    one, two = (np.asarray(draw_feed(specs, same, 0).values["x"]) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != np.asarray(draw_feed(specs, same, 1).values["x"]).tobytes()
    drawn = {
        kind: np.asarray(draw_feed(specs, recipe(IMAGE, kind), 0).values["x"])
        for kind in ("normal", "large", "uniform", "zeros")
    }
    assert drawn["normal"].min() < -2 and drawn["normal"].dtype == np.float32
    assert np.abs(drawn["large"]).max() > 100
    assert drawn["uniform"].min() >= 0 and drawn["uniform"].max() <= 1
    assert not drawn["zeros"].any()


def test_indices_stay_inside_of_what_they_index() -> None:
    model = parse(
        "g (int64[N,S] ids, int32[N,S] types) => (float[N,S,2] y)"
        " <float[7,2] words = {1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float[2,2] kinds = {1,1,1,1}> {"
        " flat = Identity (ids) a = Gather (words, flat)"
        " wide = Cast <to=7> (types) b = Gather (kinds, wide) y = Add (a, b) }"
    )
    specs = input_specs(model)
    assert [spec.index_bound for spec in specs] == [7, 2]
    feed = draw_feed(specs, recipe(model), 0)
    assert set(np.unique(np.asarray(feed.values["ids"]))) <= set(range(7))
    assert set(np.unique(np.asarray(feed.values["types"]))) <= {0, 1}


def test_bytes_cover_their_whole_range() -> None:
    model = parse("g (uint8[64,64] x) => (uint8[64,64] y) { y = Identity (x) }")
    drawn = np.asarray(draw_feed(input_specs(model), recipe(model), 0).values["x"])
    assert (drawn.min(), drawn.max()) == (0, 255)


@pytest.mark.parametrize(
    ("type_", "kind"),
    [("float16", "f"), ("double", "f"), ("bool", "b"), ("string", "O"), ("complex64", "c")],
)
def test_other_types_are_drawn(type_: str, kind: str) -> None:
    model = parse(f"g ({type_}[4] x) => ({type_}[4] y) {{ y = Identity (x) }}")
    drawn = np.asarray(draw_feed(input_specs(model), recipe(model), 0).values["x"])
    assert (drawn.dtype.kind, drawn.shape) == (kind, (4,))


def test_sequences_and_optionals_are_drawn() -> None:
    model = parse(
        "g (seq(float[2]) s, optional(float[3]) o) => (float[2] y)"
        " { zero = Constant <value = int64 {0}> () y = SequenceAt (s, zero) }"
    )
    feed = draw_feed(input_specs(model), recipe(model), 0)
    sequence = feed.values["s"]
    assert isinstance(sequence, list)
    assert [np.asarray(item).shape for item in sequence] == [(2,), (2,)]
    assert np.asarray(feed.values["o"]).shape == (3,)


def test_what_cannot_be_drawn_is_named() -> None:
    model = parse("g (sparse_tensor(float[2]) s) => (float[2] y) { y = Identity (s) }")
    with pytest.raises(
        ValueError, match="input 's' has a type that cannot be drawn: sparse tensor"
    ):
        draw_feed(input_specs(model), Recipe("normal", {}), 0)


DEFAULTED = (
    "g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {-2, 0, 2}> { y = Mul (x, w) }"
)


def test_half_bytes_cannot_be_fed() -> None:
    model = parse("g (int4[2] x) => (int4[2] y) { y = Identity (x) }", opset=21, ir_version=10)
    with pytest.raises(ValueError, match="'x' has a type that cannot be drawn: tensor of int4"):
        draw_feed(input_specs(model), Recipe("normal", {}), 0)


def test_inputs_with_a_default_are_not_drawn() -> None:
    model = parse(DEFAULTED)
    assert [spec.overridable for spec in input_specs(model)] == [False, True]
    assert set(draw_feed(input_specs(model), recipe(model), 0).values) == {"x"}


def test_below_ir_version_4_initializers_are_no_inputs() -> None:
    assert [spec.name for spec in input_specs(parse(DEFAULTED, ir_version=3))] == ["x"]


def test_overrides_differ_and_keep_the_sign() -> None:
    [drawn] = overrides({"w": np.array([-2, 0, 2], np.float32)}, 0).values()
    values = np.asarray(drawn)
    assert values.dtype == np.float32
    assert -3 <= values[0] <= -1 and 0 <= values[1] <= 0.1 and 1 <= values[2] <= 3
    assert values.tolist() != [-2, 0, 2]


def test_cost_counts_work() -> None:
    image = {"x": (1, 3, 8, 8)}
    kernels = 16 * 3 * 9 + 3 * 16 * 16 * 9
    cost = work(convnet(), image)
    assert kernels * 64 < cost < kernels * 64 * 1.1
    assert work(convnet(), {"x": (2, 3, 8, 8)}) == pytest.approx(2 * cost, rel=0.01)
    product = parse("g (float[N,20] x) => (float[N,30] y) { y = MatMul (x, w) }")
    weight = onnx.numpy_helper.from_array(np.ones((20, 30), np.float32), "w")
    product.graph.initializer.append(weight)
    assert work(product, {"x": (5, 20)}) == 5 * 20 * 30


def test_cost_follows_shapes_that_are_computed() -> None:
    attended = parse("""g (float[N,4,20] x) => (float[N,80,30] y) {
        s = Shape (x) n = Gather (s, zero) o = Unsqueeze (n, axes) t = Concat <axis=0> (o, rest)
        r = Reshape (x, t) y = MatMul (r, w) }""")
    for name, array in {
        "zero": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([80, 1]),
        "w": np.ones((1, 30), np.float32),
    }.items():
        attended.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    attended.graph.output[0].type.tensor_type.ClearField("shape")
    found = work(attended, {"x": (5, 4, 20)})
    assert 5 * 80 * 30 <= found < 5 * 80 * 30 * 1.2


def test_where_a_shape_is_unknown_weights_are_used_more_than_once() -> None:
    model = parse("""g (float[N,25] x) => (float[] y) {
        i = NonZero (x) t = Transpose (i) f = Cast <to=1> (t) y = MatMul (f, w) }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 30), np.float32), "w"))
    assert work(model, {"x": (4, 25)}) >= 2 * 30 * 10


def test_n_counts_samples_where_it_is_not_the_first_axis() -> None:
    model = parse("g (float[B,N] x, int64[B] lens) => (float[B,N] y) { y = Relu (x) }")
    assert classify(input_specs(model)) == {"B": "batch", "N": "length"}
    model = parse("g (float[N,T] x) => (float[N,T] y) { y = Relu (x) }")
    assert classify(input_specs(model)) == {"N": "batch", "T": "length"}


def test_frames_of_sound_are_long_enough() -> None:
    model = parse(
        "g (float[B,N] wave) => (float[B,1,F] y) { u = Unsqueeze (wave, axis)"
        "  c = Conv <strides = [160]> (u, w) y = Abs (c) }"
    )
    window = np.hanning(400).astype(np.float32).reshape(1, 1, 400)
    for name, value in (("w", window), ("axis", np.array([1]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    with Validator(model) as validator:
        assert validator.check(model).status == "equal"


# What is drawn is no more than is sensible, and what decides sizes is small


@pytest.mark.parametrize("rank", [6, 7, 9])
def test_inputs_of_many_free_axes_are_small(rank: int) -> None:
    dims = ",".join(f"d{axis}" for axis in range(rank))
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu (x) }}"
    with Validator(parse(text)) as validator:
        verdict = validator.check(parse(text))
        assert np.prod(validator.shapes()["x"]) <= 1 << 22
    assert verdict.status == "equal"


def test_an_input_that_is_too_large_is_not_drawn_but_named() -> None:
    model = parse("g (float[2000000000] x) => (float[2000000000] y) { y = Relu (x) }")
    with Validator(model) as validator, pytest.raises(ReferenceCannotRunError) as caught:
        validator.prepare()
    assert "input 'x' would have 2,000,000,000 elements, 7,629 MiB" in str(caught.value)


def test_drawn_in_pieces_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = input_specs(parse("g (float[50] x, double[50] z) => (float[50] y) { y = Relu (x) }"))
    for kind in ("normal", "large", "uniform", "zeros"):
        whole = draw_feed(specs, Recipe(kind, {}), 3)
        with monkeypatch.context() as patch:
            patch.setattr("graphpass.validate.feeds.drawn._CHUNK", 7)
            pieces = draw_feed(specs, Recipe(kind, {}), 3)
        for name, array in whole.values.items():
            assert np.array_equal(np.asarray(array), np.asarray(pieces.values[name]))


@pytest.mark.parametrize(
    "text",
    [
        "float[1,3,4,5] x, int64[8] s, float v) => (float[a,b,c,d] y) { y = Pad (x, s, v)",
        "float[2,3,4] x, int64[1] s) => (float[24] y) { y = Reshape (x, s)",
        "float[2,3,4] x, int64[4] s) => (float[a,b,c,d] y) { y = Reshape (x, s)",
        "float[3,1] x, int64[3] s) => (float[a,b,c] y) { y = Expand (x, s)",
        "float[3,2] x, int64[2] s) => (float[a,b] y) { y = Tile (x, s)",
        "float[3,4] x, int64[1] s) => (float[a,b] y, int64[a,b] z) { y, z = TopK (x, s)",
        "float[1,1,4,4] x, int64[4] s) => (float[a,b,c,d] y) { y = Resize (x, , , s)",
        "float[2] x, int32[2] s) => (float[a,b] y) { t = Cast<to=7> (s) y = ConstantOfShape (t)",
    ],
)
def test_what_decides_a_size_is_drawn_so_that_it_fits(text: str) -> None:
    model = parse(f"g ({text} }}")
    with Validator(model) as validator:
        verdict = validator.check(model)
    assert verdict.status == "equal" and verdict.dropped_feeds == ()
    assert verdict.silent_outputs == ()
