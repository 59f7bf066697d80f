"""
Unlearning by editing weights: DELETE and the methods that ESC is compared with, each a Trainer of its own, and Fisher
forgetting, which is not trained and is a function.

The names are those of the table in [`hf_esc.methods`][hf_esc.methods.Method], imported when they are first used.
`METHODS` maps the names of the trained methods on the command line to their Trainers.
"""

import importlib
from typing import Any

from .. import methods

_HOMES = {"UnlearningArguments": "unlearning.training_args", "UnlearningTrainer": "unlearning.trainer"}
for _row in methods.METHODS.values():
    if _row.edits_weights:
        _HOMES |= _row.public

__all__ = ["METHODS", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        rows = methods.METHODS.items()
        return {name: row.load() for name, row in rows if row.edits_weights and row.trained}
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"..{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
