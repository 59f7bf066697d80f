"""Take the names of forgotten classes out of what is published: the name itself may have to be forgotten."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.labels import erased_earlier, erased_labels, redacted_name
from ..errors import HubError
from ..evaluation.report import UnlearningReport
from ..ledger.fingerprints import labels_sha256, sealed


def redacted_config(config: Any) -> Any:
    """
    A copy of a configuration in which forgotten classes are called `redacted-3` for class 3: in `id2label` and
    `label2id`, also of the classifier inside, and in the ledger. Their numbers stay.

    Raises:
        HubError: If a name still stands somewhere else in it, such as in the base model's.
    """
    gone = erased_labels(config)
    copied = copy.deepcopy(config)
    part: Any
    for part in _parts(copied):
        if part.id2label:
            part.id2label = {i: redacted_name(i) if i in gone else name for i, name in part.id2label.items()}
            part.label2id = {name: i for i, name in part.id2label.items()}
    names = {str(name): redacted_name(i) for i, name in (config.id2label or {}).items() if i in gone}
    for record in copied.erasures:
        if record.get("label_ids"):
            record["labels"] = [redacted_name(label) for label in record["label_ids"]]
        if record.get("brought_back"):
            record["brought_back"] = [names.get(name, name) for name in record["brought_back"]]
        if record.get("labels_sha256"):  # whoever guesses a name could try it
            record["labels_sha256"] = labels_sha256(copied)
    copied.erasures = sealed(copied.erasures)
    refuse_forgotten_names(config, copied.to_dict(), "config.json")
    return copied


def redacted_report(report: UnlearningReport, config: Any) -> UnlearningReport:
    """The same of a report; what it calls the model is left out, which can be a path."""
    others = erased_earlier(config, report.forget_labels)
    redacted = replace(
        report,
        model=type(config).model_type,
        forget=[redacted_name(label) for label in report.forget_labels],
        left_out=[redacted_name(label) for label in others] if report.left_out else [],
    )
    refuse_forgotten_names(config, redacted.to_dict(), "the evaluation")
    return redacted


def refuse_in_files(config: Any, folder: Path, own: Collection[str]) -> None:
    """[`refuse_forgotten_names`] in every text file of a folder but `own`, and in what files are called."""
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        refuse_forgotten_names(config, name, f"the name of the file {name}")
        if file.suffix == ".json":
            refuse_forgotten_names(config, json.loads(file.read_text(encoding="utf-8")), name)
        elif file.suffix in (".md", ".py", ".txt") and name not in own:
            refuse_forgotten_names(config, file.read_text(encoding="utf-8"), name)


def _parts(config: Any) -> list[Any]:
    """A configuration, and that of the classifier inside where there is one."""
    inside = getattr(config, "base_config", None)
    return [config] if inside is None else [config, inside]


def forgotten_names(config: Any) -> set[str]:
    """All names of the classes in the ledger: its own, and those in the labels, also of the classifier inside."""
    names = {str(name) for record in config.erasures for name in record.get("labels") or ()}
    for part in _parts(config):
        by_number: Any = part.id2label or {}
        names |= {str(by_number[label]) for label in erased_labels(config) if label in by_number}
    return {name for name in names if not re.fullmatch(r"redacted-\d+|LABEL_\d+", name)}


def refuse_forgotten_names(config: Any, values: Any, where: str) -> None:
    """[`refuse_names`] of the forgotten classes. Labels of the others may hold one: "Shirt", and "T-shirt"."""
    gone = erased_labels(config)
    others = {str(name) for label, name in (config.id2label or {}).items() if label not in gone}
    refuse_names(forgotten_names(config), values, where, others)


def refuse_names(names: Iterable[str], values: Any, where: str, allowed: Collection[str] = ()) -> None:
    """
    Raise a [`HubError`] if one of the names stands, as words, anywhere in nested values but in `allowed` texts.

    Case, spaces, hyphens, underscores and a plural's s make no difference, and of a name such as "tench, Tinca tinca"
    each part is a name.
    """
    for name in {part.strip() for whole in names for part in (whole, *whole.split(","))} - {""}:
        if re.fullmatch(r"(redacted-)?\d+", name):
            continue  # a number says nothing, and stands everywhere
        letters = r"[\s_\-]+".join(map(re.escape, re.split(r"[\s_\-]+", name)))
        word = re.compile(rf"(?<![^\W_]){letters}(e?s)?(?![^\W_])", re.IGNORECASE)
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
            if not str(key).isdigit():  # the number of a class
                yield from _texts(str(key), place)
            yield from _texts(value, f"{place}, {key}" if isinstance(key, str) and len(key) < 40 else place)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, place)
