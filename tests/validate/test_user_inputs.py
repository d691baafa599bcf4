from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass.validate import InputsError, ReferenceCannotRunError, ValidationOptions, Validator
from graphpass.validate.feeds.given import user_feeds
from graphpass.validate.feeds.specs import input_specs

from .models import Array, parse

MODEL = parse(
    "g (float[N,3] a, int64[N] b) => (float[N,3] y, int64[N] z) {y = Relu (a) z = Neg (b)}"
)
SPECS = input_specs(MODEL)
A, B = np.ones((2, 3), np.float32), np.arange(2)


def save_pb(folder: Path, *arrays: Array) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        path = folder / f"input_{index}.pb"
        path.write_bytes(numpy_helper.from_array(array).SerializeToString())


def test_arrays_settle_the_symbols() -> None:
    [feed] = user_feeds({"a": A, "b": B}, SPECS)
    assert feed.values["a"] is A
    assert feed.bindings == {"N": 2}


def test_an_npz_is_read_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", b=B, a=A)
    [feed] = user_feeds(tmp_path / "x.npz", SPECS)
    assert np.asarray(feed.values["b"]).tolist() == [0, 1]
    assert feed.name == "x.npz"


def test_a_folder_of_pb_is_read_in_order(tmp_path: Path) -> None:
    save_pb(tmp_path, A, B)
    [feed] = user_feeds(tmp_path, SPECS)
    assert np.asarray(feed.values["a"]).tolist() == A.tolist()
    assert np.asarray(feed.values["b"]).tolist() == [0, 1]


def test_ten_inputs_are_in_numerical_order(tmp_path: Path) -> None:
    inputs = ", ".join(f"float i{n}" for n in range(11))
    model = parse(f"g ({inputs}) => (float y) {{ y = Add (i2, i10) }}")
    save_pb(tmp_path, *(np.array(n, np.float32) for n in range(11)))
    [feed] = user_feeds(tmp_path, input_specs(model))
    assert [int(np.asarray(feed.values[f"i{n}"])) for n in range(11)] == list(range(11))


def test_a_folder_of_folders_gives_several_feeds(tmp_path: Path) -> None:
    save_pb(tmp_path / "test_data_set_0", A, B)
    save_pb(tmp_path / "test_data_set_1", 2 * A, B)
    feeds = user_feeds(tmp_path, SPECS)
    assert [feed.name for feed in feeds] == ["test_data_set_0", "test_data_set_1"]
    assert np.asarray(feeds[1].values["a"])[0, 0] == 2


def test_a_folder_of_npz_gives_several_feeds(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=A, b=B)
    np.savez(tmp_path / "y.npz", a=2 * A, b=B)
    assert [feed.name for feed in user_feeds(tmp_path, SPECS)] == ["x.npz", "y.npz"]


def test_a_sequence_is_read_from_pb(tmp_path: Path) -> None:
    model = parse(
        "g (seq(float[2]) s) => (float[2] y)"
        " { zero = Constant <value = int64 {0}> () y = SequenceAt (s, zero) }"
    )
    sequence = numpy_helper.from_list([np.ones(2, np.float32)])
    (tmp_path / "input_0.pb").write_bytes(sequence.SerializeToString())
    [feed] = user_feeds(tmp_path, input_specs(model))
    items = feed.values["s"]
    assert isinstance(items, list) and len(items) == 1


