"""Test a pass: a graph before, what must come of it, and numbers checked in ONNX Runtime.

    model = graph("(float[N,3,8,8] x) => (float[N,4,6,6] y) {y = Conv(x, W)}", W=(4, 3, 3, 3))
    check(my_pass, model, "Conv<pads=[1,1,1,1]> Relu")
    check_refused(my_pass, model, "feeds 2 nodes")

With `exact=True` weights and inputs are small integers: every sum is exact in the model's own
arithmetic, before and after must be equal to the bit, and no tolerance can hide an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.errors import RuleError
from graphpass.ir.model import Model
from graphpass.rewrite.applied import Applied, described
from graphpass.rewrite.choice import Chooser, Everything
from graphpass.rewrite.driver import apply
from graphpass.rewrite.rule import Pass
from graphpass.validate.process.constants import runtime_for_constants

Array = npt.NDArray[Any]

_OPERATOR = re.compile(r"([\w.:]+)(?:<([^>]*)>)?")


def graph(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
    exact: bool = False,
    domains: Mapping[str, int] | None = None,
    **constants: Array | tuple[int, ...] | float,
) -> onnx.ModelProto:
    """Build a model from ONNX text syntax.

    `text` is a graph, `(float[N,3] x) => (float[N,4] y) { … }`, or a whole model beginning with
    `<ir_version: …>`. `constants` become initializers: an array as it is; a tuple is a shape,
    filled with seeded float32 noise, or, where `exact`, with integers from -3 to 3.
    """
    if not text.lstrip().startswith("<"):
        imports = {"": opset, **(domains or {})}
        listed = ", ".join(f'"{domain}" : {version}' for domain, version in imports.items())
        body = text.strip()
        body = body if not body.startswith("(") else f"agraph {body}"
        text = f"<ir_version: {ir_version}, opset_import: [{listed}]>\n{body}"
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, value in constants.items():
        if isinstance(value, tuple):
            array = rng.integers(-3, 4, value) if exact else rng.normal(size=value)
            value = array.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def operators(model: onnx.ModelProto) -> str:
    """Return the operators of the main graph in order, as one line: "Conv Relu Flatten"."""
    return " ".join(_shown(node.domain, node.op_type) for node in model.graph.node)


def _shown(domain: str, op: str) -> str:
    return op if domain in ("", "ai.onnx") else f"{domain}::{op}"


def apply_to(
    steps: Pass | Sequence[Pass], model: onnx.ModelProto, chooser: Chooser | None = None
) -> tuple[onnx.ModelProto, Applied]:
    """Run passes over a copy of `model`; return what came of it and what was done and refused.

    `chooser`: decides on rules that are a choice; None: all of them take place. Raises `RuleError`
    where a rule fails with an exception: a test has to see it.
    """
    loaded = Model.load(model)
    total = Applied()
    for step in [steps] if isinstance(steps, Pass) else steps:
        with runtime_for_constants():
            applied = apply(step, loaded, chooser=chooser or Everything())
        if applied.failures:
            raise RuleError(described(applied.failures[0]))
        total.rewrites.extend(applied.rewrites)
        total.refusals.extend(applied.refusals)
        total.notes.extend(applied.notes)
    return loaded.to_proto(), total


def check(
    steps: Pass | Sequence[Pass],
    before: onnx.ModelProto,
    after: str | None = None,
    *,
    exact: bool = False,
    rtol: float = 1e-5,
    dims: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0, 1),
    inputs: Mapping[str, Array] | None = None,
    custom_ops: Sequence[str] = (),
) -> onnx.ModelProto:
    """Assert that `steps` make `before` into the operators of `after`, with equal numbers.

    `after`: operators in order, each with the attributes that matter,
    `"Conv<kernel_shape=[7,7]> Relu"`; None: only numbers, validity and interface are looked at.
    `exact`: outputs equal to the bit (use integers that fit); otherwise `rtol` of the output's
    largest magnitude. `dims` binds symbolic dimensions, otherwise 1, 2 and 3 in turn.
    `custom_ops`: libraries for ONNX Runtime with operators that are not its own; onnx's checker
    does not know them. Returns the model after. Raises AssertionError with what differs.
    """
    result, _ = apply_to(steps, before)
    if after is not None:
        check_operators(result, after)
    check_valid(before, result)
    check_equal(
        before,
        result,
        exact=exact,
        rtol=rtol,
        dims=dims,
        seeds=seeds,
        inputs=inputs,
        custom_ops=custom_ops,
    )
    return result


def check_refused(steps: Pass | Sequence[Pass], model: onnx.ModelProto, reason: str) -> None:
    """Assert that nothing is rewritten and one refusal says `reason` (part of its sentence)."""
    result, applied = apply_to(steps, model)
    done = [f"{rewrite.rule} at {rewrite.site}" for rewrite in applied.rewrites]
    assert not done, f"expected a refusal, but: {done}"
    reasons = [refusal.reason for refusal in applied.refusals]
    assert any(reason in text for text in reasons), f"no refusal says {reason!r}: {reasons}"
    assert result == model, "the model was refused but changed"


def check_untouched(steps: Pass | Sequence[Pass], model: onnx.ModelProto) -> None:
    """Assert that `steps` leave `model` as it is, field by field."""
    result, applied = apply_to(steps, model)
    assert not applied.rewrites, f"rewritten: {[r.rule for r in applied.rewrites]}"
    assert result == model, "the model was changed without a rewrite"


def check_operators(model: onnx.ModelProto, expected: str) -> None:
    """Assert that the main graph is `expected`: operators in order, with attributes given."""
    wanted = _OPERATOR.findall(expected)
    names = " ".join(name for name, _ in wanted)
    assert operators(model) == names, f"expected: {names}\nfound:    {operators(model)}"
    for node, (_, attributes) in zip(model.graph.node, wanted, strict=True):
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for key, text in re.findall(r"(\w+)\s*=\s*(\[[^\]]*\]|[^,\s]+)", attributes):
            value = found.get(key)
            shown = list(value) if isinstance(value, (list, tuple)) else value
            shown = shown.decode() if isinstance(shown, bytes) else shown
            same = str(shown).replace(" ", "") == text.replace(" ", "")
            assert same, f"{node.op_type}: expected {key}={text}, found {shown}"


def check_valid(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Assert that `after` passes the checker and has the interface of `before`."""
    onnx.checker.check_model(after, full_check=True)
    for kind in ("input", "output"):
        old, new = getattr(before.graph, kind), getattr(after.graph, kind)
        assert list(old) == list(new), f"the graph's {kind}s changed"


