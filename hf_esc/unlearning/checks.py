"""What has to be so before and after unlearning, whatever the method."""

# Shapes: N forget images, C classes.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.labelled_images import LabelledImages
from ..erasure.wrapping import copy_of_model
from ..errors import ForgetSetError, ModelError
from ..ledger.record import Unchanged, refuse_all_classes, refuse_forgotten, warn_if_incomplete
from ..modeling.configuration_esc import is_erased


def check_sets(config: Any, forget: LabelledImages, retain: LabelledImages | None, scenario: str) -> None:
    """
    Raise where images are to be forgotten and kept, or classes are, or no class would be left; or where a class that
    was forgotten before is among the images to keep, which would bring it back.
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
        raise ForgetSetError(
            f"There is nothing to do: the model gives none of the {len(labels)} forget images the class that its "
            "label says. Were they erased before, or are the labels not the model's class indices?"
        )


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy to be changed; a [`ModelError`] where that makes no sense."""
    if is_erased(model):
        raise ModelError(
            "This is an erased model, whose projection stands in front of the head that would be trained. Unlearn "
            "first and erase from the result, or erase from this one again."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("All weights of the model are frozen (`requires_grad` is False), and none could be trained.")
    return copy_of_model(model)


def unchanged_predictions(before: Tensor, after: Tensor, labels: Tensor, *, by_label: bool) -> Unchanged:
    """
    Which of the forget images are classified as their labels say now, whatever was before: training can also teach
    what it should make forget. Where images are forgotten and no class, those that were right and still are.
    """
    right, still = before == labels, after == labels
    if not by_label:
        return Unchanged((right & still).double().mean().item(), None, right.double().mean().item())
    shares = {label: still[labels == label].double().mean().item() for label in labels.unique().tolist()}
    return Unchanged(still.double().mean().item(), shares, right.double().mean().item())


def not_finite(model: PreTrainedModel, logits: Tensor) -> str | None:
    """What of a model, or of what it says to some images, is NaN or infinite; None where nothing is."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            return f"{name!r} is not finite"
    # Weights can be finite, and too large for the layers after them.
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
