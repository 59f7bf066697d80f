"""Figures. Each function returns a matplotlib Figure, which the caller shows or saves. Needs `pip install hf_esc[viz]`."""

from .predictions import prediction_figure

__all__ = ["prediction_figure"]
