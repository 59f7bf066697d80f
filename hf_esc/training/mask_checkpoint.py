"""Saves masks in training and loads them again; masks of another model or run are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..modeling.factors import TOLERANCE
from .checkpoints import refuse_another_run, refuse_damaged
from .masked_head import MaskedHead

_FILE = "mask.safetensors"


def save_masks(folder: Path, head: MaskedHead, run: dict[str, Any]) -> None:
    """Write masks and bases, with a digest of the head that they are trained for, and what the run is."""
    tensors = {f"mask.{index}": mask.detach() for index, mask in enumerate(head.masks)}
    tensors |= {f"basis.{index}": basis for index, basis in enumerate(head.bases)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        folder / _FILE,
        metadata={"format": "pt", "head": _digest(head), "settings": json.dumps(run)},
    )


@torch.no_grad()
def load_masks(folder: Path, head: MaskedHead, moments: Sequence[Tensor], run: dict[str, Any]) -> None:
    """
    Load the masks and bases of a checkpoint into a head. Nothing is loaded where an error is raised.

    Args:
        folder (`Path`): A checkpoint.
        head ([`MaskedHead`]): The head to load them into.
        moments (`Sequence[torch.Tensor]`): The second moments `(d_g, d_g)` of the forget features at hand.
        run (`dict`): What the run at hand is, as [`ForgettingTrainer.run`] says. The checkpoint has to be of this run.

    Raises:
        CheckpointError: If there are none, or they belong to another model, forget set or run.
    """
    file = folder / _FILE
    try:
        state = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            digest, stored = metadata.get("head"), json.loads(metadata["settings"])
    except Exception as error:  # safetensors and the file system raise different errors
        raise CheckpointError(f"{file} holds no mask of ESC-T: {type(error).__name__}: {error}") from error
    expected = {f"{kind}.{i}": tuple(mask.shape) for kind in ("mask", "basis") for i, mask in enumerate(head.masks)}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        raise CheckpointError(f"{file} is a mask of another model: it holds {found}, and {expected} is expected.")
    if digest != _digest(head):
        raise CheckpointError(f"{file} is a mask of another model: the weights of its head are others.")
    for index, moment in enumerate(moments):
        if not torch.isfinite(state[f"mask.{index}"]).all():
            raise CheckpointError(f"{file} has a mask that is not finite.")
        if not _diagonalises(state[f"basis.{index}"].to(moment), moment):
            raise CheckpointError(
                f"{file} is a mask for other images or another backbone: its basis is not that of these features."
            )
    refuse_another_run(folder, stored, run)
    refuse_damaged(folder)
    for index, mask in enumerate(head.masks):
        mask.copy_(state[f"mask.{index}"])
        head.bases[index].copy_(state[f"basis.{index}"])


def _digest(head: MaskedHead) -> str:
    """A fingerprint of the weights of the head, and of what is erased behind the mask."""
    digest = hashlib.sha256()
    for tensor in [*head.heads.state_dict().values(), *head.after.state_dict().values()]:
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _diagonalises(basis: Tensor, moment: Tensor) -> bool:
    """Whether U is orthonormal and U^T M U is diagonal, within the rounding of features from another device."""
    rotated = basis.T @ moment @ basis
    off = (rotated - rotated.diagonal().diag()).abs().max()
    eye = torch.eye(len(basis), dtype=basis.dtype, device=basis.device)
    return bool(off <= 1e-3 * moment.diagonal().max()) and bool((basis.T @ basis - eye).abs().max() <= TOLERANCE)
