"""The columns of a report: the model under test and its references, and what each makes of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data.image_data import ImageData
from ..errors import ModelError
from ..features.sites import evaluating
from ..ledger.record import edits_weights
from ..loading import load_processor, random_network
from ..modeling.configuration_esc import is_erased
from .attacks import projection
from .model_features import ModelFeatures, model_features

# The names of columns, in the order of a report.
MODEL, ORIGINAL, RETRAIN, RANDOM = "model", "original", "retrain", "random"
# In place of `original` where the weights inside an erased model were edited too: with the projection off, the file
# gives the edited classifier and not the original.
WITHOUT = "no projection"


@dataclass(frozen=True)
class Column:
    """
    A network of a report.

    Args:
        network (`PreTrainedModel`): The network.
        processor: Its image processor.
        projected (`bool`, defaults to `True`): Whether its projection is on. Only an erased model has one.
    """

    network: Any
    processor: Any
    projected: bool = True

    @property
    def is_erased(self) -> bool:
        """Whether the network has a projection and it is on."""
        return self.projected and is_erased(self.network)


def find_columns(
    model: PreTrainedModel, references: Mapping[str, PreTrainedModel], data: ImageData, processor: Any = None
) -> dict[str, Column]:
    """
    The columns of a report by name, in its order.

    Args:
        model (`PreTrainedModel`): The model under test.
        references (`Mapping[str, PreTrainedModel]`): By name. Where there is no `original`, an erased model without
            its projection takes its place; where there is no `random`, a random network is made.
        data ([`ImageData`]): The data set.
        processor (*optional*): Image processor for all; by default each network has its own, and that of `model` where
            it has none.

    Raises:
        ModelError: If a reference is called `model`, or has other classes than the model, or in another order.
    """
    if MODEL in references:
        raise ModelError(f"{MODEL!r} is the name of the model under test. Call the reference something else.")
    own = processor if processor is not None else load_processor(model)
    others = {
        name: Column(network, processor if processor is not None else _processor(network, own))
        for name, network in references.items()
    }
    columns = {MODEL: Column(model, own)}
    if ORIGINAL in others:
        columns[ORIGINAL] = others.pop(ORIGINAL)
    elif is_erased(model):
        edited = any(map(edits_weights, model.config.erasures))
        columns[WITHOUT if edited else ORIGINAL] = Column(model, own, projected=False)
    if RETRAIN in others:
        columns[RETRAIN] = others.pop(RETRAIN)
    columns |= others
    if RANDOM not in columns:
        columns[RANDOM] = Column(random_network(model), own)
    for name, column in columns.items():
        _check_classes(name, column.network.config, model.config, data)
    return columns


def _processor(network: PreTrainedModel, fallback: Any) -> Any:
    """The image processor of a reference, or `fallback` where it has none."""
    try:
        return load_processor(network)
    except ModelError:
        return fallback


def _check_classes(name: str, theirs: Any, ours: Any, data: ImageData) -> None:
    """Raise unless the configuration of a reference has the classes of the model's in the same order."""
    if theirs.num_labels != ours.num_labels:
        raise ModelError(
            f"The reference {name!r} has {theirs.num_labels} classes, and the model has {ours.num_labels}. "
            "A retrained model keeps the class that it has never seen."
        )
    if data.labels_in(theirs) != data.labels_in(ours):
        raise ModelError(
            f"The reference {name!r} numbers its classes otherwise than the model, and what they say could not be "
            "compared. Put its head and `id2label` in the model's order."
        )


class ColumnFeatures:
    """
    The features of all columns. Each column runs over the data once, here.

    Args:
        columns (`dict[str, Column]`): From [`find_columns`].
        data ([`ImageData`]): The data set, with a test split.
        left_out (`Sequence[int]`): The model's classes whose images are dropped.
        hidden (`bool`): Whether hidden states are kept too.
        folder (`Path`, *optional*): As in [`model_features`].
        batch_size, num_workers: As in [`model_features`].
    """

    def __init__(
        self,
        columns: dict[str, Column],
        data: ImageData,
        left_out: Sequence[int],
        *,
        hidden: bool,
        folder: Path | None,
        batch_size: int,
        num_workers: int,
    ):
        self.columns, self.data, self.left_out = columns, data, left_out
        self._options: dict[str, Any] = {"folder": folder, "batch_size": batch_size, "num_workers": num_workers}
        self.seen = {name: self._read(name, column, hidden=hidden) for name, column in columns.items()}
        self._stripped: dict[str, ModelFeatures] = {}

    def stripped(self, name: str) -> ModelFeatures:
        """
        The features of a column with its projection off.

        Another column mostly shows them already. Where none does, as with an original that the caller gave, the
        network runs over the data once more.
        """
        column = self.columns[name]
        if not column.is_erased:
            return self.seen[name]
        without = replace(column, projected=False)
        for other, there in self.columns.items():
            if there == without:
                return self.seen[other]
        if name not in self._stripped:
            self._stripped[name] = self._read(f"{name}-stripped", without)
        return self._stripped[name]

    def _read(self, name: str, column: Column, *, hidden: bool = False) -> ModelFeatures:
        with evaluating(column.network), projection(column.network, on=column.projected):
            found = model_features(
                column.network, self.data, column.processor, name=name, hidden=hidden, **self._options
            )
        if not self.left_out:
            return found
        return ModelFeatures(found.train.without(self.left_out), found.test.without(self.left_out))
