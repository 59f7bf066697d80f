"""What a model should have forgotten, found out once for a whole evaluation."""

# Shapes: N training and M test images.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.image_data import ImageData
from ..data.labels import erased_earlier, erased_labels
from ..errors import LabelError, ProbeError
from ..ledger.record import label_names
from .knowledge_retention import Part
from .model_features import ModelFeatures


@dataclass(frozen=True)
class Forgotten:
    """
    The classes, or the training images, that a model should have forgotten.

    Args:
        labels (`Sequence[int]`): The model's class indices, ascending; none where single images were forgotten.
        rows (`Sequence[int]`, *optional*): Rows of the training split, in place of classes.
        left_out (`Sequence[int]`): The model's classes that count neither as forgotten nor as retained, because an
            erasure that nobody asks about removed them. None of them where single images were forgotten.
    """

    labels: Sequence[int]
    rows: Sequence[int] | None = None
    left_out: Sequence[int] = ()

    def parts(self, features: ModelFeatures) -> tuple[Part, Part]:
        """
        The training and the test images: features, labels, and a boolean for each image that says whether it should be
        forgotten. Where single images were forgotten, no test image is among them.
        """
        train, test = features.train, features.test
        if self.rows is None:
            labels = torch.tensor(list(self.labels), dtype=torch.long)
            gone_train, gone_test = torch.isin(train.labels, labels), torch.isin(test.labels, labels)
        else:
            gone_train, gone_test = (torch.zeros(len(split.labels), dtype=torch.bool) for split in (train, test))
            gone_train[torch.tensor(list(self.rows))] = True
        return (train.features, train.labels, gone_train), (test.features, test.labels, gone_test)


def find_forgotten(
    config,
    data: ImageData,
    forget_labels: Sequence[int] | None = None,
    forget_indices: Sequence[int] | None = None,
) -> Forgotten:
    """
    What the model with this `config` should have forgotten.

    Args:
        config (`PretrainedConfig`): The model's.
        data ([`ImageData`]): The data set, with a test split.
        forget_labels (`Sequence[int]`, *optional*): The data set's class indices; by default the classes in the
            model's ledger.
        forget_indices (`Sequence[int]`, *optional*): Rows of the training split, in place of classes.

    Raises:
        LabelError: If both are given, a class is not in the data set, no class is left, or no other is.
        ForgetSetError: As [`ImageData.check_rows`].
        ProbeError: If a class has no training or no test images.
    """
    if forget_indices is not None:
        if forget_labels is not None:
            raise LabelError("Name classes or rows that were to be forgotten, not both.")
        data.check_rows(forget_indices)
        return Forgotten([], rows=list(forget_indices))
    mapping = data.labels_in(config)
    if forget_labels is None:
        forget_labels = data.labels_from(config, erased_labels(config))
    if wrong := [label for label in forget_labels if label not in range(len(mapping))]:
        raise LabelError(f"There are no classes {wrong} in {data.name!r}, which has {len(mapping)}.")
    labels = sorted({mapping[int(label)] for label in forget_labels})
    if not labels:
        raise LabelError("Which classes should the model have forgotten? It does not say; name them.")
    if len(labels) == len(mapping):
        raise LabelError(f"All {len(labels)} classes of {data.name!r} were to be forgotten: nothing else is there.")
    _check_images(config, data, labels)
    return Forgotten(labels, left_out=erased_earlier(config, labels))


def _check_images(config, data: ImageData, labels: Sequence[int]) -> None:
    """Raise unless each of these classes of the model has training and test images."""
    mapping = data.labels_in(config)
    for what, split in (("training", data.train), ("test", data.test)):
        there = {mapping[label] for label in set(split.with_format(None)[data.label_column][:])} if split else set()
        if absent := label_names(config, set(labels) - there):
            names = ", ".join(map(str, absent.values()))
            raise ProbeError(f"There is no {what} image of the forgotten classes {names}: nothing can be said.")
