"""What is left of a forgotten class, and what was kept."""

from .accuracy import Accuracies, evaluate_accuracies, harmonic_mean

__all__ = ["Accuracies", "evaluate_accuracies", "harmonic_mean"]
