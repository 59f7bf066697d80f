"""Where ESC-T gets its features: from images, through a wrapped copy of the model, or from features that are given."""

# Shapes: D feature dimensions, those of all site groups side by side, S sites.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from ..data.batches import Batch, image_channels, picture_batch
from ..data.columns import find_label_column
from ..data.model_batches import NOTHING_TO_FORGET, check_model, forget_batches, label_mapping, map_labels
from ..erasure.wrapping import wrapped_copy
from ..errors import ForgetSetError, ModelError
from ..features.head import head_weights
from ..features.sites import SiteGroup
from ..features.stream import stream_features
from ..loading import load_processor
from ..modeling.modeling_esc import ESCModel
from .feature_store import FeatureCache, ForgetFeatures, collect_features, given_features, own_batches
from .training_args_esc_t import ESCTTrainingArguments


class FeatureSource:
    """
    Features as they reach the head of a model.

    Args:
        model (`PreTrainedModel`): Any image classifier, or an [`ESCModel`].
        args ([`ESCTTrainingArguments`]): Batch size, device, and where features are kept.
        processor (*optional*): Image processor; that of `model` by default.
        image_column, label_column (`str`, *optional*): Columns of data sets.
        sites (`Sequence[SiteGroup]`, *optional*): Where the head reads features; found by tracing otherwise.

    Attributes:
        erased ([`ESCModel`]): The wrapped copy of `model`; it exists once features were computed.
        processor: The image processor; None if none was needed or found.
        given (`bool`): Whether a data set held features, and not images.
    """

    erased: ESCModel

    def __init__(
        self,
        model: PreTrainedModel,
        args: ESCTTrainingArguments,
        processor: Any = None,
        image_column: str | None = None,
        label_column: str | None = None,
        sites: Sequence[SiteGroup] | None = None,
    ):
        check_model(model)
        self.model = model
        self.args = args
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.sites = sites
        self.given = False

    @property
    def groups(self) -> list[SiteGroup]:
        """Where the head reads features."""
        return [SiteGroup.from_dict(site) for site in self.erased.config.sites]

    def features(self, dataset: Any, file: Path) -> tuple[ForgetFeatures, Tensor | None]:
        """
        All features of a data set, and [`head_weights`].

        Args:
            dataset: As `forget_set` of [`ESCTTrainer`].
            file (`Path`): Where features that need too much memory are written.
        """
        if isinstance(dataset, ForgetFeatures):
            return self._given(dataset.batches(), file)
        sets = datasets.Dataset | datasets.IterableDataset
        if isinstance(dataset, sets) and "features" in (dataset.features or ()):
            return self._given(self._rows(dataset), file)
        if isinstance(dataset, sets):
            return self._from_images(dataset, file)
        batches = iter(self._batches(dataset))
        first = next(batches, None)
        if first is None:
            raise ForgetSetError(NOTHING_TO_FORGET)
        batches = chain([first], batches)
        if "features" in first:
            return self._given(batches, file)
        return self._collected(own_batches(self._wrap(batches)), file)

    def _batches(self, dataset: Any, share: tuple[int, int] = (0, 1)) -> Iterable[Batch]:
        batches, self.processor = forget_batches(
            self.model,
            dataset,
            self.processor,
            self.args.feature_batch_size,
            self.args.dataloader_num_workers,
            self.image_column,
            self.label_column,
            share=share,
        )
        return batches

    def _from_images(self, dataset: Any, file: Path) -> tuple[ForgetFeatures, Tensor | None]:
        if isinstance(dataset, datasets.Dataset) and not len(dataset):
            raise ForgetSetError(NOTHING_TO_FORGET)
        self._wrap([self._picture()])  # a process without an image of its own has to find the head, too
        state = PartialState()
        return self._collected(self._batches(dataset, (state.process_index, state.num_processes)), file)

    def _rows(self, dataset: datasets.Dataset | datasets.IterableDataset) -> Iterable[Batch]:
        """The batches of a data set with a `features` column."""
        column = find_label_column(dataset.features, self.label_column)
        mapping = label_mapping(dataset.features[column], self.model.config)
        for rows in dataset.select_columns(["features", column]).with_format("torch").iter(batch_size=1024):
            yield map_labels({"features": rows["features"], "labels": rows[column]}, mapping)

    def _given(self, batches: Iterable[Batch], file: Path) -> tuple[ForgetFeatures, Tensor | None]:
        if not hasattr(self, "erased"):
            self._wrap([{}] if self.sites is not None else [self._picture()])
        dim = sum(group.dim for group in self.groups)
        cache = self._cache(file)
        given_features(batches, dim, self.erased.config.num_labels, cache)
        self.given = True
        try:
            picture = self._picture()
        except ModelError:
            if sum(len(group.modules) for group in self.groups) > 1:
                raise
            return cache.finish(), torch.ones(1)
        # Any image shows whether the head can be run on features alone.
        [batch] = stream_features(self.erased.model, self.groups, [picture])
        return cache.finish(), head_weights(self.erased.model, self.groups, batch)

    def _collected(self, batches: Iterable[Batch], file: Path) -> tuple[ForgetFeatures, Tensor | None]:
        cache = self._cache(file)
        weights = collect_features(self.erased, batches, cache)
        return cache.finish(), weights

    def _cache(self, file: Path) -> FeatureCache:
        memory = {"memory": 2**62, "disk": 0, "auto": self.args.feature_memory * 2**20}[self.args.feature_cache]
        return FeatureCache(sum(group.dim for group in self.groups), file, memory)

    def _picture(self) -> Batch:
        self.processor = self.processor if self.processor is not None else load_processor(self.model)
        return picture_batch(self.processor, image_channels(self.model.config))

    def _wrap(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Wrap the model, whose head is found with the first batch, and return all batches."""
        if not hasattr(self, "erased"):
            self.erased, batches = wrapped_copy(self.model, batches, self.sites)
            self.erased.to(self.args.device)  # type: ignore[arg-type]
        return batches
