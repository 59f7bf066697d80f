"""Loads a classifier and its image processor, and refuses a checkpoint that is not a trained classifier."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from .embedded import NAME as EMBEDDED
from .embedded import resolve_model
from .errors import CheckpointError, HfEscError, ModelError
from .methods import edited_fingerprint
from .modeling.fingerprints import weights_sha256
from .modeling.modeling_esc import inner_classifier

# Arguments of `from_pretrained` that say which files are loaded, and from where.
_OF_THE_HUB = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only")
# What an image processor is saved as.
PROCESSOR_FILE = "preprocessor_config.json"
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
    load_config(name, **{option: kwargs[option] for option in _OF_THE_HUB if option in kwargs})
    with _reported(name):
        model, info = AutoModelForImageClassification.from_pretrained(
            resolve_model(name), output_loading_info=True, **kwargs
        )
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
        raise ModelError(f"The device {str(device)!r} cannot be used: {first_line(error)}") from error


def load_config(name: str | Path, **kwargs) -> PreTrainedConfig:
    """
    Load the configuration of an image classifier: enough to look at its labels before its weights are read.

    Raises:
        ModelError: If there is none, or it is of no image classifier.
    """
    source = resolve_model(name)
    with _reported(name):
        refuse_missing_folder(source)
        config = AutoConfig.from_pretrained(source, **kwargs)
        own_code = AutoModelForImageClassification.__name__ in (getattr(config, "auto_map", None) or {})
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and not own_code:
            raise ValueError(f"it is a {config.model_type} model, for which transformers has no image classification.")
    return config


@contextmanager
def _reported(name: str | Path) -> Iterator[None]:
    """What transformers says of a checkpoint that it cannot load, as a [`ModelError`]."""
    try:
        yield
    except HfEscError:
        raise
    except Exception as error:  # a damaged configuration can raise anything, such as AttributeError for its dtype
        why = why_not_loaded(error, resolve_model(name))
        raise ModelError(
            f"No image classifier can be loaded from {name!r}: {why} It should be `embedded`, a folder saved by "
            "`save_pretrained`, or an id on the Hub."
        ) from error


def refuse_missing_folder(name: str) -> None:
    """Raise `FileNotFoundError` for a path that is not there and could not be an id on the Hub, and so ask no Hub."""
    if not Path(name).exists() and not _could_be_on_the_hub(name):
        raise FileNotFoundError(name)


def why_not_loaded(error: Exception, name: str) -> str:
    """
    Why something could not be loaded. Where `name` can only be a folder's, or is near one's, nobody has to hear of the
    Hub and its connection.
    """
    path = Path(name)
    if path.exists():
        return first_line(error)
    on_the_hub = _could_be_on_the_hub(name)
    missing = next(part for part in (path, *path.parents) if part.parent.exists())  # "." and "/" are there
    if missing == path or not on_the_hub:
        beside = [item.name for item in missing.parent.iterdir() if item.is_dir()] if missing.parent.is_dir() else []
        near = difflib.get_close_matches(missing.name, [*beside, *([] if "/" in name else [EMBEDDED])], n=3)
        if near or not on_the_hub:
            hint = f" Near it: {', '.join(repr(str(missing.parent / other)) for other in near)}." if near else ""
            return f"There is no folder {str(missing)!r}.{hint}"
    return f"There is no folder {name!r}. On the Hub: {first_line(error)}"


def _could_be_on_the_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


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
            f"No image processor was found for {source or type(model).__name__}: {_no_processor(source, error)} Pass "
            "`processing_class=` in Python."
        ) from error


def _no_processor(source: str, error: Exception) -> str:
    folder = Path(source or "nowhere")
    if not folder.is_dir() or (folder / PROCESSOR_FILE).exists():
        return first_line(error)
    above = folder.resolve().parent / PROCESSOR_FILE
    origin = str(above) if above.exists() else "the checkpoint that the model was trained from"
    return f"The folder has no {PROCESSOR_FILE}. Copy this file into it, from {origin}."


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


def first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
