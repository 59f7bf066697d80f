"""Figures. Each function returns a matplotlib Figure to show or save. Needs `pip install hf_esc[viz]`."""

from .predictions import prediction_figure

__all__ = ["prediction_figure"]
