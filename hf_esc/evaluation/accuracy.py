"""Accuracies on forget and retain data, and their harmonic mean."""

# Shapes: B images, C classes.

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        any_train (`float`, *optional*): Training images of the forgotten classes that are taken for any of these,
            where there are two or more. A reader that confuses two forgotten classes with each other still tells them
            from the rest, and \(D_f\) alone does not show it. Lower is better.
        any_test (`float`, *optional*): The same of the test images.
    """

    forget_train: float | None
    retain_train: float | None
    forget_test: float | None
    retain_test: float | None
    hm_train: float | None
    hm_test: float | None
    any_train: float | None = None
    any_test: float | None = None


def class_indices(values: Any) -> list[int]:
    """
    Class indices as a list.

    Args:
        values (`int`, `Iterable[int]`, `np.ndarray` or `torch.Tensor`): One or more.

    Raises:
        ValueError: If they are no whole numbers.
    """
    plain = values.tolist() if hasattr(values, "tolist") else values
    try:
        return [operator.index(value) for value in (plain if isinstance(plain, Iterable) else [plain])]
    except TypeError:
        raise ValueError(f"Class indices are whole numbers, such as [0], and not {values!r}.") from None


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
    Accuracies of several classifiers on the same images. Each image is read and preprocessed once.

    Args:
        classifiers (`Mapping[str, Callable]`): By name, a function from the inputs of a batch to logits `(B, C)`.
        data ([`ImageData`]): The data set.
        forget (`Sequence[int]`): The data set's class indices that should be forgotten; may be empty.
        mapping (`Sequence[int]`): The classifiers' class for each of the data set's, from [`ImageData.labels_in`].
        processor: The classifiers' image processor.
        forget_rows (`Sequence[int]`, *optional*): Rows of the training split that should be forgotten, in place of
            classes. They may be of any class. There is no forget test data then, and no HM.
        leave_out (`Sequence[int]`): The data set's class indices that count neither as forget nor as retain data, such
            as classes that were erased earlier.
        batch_size, num_workers, num_channels: As in [`image_batches`].

    Returns:
        `dict[str, Accuracies]`: By the classifiers' names.
    """
    columns: dict[str, list[Shares]] = {name: [] for name in classifiers}
    classes = torch.tensor(mapping)
    for title, split in (("train", data.train), ("test", data.test)):
        if split is None:
            for shares in columns.values():
                shares.append((None, None, None))
            continue
        batches = data.batches(
            split, processor, batch_size=batch_size, num_workers=num_workers, num_channels=num_channels
        )
        bar = logging.tqdm(batches, total=-(-len(split) // batch_size), desc=f"Accuracy, {title}", unit="batch")
        answers, labels = answers_of(classifiers, bar)
        if forget_rows is None:
            forgotten = _isin(labels, forget)
        else:
            forgotten = torch.zeros(len(labels), dtype=torch.bool)
            forgotten[list(forget_rows) if title == "train" else []] = True
        retained = ~forgotten & ~_isin(labels, leave_out)
        for name, shares in columns.items():
            shares.append(shares_of(answers[name], classes[labels], forgotten, retained))
    return {name: accuracies_of(*shares, of_images=forget_rows is not None) for name, shares in columns.items()}


@torch.no_grad()
def answers_of(
    classifiers: Mapping[str, Classifier], batches: Iterable[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], Tensor]:
    """
    Ask several classifiers about the same images.

    Args:
        classifiers (`Mapping[str, Callable]`): By name, as in [`evaluate_accuracies`].
        batches (`Iterable[dict[str, torch.Tensor]]`): Their inputs, with the data set's `labels`.

    Returns:
        `tuple[dict[str, torch.LongTensor], torch.LongTensor]`: For each classifier the class that it gives each image,
        `(N,)`, and the data set's class of each image, `(N,)`.
    """
    answers = {name: [torch.zeros(0, dtype=torch.long)] for name in classifiers}
    seen = [torch.zeros(0, dtype=torch.long)]
    for batch in batches:
        labels = batch.pop("labels")
        seen.append(labels)
        for name, classifier in classifiers.items():
            answers[name].append(classifier(batch).argmax(dim=1).cpu())
    return {name: torch.cat(given) for name, given in answers.items()}, torch.cat(seen)


# Forget images that are classified right, retain images that are, and forget images that are taken for any forgotten
# class, in %. None where there are no such images, and the last where there are not two forgotten classes.
Shares = tuple[float | None, float | None, float | None]


def shares_of(answers: Tensor, labels: Tensor, forgotten: Tensor, retained: Tensor | None = None) -> Shares:
    """
    The shares of a split.

    Args:
        answers, labels (`torch.LongTensor` of shape `(N,)`): The classes that are given and the true ones.
        forgotten (`torch.BoolTensor` of shape `(N,)`): Which images should be forgotten.
        retained (`torch.BoolTensor` of shape `(N,)`, *optional*): Which should not; by default all others.
    """
    right = answers == labels
    classes = labels[forgotten].unique()
    of_any = share_of(torch.isin(answers, classes), forgotten) if len(classes) > 1 else None
    return share_of(right, forgotten), share_of(right, ~forgotten if retained is None else retained), of_any


def share_of(right: Tensor, part: Tensor) -> float | None:
    """
    The share of the images in `part` that are also in `right`, in %.

    Args:
        right, part (`torch.BoolTensor` of shape `(N,)`): On the same device.

    Returns:
        `float`, *optional*: None where `part` is empty.
    """
    images = int(part.sum())
    return 100 * int((right & part).sum()) / images if images else None


def accuracies_of(train: Shares, test: Shares, *, of_images: bool = False) -> Accuracies:
    """
    The shares of both splits with their harmonic means.

    Args:
        train, test (`tuple`): From [`shares_of`].
        of_images (`bool`, defaults to `False`): Whether images were forgotten, not classes. There is no HM then, and
            none is taken for any of the classes.
    """
    derived = (None,) * 4 if of_images else (_hm(*train[:2]), _hm(*test[:2]), train[2], test[2])
    return Accuracies(*train[:2], *test[:2], *derived)


def _hm(forget: float | None, retain: float | None) -> float | None:
    return None if forget is None or retain is None else harmonic_mean(forget, retain)


def _isin(labels: Tensor, classes: Sequence[int]) -> Tensor:
    return torch.isin(labels, torch.tensor(list(classes), dtype=torch.long))


def model_classifier(model) -> Classifier:
    """A function from the inputs of a batch to the logits `(B, C)` of a model, as [`evaluate_accuracies`] takes it."""

    def classify(inputs: dict[str, Tensor]) -> Tensor:
        return logits_of(model(**model_inputs(model, inputs)), model.config.num_labels)

    return classify
