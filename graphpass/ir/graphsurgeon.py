"""What graphpass leans on of onnx-graphsurgeon that is not its public interface, all of it.

- `LazyValues`: what a `gs.Constant` holds in `_values` until its data is read; `load()` reads it.
- `SynchronizedList`: what links nodes and tensors; its `parent_obj` and `field_name`.
- `gs.Node` and `gs.Tensor` keep their fields in `__dict__` (`attrs`, `name`, `inputs`, `outputs`),
  and their class may be exchanged; `gs.Constant` has `_values`, `data_location`, `_export_dtype`.
- `gs.Node.AttributeRef`: an attribute that is a parameter of the function around it.

A test holds each of these against the version that is installed.
"""

from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import SynchronizedList

__all__ = ["LazyValues", "SynchronizedList"]
