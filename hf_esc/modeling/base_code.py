"""
Code that the wrapped classifier needs beyond transformers: none here.

Beside an erased checkpoint whose base has code of its own, such as the All-CNN, this file is written anew to register
it.
"""


def register_base() -> None:
    """Register the base with the Auto classes."""
