"""
Registers code that the wrapped classifier needs beyond transformers. Here there is none.

If the base of an erased checkpoint has code of its own, such as the All-CNN, the file beside that checkpoint is
rewritten to register it.
"""


def register_base() -> None:
    """Register the base with the Auto classes."""
