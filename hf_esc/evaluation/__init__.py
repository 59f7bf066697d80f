"""What is left of a forgotten class, and what was kept."""

import importlib
from typing import TYPE_CHECKING

# Imported when first used: `harmonic_mean` alone does not wait for scikit-learn.
_HOMES = {
    "Accuracies": "accuracy",
    "UnlearningReport": "report",
    "evaluate_accuracies": "accuracy",
    "evaluate_unlearning": "unlearning",
    "harmonic_mean": "accuracy",
}
__all__ = ["Accuracies", "UnlearningReport", "evaluate_accuracies", "evaluate_unlearning", "harmonic_mean"]

if TYPE_CHECKING:
    from .accuracy import Accuracies, evaluate_accuracies, harmonic_mean
    from .report import UnlearningReport
    from .unlearning import evaluate_unlearning


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
