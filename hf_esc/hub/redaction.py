"""Take the names of forgotten classes out of what is published: a name can be what had to be forgotten."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..configuration_esc import ESCConfig
from ..errors import HubError
from ..evaluation.report import UnlearningReport
from ..labels import redacted_name


def redacted_config(config: ESCConfig) -> ESCConfig:
    """
    A copy of a configuration in which forgotten classes are called `redacted-3` for class 3: in `id2label` and
    `label2id`, also of the classifier inside, and in the ledger. Their numbers stay.

    Raises:
        HubError: If a name still stands somewhere else in it, such as in the base model's.
    """
    names = forgotten_names(config)
    copied = copy.deepcopy(config)
    part: Any
    for part in (copied, copied.base_config):
        if part.id2label:
            part.id2label = {i: redacted_name(i) if i in names else name for i, name in part.id2label.items()}
            part.label2id = {name: i for i, name in part.id2label.items()}
    for record in copied.erasures:
        if record.get("label_ids"):
            record["labels"] = [redacted_name(label) for label in record["label_ids"]]
    refuse_forgotten_names(config, copied.to_dict(), "config.json")
    return copied


def redacted_report(report: UnlearningReport, config: ESCConfig) -> UnlearningReport:
    """The same of a report; what it calls the model is left out, which can be a path."""
    names = forgotten_names(config)
    by_name = {name: redacted_name(label) for label, name in names.items()}
    redacted = replace(
        report,
        model=type(config).model_type,
        forget=[by_name.get(name, name) for name in report.forget],
        left_out=[by_name.get(name, name) for name in report.left_out],
    )
    refuse_forgotten_names(config, redacted.to_dict(), "the evaluation")
    return redacted


def forgotten_names(config: ESCConfig) -> dict[int, str]:
    """The names of the classes in the ledger by their numbers; none of a class that has no name."""
    labels = {label for record in config.erasures for label in record.get("label_ids") or ()}
    by_number: Any = config.id2label or {}
    return {label: str(by_number[label]) for label in sorted(labels) if label in by_number}


def refuse_forgotten_names(config: ESCConfig, values: Any, where: str) -> None:
    """[`refuse_names`] of the forgotten classes. Labels of the others may hold one: "Shirt", and "T-shirt"."""
    names = forgotten_names(config)
    others = {str(name) for label, name in (config.id2label or {}).items() if label not in names}
    refuse_names(names.values(), values, where, others)


def refuse_names(names: Iterable[str], values: Any, where: str, allowed: Collection[str] = ()) -> None:
    """
    Raise a [`HubError`] if one of the names stands, as words, anywhere in nested values but in `allowed` texts.

    Case, spaces, hyphens and underscores make no difference, and of a name such as "tench, Tinca tinca" each part is a
    name.
    """
    for name in {part.strip() for whole in names for part in (whole, *whole.split(","))} - {""}:
        if re.fullmatch(r"redacted-\d+", name):
            continue
        letters = r"[\s_\-]+".join(map(re.escape, re.split(r"[\s_\-]+", name)))
        word = re.compile(rf"(?<![^\W_]){letters}(?![^\W_])", re.IGNORECASE)
        for place, text in _texts(values, where):
            if text not in allowed and word.search(text):
                raise HubError(
                    f"A forgotten class is still named in {place}. Take the name out there, or push without "
                    "`redact`, which is to say: with the name."
                )


def _texts(values: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, str):
        yield place, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(str(key), place)
            yield from _texts(value, f"{place}, {key}" if isinstance(key, str) and len(key) < 40 else place)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, place)
