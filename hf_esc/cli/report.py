"""What commands print: tables of accuracies and what was done for people, one JSON object for scripts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..methods import METHODS
from ..saving import write_file
from .terminal import say

# Losses of the other classes above this many points are printed.
_FEW_POINTS = 5.0


def print_json(values: Mapping[str, Any]) -> None:
    """One object, nothing else on stdout."""
    say(*json.dumps(values, indent=2).split("\n"))


def accuracy_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Accuracies in %, one row each, one column for each model."""
    from ..evaluation.report_text import rows

    titles = rows(columns.values())
    width = max(map(len, titles.values())) + 2
    lines = [f"{'accuracy in %':<{width}}" + "".join(f"{name:>12}" for name in columns)]
    for key, title in titles.items():
        cells = (values[key] for values in columns.values())
        lines.append(f"{title:<{width}}" + "".join(f"{'-' if cell is None else f'{cell:.2f}':>12}" for cell in cells))
    return "\n".join(lines)


def print_erasure(
    model: str,
    dataset: str,
    config,
    output: str,
    *,
    incomplete: Sequence[Any],
    before: Mapping[str, float | None] | None,
    after: Mapping[str, float | None] | None,
    earlier: Mapping[str, Mapping[str, Mapping[str, float | None]] | None] | None,
    seconds: Mapping[str, float],
    as_json: bool,
) -> bool | None:
    """
    Print the last erasure of an erased model, and return whether all that was erased is gone (None if nothing tells).

    Args:
        model, dataset (`str`): As the user called them.
        config (`PretrainedConfig`): Of the erased model.
        output (`str`): Where it is.
        incomplete (`Sequence[Warning]`): Warnings that it is not whole.
        before, after (*optional*): Accuracies, where measured.
        earlier (*optional*): By class that an earlier request erased, its accuracies before and after this one; None
            where there are no images of it.
        seconds (`Mapping[str, float]`): By phase.
        as_json (`bool`): One object in place of text.
    """
    from ..ledger.record import MOST_UNCHANGED, is_complete

    record = config.erasures[-1]
    dims = [site["dim"] for site in getattr(config, "sites", [])]  # a model whose weights were edited has none
    of_images = record.get("scenario") == "images"
    back = [name for name, columns in (earlier or {}).items() if columns and _is_back(columns)]
    unseen = [name for name, columns in (earlier or {}).items() if columns is None]
    complete = _complete(record, back, unseen)
    if as_json:
        details = ["method", "rank", "tau", "steps", "cut", "bank_size", "threshold", "gate_recall", "false_alarms"]
        details += ["num_retain_images", "unchanged", "unchanged_by_label"]
        edits = {"trained_on": record["data"]} if "data" in record else {"features": sum(dims)}
        print_json(
            {
                "model": model,
                "dataset": dataset,
                "scenario": record.get("scenario", "classes"),
                "forget": record["labels"],
                "before": before,
                "after": after,
                "earlier": earlier,
                "brought_back": None if earlier is None else back,
                **{name: record[name] for name in details if name in record},
                **edits,
                "num_forget": record["num_images"],
                "complete": complete,
                "seconds": seconds,
                "output": output,
            }
        )
        return complete
    say(f"Erased {_what(record, of_images)} from {model}: {_how(record, dims)}.")
    if before and after:
        say(*accuracy_table({"before": before, "after": after}).split("\n"))
    for name, columns in (earlier or {}).items():
        if columns:
            shares = f"{_shown(columns['before'])} before, {_shown(columns['after'])} after"
            say(f"{name}, which an earlier request erased (training / test images): {shares}.")
    if unseen:
        say(
            f"{', '.join(unseen)}, which an earlier request erased, cannot be looked at: {dataset} has no images of "
            "it. It may have come back."
        )
    if back:
        say(
            f"BROUGHT BACK: {', '.join(back)}. What was done now has undone what an earlier request erased. "
            "Erase it again, or all together from the original."
        )
    if loss := _loss(before, after):
        say(f"The other {'images' if of_images else 'classes'} lost {loss:.1f} points of accuracy.")
    right_before = record.get("right_before")  # None where the images had no labels
    if is_complete(record) is False:
        unseen_before = right_before is not None and right_before < MOST_UNCHANGED
        why = str(incomplete[-1]) if incomplete else "The head still gives the class to forget images."
        say(f"{'NOTHING TO BE SEEN' if unseen_before else 'NOT ERASED WHOLE'}. {why}")
    elif of_images:
        say("Accuracies do not tell whether they are forgotten: a model that never saw them gets most right, too.")
    elif record["unchanged"] is None:
        say("Whether the head has lost the class is not known: look at the accuracies.")
    else:
        reads = "what the gate misses" if "gate_recall" in record else "it"
        hidden = f"{_what(record, of_images)} is hidden from the head." if earlier else "Hidden from the head."
        say(f"{hidden} A probe trained on the features may still read {reads}.")
    say(f"The model is in {output}.")
    return complete


