"""What a candidate with another interface is held against: the original at its sizes, or inside.

Made from the original alone, so that it can judge what fixes sizes or cuts a part out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from graphpass.validate.feeds.given import InputsError, user_feeds
from graphpass.validate.feeds.specs import input_specs
from graphpass.validate.options import ValidationOptions
from graphpass.validate.process.channel import Value
from graphpass.validate.process.runtime import Runtime

Shapes = Mapping[str, tuple[int | str, ...]]


def fixed_shapes(original: onnx.ModelProto, candidate: onnx.ModelProto) -> Shapes:
    """Return, by input, the shapes that `candidate` declares where one has a number that is new."""
    declared = {value.name: value for value in candidate.graph.input}
    found: dict[str, tuple[int | str, ...]] = {}
    for value in original.graph.input:
        if value.name not in declared:
            continue
        was = value.type.tensor_type.shape.dim
        now = declared[value.name].type.tensor_type.shape.dim
        if len(was) == len(now) and any(
            new.HasField("dim_value") and new.dim_value != old.dim_value
            for old, new in zip(was, now, strict=True)
        ):
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in now
            )
    return found


def set_batch(original: onnx.ModelProto, shapes: Shapes) -> tuple[list[str], int] | None:
    """Return the inputs whose batch was another number, and how many rows it has now.

    None where no batch is another. Rows are answered one by one, whatever the original makes of
    several: it was not made for them.
    """
    found = {}
    for value in original.graph.input:
        dims = value.type.tensor_type.shape.dim
        rows = shapes.get(value.name, ("",))[0]
        fixed = len(dims) > 1 and dims[0].HasField("dim_value")
        if fixed and isinstance(rows, int) and rows != dims[0].dim_value:
            found[value.name] = rows
    return (list(found), max(found.values())) if found else None


def at_shapes(original: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """Return the original declared for other input shapes, and nothing said of what comes of it.

    A size that `shapes` leaves to a name stays what it was: the original may take no other.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    del copy.graph.value_info[:]
    settled: dict[str, int] = {}
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if isinstance(size, int):
                if dim.dim_param:
                    settled[dim.dim_param] = size
                dim.dim_value = size
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in settled:
                dim.dim_value = settled[dim.dim_param]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def options_for(model: onnx.ModelProto, options: ValidationOptions) -> ValidationOptions:
    """Return `options` without bindings of symbols and inputs that `model` has not, or no more."""
    specs = input_specs(model)
    known = {dim for spec in specs for dim in spec.dims or () if isinstance(dim, str)}
    bind = {name: size for name, size in options.bind.items() if name in known}
    inputs = options.inputs
    if inputs is not None:
        try:
            user_feeds(inputs, specs)
        except InputsError:
            inputs = None
    return replace(options, bind=bind, inputs=inputs)


def values_of(
    original: onnx.ModelProto,
    names: Sequence[str],
    feed: Mapping[str, Value],
    runtime: Runtime,
    provider: str,
) -> dict[str, Value]:
    """Run the original and return the arrays that tensors of its main graph have. Raises RunError.

    What is no array is left out.
    """
    wider = onnx.ModelProto()
    wider.CopyFrom(original)
    told = {value.name for value in wider.graph.output} | set(feed)
    wider.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in told)
    with runtime.load(wider, provider) as session:
        found = {**feed, **session.run(feed).outputs}
    return {name: found[name] for name in names if isinstance(found.get(name), np.ndarray)}


__all__ = ["at_shapes", "fixed_shapes", "options_for", "set_batch", "values_of"]
