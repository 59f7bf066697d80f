"""The ledger of an erased model: one record for each erasure, with what was done and how well it went."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ..data.labels import erased_labels, model_label_names
from ..errors import CheckpointError, HubError, IncompleteErasureWarning, LabelError, warn
from ..loading import hub_origin
from ..methods import IN_FRONT as IN_FRONT  # the kinds, for those who write records
from ..methods import WEIGHTS as WEIGHTS
from ..methods import kind_of
from ..version import __version__
from .fingerprints import labels_sha256, processor_sha256, record_sha256, settings_sha256

# An erasure is incomplete if a larger fraction of the predictions stays.
MOST_UNCHANGED = 0.10


@dataclass(frozen=True)
class Unchanged:
    """
    How many of the forget images keep their prediction.

    With labels, only predictions that were right count: an image that the head already took for another class has
    nothing to lose. (After an edit of the weights, every prediction that is right counts.)

    Args:
        share (`float`): The fraction of the images whose prediction stays.
        by_label (`dict[int, float]`, *optional*): The same for each label: a class that stays whole must not hide
            behind others that are gone.
        right_before (`float`, *optional*): With labels, the fraction whose prediction was right before.
        right_after (`dict[int, float]`, *optional*): With labels, for each the fraction that the head gives it after
            the erasure, whatever it gave before: an erasure can also teach a class. This decides what is complete.
    """

    share: float
    by_label: dict[int, float] | None = None
    right_before: float | None = None
    right_after: dict[int, float] | None = None

    @property
    def worst(self) -> float:
        """The largest fraction that keeps a label, or where there are no labels, its prediction."""
        if self.right_after:
            return max(self.right_after.values())
        return max(self.by_label.values()) if self.by_label else self.share


def label_names(config, labels: Iterable[int]) -> dict[int, Any]:
    """The model's name of each label, or its number where there are none."""
    names = model_label_names(config)
    return {label: names[label] if names else label for label in sorted(labels)}


def edits_weights(record: Mapping[str, Any]) -> bool:
    """
    Whether a record is of a method that edits the weights.

    Raises:
        CheckpointError: As [`kind_of`].
    """
    return kind_of(record) == WEIGHTS


def refuse_all_classes(config, labels: Iterable[int], instead: str = "drop their labels (`remove_columns`)") -> None:
    """
    Raise a [`LabelError`] where, with `labels` and what was erased before, no class of the model would be left.

    `instead` is what to do for images of every class.
    """
    gone = {*labels, *erased_labels(config)}
    if len(gone) == config.num_labels:
        raise LabelError(
            f"All {len(gone)} classes of the model are to be forgotten, which leaves nothing to keep. To forget "
            f"images of every class, {instead}."
        )


def refuse_forgotten(config, labels: Iterable[int], retained: Iterable[int], instead: str = "") -> None:
    """
    Raise a [`LabelError`] where images to keep are of a class that is to be forgotten or was before: they would teach
    it again, or stand in for it.

    `instead` is the end of the advice.
    """
    kept, now = set(retained), set(labels)
    for gone, which in ((now, "is to be forgotten"), (erased_labels(config) - now, "was forgotten before")):
        if both := kept & gone:
            names = ", ".join(map(str, label_names(config, both).values()))
            raise LabelError(f"The retain set has images of {names}, which {which}. Take them out{instead}.")


def check_ledger(ledger: Iterable[Mapping[str, Any]]) -> None:
    """
    Raise a [`CheckpointError`] where a value of a record is no possible one, as cards and messages tell them, or its
    kind is not known.
    """

    def whole(value: Any) -> bool:
        return type(value) is int and value >= 0

    def fraction(value: Any) -> bool:
        return type(value) in (int, float) and 0 <= value <= 1

    def text(value: Any) -> bool:
        return isinstance(value, str)

    def each(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda values: isinstance(values, list | tuple) and all(map(of, values))

    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(("num_images", "unchanged_of", "bank_size", "num_retain_images"), (whole, "a whole number")),
        **dict.fromkeys(("unchanged", "right_before", "tolerance"), (fraction, "a fraction from 0 to 1")),
        **dict.fromkeys(("unchanged_by_label", "right_after_by_label"), (each(fraction), "fractions from 0 to 1")),
        **dict.fromkeys(("labels", "brought_back"), (each(lambda name: text(name) or whole(name)), "names")),
        **dict.fromkeys(("method", "date", "base", "base_revision", "scenario"), (text, "text")),
        "label_ids": (each(whole), "whole numbers"),
        "complete": (lambda value: isinstance(value, bool), "true or false"),
        "versions": (lambda value: isinstance(value, Mapping), "names with versions"),
    }
    for place, record in enumerate(ledger):
        kind_of(record)
        for key, (possible, what) in rules.items():
            if record.get(key) is not None and not possible(record[key]):
                raise CheckpointError(
                    f"Record {place} of the ledger has {record[key]!r} as {key!r}, which should be {what}. Fetch the "
                    "checkpoint anew, or erase the original again."
                )