def end(complete: bool | None, *, allow_incomplete: bool) -> None:
    """End a command with exit code 3 where what was to be forgotten is not gone, unless that is allowed."""
    if complete is False and not allow_incomplete:
        raise typer.Exit(3)


def note_brought_back(folder: Path, config: Any, earlier: Mapping[str, Any] | None) -> None:
    """Write into the ledger of a saved model which earlier classes the last erasure has brought back."""
    from ..ledger.fingerprints import sealed

    if back := [name for name, columns in (earlier or {}).items() if columns and _is_back(columns)]:
        config.erasures[-1]["brought_back"] = back
        config.erasures = sealed(config.erasures)
        file = folder / "config.json"
        saved = json.loads(file.read_text(encoding="utf-8"))
        saved["erasures"] = config.erasures
        write_file(file, json.dumps(saved, indent=2, sort_keys=True) + "\n")


def _complete(record: Mapping[str, Any], back: Sequence[str], unseen: Sequence[str]) -> bool | None:
    """Whether this erasure is complete and what was erased before is still gone; None where nothing tells."""
    from ..ledger.record import is_complete

    if back:
        return False
    complete = is_complete(record)
    return None if unseen and complete else complete


def _loss(before: Mapping[str, float | None] | None, after: Mapping[str, float | None] | None) -> float | None:
    """How many points of accuracy on retain images are gone, on test images where there are any; None for a few."""
    for key in ("retain_test", "retain_train"):
        pair = [(columns or {}).get(key) for columns in (before, after)]
        if pair[0] is not None and pair[1] is not None:
            return pair[0] - pair[1] if pair[0] - pair[1] > _FEW_POINTS else None
    return None


def _is_back(columns: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Whether the head says a class, on training or test images, that was gone, or clearly more than it did."""
    from ..ledger.record import MOST_UNCHANGED

    least = 100 * MOST_UNCHANGED
    pairs = [(columns["before"][key] or 0, share) for key, share in columns["after"].items() if share is not None]
    return any(after > least and after - before > least / 2 for before, after in pairs)  # an image or two move as well


def _shown(values: Mapping[str, float | None]) -> str:
    """Accuracies on training and test images."""
    return " / ".join("-" if share is None else f"{share:.2f} %" for share in values.values())


def _what(record: Mapping[str, Any], of_images: bool) -> str:
    return "single images" if of_images else ", ".join(map(str, record["labels"] or ["images without labels"]))


def _how(record: Mapping[str, Any], dims: Sequence[int]) -> str:
    """What was done with how many images, in the words of the method's row of the table."""
    retain = record.get("num_retain_images")
    cut = zip(record.get("cut", ()), dims, strict=False)
    values = {
        **record,
        "dims": " + ".join(map(str, dims)),
        "each": " for each class" if record.get("per_class") and len(record["labels"] or ()) > 1 else "",
        "entries": " + ".join(f"{round(share * dim * dim)} of {dim * dim}" for share, dim in cut),
        "trained_on": {
            "forget": "them",
            "retain": f"{retain} retain images, and not on them",
            "forget + retain": f"them and {retain} retain images",
        }.get(record.get("data", ""), ""),
    }
    known = METHODS.get(record["method"])
    told = known.told if known is not None else ""
    trained = "{method}, {steps} steps on {trained_on}" if "steps" in record else "{method}"
    return f"{record['num_images']} images, {(told or trained).format_map(values)}"
