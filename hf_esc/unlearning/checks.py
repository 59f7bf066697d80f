"""Checks before and after unlearning that do not depend on the method."""

# Shapes: N forget images, C classes.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.labelled_images import LabelledImages, labelled_images
from ..data.model_batches import check_model
from ..erasure.wrapping import copy_of_model
from ..errors import ModelError
from ..features.sites import evaluating
from ..features.stream import model_inputs
from ..ledger.record import Unchanged, refuse_all_classes, refuse_forgotten, warn_if_incomplete
from ..modeling.configuration_esc import is_erased
from ..modeling.outputs import logits_of
from ..training.forgetting_trainer import nothing_to_forget


def read_sets(
    model: PreTrainedModel, forget_set: Any, retain_set: Any, processor: Any, scenario: str, **options: Any
) -> tuple[LabelledImages, LabelledImages | None, Any]:
    """
    The forget images, the retain images where there are any, and the image processor.

    Args:
        model (`PreTrainedModel`): The classifier that the images are for.
        forget_set, retain_set: As [`labelled_images`] takes them; the retain set can be None.
        processor (*optional*): The image processor; that of `model` by default.
        scenario (`str`): `"classes"` or `"images"`.
        options: Columns and memory, as [`labelled_images`] takes them.

    Raises:
        ForgetSetError, LabelError: As [`labelled_images`] and [`check_sets`] do.
    """
    forget, processor = labelled_images(model, forget_set, processor, **options)
    retain = None
    if retain_set is not None:
        retain, processor = labelled_images(model, retain_set, processor, what="retain set", **options)
    check_sets(model.config, forget, retain, scenario)
    return forget, retain, processor


def check_sets(config: Any, forget: LabelledImages, retain: LabelledImages | None, scenario: str) -> None:
    """
    Raise where the same images, or images of the same class, are to be forgotten and to be kept; where no class would
    be left; or where images to keep are of a class that was forgotten before, as they would bring it back.
    """
    if retain is not None:
        forget.refuse_overlap(retain)
    labels = forget.labels.unique().tolist() if scenario == "classes" else []
    if labels:
        refuse_all_classes(config, labels, "take `scenario='images'`")
    if retain is not None:
        instead = ", or take `scenario='images'` to forget the given images alone" if labels else ""
        refuse_forgotten(config, labels, retain.labels.tolist(), instead)


def check_known(predictions: Tensor, labels: Tensor, scenario: str) -> None:
    """Raise a [`ForgetSetError`] where the model is wrong about all forget images `(N,)` already."""
    if scenario == "classes" and not (predictions == labels).any():
        raise nothing_to_forget(len(labels))


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model for training; a [`ModelError`] where it cannot be trained."""
    check_model(model)
    if is_erased(model):
        raise ModelError(
            "This is an erased model, whose projection stands in front of the head that would be trained. Unlearn "
            "first and erase from the result, or erase from this one again."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("All weights of the model are frozen (`requires_grad` is False), and none could be trained.")
    return copy_of_model(model)


@torch.no_grad()
def logits_of_all(model: PreTrainedModel, images: LabelledImages, batch_size: int = 256) -> Tensor:
    """The logits of a model for all images in eval mode, `(N, C)`, in float32 on the CPU."""
    num_labels: Any = model.config.num_labels
    found = []
    with evaluating(model):
        for batch in images.batches(batch_size):
            output = model(**model_inputs(model, batch["inputs"]))
            found.append(logits_of(output, num_labels).float().cpu())
    return torch.cat(found)


def unchanged_predictions(before: Tensor, after: Tensor, labels: Tensor, *, by_label: bool) -> Unchanged:
    """
    Which forget images are classified as their labels say after the training.

    Where classes are forgotten, an image counts that was classified otherwise before: training can also teach a class
    that it should make forget. Where single images are forgotten, only those count that were right before, too.
    """
    right, still = before == labels, after == labels
    if not by_label:
        return Unchanged((right & still).double().mean().item(), None, right.double().mean().item())
    shares = {label: still[labels == label].double().mean().item() for label in labels.unique().tolist()}
    return Unchanged(still.double().mean().item(), shares, right.double().mean().item(), shares)


def not_finite(model: PreTrainedModel, logits: Tensor) -> str | None:
    """Which weight of a model, or whether its logits for some images, are NaN or infinite; None if nothing is."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            return f"{name!r} is not finite"
    # Finite weights can be so large that the layers after them overflow.
    return None if torch.isfinite(logits).all() else "the logits of forget images are not finite"


def warn_of_unchanged(config: Any, record: Mapping[str, Any], *, advice: str) -> None:
    """Warn where a class was not forgotten, and say what to do, or where nothing tells."""
    by_label = record["unchanged_by_label"] or ()
    worst = "" if len(by_label) < 2 else f", and {max(by_label):.1%} of those of a class,"
    what = (
        f"after {record['method']}, {record['unchanged']:.1%} of the forget images{worst} are classified as their "
        f"labels say ({record['right_before']:.1%} before)"
    )
    warn_if_incomplete(config, record, what, advice=advice)
