"""Figures. Each function returns a matplotlib Figure, to be shown or saved. Needs `pip install hf_esc[viz]`."""

from .predictions import prediction_figure

__all__ = ["prediction_figure"]
