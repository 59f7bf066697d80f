"""Streams features, logits and labels out of a frozen classifier."""

# Shapes: B images in a batch, d_g feature dimensions of group g, C classes.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from ..errors import ForgetSetError, SiteError
from ..modeling.outputs import logits_of, pooled
from .sites import SiteGroup, edited_features

# Errors that a model raises on inputs that it cannot take.
MODEL_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class FeatureBatch:
    """
    Features, logits and labels of one batch of images.

    Args:
        features (`list[torch.Tensor]`): One tensor `(B, d_g)` for each group of sites.
        logits (`torch.Tensor` of shape `(B, C)`): The model's logits.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): The batch's `labels`, if it has any.
        hidden (`list[torch.Tensor]`): One tensor `(B, d_l)` for each hidden state, the mean over its positions. Empty
            unless hidden states were requested and the model has them.
    """

    features: list[Tensor]
    logits: Tensor
    labels: Tensor | None
    hidden: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def stream_features(
    model: PreTrainedModel,
    groups: Sequence[SiteGroup],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    hidden: bool = False,
) -> Iterator[FeatureBatch]:
    """
    Run batches through `model` and yield the features that its heads read.

    The caller puts the model in eval mode. The features are those that reach the sites, after every hook that is
    already there.

    Args:
        model (`PreTrainedModel`): An image classifier in eval mode.
        groups (`Sequence[SiteGroup]`): From [`find_sites`].
        batches (`Iterable[Mapping[str, torch.Tensor]]`): The model's inputs. `labels` are not passed to the model.
        hidden (`bool`, defaults to `False`): Whether to yield the hidden states too.

    Yields:
        [`FeatureBatch`]

    Raises:
        RuntimeError: If the model is in training mode.
        ForgetSetError: If a batch cannot be run through the model.
        SiteError: If a site does not run, or reads another number of features than its group says.
    """
    if model.training:
        raise RuntimeError("Features are taken in eval mode: in training mode BatchNorm would learn the forget set.")
    read: dict[int, Tensor] = {}

    def edit(group: int, features: Tensor) -> None:
        read[group] = features

    options = {"output_hidden_states": True} if hidden else {}
    for number, batch in enumerate(batches):
        inputs = model_inputs(model, batch)
        read.clear()
        with edited_features(model, list(groups), edit):
            try:
                output = model(**inputs, **options)
            except MODEL_ERRORS as error:
                raise refused_batch(model, number, inputs, error) from error
        if len(read) != len(groups):
            raise SiteError(
                f"{len(groups) - len(read)} of the {len(groups)} heads did not run in the forward pass. Find its "
                "sites anew with `find_sites`."
            )
        features = [pooled(read[index], group.axis, group.position) for index, group in enumerate(groups)]
        for group, z in zip(groups, features, strict=True):
            if z.shape[1] != group.dim:
                raise SiteError(f"The head {group.modules[0]!r} reads {z.shape[1]} features, not {group.dim}.")
        states = [hidden_features(state) for state in (getattr(output, "hidden_states", None) or ()) if hidden]
        yield FeatureBatch(features, logits_of(output, model.config.num_labels), batch.get("labels"), states)


def hidden_features(state: Tensor) -> Tensor:
    """
    A hidden state as `(B, d)`: the mean over the tokens of `(B, T, d)`, or over the map of `(B, d, H, W)` or
    `(B, H, W, d)`.

    Maps of square images are square. So two equal axes that are not the last two mean that the channels come last.
    """
    if state.ndim < 3:
        return state.flatten(1)
    channels_last = state.ndim == 3 or (state.ndim == 4 and state.shape[1] == state.shape[2] != state.shape[3])
    return pooled(state, -1 if channels_last else 1)


def model_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its labels, on the model's device and in its precision."""
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name != "labels"
    }


def refused_batch(
    model: PreTrainedModel, number: int, batch: Mapping[str, Tensor], error: Exception
) -> ForgetSetError:
    """The error for a batch that the model cannot take."""
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
    return ForgetSetError(
        f"Batch {number} of the images ({shapes}) does not go through {type(model).__name__}: {error}"
    )