def check_equal(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    exact: bool = False,
    rtol: float = 1e-5,
    dims: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0, 1),
    inputs: Mapping[str, Array] | None = None,
    custom_ops: Sequence[str] = (),
) -> None:
    """Assert that both models compute the same, in ONNX Runtime without its own optimizations."""
    run_before, run_after = session(before, custom_ops), session(after, custom_ops)
    bindings = [dims] if dims is not None else [{}, {}, {}]
    for size, binding in enumerate(bindings, start=1):
        for seed in seeds:
            feed = dict(inputs) if inputs is not None else feeds(before, binding, size, seed, exact)
            old, new = run_before.run(None, feed), run_after.run(None, feed)
            for value, a, b in zip(before.graph.output, old, new, strict=True):
                _compare(value.name, np.asarray(a), np.asarray(b), exact, rtol)


def _compare(name: str, a: Array, b: Array, exact: bool, rtol: float) -> None:
    assert a.dtype == b.dtype, f"output {name}: dtype {a.dtype} became {b.dtype}"
    assert a.shape == b.shape, f"output {name}: shape {a.shape} became {b.shape}"
    if exact or a.dtype.kind not in "fc":
        assert np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"), (
            f"output {name} differs: {a.ravel()[:8]} became {b.ravel()[:8]}"
        )
        return
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    assert np.array_equal(np.isnan(a64), np.isnan(b64)), f"output {name}: NaN in other places"
    finite = np.isfinite(a64)
    assert np.array_equal(a64[~finite], b64[~finite], equal_nan=True), f"output {name}: infinities"
    scale = max(float(np.abs(a64[finite]).max(initial=0.0)), 1e-30)
    if a.dtype == np.float16:
        rtol = max(rtol, 4e-3)
    error = float(np.abs(a64 - b64)[finite].max(initial=0.0))
    assert error <= rtol * scale, f"output {name}: error {error:.3g} at scale {scale:.3g}"


