"""A figure of the predictions of several models for the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = ("#8a8f98", "#0072b2")  # can be told apart without colour vision


def prediction_figure(
    images: Sequence[Any],
    titles: Sequence[str],
    predictions: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    top: int = 3,
) -> Figure:
    """
    Draw one row for each image: the image itself, and the `top` most likely classes of each model.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images.
        titles (`Sequence[str]`): One title for each image, such as its true class.
        predictions (`Mapping[str, Sequence[Mapping[str, float]]]`): For each model, by its name, one mapping for each
            image from classes to probabilities.
        top (`int`, defaults to 3): Classes to show for each model.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: If there is not one title and one prediction of each model for each image.
    """
    from matplotlib.figure import Figure

    if any(len(images) != len(others) for others in (titles, *predictions.values())):
        raise ValueError("There should be one title and one prediction of each model for each image.")
    figure = Figure(figsize=(2 + 3.2 * len(predictions), 0.5 + 1.5 * len(images)), layout="constrained")
    widths = [1] + [1.6] * len(predictions)
    axes = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        picture = axes[row][0]
        picture.imshow(image, cmap="gray" if image.mode == "L" else None)
        picture.set_title(title, fontsize=9)
        picture.set_axis_off()
        for column, (name, answers) in enumerate(predictions.items(), start=1):
            likely = sorted(answers[row].items(), key=lambda answer: answer[1])[-top:]
            plot = axes[row][column]
            bars = plot.barh([label for label, _ in likely], [p for _, p in likely], color=_COLORS[column > 1])
            plot.bar_label(bars, labels=[f"{p:.0%}" for _, p in likely], padding=3, fontsize=8)
            plot.set_xlim(0, 1.18)
            plot.set_xticks([])
            plot.tick_params(axis="y", length=0, labelsize=8)
            plot.spines[["top", "right", "bottom"]].set_visible(False)
            if row == 0:
                plot.set_title(name, fontsize=10)
    return figure
