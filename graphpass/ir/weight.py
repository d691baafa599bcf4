"""The value of a constant tensor, read only when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.ir.graphsurgeon import LazyValues
from graphpass.storage import wire
from graphpass.storage.reference import refer, reference_of

Array = npt.NDArray[Any]


_KEPT_ELEMENTS = 16


class Weight(LazyValues):  # type: ignore[misc]
    """A constant's value: shape and dtype are known, the data stays where it is until `array()`.

    It goes wherever numpy takes an array (`np.asarray(weight)`, `weight.astype(np.float64)`).
    `reshape` reads nothing: the bytes are the same under another shape. Nothing but a few elements
    is kept, so that a pass over a large model holds one weight at a time.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        data_type: int,
        read: Callable[[], Array],
        tensor: onnx.TensorProto | None = None,
    ) -> None:
        """`tensor`, where there is one, is the TensorProto that this value is stored as."""
        self.name = name
        self.shape = tuple(shape)
        self.data_type = data_type
        self.dtype: np.dtype[Any] = np.dtype(tensor_dtype_to_np_dtype(data_type))
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.tensor = tensor
        self.origin: Any = None  # the graph's tensor that holds exactly this value
        self._read = read
        self._kept: list[Array] = []  # copies share it

    @classmethod
    def of(cls, tensor: onnx.TensorProto, name: str | None = None) -> Weight:
        """Return the value that `tensor` holds, inline or by reference."""
        return cls(
            tensor.name if name is None else name,
            tuple(tensor.dims),
            tensor.data_type,
            lambda: wire.tensor_array(tensor),
            tensor,
        )

    def array(self) -> Array:
        """Read the data: shape `self.shape`, dtype `self.dtype`; not to be written to."""
        if self._kept:
            return self._kept[0]
        value = self._read().reshape(self.shape)
        value.flags.writeable = False
        if value.size <= _KEPT_ELEMENTS:
            self._kept.append(value)
        return value

    load = array  # the name under which onnx-graphsurgeon asks for it

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        value = self.array()
        return value if dtype is None else value.astype(dtype)

    def astype(self, dtype: npt.DTypeLike) -> Array:
        """Read the data as `dtype`."""
        return self.array().astype(dtype)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def reshape(self, *shape: int) -> Weight:
        """Return the same elements in the same order under another shape; reads nothing."""
        sizes = list(shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = self.size // known
        if math.prod(sizes) != self.size:
            raise ValueError(f"cannot reshape {self.name} {self.shape} to {tuple(shape)}")
        if self.tensor is None:
            return Weight(self.name, sizes, self.data_type, self._read)
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.tensor)
        tensor.ClearField("dims")
        tensor.dims.extend(sizes)
        return Weight.of(tensor, self.name)

    def rows(self, part: slice) -> Array:
        """Read a part along axis 0, and from a file no more than that."""
        start, stop, _ = part.indices(self.shape[0])
        reference = None if self.tensor is None else reference_of(self.tensor)
        if reference is None or self.nbytes != reference.length:  # elements below a byte
            return self.array()[start:stop]
        each = self.nbytes // self.shape[0]
        tensor = onnx.TensorProto(name=self.name, data_type=self.data_type)
        tensor.dims.extend((stop - start, *self.shape[1:]))
        where = (reference.offset + start * each, (stop - start) * each)
        refer(tensor, reference._replace(offset=where[0], length=where[1]))
        return wire.tensor_array(tensor)

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    __str__ = __repr__
