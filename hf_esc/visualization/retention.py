"""A figure of what is left of forgotten classes, from a report."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..evaluation.report import UnlearningReport

_READERS = {"head": "the head", "paper": "the paper's probe", "converged": "a converged probe"}
_COLORS = {"model": "#0072b2", "original": "#8a8f98", "retrain": "#009e73", "random": "#d9d9d9"}
_OTHER = "#cc79a7"


def retention_figure(report: UnlearningReport) -> Figure:
    """
    Draw the forget images, in %, that the head and the two probes get right. Where two or more classes were forgotten,
    draw those that they take for any of them.

    There is a group of bars for the head and for each probe, with one bar for each network.

    Args:
        report ([`UnlearningReport`]): An evaluation. The figure shows its test images, or its training images if rows
            were forgotten and not classes.

    Returns:
        `matplotlib.figure.Figure`
    """
    split, images = ("test", "test") if report.num_forget_test else ("train", "training")
    key, title = f"forget_{split}", f"right of forget {images} images, %"
    if getattr(report.models["model"].accuracies, f"any_{split}") is not None:
        key, title = f"any_{split}", f"forget {images} images taken\nfor any of the classes, %"
    names = list(report.models)
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        result = report.models[name]
        found = [getattr(result.accuracies, key), *(result.retention[p].mean.get(key) for p in ("paper", "converged"))]
        spread = [0.0, *(result.retention[p].spread.get(key) or 0.0 for p in ("paper", "converged"))]
        heights = [value or 0.0 for value in found]
        at = [group + (place - (len(names) - 1) / 2) * width for group in range(len(_READERS))]
        label = "this model" if name == "model" else name
        bars = axes.bar(
            at, heights, width * 0.92, yerr=spread, ecolor="#555", color=_COLORS.get(name, _OTHER), label=label
        )
        axes.bar_label(bars, labels=[f"{value:.0f}" for value in heights], padding=2, fontsize=8)
    axes.set_xticks(range(len(_READERS)), list(_READERS.values()))
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel(title, fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    return figure
