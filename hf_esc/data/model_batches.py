"""Batches of a forget set with the model's labels: made from a data set by the image processor, or ready-made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import DataError, ForgetSetError, LabelError, ModelError
from ..loading import load_processor
from .batches import Batch, image_batches, image_channels, ready_batches
from .columns import class_indices, find_image_column, find_label_column, usual_label_columns
from .labels import UNCLEAR, class_names, match_labels, model_label_names

# Libraries whose modules or tensors hold quantised weights.
QUANTISERS = {"torchao", "torch.ao", "bitsandbytes", "quanto", "optimum", "hqq", "gptqmodel", "auto_gptq", "awq"}
NOTHING_TO_FORGET = (
    "The forget set is empty: there is nothing to look at. Check the split and the label that it was selected by."
)


def check_model(model: Any) -> None:
    """
    Raise unless this is a classifier of transformers: the model itself, and nothing around it.

    Raises:
        ModelError: With the way to the classifier inside.
    """
    if isinstance(model, PreTrainedModel):
        return
    name = type(model).__name__
    if isinstance(model, str | Path):
        raise ModelError(f"{str(model)!r} is the name of a model. Load it first, with `hf_esc.load_classifier`.")
    advice = "Load one with `AutoModelForImageClassification`."
    if hasattr(model, "_orig_mod"):
        advice = "It was compiled. Pass the classifier inside it, `model._orig_mod`, and compile the result."
    elif hasattr(model, "merge_and_unload"):
        advice = "Adapters are added to its layers. Pass the classifier with these merged, `model.merge_and_unload()`."
    elif isinstance(getattr(model, "module", None), torch.nn.Module):
        advice = "Pass the classifier inside it, `model.module`."
    elif type(model).__module__.split(".")[0] == "timm":
        advice = (
            "Wrap it: `TimmWrapperForImageClassification(TimmWrapperConfig(architecture=…, num_labels=…))`, and load "
            "its weights into the `timm_model` of that."
        )
    raise ModelError(f"This {name} is no image classifier of transformers. {advice}")


def check_weights(model: PreTrainedModel) -> None:
    """
    Raise where the weights are not those that `save_pretrained` writes and `from_pretrained` reads.

    Raises:
        ModelError: If the model is quantised, or adapters are added to its layers.
    """
    made_by = {_library(module) for module in model.modules()} | {_library(weight) for weight in model.parameters()}
    if "peft" in made_by:
        raise ModelError(
            "Adapters are added to layers of this model, and a checkpoint of it would not load. Merge them into the "
            "weights first, with `merge_and_unload()` of the PeftModel, and pass what that returns."
        )
    whole = all(weight.is_floating_point() or weight.is_complex() for weight in model.parameters())
    if not whole or made_by & QUANTISERS or getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(
            "The weights of this model are quantised. Erase in full precision, then quantise the result: the "
            "projection is kept."
        )


def _library(thing: Any) -> str:
    """The library that a module or a tensor is of; of torch, whether it is a quantised one."""
    module = type(thing).__module__
    return "torch.ao" if module.startswith("torch.ao.") else module.split(".")[0]


def forget_batches(
    model,
    forget_set,
    processor,
    batch_size: int,
    num_workers: int,
    image_column,
    label_column,
    *,
    share: tuple[int, int] = (0, 1),
    what: str = "forget set",
    with_labels: bool = True,
):
    """
    Batches with the model's class indices as labels, and the image processor if one was needed.

    `share` is the shard of this process, as in [`image_batches`]; ready batches are not sharded. `what` names the set
    in errors. With `with_labels=False` the batches have no labels, even if the set has some.
    """
    check_model(model)
    if isinstance(forget_set, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ForgetSetError(
            f"The {what} should be one split, and this has {list(forget_set)}. Choose one, such as `['train']`."
        )
    if not isinstance(forget_set, datasets.Dataset | datasets.IterableDataset):
        if not isinstance(forget_set, Iterable):
            raise ForgetSetError(f"A {what} is a data set or an iterable of batches, not {type(forget_set).__name__}.")
        batches = ready_batches(forget_set)
        if not with_labels:
            batches = ({name: value for name, value in batch.items() if name != "labels"} for batch in batches)
        return batches, processor if processor is not None else processor_at_hand(model)
    total = None
    if isinstance(forget_set, datasets.Dataset):
        if not len(forget_set):
            raise ForgetSetError(NOTHING_TO_FORGET.replace("forget set", what))
        total = len(range(share[0], -(-len(forget_set) // batch_size), share[1]))
    features = forget_set.features or _resolved_features(forget_set, what)
    image_column = find_image_column(features, image_column)
    mapping = None
    if not with_labels:
        label_column = None
    else:
        try:
            label_column = find_label_column(features, label_column)
        except DataError:
            if label_column is not None or len(usual_label_columns(features)) > 1:
                raise
        else:
            mapping = label_mapping(features[label_column], model.config)
    processor = processor if processor is not None else load_processor(model)
    batches = image_batches(
        forget_set,
        processor,
        image_column=image_column,
        label_column=label_column,
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(model.config),
        share=share,
    )
    bar = logging.tqdm(batches, total=total, desc=f"{what.split()[0].capitalize()} features", unit="batch")
    return (batch if mapping is None else map_labels(batch, mapping, what) for batch in bar), processor


def _resolved_features(stream: datasets.IterableDataset, what: str):
    try:
        return stream._resolve_features().features
    except StopIteration:
        raise ForgetSetError(NOTHING_TO_FORGET.replace("forget set", what)) from None
    except Exception as error:  # pyarrow and datasets raise many types
        raise DataError(
            f"The columns of the {what} are not known ({error}). Give `features=` where it is made, to "
            "`from_generator` or `map`."
        ) from error


def label_mapping(feature, config) -> list[int]:
    """
    The model's class index for each class index of the data set, in order. `UNCLEAR` where several classes of the
    model have the name: [`mapped`] refuses images of them.
    """
    names = model_label_names(config)
    if isinstance(feature, datasets.ClassLabel):
        return match_labels(class_names(feature.names), names, feature.num_classes, config.num_labels, unclear=True)
    if "string" in feature.dtype:
        raise DataError(
            f"The label column holds text ({feature.dtype}). Turn it into a ClassLabel with `class_encode_column`, so "
            "that its names can be matched to the model's."
        )
    return list(range(config.num_labels))


def map_labels(batch: Batch, mapping: list[int], what: str = "forget set") -> Batch:
    """The batch with the data set's class indices replaced by the model's."""
    return batch | {"labels": mapped(batch["labels"], mapping, what)}


def mapped(labels: torch.Tensor, mapping: list[int], what: str) -> torch.Tensor:
    """
    The model's class indices for those of a data set, `(N,)`.

    Raises:
        LabelError: If there is no such class, or several classes of the model have its name.
    """
    if labels.is_floating_point():
        labels = torch.from_numpy(class_indices(labels.tolist(), "labels"))
    if labels.min() < 0 or labels.max() >= len(mapping):
        raise LabelError(
            f"The {what} has labels from {labels.min()} to {labels.max()}, beyond the {len(mapping)} classes. They "
            f"should be from 0 to {len(mapping) - 1}."
        )
    found = torch.tensor(mapping)[labels]
    if (found == UNCLEAR).any():
        label = int(labels[found == UNCLEAR][0])
        raise LabelError(
            f"The {what} has images of class {label}, and several classes of the model have its name. Rename one "
            "side: the model's `id2label`, or the data set's ClassLabel names."
        )
    return found


def processor_at_hand(model: PreTrainedModel):
    """The model's image processor, or None. Ready batches do not need it, but the erased model carries it along."""
    try:
        return load_processor(model)
    except ModelError:
        return None
