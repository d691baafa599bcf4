"""Find the image among a network's inputs, and how it lies in memory."""

from __future__ import annotations

from graphpass.errors import ModelError
from graphpass.follow.trace import LAYOUTS, FixedResolutionError, trace
from graphpass.follow.traced import Trace
from graphpass.ir.questions import Graph, Tensor

IMAGE_RANK = 4


def images(graph: Graph) -> list[Tensor]:
    """Return the inputs that may be a batch of images: four axes, numbers."""
    return [
        tensor
        for tensor in graph.inputs
        if tensor.shape is not None
        and len(tensor.shape) == IMAGE_RANK
        and tensor.dtype is not None
        and tensor.dtype.kind in "fui"
        and not any(tensor.name == held.name for held in graph.proto.initializer)
    ]


def native_size(image: Tensor, layout: str) -> tuple[int, int] | None:
    """Return the (height, width) that the network was made for; None where it is not fixed."""
    height, width = (image.shape[axis] for axis in LAYOUTS[layout])
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def trace_image(graph: Graph) -> Trace:
    """Follow the graph's image at its native resolution, in whichever layout the network reads it.

    Raises ModelError where there is no image input, or its resolution is not fixed;
    FixedResolutionError with the node that ties the network to its resolution.
    """
    found = images(graph)
    if not found:
        raise ModelError(
            "the model has no image input: none of its inputs is a tensor of four axes"
        )
    if len(found) > 1:
        names = ", ".join(tensor.name for tensor in found)
        raise ModelError(f"the model has several inputs that may be images: {names}")
    return trace_native(graph, found[0])


def trace_native(graph: Graph, image: Tensor) -> Trace:
    """Follow `image` at the size that is declared for it; see `trace_image`."""
    failures: list[FixedResolutionError] = []
    for layout in LAYOUTS:
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
    if len(failures) == len(LAYOUTS):
        raise max(failures, key=lambda failure: failure.progress)
    if any(native_size(image, layout) is None for layout in LAYOUTS):
        raise ModelError(
            f"height and width of '{image.name}' are not fixed: say which resolution the network "
            "was made for (--native HxW)"
        )
    raise ModelError(f"no convolution or pooling reads '{image.name}': it is no image")


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