def is_complete(record: Mapping[str, Any]) -> bool | None:
    """
    Whether an erasure is complete, by what its record says of the head's answers. Nothing else decides that.

    It is complete if the head gives no label to more than 10 % of its forget images, whatever it gave them before. A
    training in front of the head has a tolerance of its own: no larger fraction of all may be right, and of no label
    may more be right than that or 10 %. An erasure is not complete if the head was wrong about nearly all forget
    images before: then nothing can be seen.

    None if nothing tells: the predictions could not be compared, or single images were forgotten, whose classes stay.
    """
    unchanged, right_before = record.get("unchanged"), record.get("right_before")
    if unchanged is None or record.get("scenario") == "images":
        return None
    if right_before is not None and right_before < MOST_UNCHANGED:
        return False
    # Records that were written before there was `right_after` have the other.
    left = record.get("right_after_by_label") or record.get("unchanged_by_label") or [unchanged]
    if not edits_weights(record) and record.get("tolerance") is not None:
        return unchanged <= record["tolerance"] + 1e-9 and max(left) <= max(record["tolerance"], MOST_UNCHANGED) + 1e-9
    return max(left) <= MOST_UNCHANGED


def not_gone(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """
    The names of what was erased and is not gone.

    The newest record about a class decides. One that could see nothing, as an earlier one had erased the class, leaves
    that to the earlier one. What a record has `brought_back` is there again until a later one erases it.
    """
    gone: dict[str, bool] = {}
    for record in ledger:
        complete = is_complete(record)
        right_before = record.get("right_before")
        nothing_seen = right_before is not None and right_before < MOST_UNCHANGED
        for name in map(str, record.get("labels") or ["images without labels"]):
            if complete is not None and not (nothing_seen and gone.get(name)):
                gone[name] = complete
        gone |= dict.fromkeys(record.get("brought_back") or (), False)
    return [name for name, is_gone in gone.items() if not is_gone]


def refuse_incomplete(ledger: Iterable[Mapping[str, Any]], others: Iterable[Any] = ()) -> None:
    """Raise a [`HubError`] where something that was erased is not gone; `others` are there by an evaluation."""
    if left := not_gone(ledger) or list(map(str, others)):
        raise HubError(
            f"The erasure of {', '.join(left)} is incomplete, or nothing shows that it worked. Erase more (another "
            "rank or method), or pass `allow_incomplete` to publish the model as it is."
        )


def warn_if_incomplete(config, record: Mapping[str, Any], what: str, *, advice: str, unseen: str = "") -> None:
    """
    Warn with an [`IncompleteErasureWarning`] where an erasure is not complete.

    Args:
        config (`PretrainedConfig`): Of the model before the erasure.
        record (`Mapping`): The record of the erasure.
        what (`str`): What the head still does, as the middle of a sentence.
        advice (`str`): What to do about it.
        unseen (`str`): What else to say where the head was wrong about nearly all forget images before.
    """
    if is_complete(record) is not False:
        return
    right_before = record.get("right_before")
    if right_before is None or right_before >= MOST_UNCHANGED:
        warn(f"The erasure is incomplete: {what}. {advice}", IncompleteErasureWarning)
        return
    before = label_names(config, erased_labels(config) & set(record["label_ids"] or ()))
    why = "Were they erased before, or are the labels not the model's class indices?"
    if before:
        names = ", ".join(map(str, before.values()))
        why = f"The ledger says that {names} was erased before: there is little left to do."
    warn(
        f"The erasure is incomplete, or cannot be seen: only {right_before:.1%} of the forget images had the "
        f"prediction that their label says{unseen}. {why}",
        IncompleteErasureWarning,
    )


def base_on_the_hub(config) -> tuple[str | None, str | None]:
    """
    The Hub's id and the commit of the classifier that is erased, or None if it did not come from the Hub. Local paths
    are not recorded: they could name a person.
    """
    for record in getattr(config, "erasures", []):
        return record.get("base"), record.get("base_revision")
    return hub_origin(config) or (None, None)


def ledger_record(
    config,
    method: str,
    settings: dict[str, Any],
    *,
    kind: str,
    labels: Iterable[int],
    num_images: int,
    unchanged: Unchanged | None,
    unchanged_of: int,
    processor: Any,
) -> dict[str, Any]:
    """
    A record as [`ESCConfig`] describes it, with what it says of the erasure as a whole under `complete`, and with the
    fingerprints of what computes beside the weights. `processor` is the image processor, or None.
    """
    shown = label_names(config, labels)
    base, revision = base_on_the_hub(config)
    record = {
        "method": method,
        "kind": kind,
        **settings,
        "labels": list(shown.values()) or None,
        "label_ids": list(shown) or None,
        "num_images": num_images,
        "unchanged": unchanged.share if unchanged else None,
        "unchanged_by_label": list(unchanged.by_label.values()) if unchanged and unchanged.by_label else None,
        "right_before": unchanged.right_before if unchanged else None,
        "right_after_by_label": list(unchanged.right_after.values()) if unchanged and unchanged.right_after else None,
        "unchanged_of": unchanged_of,
        "base": base,
        "base_revision": revision,
        "settings_sha256": settings_sha256(config),
        "labels_sha256": labels_sha256(config),
        "processor_sha256": processor_sha256(processor),
        "versions": {
            "hf_esc": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    record["complete"] = is_complete(record)
    before = [*getattr(config, "erasures", [])]
    return record | {"record_sha256": record_sha256(record, before[-1].get("record_sha256") if before else None)}
