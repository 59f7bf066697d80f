"""Load a classifier with its image processor, and refuse what only looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from .embedded import resolve_model
from .errors import HfEscError, ModelError


def load_classifier(name: str | Path, *, device: str | torch.device | None = None, **kwargs) -> PreTrainedModel:
    """
    Load an image classifier in eval mode.

    Args:
        name (`str`): A folder, an id on the Hub, or `embedded` (`embedded/vit`, `embedded/all-cnn`,
            `embedded/resnet`).
        device (*optional*): Where to put it; an accelerator where there is one by default.
        kwargs: Passed on to `AutoModelForImageClassification.from_pretrained`.

    Raises:
        ModelError: If it cannot be loaded, is no image classifier, or its head has no weights in the checkpoint:
            transformers would start a random one, and to erase a class from that means nothing.
        CheckpointError: If it is an erased model with a damaged projection.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            resolve_model(name), output_loading_info=True, **kwargs
        )
    except HfEscError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"No image classifier can be loaded from {name!r}: {_first_line(error)} It should be `embedded`, a folder "
            "saved by `save_pretrained`, or an id on the Hub."
        ) from error
    if info["missing_keys"]:
        raise ModelError(
            f"{name!r} has no weights for {', '.join(sorted(info['missing_keys'])[:4])} of a "
            f"{type(model).__name__}. It is "
            "no trained image classifier: fine-tune it first, or name one that has its head."
        )
    device = device if device is not None else default_device()
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # a name that torch does not know, or a device that is not there
        raise ModelError(f"The device {str(device)!r} cannot be used: {_first_line(error)}") from error


def load_processor(model: PreTrainedModel) -> Any:
    """
    The image processor that belongs to a model: the one it carries, or the one saved where the model came from.

    Raises:
        ModelError: If there is none.
    """
    if getattr(model, "image_processor", None) is not None:
        return model.image_processor
    source = model.config._name_or_path
    try:
        if not source:
            raise ValueError("it was not loaded from anywhere")
        # A revision of the model comes with the processor of that revision.
        commit = getattr(model.config, "_commit_hash", None)
        return AutoImageProcessor.from_pretrained(source, **({"revision": commit} if commit else {}))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"No image processor was found for {source or type(model).__name__}: {_first_line(error)} Pass "
            f"`processor=`."
        ) from error


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
