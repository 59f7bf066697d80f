"""A randomly initialised network of the same architecture: what is known before anything was learned."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

# Of the network that reports are made with.
RANDOM_SEED = 0


def random_network(model: PreTrainedModel, seed: int = RANDOM_SEED) -> PreTrainedModel:
    """A randomly initialised network of the architecture of `model`, of what is inside an [`ESCModel`]."""
    base = model.model if model.config.model_type == "esc" else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = type(base)._from_config(base.config)
        except (AttributeError, TypeError):
            network = AutoModelForImageClassification.from_config(base.config)
    first = next(model.parameters())
    return network.to(first.device, first.dtype).eval()
