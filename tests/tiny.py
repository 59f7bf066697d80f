"""A small random classifier (d = 8) and ready batches for it."""

import warnings

import torch

from hf_esc import ESCModel, erase
from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.errors import IncompleteErasureWarning

from .pictures import NAMES


def tiny(names=NAMES, **kwargs) -> AllCNNForImageClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AllCNNConfig(hidden_sizes=(4, 8), id2label=dict(enumerate(names)), **kwargs)
        return AllCNNForImageClassification(config).eval()


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches(*tensors: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": tensor} for tensor in tensors]


def quietly(*args, **kwargs) -> ESCModel:
    """An erasure with random features, whose completeness is beside the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        return erase(*args, **kwargs)


def ranks(model: ESCModel) -> list[int | None]:
    """The rank of every factor of every projection, None for a mask."""
    return [factor.get("rank") for factors in model.config.factors for factor in factors]
