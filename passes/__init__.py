"""The built-in passes, in the order of the default pipeline."""

from .clean_up import CleanUp

__all__ = [
    "CleanUp",
]
