"""What goes into a classifier and comes out of it, and the output of an erased one. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, C classes.

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from .errors import SiteError


@dataclass
class ESCOutput(ModelOutput):
    """
    Output of an [`ESCModel`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): The cross-entropy, if labels were given.
        logits (`torch.FloatTensor` of shape `(B, C)`): Class scores from the projected features.
        pooler_output (`torch.FloatTensor` of shape `(B, d)`): The projected features. Those of several heads stand
            side by side.
        hidden_states (`tuple`, *optional*): The base model's hidden states. They bypass the projection and still show
            the erased class.
        attentions (`tuple`, *optional*): The base model's attentions. They bypass the projection too.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def logits_of(output: Any, num_labels: int | None) -> Tensor:
    """
    The logits `(B, C)` in the output of a classifier, found by name or else by their width.

    Raises:
        SiteError: If the output has no logits.
    """
    logits = getattr(output, "logits", None)
    if logits is None:  # pp_lcnet has another name for them
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
        wide = [x for x in values if isinstance(x, Tensor) and x.ndim == 2 and x.shape[-1] == num_labels]
        if len(wide) != 1:
            raise SiteError(f"The model's output {type(output).__name__} holds no logits for {num_labels} classes.")
        logits = wide[0]
    return logits


def forward_inputs(
    config: Any, forward: Callable, pixel_values: Tensor | None, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a classifier's `forward`: what was given, and what `config` asks for in every forward pass."""
    asked = [name for name in ("output_hidden_states", "output_attentions") if getattr(config, name, False)]
    taken = inspect.signature(forward).parameters.values() if asked else ()
    inputs = {name: True for name in asked if any(p.name == name or p.kind is p.VAR_KEYWORD for p in taken)}
    return inputs | ({} if pixel_values is None else {"pixel_values": pixel_values}) | given


def pooled(features: Tensor, axis: int, position: int | None = None) -> Tensor:
    """Features as `(B, d)`. If a head reads several positions of an image, `position` picks one; None averages all."""
    if features.ndim == 2:
        return features
    rows = features.movedim(axis, -1).flatten(1, -2)  # (B, positions, d)
    return rows.mean(dim=1) if position is None else rows[:, position]
