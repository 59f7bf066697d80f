"""Computes what the Space shows: an erased model beside its original, on images that come with hf_esc."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from hf_esc import ESCModel, erase
from hf_esc.data import ImageData, image_batches, load_images
from hf_esc.evaluation.accuracy import model_classifier
from hf_esc.evaluation.knowledge_retention import knowledge_retention
from hf_esc.evaluation.model_features import ModelFeatures, SplitFeatures, head_sites, model_features
from hf_esc.features.head import site_outputs
from hf_esc.ledger.record import MOST_UNCHANGED
from hf_esc.loading import load_classifier, load_processor

MODELS = ["embedded/vit", "embedded/all-cnn", "embedded/resnet"]
RANKS = ["1", "2", "4", "8", "auto"]
PER_CLASS = 100  # images of each class to measure on; the erasure takes all training images of its class
SHOWN = 3  # images of each class to choose from
FORGET_COLOR, RETAIN_COLOR = "#0072b2", "#a9adb5"  # can be told apart without colour vision

HIDDEN = """**Hidden from the head, not deleted.** Whoever asks for predictions gets another class. Whoever is given
features and has labelled images can train a probe, and whoever holds the file can take the projection off. A linear
probe {converged}, on the projected features of {train:,} training images, still gets **{after:.0f} %** of the test
images of {name} right ({before:.0f} % on the original features)."""


@dataclass(frozen=True)
class Erasure:
    """
    An erased model beside its original, on the same images.

    Args:
        name (`str`): The forgotten class.
        model ([`ESCModel`]): The erased model.
        features (`dict[str, ModelFeatures]`): Features of the images of [`measured_images`], `before` and `after`.
        head, probe (`dict[str, tuple[float, float]]`): Accuracies of the head and of a linear probe on forget and on
            retain test images in %, `before` and `after`. The probe is trained on the training features.
        converged (`bool`): Whether both probes were trained to convergence.
    """

    name: str
    model: ESCModel
    features: dict[str, ModelFeatures]
    head: dict[str, tuple[float, float]]
    probe: dict[str, tuple[float, float]]
    converged: bool


@lru_cache
def all_images() -> ImageData:
    """The embedded part of Fashion-MNIST."""
    return load_images("embedded")


def first_of_each_class(split: Dataset, count: int) -> Dataset:
    """The first `count` images of each class, class by class."""
    labels = np.asarray(split[all_images().label_column][:])
    return split.select(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


@lru_cache
def measured_images() -> ImageData:
    """The images for features and accuracies: some of each class."""
    data = all_images()
    train, test = (first_of_each_class(split, PER_CLASS) for split in (data.train, data.test))
    return replace(data, train=train, test=test)


@lru_cache
def shown_pictures() -> list[tuple[Image.Image, str]]:
    """Test images to choose from, with their classes. Each row has one image of each class."""
    data = all_images()
    chosen = first_of_each_class(data.test, SHOWN)
    rows = [chosen[place * SHOWN + row] for row in range(SHOWN) for place in range(data.num_labels)]
    return [(row[data.image_column].convert("RGB"), data.label_names[row[data.label_column]]) for row in rows]


@lru_cache
def original(model_name: str):
    """An embedded classifier, and its features of [`measured_images`]."""
    model = load_classifier(model_name)
    return model, model_features(model, measured_images(), load_processor(model), name=model_name)


def projected(erased: ESCModel, split: SplitFeatures) -> SplitFeatures:
    """The projected features and the logits of an erased model, computed from the original features of a split."""
    inner, groups = head_sites(erased, load_processor(erased))
    features = erased.projections[0](split.features)
    return SplitFeatures(features, site_outputs(inner, groups, [features])[0].cpu(), split.labels)


@lru_cache(maxsize=32)
def erasure(model_name: str, name: str, rank: str) -> Erasure:
    """Erase the class `name` from an embedded classifier, and measure the head and a probe before and after."""
    data, (model, before) = all_images(), original(model_name)
    erased = erase(
        model,
        data.forget_set(data.resolve(name, model.config)),
        rank=rank if rank == "auto" else int(rank),
        processing_class=load_processor(model),
    )
    # The backbone is the original's, so its features need only pass the projection and the head.
    features = {
        "before": before,
        "after": ModelFeatures(projected(erased, before.train), projected(erased, before.test)),
    }
    [forget] = data.resolve(name, model.config)
    head, probe, converged = {}, {}, True
    for when, (train, test) in ((when, (both.train, both.test)) for when, both in features.items()):
        gone = test.labels == forget
        head[when] = tuple(100 * test.right()[part].double().mean().item() for part in (gone, ~gone))
        read = knowledge_retention(
            train.features, train.labels, test.features, test.labels, [forget], probe="converged"
        )
        probe[when] = (read.accuracies.forget_test, read.accuracies.retain_test)
        converged = converged and read.settings["converged"]
    return Erasure(name, erased, features, head, probe, converged)


@torch.no_grad()
def predict(model, picture: Image.Image) -> dict[str, float]:
    """The probability of each class, by name."""
    [batch] = image_batches(Dataset.from_dict({"image": [picture]}), load_processor(model), image_column="image")
    [probabilities] = model_classifier(model)(batch).softmax(dim=1).tolist()
    return {model.config.id2label[label]: probability for label, probability in enumerate(probabilities)}


def feature_figure(erased: Erasure) -> Figure:
    """
    Draw test features before and after, on the first two principal components of the original features.

    The forgotten class has a colour of its own, and each class has its name at its mean.
    """
    before, labels = erased.features["before"].test.features, erased.features["before"].test.labels
    mean = before.mean(dim=0)
    axes = torch.linalg.svd(before - mean, full_matrices=False).Vh[:2].T
    names = erased.model.config.id2label
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    titles = {"before": "before: original features", "after": "after: projected features"}
    for plot, (when, both) in zip(
        figure.subplots(1, 2, sharex=True, sharey=True), erased.features.items(), strict=True
    ):
        points = (both.test.features - mean) @ axes
        for label, name in sorted(names.items(), key=lambda item: item[1] == erased.name):
            gone = name == erased.name
            own = points[labels == label]
            color = FORGET_COLOR if gone else RETAIN_COLOR
            plot.scatter(*own.T, s=16 if gone else 8, color=color, alpha=0.8 if gone else 0.5, linewidths=0)
            plot.annotate(
                name, own.mean(dim=0).tolist(), ha="center", va="center", fontsize=10 if gone else 8.5,
                color=FORGET_COLOR if gone else "#40444c", weight="bold" if gone else "normal",
                path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)],
            )  # fmt: skip
        plot.set_title(titles[when], fontsize=12)
        plot.set_xticks([])
        plot.set_yticks([])
        plot.spines[:].set_color("#d0d3d8")
    figure.supxlabel("the first two principal components of the original features of test images", fontsize=9)
    return figure


def explain(erased: Erasure) -> str:
    """Say in Markdown what was erased, the accuracies before and after, and what is not promised."""
    record = erased.model.config.erasures[-1]
    dim = erased.features["before"].test.features.shape[1]
    counts = {"forget": PER_CLASS, "retain": PER_CLASS * (erased.model.config.num_labels - 1)}
    lines = [
        f"{record['num_images']:,} training images of {erased.name} gave {record['rank']} of {dim} feature directions "
        f"to project out. The head was run on {record['unchanged_of']:,} of these images: "
        f"{100 * record['unchanged']:.1f} % were classified right before and still are.",
        *(
            ["**The erasure is incomplete**: take a higher rank, or auto."]
            if record["unchanged"] > MOST_UNCHANGED
            else []
        ),
        "",
        "| accuracy on test images | before | after |",
        "| :--- | ---: | ---: |",
    ]
    for reader, accuracies in (("head", erased.head), ("new linear probe on the features", erased.probe)):
        for part, (kind, count) in enumerate(counts.items()):
            whose = erased.name if kind == "forget" else "the other classes"
            lines.append(
                f"| {reader}, {kind}: {whose} ({count:,}) | {accuracies['before'][part]:.1f} % "
                f"| {accuracies['after'][part]:.1f} % |"
            )
    hidden = HIDDEN.format(
        converged="trained to convergence" if erased.converged else "(not trained to convergence)",
        train=len(erased.features["after"].train.labels),
        name=erased.name,
        before=erased.probe["before"][0],
        after=erased.probe["after"][0],
    )
    return "\n".join([*lines, "", hidden])
