"""Fingerprints of tensors, which reveal later changes. Travels with checkpoints."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from .projection import Projection


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """
    SHA-256, in hexadecimal, of the names, types, shapes and bytes of tensors, in the order of their names.

    It reveals accidents and edits. It does not stop a forger, who can write a new fingerprint too.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """[`tensors_sha256`] of all weights and buffers in a checkpoint of `model`."""
    return tensors_sha256(model.state_dict().items())


def head_names(classifier: nn.Module, sites: Iterable[dict[str, Any]]) -> set[str]:
    """The names of the weights of a classifier's head: of the modules that read the features of these sites."""
    paths = tuple(f"{path}." for site in sites for path in site["modules"])
    return {name for name in classifier.state_dict() if name.startswith(paths)}


def head_sha256(model: Any) -> str:
    """[`tensors_sha256`] of the head inside an erased model."""
    weights = model.model.state_dict()
    return tensors_sha256((name, weights[name]) for name in head_names(model.model, model.config.sites))


def structure(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, str]:
    """
    What a classifier computes with, by path: the shapes of its weights and buffers (or of those in `state`), and the
    kind and the settings of its modules. What acts in training alone is left out, and so are names that tell how a
    training divides a model.
    """
    weights = model.state_dict() if state is None else state
    parts = {path: str(tuple(tensor.shape)) for path, tensor in weights.items()}
    for path, module in model.named_modules():
        kind = re.sub(r".*BatchNorm.*", "BatchNorm", type(module).__name__.removeprefix("FSDP"))
        if "Drop" not in kind and kind != "Identity":
            parts[f"{path} ({kind})"] = module.extra_repr()
    return parts


def projections_sha256(projections: Iterable[Projection], sites: Iterable[dict[str, Any]]) -> str:
    """[`tensors_sha256`] of every factor of every projection, with its site and its settings."""
    tensors = []
    for projection, site in zip(projections, sites, strict=True):
        place = json.dumps(site, sort_keys=True)
        for index, factor in enumerate(projection.factors):
            with align_module_device(factor):  # an offloaded factor stays on the meta device until it is used
                settings = json.dumps(factor.config(), sort_keys=True)
                for name, tensor in factor.state_dict().items():
                    # A model that is loaded in another precision holds the same values in another type.
                    stored = factor.stored[name]
                    same = tensor.to("cpu", torch.float32 if stored.is_floating_point else stored)
                    tensors.append((f"{place}.{index}.{name} {settings}", same))
    return tensors_sha256(tensors)
