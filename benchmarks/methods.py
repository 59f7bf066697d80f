"""Every method behind one call: from a model and images to a model that has forgotten, and seconds."""

import hashlib
import json
import tempfile
import time
import warnings
from dataclasses import fields
from typing import Any

import transformers
from datasets import Dataset
from transformers import PreTrainedModel

from hf_esc import ESCTTrainer, ESCTTrainingArguments, erase
from hf_esc.data import ImageData
from hf_esc.data.labelled_images import file_fingerprints
from hf_esc.erasure.remap import remap
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.unlearning import METHODS, fisher_forgetting

QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
# What each method reads of the images. The paper compares ESC with those that do without retain images.
RETAIN_DATA = {"remap", "fisher", *(name for name, trainer in METHODS.items() if trainer.uses_retain)}


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
    if method in METHODS:
        return {field.name for field in fields(METHODS[method].arguments)}
    if method == "esc-t":
        return {field.name for field in fields(ESCTTrainingArguments)}
    return {
        "esc": {"p", "rank", "per_class", "scenario"},
        "remap": {"bank_size", "threshold"},
        "fisher": {"alpha", "floor", "zero_head_rows", "num_images", "batch_size", "scenario"},
    }[method]


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
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    common = {"processor": processor, **columns}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore", IncompleteErasureWarning)  # it is in the numbers
        start, start_process = time.perf_counter(), time.process_time()
        if method == "esc":
            found = erase(model, forget_set, **settings, **common)
        elif method == "remap":
            found = remap(model, forget_set, retain_set, seed=seed, **settings, **common)
        elif method == "fisher":
            found = fisher_forgetting(
                model, forget_set, retain_set, seed=seed, processing_class=processor, **settings, **columns
            )
        else:
            trainer = ESCTTrainer if method == "esc-t" else METHODS[method]
            # The Trainer goes to an accelerator where there is one, unless it is told not to.
            args = trainer.arguments(scratch, seed=seed, use_cpu=model.device.type == "cpu", **QUIET, **settings)
            sets = [forget_set, retain_set] if method in RETAIN_DATA else [forget_set]
            run = trainer(model, args, *sets, processing_class=processor, **columns)
            run.remove_callback(transformers.PrinterCallback)
            run.train()
            found = run.result
        spent = {"seconds": time.perf_counter() - start, "process_seconds": time.process_time() - start_process}
        return found.eval(), spent
