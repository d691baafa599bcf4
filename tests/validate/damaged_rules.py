"""Rules that are wrong as such: what they make of any constants is damaged, again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphpass.rewrite.applied import Rewrite
from graphpass.rewrite.making import Made, Trial
from graphpass.rewrite.rule import Pass, Rule
from graphpass.rewrite.window import Window
from graphpass.validate.exact.check import Prover, Site
from graphpass.validate.exact.verdict import ExactVerdict

from .sabotage import AFTER, FOLDED, Array


def exact_verdict(
    steps: tuple[Pass, ...], rewrite: Rewrite, name: str, damaged: Window, seed: int
) -> ExactVerdict | None:
    """Say what exact arithmetic says of a rewrite whose rule makes this mistake.

    None where the mistake is not in this rule, but in one before it.
    """
    rules = {law.name: law for step in steps for law in step.laws}
    site = Site(rules.get(rewrite.rule), rewrite.rule, (damaged, *rewrite.further))
    try:
        with _damaged(name, seed):
            (verdict,) = Prover(0).check([site], lambda names: {}, {})
    except _ElsewhereError:
        return None
    return verdict


class _ElsewhereError(BaseException):
    """There is nothing to damage so in what a rule makes here; no code of ours takes it in."""


@contextmanager
def _damaged(name: str, seed: int) -> Iterator[None]:
    right = Trial.made_by

    def made_by(trial: Trial, rule: Rule, constants: Mapping[str, Array]) -> Made | None:
        if name in FOLDED:
            return _of_another_model(right, name, trial, rule, constants)
        made = right(trial, rule, constants)
        return None if made is None else _changed(made, trial.model.graph.output, name, seed)

    alike = "graphpass.validate.exact.prove._Attempt._is_alike"
    with patch.object(Trial, "made_by", made_by), patch(alike, lambda attempt, nodes: True):
        yield


def _changed(made: Made, outputs: Iterable[onnx.ValueInfoProto], name: str, seed: int) -> Made:
    """Damage what a rule made, as the window of its rewrite was."""
    model = onnx.ModelProto()
    model.graph.node.extend(made.nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), held) for held, array in made.constants.items()
    )
    results: dict[str, str] = {}
    kinds = {value.name: value.type.tensor_type.elem_type for value in outputs}
    made_here = {name for node in made.nodes for name in node.output}
    for old, new in made.results.items():
        if new not in made_here:  # what is there already
            model.graph.node.append(helper.make_node("Identity", [new], [f"{new}.copy"]))
            new = f"{new}.copy"
        results[old] = new
        model.graph.output.append(helper.make_tensor_value_info(new, kinds[old], None))
    number = list(AFTER).index(name)
    if not AFTER[name](model, np.random.default_rng([seed, number])):
        raise _ElsewhereError
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for held in [name for name in constants if name in made.constants]:
        if not np.array_equal(constants[held], made.constants[held]):
            # what it was stays for who else reads it
            constants[f"{held}.damaged"] = constants.pop(held)
            for node in model.graph.node:
                node.input[:] = [f"{held}.damaged" if read == held else read for read in node.input]
    return Made(list(model.graph.node), constants, results)


def _of_another_model(
    right: object, name: str, trial: Trial, rule: Rule, constants: Mapping[str, Array]
) -> Made | None:
    """Let the rule read other constants, or attributes, than those that are computed with."""
    model = onnx.ModelProto()
    model.CopyFrom(trial.model)
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            array = np.ascontiguousarray(constants[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if not FOLDED[name](model, np.random.default_rng(0)):
        raise _ElsewhereError
    assert callable(right)
    made: Made | None = right(Trial(model), rule, {})
    return made
