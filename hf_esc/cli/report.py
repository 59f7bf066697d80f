"""What commands print: tables of accuracies and what was done for people, one JSON object for scripts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

# What an erasure costs the other classes is said from here on.
_FEW_POINTS = 5.0


def print_json(values: Mapping[str, Any]) -> None:
    """One object, nothing else on stdout."""
    typer.echo(json.dumps(values, indent=2))


def accuracy_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Accuracies in %, one row each, one column for each model."""
    from ..evaluation.report_text import ROWS

    lines = [f"{'accuracy in %':<22}" + "".join(f"{name:>12}" for name in columns)]
    for key, title in ROWS.items():
        cells = (values[key] for values in columns.values())
        lines.append(f"{title:<22}" + "".join(f"{'-' if cell is None else f'{cell:.2f}':>12}" for cell in cells))
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
) -> None:
    """
    The last erasure of an erased model.

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
    from ..ledger.record import MOST_UNCHANGED

    record = config.erasures[-1]
    dims = [site["dim"] for site in getattr(config, "sites", [])]  # a model whose weights were edited has none
    of_images = record.get("scenario") == "images"
    back = [name for name, columns in (earlier or {}).items() if columns and _is_back(columns)]
    unseen = [name for name, columns in (earlier or {}).items() if columns is None]
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
                "complete": _complete(record, incomplete, back, unseen),
                "seconds": seconds,
                "output": output,
            }
        )
        return
    typer.echo(f"Erased {_what(record, of_images)} from {model}: {_how(record, dims)}.")
    if before and after:
        typer.echo(accuracy_table({"before": before, "after": after}))
    for name, columns in (earlier or {}).items():
        if columns:
            shares = f"{_shown(columns['before'])} before, {_shown(columns['after'])} after"
            typer.echo(f"{name}, which an earlier request erased (training / test images): {shares}.")
    if unseen:
        typer.echo(
            f"{', '.join(unseen)}, which an earlier request erased, cannot be looked at: {dataset} has no images of "
            "it. It may have come back."
        )
    if back:
        typer.echo(
            f"BROUGHT BACK: {', '.join(back)}. What was done now has undone what an earlier request erased. "
            "Erase it again, or all together from the original."
        )
    if loss := _loss(before, after):
        typer.echo(f"The other {'images' if of_images else 'classes'} lost {loss:.1f} points of accuracy.")
    right_before = record.get("right_before")  # None where the images had no labels
    if incomplete and right_before is not None and right_before < MOST_UNCHANGED:
        typer.echo(f"NOTHING TO BE SEEN. {incomplete[-1]}")
    elif incomplete:
        typer.echo(f"NOT ERASED WHOLE. {incomplete[-1]}")
    elif of_images:
        typer.echo(
            "Accuracies do not tell whether they are forgotten: a model that never saw them gets most right, too."
        )
    elif record["unchanged"] is None:
        typer.echo("Whether the head has lost the class is not known: look at the accuracies.")
    else:
        reads = "what the gate misses" if record["method"] == "remap" else "it"
        hidden = f"{_what(record, of_images)} is hidden from the head." if earlier else "Hidden from the head."
        typer.echo(f"{hidden} A probe trained on the features may still read {reads}.")
    typer.echo(f"The model is in {output}.")


def _complete(
    record: Mapping[str, Any], incomplete: Sequence[Any], back: Sequence[str], unseen: Sequence[str]
) -> bool | None:
    """Whether all that was erased is gone; None where nothing tells."""
    if back or (incomplete and record.get("scenario") != "images"):
        return False
    return None if unseen or record["unchanged"] is None or record.get("scenario") == "images" else True


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
    """What was done with how many images."""
    images = f"{record['num_images']} images"
    if record["method"] == "esc":
        each = " for each class" if record["per_class"] and len(record["labels"] or ()) > 1 else ""
        return f"{images}, rank {record['rank']}{each} of {' + '.join(map(str, dims))} feature directions"
    if record["method"] == "remap":
        return (
            f"{images}, features replaced by {record['bank_size']} of other classes; the gate finds "
            f"{record['gate_recall']:.1%} of the forget images and takes {record['false_alarms']:.2%} of the others "
            "for them"
        )
    if record["method"] == "esc-t":
        cut = " + ".join(
            f"{round(share * dim * dim)} of {dim * dim}" for share, dim in zip(record["cut"], dims, strict=True)
        )
        return f"{images}, a mask that cuts {cut} entries, after {record['steps']} steps"
    if record["method"] == "fisher":
        return f"{images}, noise on the weights that {record['num_retain_images']} retain images do not depend on"
    trained_on = {
        "forget": "them",
        "retain": f"{record.get('num_retain_images')} retain images, and not on them",
        "forget + retain": f"them and {record.get('num_retain_images')} retain images",
    }[record["data"]]
    return f"{images}, {record['method']}, {record['steps']} steps on {trained_on}"
