"""The features of the forget set, computed once and kept in memory, or in an Arrow file where they need too much."""

# Shapes: N forget images, B of them in a batch, D feature dimensions, those of all site groups side by side.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from ..data.batches import Batch
from ..erasure.statistics import check_labels
from ..errors import ForgetSetError, HfEscError, LabelError, NonFiniteError
from ..features.head import head_weights
from ..features.moments import SecondMoment
from ..features.sites import SiteGroup
from ..features.stream import FeatureBatch, stream_features
from ..modeling.modeling_esc import ESCModel
from .epochs import EpochLoader, EpochSampler

# How many rows of the Arrow file are written at a time, and read at a time in a pass over all.
_ROWS = 1024


class ForgetFeatures(torch.utils.data.Dataset):
    """
    Features `(N, D)` and labels `(N,)`, in memory or in an Arrow file that is read a batch at a time.

    Indexed with a list of rows it gives the batch `{"features": (n, D), "labels": (n,)}`.
    """

    def __init__(self, labels: Tensor, features: Tensor | datasets.Dataset, dim: int):
        self.labels = labels
        self.dim = dim
        self._features = features

    @property
    def on_disk(self) -> bool:
        return isinstance(self._features, datasets.Dataset)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> Batch:
        if isinstance(self._features, Tensor):
            features = self._features[rows]
        elif rows:
            features = self._features[rows]["features"]
        else:  # a process can have no share in the last batch of an epoch
            features = torch.empty(0, self.dim)
        return {"features": features, "labels": self.labels[rows]}

    def __getitem__(self, row: int) -> Batch:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def batches(self, size: int = _ROWS) -> Iterator[Batch]:
        """All rows in order."""
        for start in range(0, len(self), size):
            yield self.__getitems__(list(range(start, min(start + size, len(self)))))

    def second_moments(self, dims: Sequence[int], device: torch.device) -> list[Tensor]:
        """The second moment `(d_g, d_g)` of each part of the features, which are `dims` wide."""
        moments = [SecondMoment(dim, device) for dim in dims]
        for batch in self.batches():
            for moment, z in zip(moments, batch["features"].to(device).split(list(dims), dim=1), strict=True):
                moment.update(z)
        return [moment.matrix for moment in moments]


class SharesLoader(EpochLoader):
    """
    Batches of features for one of several processes: its share of each global batch of a seeded permutation.

    All processes have equally many batches, and no row is repeated for that: the last share of an epoch can be smaller
    than that of another process, or empty.

    Args:
        features ([`ForgetFeatures`]): What to draw from.
        batch_size (`int`): Rows of a share; a global batch has `processes` times as many.
        index, processes, seed (`int`): As in [`EpochSampler`].
    """

    def __init__(self, features: ForgetFeatures, batch_size: int, index: int, processes: int, *, seed: int):
        super().__init__(features, _Shares(len(features), batch_size, index, processes, seed))


