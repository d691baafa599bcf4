"""Find the image among a network's inputs, and how it lies in memory."""

from __future__ import annotations

from collections.abc import Sequence

from graphpass.errors import ModelError
from graphpass.follow.image_axes import DIMENSIONS
from graphpass.follow.trace import LAYOUTS, FixedResolutionError, trace
from graphpass.follow.traced import Trace
from graphpass.ir.questions import Graph, Tensor

_RANKS = (4, 5, 3)  # of an image, a volume, a signal


def images(graph: Graph) -> list[Tensor]:
    """Return the inputs that may be a batch of images: numbers in four axes.

    Where none has, those that may be volumes, in five axes; then signals, in three.
    """
    found = [
        tensor
        for tensor in graph.inputs
        if tensor.shape is not None
        and tensor.dtype is not None
        and tensor.dtype.kind in "fui"
        and not any(tensor.name == held.name for held in graph.proto.initializer)
    ]
    of_rank = ([t for t in found if len(t.shape) == rank] for rank in _RANKS)
    return next((tensors for tensors in of_rank if tensors), [])


def layouts_of(image: Tensor) -> list[str]:
    """Return the layouts that an input of its rank may have."""
    return [layout for layout in LAYOUTS if len(layout) == len(image.shape or ())]


def native_size(image: Tensor, layout: str) -> tuple[int, ...] | None:
    """Return the size that the network was made for; None where it is not fixed."""
    size = [image.shape[axis] for axis in LAYOUTS[layout]]
    return tuple(size) if all(isinstance(pixels, int) for pixels in size) else None


def trace_image(graph: Graph) -> Trace:
    """Follow the graph's image at its native resolution, in whichever layout the network reads it.

    Raises ModelError where there is no image input, or its resolution is not fixed;
    FixedResolutionError with the node that ties the network to its resolution.
    """
    found = images(graph)
    if not found:
        raise ModelError(
            "the model has no image input: none of its inputs is a tensor of four axes, nor of five"
            " or three as those of volumes and signals"
        )
    if len(found) > 1:
        names = ", ".join(tensor.name for tensor in found)
        raise ModelError(f"the model has several inputs that may be images: {names}")
    return trace_native(graph, found[0])


def trace_native(graph: Graph, image: Tensor) -> Trace:
    """Follow `image` at the size that is declared for it; see `trace_image`."""
    failures: list[FixedResolutionError] = []
    layouts = layouts_of(image)
    for layout in layouts:
        size = native_size(image, layout)
        if size is None:
            continue
        try:
            done = trace(graph, image, layout, size)
        except FixedResolutionError as error:
            failures.append(error)
            continue
        if done.touches_weights:
            return done
    if len(failures) == len(layouts):
        raise max(failures, key=lambda failure: failure.progress)
    if any(native_size(image, layout) is None for layout in layouts):
        names = DIMENSIONS[len(layouts[0]) - 2]
        raise ModelError(
            f"{' and '.join(names)} of '{image.name}' {'is' if len(names) == 1 else 'are'} not "
            f"fixed: say which resolution the network was made for (--native {_option(names)})"
        )
    raise ModelError(f"no convolution or pooling reads '{image.name}': it is no image")


def _option(names: Sequence[str]) -> str:
    return "x".join(name[0].upper() for name in names)


def traced(graph: Graph) -> Trace | None:
    """Follow the image of a main graph; None where there is none, or it may have any size.

    Raises FixedResolutionError as `trace_image` does.
    """
    if graph.parent is not None or graph.is_function:
        return None
    try:
        return trace_image(graph)
    except ModelError:
        return None
