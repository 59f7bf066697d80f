"""
Fingerprints of what computes beside the weights, and of what a record says, so that a later change of it shows.

A fingerprint is the SHA-256, in hexadecimal, of values as JSON. It reveals accidents and edits. It does not stop a
forger, who can write a new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..data.labels import numbered_names
from ..methods import IN_FRONT, kind_of

# What a configuration says beside what computes: where it is from, what is in the output beside the logits, and what
# other fingerprints are of (labels; names of weights, which tell the class of the model, and their type).
_COMPUTES_NOTHING = {"_name_or_path", "_commit_hash", "transformers_version", "auto_map", "erasures"}
_COMPUTES_NOTHING |= {"architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels"}
_COMPUTES_NOTHING |= {"output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "use_cache"}
_OF_PROCESSOR = {"image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"}


def values_sha256(values: Any) -> str:
    """The SHA-256 of values as JSON with sorted keys. Tuples count as lists, and whole numbers as keys as text."""
    return hashlib.sha256(json.dumps(_plain(values), sort_keys=True).encode()).hexdigest()


def settings(config: Any) -> dict[str, Any]:
    """
    What a configuration sets of what its model computes, where it is not the default of its class.

    A release of transformers that adds a setting gives it a default, so the settings of older models stay the same.
    """
    found = _beside_defaults(config, _COMPUTES_NOTHING)
    # A loss with labels writes the usual type into the configuration.
    if found.get("problem_type") == "single_label_classification":
        found.pop("problem_type")
    return found


def settings_sha256(config: Any) -> str:
    """Of [`settings`] of a classifier; of an erased model, those of the classifier inside."""
    return values_sha256(settings(getattr(config, "base_config", config)))


def labels_sha256(config: Any) -> str:
    """Of the names of the classes, in the order of the logits."""
    names = numbered_names(config) if config.id2label else {}
    return values_sha256([names.get(label, f"LABEL_{label}") for label in range(config.num_labels)])


def processor_sha256(processor: Any) -> str | None:
    """
    Of the settings of an image processor, where they are not the defaults of its class. None where there is no image
    processor, or one of the user's own that does not tell its settings.

    The classes of an image processor with and without torchvision count as one.
    """
    if not hasattr(processor, "to_dict"):
        return None
    found = _beside_defaults(processor, _COMPUTES_NOTHING | _OF_PROCESSOR)
    return values_sha256({"class": re.sub(r"(Fast|Pil)$", "", type(processor).__name__), **found})


def record_sha256(record: Mapping[str, Any], before: str | None) -> str:
    """
    Of all that a record says, and of the fingerprint of the record before it.

    Two fingerprints in a record of what stands in front of the head are left out, as the model bears them out: they
    are added when the model is put together.
    """
    apart = {"record_sha256"} | ({"projection_sha256", "base_sha256"} if kind_of(record) == IN_FRONT else set())
    return values_sha256([before, {key: value for key, value in record.items() if key not in apart}])


def sealed(ledger: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records with the fingerprint of each written anew, where there is one, after a change that is meant."""
    records: list[dict[str, Any]] = []
    before = None
    for record in ledger:
        fresh = dict(record)
        if "record_sha256" in record:
            fresh["record_sha256"] = record_sha256(record, before)
        before = fresh.get("record_sha256")
        records.append(fresh)
    return records


def _beside_defaults(of: Any, apart: set[str]) -> dict[str, Any]:
    """What `of.to_dict()` says that a fresh one of its class does not, without some keys, however deep they are."""
    try:
        defaults = _without(_plain(type(of)().to_dict()), apart)
    except Exception:  # a class whose arguments have no defaults raises what it likes
        defaults = {}
    found = _without(_plain(of.to_dict()), apart)
    return {key: value for key, value in found.items() if key not in defaults or defaults[key] != value}


def _without(values: Any, apart: set[str]) -> Any:
    if isinstance(values, dict):
        kept = {key: value for key, value in values.items() if key not in apart and not key.startswith("_attn")}
        return {key: _without(value, apart) for key, value in kept.items()}
    # LeViT adds an entry of this kind to its configuration whenever it is built.
    return [_without(value, apart) for value in values if value != [""]] if isinstance(values, list) else values


def _plain(values: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(values, default=str))