def session(model: onnx.ModelProto, custom_ops: Sequence[str] = ()) -> Any:
    """Return an ONNX Runtime session on the CPU without optimizations.

    `custom_ops`: libraries with operators that are not ONNX Runtime's own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for library in custom_ops:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feeds(
    model: onnx.ModelProto, dims: Mapping[str, int], size: int, seed: int, exact: bool
) -> dict[str, Array]:
    """Return one seeded array per input: normal, or integers from -4 to 4 where `exact`.

    Symbolic dimensions are bound by `dims`, the others to `size`.
    """
    rng = np.random.default_rng(seed)
    initialized = {tensor.name for tensor in model.graph.initializer}
    made: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        shape = [
            dim.dim_value if dim.HasField("dim_value") else dims.get(dim.dim_param, size)
            for dim in tensor.shape.dim
        ]
        kind = tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.dtype(kind).kind == "f" and not exact
        array = rng.normal(size=shape) if floating else rng.integers(-4, 5, shape)
        made[value.name] = array.astype(kind)
    return made


def with_integers(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Return `model` with small integers for weights: every sum it computes is then exact.

    Weights and shifts are drawn from 1 to 3, with the sign that they have; zeros stay, and what
    holds the same holds the same again: rules may look at that. What is divided by,
    or by the root of, is chosen so that the quotient is exact too: divisors are powers of two, a
    BatchNormalization gets epsilon 1/4 and variances 4^k - 1/4, scales that are powers of two.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    rng = np.random.default_rng(seed)
    powers, roots = _roles(changed.graph)
    sizes = {
        name
        for node in changed.graph.node
        if node.op_type in ("Resize", "Upsample")
        for name in node.input[1:]
    }
    drawn: dict[tuple[str, bytes], Array] = {}
    for tensor in changed.graph.initializer:
        kind = np.dtype(tensor_dtype_to_np_dtype(tensor.data_type))
        if kind.kind != "f" or tensor.name in sizes:
            continue
        shape = tuple(tensor.dims)
        array: Array
        if tensor.name in roots:
            array = 4.0 ** rng.integers(0, 2, shape) - 0.25
        elif tensor.name in powers:
            array = 2.0 ** rng.integers(-1, 2, shape) * rng.choice([-1.0, 1.0], shape)
        else:
            held = onnx.numpy_helper.to_array(tensor)
            content = kind.str, held.tobytes()
            array = drawn.setdefault(content, np.sign(held) * rng.integers(1, 4, shape))
            array = array.reshape(shape)
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, kind), name))
    return changed


def _roles(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Return the names of what has to be a power of two, and of what is a variance."""
    powers: set[str] = set()
    roots: set[str] = set()
    for node in graph.node:
        if node.op_type == "Div":
            powers.update(node.input)
        if node.op_type == "BatchNormalization":
            powers.add(node.input[1])
            roots.add(node.input[4])
            kept = [a for a in node.attribute if a.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 0.25)])
    return powers, roots


def check_replay(
    steps: Pass | Sequence[Pass],
    model: onnx.ModelProto,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    dims: Mapping[str, int] | None = None,
) -> None:
    """Assert that what `steps` do to `model` they also do, to the bit, with integers for weights.

    The rules are applied again to the model of `with_integers`; outputs before and after must
    be equal without any tolerance. Raises AssertionError where they are not, or where other
    operators come out than with the weights as they are.
    """
    expected, applied = apply_to(steps, model)
    done = [(rewrite.rule, rewrite.site) for rewrite in applied.rewrites]
    assert done, "nothing is rewritten: there is nothing to replay"
    for seed in seeds:
        before = with_integers(model, seed)
        after, applied = apply_to(steps, before)
        again = [(rewrite.rule, rewrite.site) for rewrite in applied.rewrites]
        assert again == done, f"with integers: {again}\notherwise:     {done}"
        assert operators(after) == operators(expected), (
            f"with integers: {operators(after)}\notherwise:     {operators(expected)}"
        )
        check_equal(before, after, exact=True, dims=dims, seeds=(seed,))
