"""Loads a classifier and its image processor, and refuses a checkpoint that is not a trained classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from .embedded import resolve_model
from .errors import CheckpointError, HfEscError, ModelError
from .methods import edited_fingerprint
from .modeling.fingerprints import weights_sha256
from .modeling.modeling_esc import inner_classifier

# Seed of the random network in reports.
RANDOM_SEED = 0


def load_classifier(name: str | Path, *, device: str | torch.device | None = None, **kwargs) -> PreTrainedModel:
    """
    Load an image classifier in eval mode.

    Args:
        name (`str`): A folder, an id on the Hub, or `embedded` (`embedded/vit`, `embedded/all-cnn`,
            `embedded/resnet`).
        device (*optional*): The device of the model. By default, an accelerator if there is one, else the CPU.
        kwargs: Passed on to `AutoModelForImageClassification.from_pretrained`.

    Returns:
        `PreTrainedModel`

    Raises:
        ModelError: If the model cannot be loaded, is not an image classifier, or has no weights for its head in the
            checkpoint. transformers would start a random head, and erasing a class from that is meaningless.
        CheckpointError: If it is an erased model with a damaged projection, or its ledger says that its weights were
            edited, and they are not those that the edit left.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            resolve_model(name), output_loading_info=True, **kwargs
        )
    except HfEscError:
        raise
    except Exception as error:  # a damaged configuration can raise anything, such as AttributeError for its dtype
        raise ModelError(
            f"No image classifier can be loaded from {name!r}: {_first_line(error)} It should be `embedded`, a folder "
            "saved by `save_pretrained`, or an id on the Hub."
        ) from error
    drawn = "What is missing would be drawn at random. It is no trained image classifier: fine-tune it first"
    for problem, what, why in (
        ("missing_keys", "has no weights for", drawn),
        ("mismatched_keys", "has weights of another shape for", drawn),
        (
            "unexpected_keys",
            "has weights that its model does not use:",
            "With them it may answer otherwise. Save it anew",
        ),
    ):
        if keys := sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[problem]):
            raise ModelError(
                f"{name!r} {what} {', '.join(keys[:4])} ({type(model).__name__}, {len(keys)} in all). {why}, "
                "merge its adapters, or name one that has its head."
            )
    if not {"dtype", "torch_dtype", "quantization_config"} & set(kwargs):  # in another type, they have another one
        _check_edited(model, name)
    _note_commit(model.config, str(name), kwargs.get("revision"))
    device = device if device is not None else default_device()
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch does not know the name, or the device is missing
        raise ModelError(f"The device {str(device)!r} cannot be used: {_first_line(error)}") from error


def _check_edited(model: PreTrainedModel, name: str | Path) -> None:
    """Raise a [`CheckpointError`] where a ledger says that weights were edited, and these are others."""
    recorded = edited_fingerprint(getattr(model.config, "erasures", None) or [])
    if recorded is not None and weights_sha256(inner_classifier(model)) != recorded:
        raise CheckpointError(
            f"The ledger of {name!r} says that its weights were edited to forget, and these are others: their "
            f"fingerprint is not {recorded[:12]}… They were trained since, or belong to another model, perhaps the "
            "original. Fetch the checkpoint anew, or unlearn again."
        )


def load_processor(model: PreTrainedModel) -> Any:
    """
    The image processor of a model: the one that it carries, or the one beside its checkpoint.

    Raises:
        ModelError: If there is no image processor.
    """
    if getattr(model, "image_processor", None) is not None:
        return model.image_processor
    source = model.config._name_or_path
    try:
        if not source:
            raise ValueError("it was not loaded from anywhere")
        # Load the processor from the same revision as the model.
        origin = hub_origin(model.config)
        commit = origin[1] if origin is not None else None
        return AutoImageProcessor.from_pretrained(source, **({"revision": commit} if commit else {}))
    except Exception as error:  # as above
        raise ModelError(
            f"No image processor was found for {source or type(model).__name__}: {_first_line(error)} "
            "Pass `processing_class=`."
        ) from error


def random_network(model: PreTrainedModel, seed: int = RANDOM_SEED) -> PreTrainedModel:
    """A randomly initialised network with the architecture of `model`, or of the classifier inside an [`ESCModel`]."""
    base = inner_classifier(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = type(base)._from_config(base.config)
        except (AttributeError, TypeError):
            network = AutoModelForImageClassification.from_config(base.config)
    first = next(model.parameters())
    return network.to(first.device, first.dtype).eval()


def hub_origin(config: Any) -> tuple[str, str | None] | None:
    """
    The id and the commit of a model on the Hub. None if the model was not loaded from the Hub.

    transformers keeps the id and forgets the commit. The commit is known if [`load_classifier`] noted it, or if the
    cache holds no other. Otherwise it is None.
    """
    name = getattr(config, "_name_or_path", None)
    if not name or Path(name).exists():
        return None
    if noted := getattr(config, "_commit_hash", None):
        return name, noted
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    commits = {file.parent.name for file in snapshots.glob("*/*") if file.name == "config.json"}
    if not commits:
        return None
    return name, commits.pop() if len(commits) == 1 else None


def _note_commit(config: Any, name: str, revision: str | None) -> None:
    """Note the commit that was loaded, found in the path of the cached file. It is not saved with the model."""
    if Path(name).exists() or getattr(config, "_commit_hash", None):
        return
    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return
    if isinstance(file, str):
        config._commit_hash = Path(file).parent.name


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator if accelerator is not None else torch.device("cpu")


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
