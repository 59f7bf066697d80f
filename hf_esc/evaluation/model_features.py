"""One pass of a model over a data set: features, logits and labels, from which everything else is measured."""

# Shapes: N images of a split, d feature dimensions (of several heads: side by side), C classes.

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.batches import image_channels, picture_batch
from ..data.image_data import ImageData
from ..errors import DataError
from ..features.sites import SiteGroup, find_sites
from ..features.stream import model_inputs, stream_features
from ..modeling.configuration_esc import is_erased
from ..modeling.fingerprints import weights_sha256


@dataclass(frozen=True)
class SplitFeatures:
    """
    One split of a data set as a model sees it.

    Args:
        features (`torch.Tensor` of shape `(N, d)`): What the head reads, float32.
        logits (`torch.Tensor` of shape `(N, C)`): float32.
        labels (`torch.LongTensor` of shape `(N,)`): The model's class indices.
        hidden (`tuple[torch.Tensor, ...]`): For each hidden state a tensor `(N, d_l)`, the mean over its positions,
            float32. Empty where hidden states were not asked for, or the model gives none.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    hidden: tuple[Tensor, ...] = ()

    def right(self) -> Tensor:
        """Whether the head gets each image right: booleans `(N,)`."""
        return self.logits.argmax(dim=1) == self.labels

    def without(self, labels: Sequence[int]) -> SplitFeatures:
        """The split without the images of these classes."""
        rows = ~torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long))
        hidden = tuple(state[rows] for state in self.hidden)
        return SplitFeatures(self.features[rows], self.logits[rows], self.labels[rows], hidden)


@dataclass(frozen=True)
class ModelFeatures:
    """
    Training and test images as a model sees them.

    Args:
        train, test ([`SplitFeatures`]): The splits.
    """

    train: SplitFeatures
    test: SplitFeatures


def model_features(
    model: PreTrainedModel,
    data: ImageData,
    processor: Any,
    *,
    name: str = "model",
    batch_size: int = 64,
    num_workers: int = 0,
    folder: Path | None = None,
    hidden: bool = False,
) -> ModelFeatures:
    """
    One pass of a model over the training and the test images of a data set, without augmentation.

    Args:
        model (`PreTrainedModel`): An image classifier in eval mode. The features of an [`ESCModel`] are the projected
            ones.
        data ([`ImageData`]): With a test split.
        processor: The model's image processor.
        name (`str`): The name of the progress bar and of the files.
        batch_size, num_workers: As in [`image_batches`].
        folder (`Path`, *optional*): Where to keep the features. Features of the same weights and images are read from
            there instead of computed.
        hidden (`bool`, defaults to `False`): Whether hidden states are kept too.

    Raises:
        DataError: If the data set has no test split.
        SiteError: If the model has no classification head that reads features.
    """
    if data.test is None:
        raise DataError(f"{data.name!r} has no test split, and what a probe reads can only be told on test images.")
    inner, groups = head_sites(model, processor)
    weights = weights_sha256(model) if folder is not None else ""
    splits = []
    for title, split in (("train", data.train), ("test", data.test)):
        key = _key(model, weights, split, processor, data) if folder is not None else ""
        file = folder / f"{name}-{title}.safetensors" if folder is not None else None
        found = _read(file, key, hidden) if file is not None else None
        if found is None:
            found = _compute(
                inner, groups, split, data, processor, f"{name}, {title}", batch_size, num_workers, hidden
            )
            if file is not None:
                _write(file, key, found, hidden)
        splits.append(found)
    return ModelFeatures(*splits)


def head_sites(model: PreTrainedModel, processor: Any) -> tuple[PreTrainedModel, list[SiteGroup]]:
    """The classifier (of an erased model, the one inside) and the sites where its head reads features."""
    sites = getattr(model.config, "sites", None)
    if is_erased(model) and sites is not None:
        return model.model, [SiteGroup.from_dict(site) for site in sites]
    picture = picture_batch(processor, image_channels(model.config))
    return model, find_sites(model, model_inputs(model, picture))


def _compute(
    model: PreTrainedModel,
    groups: list[SiteGroup],
    split: datasets.Dataset,
    data: ImageData,
    processor: Any,
    title: str,
    batch_size: int,
    num_workers: int,
    hidden: bool,
) -> SplitFeatures:
    batches = data.batches(
        split, processor, batch_size=batch_size, num_workers=num_workers, num_channels=image_channels(model.config)
    )
    bar = logging.tqdm(batches, total=-(-len(split) // batch_size), desc=f"Features, {title}", unit="batch")
    features, logits, labels, states = [], [], [], []
    for batch in stream_features(model, groups, bar, hidden=hidden):
        features.append(torch.cat([z.float().cpu() for z in batch.features], dim=1))
        logits.append(batch.logits.float().cpu())
        labels.append(torch.as_tensor(batch.labels))
        states.append([state.float().cpu() for state in batch.hidden])
    mapping = torch.tensor(data.labels_in(model.config))
    layers = tuple(torch.cat(layer) for layer in zip(*states, strict=True))
    return SplitFeatures(torch.cat(features), torch.cat(logits), mapping[torch.cat(labels)], layers)


def _key(model: PreTrainedModel, weights: str, split: datasets.Dataset, processor: Any, data: ImageData) -> str:
    """A hash that changes with the weights, the images, their labels and the preprocessing."""
    digest = hashlib.sha256()
    digest.update(weights.encode())
    settings = {name: value for name, value in model.config.to_dict().items() if name != "erasures"}
    digest.update(json.dumps([type(model).__name__, transformers.__version__, settings], default=str).encode())
    digest.update(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
    on = [projection.enabled for projection in getattr(model, "projections", ())]
    digest.update(f"{on} {data.labels_in(model.config)}".encode())
    digest.update(f"{split._fingerprint} {len(split)} {data.image_column} {data.label_column}".encode())
    return digest.hexdigest()


def _write(file: Path, key: str, split: SplitFeatures, hidden: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"features": split.features, "logits": split.logits, "labels": split.labels}
    tensors |= {f"hidden.{layer}": state for layer, state in enumerate(split.hidden)}
    layers = str(len(split.hidden)) if hidden else ""
    save_file(tensors, file, metadata={"format": "pt", "key": key, "layers": layers})


def _read(file: Path, key: str, hidden: bool) -> SplitFeatures | None:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("key") != key or (hidden and not metadata["layers"]):
                return None
            layers = tuple(opened.get_tensor(f"hidden.{layer}") for layer in range(int(metadata["layers"] or 0)))
            features, logits, labels = (opened.get_tensor(name) for name in ("features", "logits", "labels"))
            return SplitFeatures(features, logits, labels, layers if hidden else ())
    except Exception:  # the file is missing or was cut off: compute the features again
        return None
