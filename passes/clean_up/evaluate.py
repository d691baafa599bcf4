"""What a constant subgraph computes: one evaluator with one guard.

Where the result is fixed to the bit (moving elements, IEEE arithmetic, comparing, counting), ONNX's
reference implementation computes it, and every runtime agrees. Everything else, whose last bits
depend on the library (sums, exponentials, interpolation, float16), is computed by ONNX Runtime
with its optimizations off, in its process: the file then holds what that would have computed when
run. What ONNX leaves open (a division by zero, a number that its type cannot hold, which of two
zeros is larger) is not computed at all, unless a Where drops each such element again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype

from graphpass import (
    Node,
    Tensor,
    attribute,
    constant,
    dtype,
    label,
    needed,
    operator,
    opset,
    producer,
    require,
    static_shape,
)
from graphpass.ir.defined import GUARDED, is_defined, lost
from graphpass.ir.operators import Trait, named, traits
from graphpass.ir.questions import RefusedError, has_effects
from graphpass.ir.shapes import value
from graphpass.ir.writer import node_proto
from graphpass.rewrite.evaluation import evaluate

Array = npt.NDArray[Any]

_LARGEST_SIZE = 2**31 - 1
_LARGEST_BYTES = 1 << 26  # of what is computed on the way, unless its inputs are as large

SHAPES = frozenset(("Shape", "Size"))
# What is not the same in each run, has bodies, makes no tensor, or is a weight in small form.
_NEVER = frozenset(
    (
        *named(Trait.RANDOM, Trait.CONTROL),
        *named(Trait.QUANTIZING, without=Trait.CONTRACTION),
        *("Constant", "DynamicQuantizeLinear"),
    )
)
_MAKES_NO_TENSOR = ("Sequence", "Optional")
_INTEGERS = frozenset(("int32", "int64"))
_NUMBERS = _INTEGERS | {"float32", "float64"}
_COMPUTED = _NUMBERS | {"bool", "float16", "int8", "int16", "uint8", "uint16", "uint32", "uint64"}
_NO_SIZES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_))


def is_static(tensor: Tensor) -> bool:
    """Whether `tensor`, which a node computes, holds sizes of a shape that are fixed."""
    if tensor.shape != [0] and dtype(tensor) in _NO_SIZES:
        return False
    found = value(tensor)
    if found is None or found.dtype.kind != "i" or found.shape != static_shape(tensor):
        return False
    return bool(((found >= -_LARGEST_SIZE) & (found <= _LARGEST_SIZE)).all())


def is_computable(node: Node) -> bool:
    """Whether the first output of `node` can be computed where its inputs can.

    CastLike looks at no element of its second input.
    """
    op = operator(node)
    if op in _NEVER or op in SHAPES or any(kind in op for kind in _MAKES_NO_TENSOR):
        return False
    if not node.inputs:
        return False
    opaque = (gs.Node.AttributeRef, onnx.AttributeProto)
    if any(isinstance(value, opaque) for value in node.attrs.values()):
        return False
    if any(tensor.name and tensor.outputs for tensor in node.outputs[1:]):
        return False
    tensors = [tensor for tensor in (*node.inputs, node.outputs[0]) if tensor.name]
    kinds = {str(dtype(tensor)) for tensor in tensors}
    shapes = [static_shape(tensor) for tensor in sources(node)]
    made = static_shape(node.outputs[0])
    if "None" in kinds or "object" in kinds or made is None or None in shapes:
        return False
    exact = traits(op) & (Trait.EXACT | Trait.EXACT_ON_INTEGERS)
    if not (exact and Trait.MOVEMENT in traits(op)) and not kinds <= _COMPUTED:
        return False
    if not exact and ("::" in op or has_effects(node)):
        return False
    held = [8 * math.prod(shape or ()) for shape in shapes]
    return 8 * math.prod(made) <= max(_LARGEST_BYTES, *held)


def sources(node: Node) -> list[Tensor]:
    """Return the inputs whose elements `node` looks at."""
    read = node.inputs[:1] if operator(node) == "CastLike" else node.inputs
    return [tensor for tensor in read if tensor.name]


def compute(wanted: Iterable[Tensor], is_inside: Callable[[Tensor], bool]) -> dict[int, Array]:
    """Return the values of tensors by id.

    `is_inside`: whether a tensor is made by a node that can be computed. Raises `RefusedError`
    where one of them has no value, or none that ONNX defines.
    """
    wanted = list(wanted)
    chain = _chain(wanted, is_inside)
    known: dict[int, Array] = {}
    doubts = _Doubts()
    if all(_is_exact(node) for node in chain):
        for node in chain:
            _step(node, known, doubts)
    else:
        _run(chain, wanted, known, doubts)
    for tensor in wanted:
        doubts.require_none(tensor)
    for tensor in wanted:
        if id(tensor) not in known:
            known[id(tensor)] = _given(tensor)
    return {id(tensor): known[id(tensor)] for tensor in wanted}


def _chain(wanted: Iterable[Tensor], is_inside: Callable[[Tensor], bool]) -> list[Node]:
    """Return the nodes to compute, in order."""
    done: set[int] = set()
    ordered: list[Node] = []
    stack = [(tensor, False) for tensor in wanted]
    while stack:
        tensor, ready = stack.pop()
        node = producer(tensor)
        if node is None or id(node) in done or not is_inside(tensor) or _is_given(tensor):
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
        else:
            stack.append((tensor, True))
            stack.extend((source, False) for source in sources(node))
    return ordered


def _is_given(tensor: Tensor) -> bool:
    return constant(tensor) is not None or is_static(tensor)


def _given(tensor: Tensor) -> Array:
    weight = constant(tensor)
    if weight is not None:
        return weight.array()
    return np.asarray(value(tensor), dtype(tensor))


def _value(tensor: Tensor, known: Mapping[int, Array]) -> Array:
    return known[id(tensor)] if id(tensor) in known else _given(tensor)


# ------------------------------------------------------------------------- fixed to the bit


def _is_exact(node: Node) -> bool:
    """Whether the result on elements of these types is fixed to the bit."""
    op = operator(node)
    kinds = {str(dtype(tensor)) for tensor in (*sources(node), node.outputs[0])}
    if Trait.EXACT_ON_INTEGERS in traits(op):
        return kinds <= _INTEGERS and not (op == "Mod" and attribute(node, "fmod"))
    if Trait.EXACT not in traits(op):
        return False
    if Trait.MOVEMENT in traits(op):
        return op != "Pad" or str(attribute(node, "mode")) == "constant"
    if op == "ConstantOfShape":
        return True
    # float16 is computed in float32, and rounded when the runtime pleases
    once = op in ("Cast", "CastLike") or dtype(node.outputs[0]) == np.bool_
    return kinds <= _NUMBERS | ({"float16", "bool"} if once else set())


def _step(node: Node, known: dict[int, Array], doubts: _Doubts) -> None:
    held = [_value(tensor, known) for tensor in sources(node)]
    doubts.follow(node, held)
    value = needed(_evaluated(node, held), f"{label(node)} cannot be computed")
    known[id(node.outputs[0])] = _checked(node.outputs[0], value)


def _checked(tensor: Tensor, value: Array) -> Array:
    fits = value.dtype == dtype(tensor) and value.shape == static_shape(tensor)
    name = label(tensor.inputs[0])
    require(fits, f"the value of {name} is not of the type that the model declares")
    return value


def _evaluated(node: Node, held: list[Array]) -> Array | None:
    from onnx.reference import ReferenceEvaluator  # slow to import, and often not needed

    given = iter(range(len(held)))
    op, attributes = operator(node), dict(node.attrs)
    if op == "CastLike":
        names = ["x0"]
        op, attributes = "Cast", {"to": np_dtype_to_tensor_dtype(dtype(node.outputs[0]))}
    else:
        names = [f"x{next(given)}" if tensor.name else "" for tensor in node.inputs]
    feed = {f"x{index}": array for index, array in enumerate(held)}
    attributes = {
        key: onnx.numpy_helper.from_array(value.values) if isinstance(value, gs.Constant) else value
        for key, value in attributes.items()
    }
    try:
        proto = onnx.helper.make_node(op, names, ["y"], **attributes)
        evaluator = ReferenceEvaluator(proto, opsets={"": opset(node)})
        with np.errstate(all="ignore"):
            (result,) = evaluator.run(None, feed)
    except Exception:  # an invalid model: there is no end to what numpy may say about it
        return None
    return np.asarray(result)


class _Doubts:
    """Which elements are up to the runtime: of integers that no type holds, until a Where."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Array, Node]] = {}  # by tensor: where, and what made them

    def follow(self, node: Node, held: list[Array] | None) -> None:
        """Note what becomes of them in `node`, whose inputs hold `held` (None: of no matter).

        Raises `RefusedError` where what they lead to is no integer in the same place, and where
        the result of `node` itself is not defined.
        """
        read, output = sources(node), node.outputs[0]
        doubted = [self._found[id(t)] for t in read if id(t) in self._found]
        if held is not None and not doubted and operator(node) in ("Cast", "CastLike"):
            gone = lost(node, held[0])
            if gone is not None and gone.any():
                self._found[id(output)] = gone, node
                return
        if held is not None:
            sound = is_defined(node, held)
            require(sound, _up_to_the_runtime(node))
        if not doubted:
            return
        shape = static_shape(output)
        assert shape is not None
        places = [self._found.get(id(t), (np.array(False), node))[0] for t in read]
        if operator(node) == "Where" and held is not None and not places[0].any():
            found = np.where(held[0], places[1], places[2])
        else:
            kind = dtype(output)
            follows = _is_in_place(node) and kind is not None and kind.kind in "iu"
            require(follows, _up_to_the_runtime(doubted[0][1]))
            found = np.logical_or.reduce(
                [np.broadcast_to(place, shape) for place in places if place.any()]
            )
        if found.any():
            self._found[id(output)] = np.broadcast_to(found, shape), doubted[0][1]

    def require_none(self, tensor: Tensor) -> None:
        """Raise `RefusedError` where one element of `tensor` is up to the runtime."""
        if id(tensor) in self._found:
            raise RefusedError(_up_to_the_runtime(self._found[id(tensor)][1]))


