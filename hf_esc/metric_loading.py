"""
The metrics of hf_esc by their plain names: `evaluate.load("kr_score")`.

evaluate looks for a plain name in the working directory and then on the Hub; it has no entry points. With this, it
looks in the package in between: the metric is that of the hf_esc that is installed, with or without a network.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

_HERE = Path(__file__).parent
# In the wheel, metrics are inside of the package, and in a checkout beside it.
METRICS = _HERE / "metrics" if (_HERE / "metrics").is_dir() else _HERE.parent / "metrics"
# The modules of evaluate that call the function.
_PLACES = ("evaluate.loading", "evaluate.inspect", "evaluate.evaluation_suite")


def metric_folder(name: str) -> Path | None:
    """
    The folder of a metric of hf_esc.

    Args:
        name (`str`): Such as `"kr_score"`.

    Returns:
        `Path`, *optional*: None if hf_esc has no metric of that name.
    """
    folder = METRICS / name
    return folder if name.isidentifier() and (folder / f"{name}.py").is_file() else None


def add_metrics() -> None:
    """Make evaluate, which has been imported, find the metrics of hf_esc; a second call changes nothing."""
    find = getattr(sys.modules["evaluate.loading"], "evaluation_module_factory", None)
    if find is None or hasattr(find, "finds_metrics_of_hf_esc"):  # None: a module of the user's that has this name
        return
    ours = _with_ours(find)
    for place in _PLACES:
        if getattr(sys.modules.get(place), "evaluation_module_factory", None) is find:
            sys.modules[place].evaluation_module_factory = ours  # type: ignore[attr-defined]


def _with_ours(find: Callable) -> Callable:
    @wraps(find)
    def evaluation_module_factory(path, module_type=None, *args, **kwargs):
        if module_type in (None, "metric") and not os.path.isfile(os.path.join(path, f"{path}.py")):
            path = str(metric_folder(path) or path)
        return find(path, module_type, *args, **kwargs)

    evaluation_module_factory.finds_metrics_of_hf_esc = True  # type: ignore[attr-defined]
    return evaluation_module_factory
