"""What a rule or survey makes of a match: its terms, built, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphpass.errors import RuleError
from graphpass.ir.inference import infer_shapes
from graphpass.ir.nodes import Constant, Graph, Node, Tensor
from graphpass.ir.questions import constant, producer
from graphpass.ir.reader import read_graph
from graphpass.ir.weight import Array, Weight
from graphpass.ir.writer import node_proto
from graphpass.rewrite.building import Builder, Built
from graphpass.rewrite.match import Match, match
from graphpass.rewrite.pattern import Beyond
from graphpass.rewrite.rule import Rule
from graphpass.rewrite.survey import Proposal, Refused, Several, Survey, Twin
from graphpass.rewrite.term import read


def proposed(proposal: Proposal, builder: Builder) -> tuple[Match, Built]:
    """Return what a survey proposes as a match, and its nodes. Raises `RefusedError`."""
    if isinstance(proposal, Refused):
        raise proposal.refusal
    terms: Sequence[Any]
    if isinstance(proposal, Twin):
        pairs = proposal.outputs()
        node, results = proposal.gone, [old for old, _ in pairs]
        found = Match([node], {}, [node, proposal.kept], [], results)
        terms = [new for _, new in pairs]
    elif isinstance(proposal, Several):
        results = [old for old, _ in proposal.values]
        roots = list({id(made): made for made in map(producer, results) if made}.values())
        found = Match(roots, {}, list(proposal.nodes), [], results)
        terms = read([new for _, new in proposal.values], len(results))
    else:
        found = Match([proposal.node], {}, [proposal.node], [], [proposal.node.outputs[0]])
        terms = [proposal.value]
    return found, builder.build(found, terms)


def built_by(rule: Rule, found: Match, builder: Builder) -> Built | None:
    """Return the nodes of what `rule` makes of a match; None where that is nothing.

    Raises `RefusedError`, and `RuleError` where what it returns is no term.
    """
    value = rule.rewrite(**found.bound)
    if value is None:
        return None
    if isinstance(value, Beyond):
        found.nodes.extend(value.nodes)
        value = value.term
    form = rule.form
    terms = read(value, None if form.of is None and not form.all_outputs else len(found.results))
    if form.all_outputs and any(term is None for term in terms):
        raise RuleError("None among its terms: give the output itself where it stays")
    if all(term is None or term is r for term, r in zip(terms, found.results, strict=True)):
        return None
    return builder.build(found, terms)


@dataclass(frozen=True)
class Made:
    """What a rule would put in the place of a match.

    `nodes` in order; `constants` that they read by name; `results`: the name of each result of
    the match, and of what would take its place.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, Array]
    results: dict[str, str]


class Trial:
    """A small model of its own that a rule is applied to again and again, with other constants.

    Nothing takes place: the model stays as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        inferred = infer_shapes(model)
        self._graph = read_graph(model.graph, inferred.graph, opsets, {}, False)
        self._names = {t.name for n in self._graph.nodes for t in (*n.inputs, *n.outputs)}
        self._wanted = {value.name for value in model.graph.output}
        self._ir_version = model.ir_version

    def made_by(self, rule: Rule | Survey, constants: Mapping[str, Array]) -> Made | None:
        """Apply `rule` where the model's outputs are computed; None where it does not fit.

        `constants` take the place of initializers of the same name, type and shape. Raises
        `RefusedError` where the rule refuses.
        """
        for tensor in self._graph.initializers:
            if tensor.name in constants:
                tensor.values = _held(tensor.weight, constants[tensor.name])
        names = set(self._names)
        builder = _Hasty(onnx.numpy_helper.from_array, lambda: names, self._ir_version)
        if isinstance(rule, Survey):
            return self._surveyed(rule, builder)
        for node in reversed(self._graph.nodes):
            if self._wanted.isdisjoint(tensor.name for tensor in node.outputs):
                continue
            made = _made_at(rule, node, builder)
            if made is not None:
                return made
        return None

    def _surveyed(self, survey: Survey, builder: Builder) -> Made | None:
        """Return what a survey proposes for all outputs of the model at once."""
        for proposal in survey.find(self._graph, 0):
            if isinstance(proposal, Twin) and isinstance(proposal.gone, Constant):
                continue  # constants
            found, built = proposed(proposal, builder)
            if self._wanted <= {result.name for result in found.results}:
                return _made(found, built)
        return None


class _Hasty(Builder):
    """A builder whose work takes no place: it infers no shapes, and stores no constants."""

    def infer(self, node: Node) -> None:
        """Leave the types of outputs open."""

    def operand(self, graph: Graph, value: Weight | Array, base: str, built: Built) -> Tensor:
        """Return the constant that is there, or a new one that holds `value` itself."""
        if isinstance(value, Weight) and value.origin is not None:
            origin: Tensor = value.origin
            return origin
        array = np.asarray(value)
        name = self.fresh(base)
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        made = Constant(name, Weight(name, array.shape, data_type, lambda: array))
        built.constants.append(made)
        return made


def _made_at(rule: Rule, node: Node, builder: Builder) -> Made | None:
    found = match(rule.form, node)
    if isinstance(found, Node):  # the first of siblings
        found = match(rule.form, found)
    if found is None or isinstance(found, Node):
        return None
    if found.blockers:
        raise found.blockers[0]
    built = built_by(rule, found, builder)
    return None if built is None else _made(found, built)


def _made(found: Match, built: Built) -> Made:
    constants: dict[str, Array] = {}
    results = [made for made in built.results if made is not None]
    for tensor in (*(t for n in built.nodes for t in n.inputs), *results):
        weight = constant(tensor)
        if weight is not None and tensor.name not in constants:
            constants[tensor.name] = weight.array()
    pairs = zip(found.results, built.results, strict=True)
    return Made(
        [node_proto(node) for node in built.nodes],
        constants,
        {old.name: new.name for old, new in pairs if new is not None},
    )


def _held(weight: Weight, array: Array) -> Weight:
    return Weight(weight.name, weight.shape, weight.data_type, lambda: array)
