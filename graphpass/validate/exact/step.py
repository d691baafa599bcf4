"""One node that is computed: its inputs, attributes and opset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, Numbers, UnknownError, Value


@dataclass(frozen=True)
class Step:
    """A node with the values of its inputs, None for one that is left out."""

    node: onnx.NodeProto
    inputs: Sequence[Value | None]
    numbers: Numbers
    opset: int

    @property
    def op(self) -> str:
        """The operator."""
        return str(self.node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, text decoded."""
        for held in self.node.attribute:
            if held.name == name:
                value = helper.get_attribute_value(held)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def input(self, index: int) -> Value | None:
        """Return an input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def number(self, index: int = 0) -> Number:
        """Return an input of floats."""
        value: Any = self.input(index)
        if not isinstance(value, Number):
            raise UnknownError(f"{self.op} on what are no floats")
        return value

    def listed(self, name: str, index: int) -> list[int] | None:
        """Return integers that are an attribute in some opsets and an input in others."""
        held = self.attribute(name)
        if held is None and self.input(index) is not None:
            held = self.whole(index).reshape(-1)
        return None if held is None else [int(entry) for entry in np.atleast_1d(held)]

    def whole(self, index: int) -> Array:
        """Return an input of integers, booleans or strings."""
        value: Any = self.input(index)
        if not isinstance(value, np.ndarray):
            raise UnknownError(f"{self.op} with sizes that are no integers")
        held: Array = value
        return held

    def known(self, value: float | Sequence[float] | Array) -> Number:
        """Return numbers that an attribute gives, in the type of the first input."""
        given: Number = self.numbers.of(np.asarray(value, np.float64), self.number().dtype)
        return given

    @property
    def salt(self) -> bytes:
        """What tells this function from others."""
        held = sorted(self.node.attribute, key=lambda entry: entry.name)
        return b"".join(entry.SerializeToString() for entry in held)
