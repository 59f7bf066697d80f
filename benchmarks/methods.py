"""Every method behind one call: from a model and images to a model that has forgotten, and seconds."""

import hashlib
import inspect
import json
import tempfile
import time
import warnings
from dataclasses import fields
from typing import Any

import transformers
from datasets import Dataset
from transformers import PreTrainedModel

from hf_esc.data import ImageData
from hf_esc.data.labelled_images import file_fingerprints
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.methods import METHODS

# What [`forget`] gives to a function itself.
_GIVEN = {"processing_class", "image_column", "label_column", "seed", "sites", "num_workers", "image_memory"}
QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}

# Settings of an image processor that change no pixel.
_INERT = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "return_tensors", "device"}
_INERT |= {"data_format", "input_data_format", "disable_grouping", "default_to_square"}


def images_sha256(data: ImageData) -> str:
    """A fingerprint of all files and labels, with the names of the classes."""
    digest = hashlib.sha256(str(data.label_names).encode())
    for split in (data.train, data.test):
        if split is not None:
            digest.update(b"".join(file_fingerprints(split, data.image_column)))
            digest.update(str(split[data.label_column][:]).encode())
    return digest.hexdigest()


def reading_of(processor: Any) -> str:
    """How images are read: what an image processor is set to."""
    settings = {
        k: v for k, v in processor.to_dict().items() if k not in _INERT and not k.startswith("_") and v is not None
    }
    return json.dumps(settings, sort_keys=True, default=str)


def known_settings(method: str) -> set[str]:
    """The settings that a method of the benchmark takes."""
    row = METHODS[method]
    if row.trained:
        return {field.name for field in fields(row.load_arguments())}
    taken = inspect.signature(row.load()).parameters.values()
    return {parameter.name for parameter in taken if parameter.kind is parameter.KEYWORD_ONLY} - _GIVEN


def forget(
    method: str,
    model: PreTrainedModel,
    data: ImageData,
    forget_set: Dataset,
    retain_set: Dataset,
    processor: Any,
    settings: dict[str, Any],
    seed: int,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """
    The model that has forgotten, and the seconds that took, on the clock and of this process: images are read and
    preprocessed within them, and the loading of the model is not.
    """
    if unknown := set(settings) - known_settings(method):
        raise ValueError(f"{method} has no settings {sorted(unknown)}.")
    row = METHODS[method]
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    sets = [forget_set, retain_set] if row.uses_retain else [forget_set]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore", IncompleteErasureWarning)  # it is in the numbers
        start, start_process = time.perf_counter(), time.process_time()
        if row.trained:
            # The Trainer goes to an accelerator where there is one, unless it is told not to.
            cpu = model.device.type == "cpu"
            args = row.load_arguments()(scratch, seed=seed, use_cpu=cpu, **QUIET, **settings)
            run = row.load()(model, args, *sets, processing_class=processor, **columns)
            run.remove_callback(transformers.PrinterCallback)
            run.train()
            found = run.result
        else:
            seeded = {"seed": seed} if "seed" in row.options else {}
            found = row.load()(model, *sets, processing_class=processor, **seeded, **settings, **columns)
        spent = {"seconds": time.perf_counter() - start, "process_seconds": time.process_time() - start_process}
        return found.eval(), spent