class _Shares(EpochSampler):
    def __init__(self, rows: int, batch_size: int, index: int, processes: int, seed: int):
        super().__init__(index, processes, seed)
        self.rows = rows
        self.global_size = batch_size * processes

    def __len__(self) -> int:
        return -(-self.rows // self.global_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.rows, generator=self.generator(self.epoch))
        for batch in order.split(self.global_size):
            yield self.share(batch.tolist())


class FeatureCache:
    """
    Collects features batch by batch: in memory up to a limit, and beyond it in an Arrow file.

    Args:
        dim (`int`): D.
        file (`Path`): The Arrow file, if one is needed.
        memory (`int`): The most bytes of features to hold in memory; 0 always writes a file. Features that stay in
            memory take twice as much for a moment in the end, while they are put together.
    """

    def __init__(self, dim: int, file: Path, memory: int):
        self.dim = dim
        self.file = file
        self.memory = memory
        self._buffer: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._bytes = 0
        self._writer: ArrowWriter | None = None

    def append(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: `(B, D)` and `(B,)`."""
        features = features.detach().to("cpu", torch.float32)
        self._labels.append(labels.to("cpu", torch.long))
        self._buffer.append(features)
        self._bytes += features.numel() * features.element_size()
        if self._bytes > self.memory and sum(map(len, self._buffer)) >= (_ROWS if self._writer else 1):
            self._spill()

    def _spill(self) -> None:
        if self._writer is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            columns = datasets.Features({"features": datasets.List(datasets.Value("float32"), length=self.dim)})
            self._writer = ArrowWriter(path=str(self.file), features=columns, writer_batch_size=_ROWS)
        for features in self._buffer:
            self._writer.write_batch({"features": features.numpy()})
        self._buffer.clear()

    def finish(self) -> ForgetFeatures:
        """All features that were added."""
        labels = torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.long)
        if self._writer is None:
            features: Any = torch.cat(self._buffer) if self._buffer else torch.empty(0, self.dim)
        else:
            self._spill()
            self._writer.finalize()
            features = datasets.Dataset.from_file(str(self.file)).with_format("torch")
        return ForgetFeatures(labels, features, self.dim)


def collect_features(model: ESCModel, batches: Iterable[Batch], cache: FeatureCache) -> Tensor | None:
    """
    Run images through `model` once, and keep each feature as it reaches the head, after the projections so far.

    Where several processes run, process i of n runs batches i, i + n, i + 2n, … Every process gets all features in the
    order of the batches: bit for bit those that one process alone gets.

    Args:
        model ([`ESCModel`]): In eval mode.
        batches (`Iterable[dict[str, torch.Tensor]]`): This process's batches, with labels, as [`own_batches`]
            selects them.
        cache ([`FeatureCache`]): Takes the features.

    Returns:
        `torch.Tensor`, *optional*: [`head_weights`] of the first batch.

    Raises:
        ForgetSetError: If a batch has no labels, or cannot go through the model.
        LabelError: If a label is none of the model's classes.
        NonFiniteError: If a feature is not finite; the batch is named.
    """
    state = PartialState()
    groups = [SiteGroup.from_dict(site) for site in model.config.sites]
    weights = None
    stream = stream_features(model.model, groups, batches)
    number = state.process_index
    while True:
        part: Any = None
        try:
            batch = next(stream, None)
            if batch is not None:
                part = _checked(batch, number, model.config.num_labels)
                if number == 0:
                    weights = head_weights(model.model, groups, batch)
        except Exception as error:
            if state.num_processes == 1:
                raise
            # Send the error to all processes: the others wait for this one, and would wait forever.
            part = error if isinstance(error, HfEscError) else RuntimeError(f"{type(error).__name__}: {error}")
        parts = [part] if state.num_processes == 1 else gather_object([part])
        for part in parts:
            if isinstance(part, Exception):
                raise part
        for part in parts:
            if part is not None:
                cache.append(*part)
        if any(part is None for part in parts):
            break
        number += state.num_processes
    return weights if state.num_processes == 1 else gather_object([weights])[0]


def _checked(batch: FeatureBatch, number: int, num_labels: int | None) -> tuple[Tensor, Tensor]:
    if batch.labels is None:
        raise ForgetSetError(f"ESC-T needs the label of each image, and batch {number} has none.")
    check_labels(batch, number, num_labels)
    features = torch.cat([z.float() for z in batch.features], dim=1).cpu()
    if not torch.isfinite(features).all():
        raise NonFiniteError(f"Batch {number} of the forget set has features that are not finite.")
    return features, batch.labels.cpu()


def own_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """This process's part of `batches`: process i of n takes batches i, i + n, i + 2n, …"""
    state = PartialState()
    return islice(batches, state.process_index, None, state.num_processes)


def given_features(batches: Iterable[Batch], dim: int, num_labels: int | None, cache: FeatureCache) -> None:
    """
    Add features that were computed elsewhere.

    Args:
        batches (`Iterable[dict[str, torch.Tensor]]`): `features` `(B, D)` as they reach the head, and `labels` `(B,)`.
        dim (`int`): D.
        num_labels (`int`): C.
        cache ([`FeatureCache`]): Takes them.

    Raises:
        ForgetSetError: If the shape is another.
        LabelError: If a label is none of the model's classes.
        NonFiniteError: If a feature is not finite; the batch is named.
    """
    for number, batch in enumerate(batches):
        features, labels = batch.get("features"), batch.get("labels")
        if features is None or labels is None:
            raise ForgetSetError(f"Batch {number} of features should hold `features` and `labels`, not {list(batch)}.")
        if not isinstance(features, Tensor) or not isinstance(labels, Tensor):
            raise ForgetSetError(f"Batch {number} of features is not a tensor: are the rows of different lengths?")
        if features.ndim != 2 or features.shape[1] != dim or labels.shape != features.shape[:1]:
            raise ForgetSetError(
                f"Batch {number} has features of the shape {tuple(features.shape)} and labels of "
                f"{tuple(labels.shape)}; the head reads (N, {dim}), with one label for each row."
            )
        if not torch.isfinite(features).all():
            raise NonFiniteError(f"Batch {number} of features has entries that are not finite.")
        if len(labels) and (
            labels.is_floating_point() or labels.min() < 0 or (num_labels is not None and labels.max() >= num_labels)
        ):
            raise LabelError(
                f"The labels of batch {number} range from {labels.min()} to {labels.max()}, and the model has "
                f"{num_labels} classes. Features come with the model's class indices."
            )
        cache.append(features, labels)
