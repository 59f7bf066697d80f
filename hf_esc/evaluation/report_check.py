"""Whether a report can be what was measured: of these values, and of this model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..data.labels import erased_labels
from ..ledger.fingerprints import values_sha256
from ..ledger.record import label_names

# What a report says of a model or of a gate that is no share in %.
_COUNTS = {"labelled", "members", "nonmembers", "drawn", "runs", "labels"}
_OTHERS = {"settings", "meaning", "zrf", "threshold", "in_force"}


def report_sha256(values: Mapping[str, Any]) -> str:
    """The fingerprint of the values of a report, but for the fingerprint itself."""
    return values_sha256({key: value for key, value in values.items() if key != "sha256"})


def check_values(values: Mapping[str, Any]) -> None:
    """
    Raise a ValueError where a value of a report is no possible one: a number that is not finite, a share of images
    outside [0, 100], a count below 0, a name that is no text.
    """
    for place, value in _leaves(values, ()):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{_named(place)} is {value}")
    for key in ("models", "gates"):
        for place, value in _leaves(values.get(key), (key,)):
            if value is None or _OTHERS & set(place):
                continue
            if _COUNTS & set(place):
                if type(value) is not int or value < 0:
                    raise ValueError(f"{_named(place)} is {value!r}, and it is a number of images, runs or classes")
            elif type(value) not in (int, float) or not 0 <= value <= 100:
                raise ValueError(f"{_named(place)} is {value!r}, and a share is from 0 to 100 %")
    for name, result in values["models"].items():
        zrf = (result.get("zrf") or {}).get("zrf", 0)
        if type(zrf) not in (int, float) or not 0 <= zrf <= 1:
            raise ValueError(f"the ZRF of {name!r} is {zrf}, and it is from 0 to 1")
    for key in ("num_forget_train", "num_forget_test"):
        if type(values[key]) is not int or values[key] < 0:
            raise ValueError(f"{key!r} is {values[key]!r}, and it is a number of images")
    for key in ("forget", "left_out", "method"):
        if not all(isinstance(name, str) for name in values.get(key, ())):
            raise ValueError(f"{key!r} is {values[key]!r}, and should be names")
    for key in ("model", "dataset"):
        if not isinstance(values[key], str):
            raise ValueError(f"{key!r} is {values[key]!r}, and should be a name")
    labels = values["forget_labels"]
    if len(labels) != len(values["forget"]) or not all(type(label) is int and label >= 0 for label in labels):
        raise ValueError(f"'forget_labels' is {labels!r}, and should be the number of each class in 'forget'")


def misfit(report: Any, config: Any, weights: str) -> str | None:
    """
    Why a report is not of a model, or None where it is.

    Args:
        report ([`UnlearningReport`]): The report.
        config (`PretrainedConfig`): Of the model: it has a ledger.
        weights (`str`): The fingerprint of the model's weights; of an erased model, of those inside.
    """
    ledger = config.erasures
    if (report.projection_sha256, report.weights_sha256) != (ledger[-1].get("projection_sha256"), weights):
        return "its fingerprints are not those of this projection and these weights"
    if report.method != [str(record.get("method")) for record in ledger]:
        return f"it is of a model that was made by {', '.join(report.method)}, and the ledger says otherwise"
    erased = erased_labels(config)
    # Whoever evaluates names the class where the ledger does not: of images without labels, or of single images.
    named = all(record.get("label_ids") for record in ledger)
    if named and not set(report.forget_labels) <= erased:
        return f"it is of {', '.join(report.forget)}, and the ledger says that other classes were erased"
    if any(label >= config.num_labels for label in report.forget_labels):
        return f"it is of the classes {report.forget_labels}, and the model has {config.num_labels}"
    if report.forget != [str(name) for name in label_names(config, report.forget_labels).values()]:
        return f"it names the classes {report.forget_labels} {report.forget}, and the model names them otherwise"
    others = set(map(str, label_names(config, erased - set(report.forget_labels)).values()))
    if set(report.left_out) != (others if report.forget_labels else set()):
        return f"it leaves out {report.left_out}, and by the ledger these were also erased: {sorted(others)}"
    return None


def _leaves(values: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no list and no mapping, with the keys that lead to it."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, (*place, str(key)))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _leaves(value, (*place, str(index)))
    else:
        yield place, values


def _named(place: tuple[str, ...]) -> str:
    return " / ".join(place)
