"""What a pass may change of inputs and outputs: it declares that, and no more is let through."""

from __future__ import annotations

from enum import Flag, auto


class Interface(Flag):
    """Changes of a model's interface. A pass has them as `changes_interface`; True: `ANY`."""

    NOTHING = 0
    SIZES = auto()  # a size of an input or output that was fixed may vary
    FIXED = auto()  # a size that could vary may be fixed, or have another name
    MAPS = auto()  # outputs may get axes: an answer for each place
    OUTPUTS = auto()  # further outputs, after those that there are
    LOGITS = auto()  # an output that is a Softmax may be what the Softmax read
    OTHER = auto()  # whatever else: names, types, order
    OPSETS = auto()  # the versions of operator sets
    PRECISION = auto()  # inputs and outputs stay, but what is between may be float16
    PART = auto()  # inputs and outputs may be any tensors of the model: a part of it is left
    ANY = SIZES | FIXED | MAPS | OUTPUTS | LOGITS | OTHER

    @classmethod
    def of(cls, declared: Interface | bool) -> Interface:
        """Return what a pass declares; True stands for anything."""
        if isinstance(declared, cls):
            return declared
        return cls.ANY if declared else cls.NOTHING


__all__ = ["Interface"]