def test_an_optional_sequence_is_read_from_pb(tmp_path: Path) -> None:
    model = parse(
        "g (optional(seq(float[2])) o) => (bool y) { y = OptionalHasElement (o) }", opset=18
    )
    [spec] = input_specs(model)
    assert (spec.kind, spec.type_text) == ("sequence", "optional")
    items = numpy_helper.from_list([np.ones(2, np.float32)])
    optional = onnx.OptionalProto(
        elem_type=onnx.OptionalProto.SEQUENCE, name="o", sequence_value=items
    )
    (tmp_path / "input_0.pb").write_bytes(optional.SerializeToString())
    with Validator(model, ValidationOptions(inputs=tmp_path)) as validator:
        assert validator.check(model).status == "equal"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"c": A}, r"^inputs 'inputs': the model has no input 'c' \(it has 'a', 'b'\)$"),
        ({"a": A.astype(np.float64)}, "'a' must be float32, but is float64$"),
        ({"a": A[0]}, r"'a' must be of shape \[N, 3\], but is \[3\]$"),
        ({"a": A[:, :2]}, r"'a' must be of shape \[N, 3\], but is \[2, 2\]$"),
        ({"a": A, "b": B[:1]}, r"'b' must be of shape \[N\], but is \[1\] \(N is 2 elsewhere\)$"),
    ],
)
def test_inputs_that_do_not_fit_are_one_sentence(given: dict[str, Array], sentence: str) -> None:
    with pytest.raises(InputsError, match=sentence):
        user_feeds(given, SPECS)


def test_inputs_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputsError, match=r"there are no inputs at '.*missing.npz'"):
        user_feeds(tmp_path / "missing.npz", SPECS)
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    with pytest.raises(InputsError, match=r"'.*broken.npz' cannot be read as .npz"):
        user_feeds(tmp_path / "broken.npz", SPECS)
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputsError, match=r"'.*pickled.npz' cannot be read as .npz"):
        user_feeds(tmp_path / "pickled.npz", SPECS)
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(InputsError, match=r"neither an .npz file nor a folder"):
        user_feeds(tmp_path / "x.txt", SPECS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputsError, match=r"folder '.*empty' holds neither input_0.pb"):
        user_feeds(tmp_path / "empty", SPECS)
    save_pb(tmp_path / "many", A, B, B)
    with pytest.raises(InputsError, match="holds 3 inputs, but the model has 2"):
        user_feeds(tmp_path / "many", SPECS)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputsError, match=r"input_0.pb' cannot be read as input 'a'"):
        user_feeds(tmp_path / "torn", SPECS)


def test_inputs_left_out_are_drawn_in_sizes_that_fit() -> None:
    options = ValidationOptions(inputs={"a": np.ones((5, 3), np.float32)})
    with Validator(MODEL, options) as validator:
        verdict = validator.check(MODEL)
    assert verdict.status == "equal"
    assert {c.feed for c in verdict.comparisons} == {
        "inputs, N=5",
        "inputs, N=5, default optimization",
    }


def test_inputs_that_the_original_refuses_are_told() -> None:
    model = parse("g (int64[1] n, float[4] x) => (float[M] y) { y = Reshape (x, n) }")
    inputs = {"n": np.array([3]), "x": np.ones(4, np.float32)}
    with (
        Validator(model, ValidationOptions(inputs=inputs)) as validator,
        pytest.raises(ReferenceCannotRunError, match=r"does not run on the inputs: .*Reshape"),
    ):
        validator.prepare()


def test_a_binding_of_no_symbol_is_one_sentence() -> None:
    with pytest.raises(InputsError, match=r"no symbolic dimension 'M' .*the model has 'N'"):
        Validator(MODEL, ValidationOptions(bind={"M": 1}))


def test_inputs_and_bindings_may_contradict() -> None:
    options = ValidationOptions(inputs={"a": A}, bind={"N": 3})
    with (
        Validator(MODEL, options) as validator,
        pytest.raises(InputsError, match="'N' is 2, but bound to 3"),
    ):
        validator.prepare()


def test_onnx_has_pb_for_inputs_with_a_default_or_not(tmp_path: Path) -> None:
    model = parse(
        "g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }"
    )
    x, w = np.ones(3, np.float32), np.zeros(3, np.float32)
    save_pb(tmp_path / "one", x)
    save_pb(tmp_path / "two", x, w)
    assert isinstance(model, onnx.ModelProto)
    one, two = user_feeds(tmp_path, input_specs(model))
    assert (set(one.values), set(two.values)) == ({"x"}, {"x", "w"})
