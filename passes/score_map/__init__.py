"""A classifier becomes a score map: the head slides, and the image may have any size.

After the dense layers have become convolutions, `pool-to-window` lets a pooling head slide,
`unflatten-head` gives every answer a place (outputs [N, classes, h, w]), `free-resolution` lets
height and width vary; `free-batch` the batch; `drop-softmax` leaves logits. With one answer for
each image, `pool-to-global` keeps the head and `class-activation-map` adds a map to it.
(Sermanet et al., "OverFeat", 2013; Long, Shelhamer & Darrell, "Fully Convolutional Networks for
Semantic Segmentation", 2015.)
"""

from .class_activation_map import ClassActivationMap
from .drop_softmax import DropSoftmax
from .free_batch import FreeBatch
from .free_resolution import FreeResolution
from .pool_to_global import PoolToGlobal
from .pool_to_window import PoolToWindow
from .unflatten_head import UnflattenHead

__all__ = [
    "ClassActivationMap",
    "DropSoftmax",
    "FreeBatch",
    "FreeResolution",
    "PoolToGlobal",
    "PoolToWindow",
    "UnflattenHead",
]
