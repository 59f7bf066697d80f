"""
The figures of the experiments, into `docs/images/`. Needs `pip install hf_esc[viz]`.

    python benchmarks/figures.py
"""

from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from report_unlearning import NAMES, REFERENCES, labels_of, rows_of, seconds_of

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Told apart also without colour vision.
BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#8a8f98"


def recovery(experiment: str = "table1-resnet") -> Figure:
    """Fig. 1: the share of the original's D_f that each probe reads from the features."""
    rows = rows_of(experiment)
    before = {tuple(row["request"]): row["accuracies"]["forget_train"] for row in rows if row["label"] == "original"}
    labels = [label for label in labels_of(rows) if label != "original"]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(labels) + 1.2), layout="constrained")
    places = np.arange(len(labels))
    for shift, (name, title, color) in zip(
        (-0.2, 0.2),
        (("paper", "the paper's probe", BLUE), ("converged", "a converged linear probe", ORANGE)),
        strict=True,
    ):
        shares = [
            mean(
                100 * row["retention"][name]["forget_train"] / before[tuple(row["request"])]
                for row in rows
                if row["label"] == label and "error" not in row
            )
            for label in labels
        ]
        bars = axes.barh(places + shift, shares, height=0.4, color=color, label=title)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    axes.set_yticks(places, [NAMES.get(label, label) for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("recovery rate: D_f of the probe, in % of the original's D_f")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def layers(experiment: str = "table1-resnet") -> Figure:
    """Fig. 2: how far each layer has moved, from the first to the head."""
    rows = [row for row in rows_of(experiment) if row.get("weights")]
    labels = [label for label in labels_of(rows) if label not in REFERENCES]
    names = [name for name in rows[0]["weights"] if name.endswith("weight")]
    values = np.array(
        [
            [mean(row["weights"][name] or 0 for row in rows if row["label"] == label) for name in names]
            for label in labels
        ]
    )
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(labels) + 2.6), layout="constrained")
    shown = np.log10(np.maximum(values, 1e-5))
    image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=-5, vmax=0)
    axes.set_yticks(range(len(labels)), [NAMES.get(label, label) for label in labels])
    axes.set_xticks(range(len(names)), [_layer(name) for name in names], rotation=90, fontsize=6)
    label = "log10 of the relative difference\n(1e-5 and less, 0 too, look alike, and so do 1 and more)"
    figure.colorbar(image, label=label)
    return figure


def _layer(name: str) -> str:
    return name.removesuffix(".weight").replace("resnet.", "").replace("encoder.", "").replace("layers", "l")


def similarity(experiment: str = "table1-resnet", request: str = "Trouser") -> Figure:
    """Fig. 3: the cosine between the mean features of the classes."""
    rows = [row for row in rows_of(experiment) if row.get("similarity") and row["request"] == [request]]
    labels = [label for label in labels_of(rows) if label != "random"]
    columns = 6
    figure, axes = plt.subplots(
        -(-len(labels) // columns), columns, figsize=(9, 1.75 * -(-len(labels) // columns)), layout="constrained"
    )
    image = None
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(labels):
            [row] = [row for row in rows if row["label"] == labels[place]]
            image = axis.imshow(np.array(row["similarity"]), vmin=-1, vmax=1, cmap="RdBu_r")
            axis.set_title(NAMES.get(labels[place], labels[place]), fontsize=8)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.6)
    return figure


def times(experiment: str = "times") -> Figure:
    """Fig. 5: seconds of each method."""
    seconds = dict(sorted(seconds_of(experiment).items(), key=lambda item: item[1]))
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(seconds) + 0.8), layout="constrained")
    colors = [BLUE if label in ("esc", "esc-t", "remap") else GREY for label in seconds]
    bars = axes.barh([NAMES.get(label, label) for label in seconds], list(seconds.values()), color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("seconds, one CPU thread, reading the images included")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, draw, experiment in (
        ("recovery-rates", recovery, "table1-resnet"),
        ("layer-differences", layers, "table1-resnet"),
        ("class-similarity", similarity, "table1-resnet"),
        ("unlearning-times", times, "times"),
    ):
        if rows_of(experiment):
            draw().savefig(IMAGES / f"{name}.png", dpi=110)
            plt.close("all")


if __name__ == "__main__":
    main()
