"""LSTM, GRU and RNN: arbitrary functions of all they read; states left out are zero."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, Value
from graphpass.validate.exact.step import Step

_STATES = {"initial_h": 5, "initial_c": 6}


def recurrent(step: Step) -> list[Value]:
    """Return outputs of the right shapes, each element told by all that the node reads."""
    x, weight, number = step.number(0), step.number(1), step.numbers
    batch_first = step.attribute("layout", 0)
    batch, length = x.shape[:2] if batch_first else x.shape[1::-1]
    directions, hidden = weight.shape[0], step.attribute("hidden_size")
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    told: list[Number] = []
    seed = float(zlib.crc32(step.op.encode() + step.salt) % (1 << 25))
    for index in range(max(len(step.inputs), 7)):
        value = step.input(index)
        if value is None and index in _STATES.values():
            value = number.of(np.zeros(state), x.dtype)
        if isinstance(value, np.ndarray):
            value = number.of(value, x.dtype)
        if isinstance(value, Number):
            told.append(value)
            places = number.field.scrambled(np.arange(value.residue.size), index + 1)
            mixed = number.field.multiply(value.residue.reshape(-1), places)
            seed = float(number.field.scrambled(number.field.reduce(mixed.sum()) + seed, index))
    whole = (
        (batch, length, directions, hidden) if batch_first else (length, directions, batch, hidden)
    )
    made = []
    for output, shape in enumerate((whole, state, state)[: len(step.node.output)]):
        places = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
        residue: Array = number.field.scrambled(places + seed, 100 + output)
        found = number.like(residue, residue * 2.0**-20, told)
        made.append(replace(found, degree=found.degree + 1, arbitrary=found.arbitrary | {step.op}))
    return list(made)
