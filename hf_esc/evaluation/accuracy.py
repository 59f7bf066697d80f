"""Accuracies on forget and retain data, and their harmonic mean."""

# Shapes: B images, C classes.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..data.image_data import ImageData
from ..features.stream import model_inputs
from ..modeling.outputs import logits_of

Classifier = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Accuracies:
    r"""
    Accuracies in % of the images, None where the data set has no such images.

    Args:
        forget_train (`float`, *optional*): \(D_f\), training images of the forgotten classes; lower is better.
        retain_train (`float`, *optional*): \(D_r\), training images of the other classes.
        forget_test (`float`, *optional*): \(D_{ft}\), test images of the forgotten classes; lower is better.
        retain_test (`float`, *optional*): \(D_{rt}\), test images of the other classes.
        hm_train (`float`, *optional*): [`harmonic_mean`] of \(D_f\) and \(D_r\).
        hm_test (`float`, *optional*): The same of \(D_{ft}\) and \(D_{rt}\).
    """

    forget_train: float | None
    retain_train: float | None
    forget_test: float | None
    retain_test: float | None
    hm_train: float | None
    hm_test: float | None


def harmonic_mean(forget: float, retain: float) -> float:
    r"""
    HM of the [ESC paper](https://huggingface.co/papers/2504.02199): the harmonic mean of \(100 - D_f\) and \(D_r\).

    Args:
        forget (`float`): Accuracy on the forget data, in % from 0 to 100.
        retain (`float`): Accuracy on the retain data, in % from 0 to 100.

    Returns:
        `float`: From 0 (nothing forgotten, or nothing kept) to 100, in %.

    Raises:
        ValueError: If an accuracy is outside [0, 100].
    """
    if not (0 <= forget <= 100 and 0 <= retain <= 100):
        raise ValueError(f"Accuracies are in % from 0 to 100, and forget={forget}, retain={retain}.")
    forgotten = 100 - forget
    return 2 * forgotten * retain / (forgotten + retain) if forgotten + retain else 0.0


def evaluate_accuracies(
    classifiers: Mapping[str, Classifier],
    data: ImageData,
    forget: Sequence[int],
    *,
    mapping: Sequence[int],
    processor: Any,
    forget_rows: Sequence[int] | None = None,
    leave_out: Sequence[int] = (),
    batch_size: int = 64,
    num_workers: int = 0,
    num_channels: int = 3,
) -> dict[str, Accuracies]:
    """
    Accuracies of several classifiers on the same images, which are read and preprocessed once.

    Args:
        classifiers (`Mapping[str, Callable]`): By name, a function from the inputs of a batch to logits `(B, C)`.
        data ([`ImageData`]): The data set.
        forget (`Sequence[int]`): The data set's class indices that are to be forgotten; may be empty.
        mapping (`Sequence[int]`): The classifiers' class for each of the data set's, from [`ImageData.labels_in`].
        processor: The classifiers' image processor.
        forget_rows (`Sequence[int]`, *optional*): Rows of the training split that are to be forgotten, of any class,
            in place of classes. There is no forget test data then, and no HM.
        leave_out (`Sequence[int]`): The data set's class indices that count as neither, such as those erased earlier.
        batch_size, num_workers, num_channels: As in [`image_batches`].

    Returns:
        `dict[str, Accuracies]`: By the classifiers' names.
    """
    shares: dict[str, dict[str, tuple[float | None, float | None]]] = {name: {} for name in classifiers}
    for split_name, split in (("train", data.train), ("test", data.test)):
        if split is None:
            for name in classifiers:
                shares[name][split_name] = (None, None)
            continue
        batches = data.batches(
            split, processor, batch_size=batch_size, num_workers=num_workers, num_channels=num_channels
        )
        total = -(-len(split) // batch_size)
        gone = None
        if forget_rows is not None:
            gone = torch.zeros(len(split), dtype=torch.bool)
            gone[list(forget_rows) if split_name == "train" else []] = True
        for name, share in _count(
            classifiers,
            logging.tqdm(batches, total=total, desc=f"Accuracy, {split_name}", unit="batch"),
            forget,
            leave_out,
            torch.tensor(mapping),
            gone,
        ).items():
            shares[name][split_name] = share
    return {
        name: Accuracies(
            *share["train"],
            *share["test"],
            *((None, None) if forget_rows is not None else (_hm(*share["train"]), _hm(*share["test"]))),
        )
        for name, share in shares.items()
    }


@torch.no_grad()
def _count(
    classifiers, batches, forget, leave_out, mapping: Tensor, gone: Tensor | None
) -> dict[str, tuple[float | None, float | None]]:
    """For each classifier, the accuracies on forget (`gone` by row, where it is rows) and on retain images."""
    right = {name: [0, 0] for name in classifiers}
    seen = [0, 0]
    forget_labels, left_out = (torch.tensor(list(labels), dtype=torch.long) for labels in (forget, leave_out))
    start = 0
    for batch in batches:
        labels = batch.pop("labels")
        forgotten = torch.isin(labels, forget_labels) if gone is None else gone[start : start + len(labels)]
        start += len(labels)
        groups = [forgotten, ~forgotten & ~torch.isin(labels, left_out)]
        for index, group in enumerate(groups):
            seen[index] += int(group.sum())
        for name, classifier in classifiers.items():
            hit = classifier(batch).argmax(dim=1).cpu() == mapping[labels]
            for index, group in enumerate(groups):
                right[name][index] += int((hit & group).sum())
    return {name: (_percent(hits[0], seen[0]), _percent(hits[1], seen[1])) for name, hits in right.items()}


def _percent(hits: int, images: int) -> float | None:
    return 100 * hits / images if images else None


def _hm(forget: float | None, retain: float | None) -> float | None:
    return None if forget is None or retain is None else harmonic_mean(forget, retain)


def model_classifier(model) -> Classifier:
    """A model as the function that [`evaluate_accuracies`] takes."""

    def classify(inputs: dict[str, Tensor]) -> Tensor:
        return logits_of(model(**model_inputs(model, inputs)), model.config.num_labels)

    return classify