def _is_in_place(node: Node) -> bool:
    """Whether elements come of those in the same place, and of one that is open another such."""
    found = traits(operator(node))
    exact = found & (Trait.EXACT | Trait.EXACT_ON_INTEGERS)
    places = found & (Trait.ELEMENTWISE | Trait.BROADCASTING)
    return bool(exact and places) and operator(node) not in ("Div", "Mod", "Where")


def _up_to_the_runtime(node: Node) -> str:
    return f"the value of {label(node)} is up to the runtime"


# ------------------------------------------------------------------ as ONNX Runtime has it


def _run(chain: list[Node], wanted: list[Tensor], known: dict[int, Array], doubts: _Doubts) -> None:
    """Have ONNX Runtime compute a chain, and look at what its guarded operators were given."""
    made = {id(node.outputs[0]) for node in chain}
    guarded = [node for node in chain if operator(node) in GUARDED]
    outputs = {id(t): t for t in wanted if id(t) in made}
    for node in guarded:
        for tensor in sources(node):
            if id(tensor) in made:
                outputs[id(tensor)] = tensor
        direct = [tensor for tensor in sources(node) if id(tensor) not in made]
        if operator(node) in ("Div", "Mod") and any(t is node.inputs[1] for t in direct):
            # a division of integers by zero would end the process
            divisor = _given(node.inputs[1])
            defined = divisor.dtype.kind not in "iu" or bool(divisor.all())
            require(defined, _up_to_the_runtime(node))
    model = _model(chain, list(outputs.values()), made)
    try:
        found = evaluate(model)
    except RefusedError as refusal:
        reason = f"the constant that {label(chain[-1])} makes cannot be computed: {refusal}"
        raise RefusedError(reason) from refusal
    arrays = {key: np.asarray(found[tensor.name]) for key, tensor in outputs.items()}
    looked_at = set(map(id, guarded))
    for node in chain:
        held = None
        if id(node) in looked_at:
            held = [arrays[id(t)] if id(t) in arrays else _given(t) for t in sources(node)]
        doubts.follow(node, held)
    known.update({key: _checked(outputs[key], array) for key, array in arrays.items()})


def _model(chain: list[Node], outputs: list[Tensor], made: set[int]) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=10)
    for domain, version in chain[0].graph.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    graph = model.graph
    graph.name = "constant"
    given: set[str] = set()
    for node in chain:
        proto = node_proto(node)
        proto.name = ""
        if operator(node) == "CastLike":
            target = np_dtype_to_tensor_dtype(dtype(node.outputs[0]))
            proto = onnx.helper.make_node("Cast", proto.input[:1], proto.output[:1], to=target)
        graph.node.append(proto)
        for tensor in sources(node):
            if id(tensor) in made or tensor.name in given:
                continue
            given.add(tensor.name)
            weight = constant(tensor)
            if weight is not None and isinstance(tensor, gs.Constant) and weight.tensor is not None:
                graph.initializer.append(weight.tensor)
                graph.initializer[-1].name = tensor.name
            else:
                graph.initializer.append(onnx.numpy_helper.from_array(_given(tensor), tensor.name))
    for tensor in outputs:
        kind = np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        graph.output.append(make_tensor_value_info(tensor.name, kind, tensor.shape))
    return model
