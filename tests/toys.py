"""Passes that do what they should, and passes that do what they should not, on a chain of Adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphpass import Graph, Node, Op, Pass, Rule, Weight, any_, const, require
from graphpass.testing import graph


def chain(length: int = 4, *, kind: str = "float") -> onnx.ModelProto:
    """Return x + c0, Identity, Relu, + c1, Identity, Relu, … as y."""
    lines, last = [], "x"
    for i in range(length):
        end = "y" if i == length - 1 else f"r{i}"
        lines += [f"a{i} = Add({last}, c{i})", f"i{i} = Identity(a{i})", f"{end} = Relu(i{i})"]
        last = end
    body = "\n".join(lines)
    constants: dict[str, Any] = {
        f"c{i}": np.linspace(0.5 + i, 1.5, 7).astype(np.float32 if kind == "float" else np.float64)
        for i in range(length)
    }
    return graph(f"({kind}[N,7] x) => ({kind}[N,7] y) {{\n{body}\n}}", **constants)


class DropIdentity(Rule):
    """Identity(x) = x."""

    pattern = Op("Identity", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return x


@dataclass(frozen=True)
class AddIsSub(Rule):
    """Add(x, c) = Sub(x, -c); in error where c is named in `wrong` ("*" for all)."""

    pattern = Op("Add", any_("x"), const("c"))
    wrong: tuple[str, ...] = ()

    def rewrite(self, x: Any, c: Weight) -> Any:
        require(c.name != "c_kept", f"'{c.name}' is not to be negated")
        factor = 1.001 if c.name in self.wrong or "*" in self.wrong else 1.0
        return Op("Sub", x, (-c.array() * factor).astype(c.dtype))


@dataclass(frozen=True)
class Tidy(Pass):
    """Drops Identities, which is right."""

    name = "tidy"
    rules = (DropIdentity(),)


@dataclass(frozen=True)
class Negate(Pass):
    """Turns Add into Sub, wrongly for the constants in `wrong`, a list with spaces."""

    name = "negate"
    wrong: str = ""

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The good rule and the one that may be wrong."""
        return DropIdentity(), AddIsSub(tuple(self.wrong.split()))


class Raises(Rule):
    """Relu(x) = an exception."""

    pattern = Op("Relu", any_("x"))

    def rewrite(self, x: Any) -> Any:
        raise NotImplementedError("not yet")


@dataclass(frozen=True)
class Raising(Pass):
    """Fails with an exception of its own, after it has done something."""

    name = "raising"
    rules = (DropIdentity(), Raises())


class Forever(Rule):
    """Relu(x) = Relu(Relu(x)), for ever."""

    pattern = Op("Relu", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("Relu", Op("Relu", x))


@dataclass(frozen=True)
class Endless(Pass):
    """Never comes to an end."""

    name = "endless"
    rules = (Forever(),)


class Wander(Rule):
    """Relu(x) = Elu(x) = Relu(x), one step each time that the pass begins anew."""

    pattern = Op(("Relu", "Elu"), any_("x"), bind="node")

    def rewrite(self, node: Node, x: Any) -> Any:
        if node.proto is None:  # made just now
            return None
        return Op("Elu" if node.op == "Relu" else "Relu", x)


@dataclass(frozen=True)
class Restless(Pass):
    """Finds something to do each time."""

    name = "restless"
    rules = (Wander(),)


class NoKernel(Rule):
    """Relu(x) = LRN(x), which ONNX Runtime has no float64 kernel for."""

    pattern = Op("Relu", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("LRN", x, size=1)


@dataclass(frozen=True)
class Kernelless(Pass):
    """Makes a model that cannot be run."""

    name = "kernelless"
    rules = (NoKernel(),)


class Unknown(Rule):
    """Identity(x) = Mystery(x), which nobody knows."""

    pattern = Op("Identity", any_("x"))

    def rewrite(self, x: Any) -> Any:
        return Op("Thing", x, domain="other")


@dataclass(frozen=True)
class Mysterious(Pass):
    """Makes nodes that cannot be run, whatever they are fed."""

    name = "mysterious"
    rules = (Unknown(),)


@dataclass(frozen=True)
class ByHand(Pass):
    """Changes the graph in `run`: adds `shift` to every c0, with or without saying so."""

    name = "by-hand"
    shift: float = 0.0
    silent: bool = False

    def run(self, graph: Graph) -> list[str]:
        """Change c0."""
        done = []
        for tensor in graph.initializers:
            if tensor.name == "c0":
                tensor.values = (tensor.values + np.float32(self.shift)).astype(np.float32)
                done.append(f"moved c0 by {self.shift}")
        return [] if self.silent else done


@dataclass(frozen=True)
class Renamer(Pass):
    """Renames the output without declaring that it changes the interface."""

    name = "renamer"

    def run(self, graph: Graph) -> list[str]:
        """Rename y."""
        graph.outputs[0].name = "z"
        return ["renamed y"]


class SubIsIdentity(Rule):
    """Sub(x, c) = Identity(Add(x, -c)): makes work for the pass before."""

    pattern = Op("Sub", any_("x"), const("c"))

    def rewrite(self, x: Any, c: Weight) -> Any:
        return Op("Identity", Op("Sum", x, -c.array()))


@dataclass(frozen=True)
class Untidy(Pass):
    """Leaves Identities behind."""

    name = "untidy"
    rules = (SubIsIdentity(),)


KINDS: dict[str, type[Pass]] = {
    kind.name: kind
    for kind in (Tidy, Negate, Raising, Endless, Kernelless, Mysterious, ByHand, Untidy)
}


def operators(nodes: Iterable[onnx.NodeProto | Node]) -> list[str]:
    """Return the operators, sorted."""
    return sorted(node.op_type for node in nodes)
