"""What commands print: tables of accuracies and what was done for people, one JSON object for scripts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def print_json(values: Mapping[str, Any]) -> None:
    """One object, nothing else on stdout."""
    typer.echo(json.dumps(values, indent=2))


def accuracy_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Accuracies in %, one row each, one column for each model."""
    from ..evaluation.report import ROWS

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
    seconds: Mapping[str, float],
    as_json: bool,
) -> None:
    """
    The last erasure of an erased model.

    Args:
        model, dataset (`str`): As the user called them.
        config ([`ESCConfig`]): Of the erased model.
        output (`str`): Where it is.
        incomplete (`Sequence[Warning]`): Warnings that it is not whole.
        before, after (*optional*): Accuracies, where measured.
        seconds (`Mapping[str, float]`): By phase.
        as_json (`bool`): One object in place of text.
    """
    record = config.erasures[-1]
    dims = [site["dim"] for site in config.sites]
    if as_json:
        details = ["method", "rank", "tau", "steps", "cut", "bank_size", "threshold", "gate_recall", "false_alarms"]
        details += ["unchanged", "unchanged_by_label"]
        print_json(
            {
                "model": model,
                "dataset": dataset,
                "forget": record["labels"],
                "before": before,
                "after": after,
                **{name: record[name] for name in details if name in record},
                "features": sum(dims),
                "num_forget": record["num_images"],
                "complete": None if record["unchanged"] is None else not incomplete,
                "seconds": seconds,
                "output": output,
            }
        )
        return
    if record["method"] == "esc":
        each = " for each class" if record["per_class"] and len(record["labels"] or ()) > 1 else ""
        how = f"rank {record['rank']}{each} of {' + '.join(map(str, dims))} feature directions"
    elif record["method"] == "remap":
        how = (
            f"features replaced by {record['bank_size']} of other classes; the gate finds {record['gate_recall']:.1%} "
            f"of the forget images and takes {record['false_alarms']:.2%} of the others for them"
        )
    else:
        cut = " + ".join(
            f"{round(share * dim * dim)} of {dim * dim}" for share, dim in zip(record["cut"], dims, strict=True)
        )
        how = f"a mask that cuts {cut} entries, after {record['steps']} steps"
    names = ", ".join(map(str, record["labels"] or ["images without labels"]))
    typer.echo(f"Erased {names} from {model}: {record['num_images']} images, {how}.")
    if before and after:
        typer.echo(accuracy_table({"before": before, "after": after}))
    if incomplete:
        typer.echo(f"NOT ERASED WHOLE. {incomplete[-1]}")
    elif record["unchanged"] is None:
        typer.echo("Whether the head has lost the class is not known: look at the accuracies.")
    else:
        reads = "what the gate misses" if record["method"] == "remap" else "it"
        typer.echo(f"Hidden from the head. A probe trained on the features may still read {reads}.")
    typer.echo(f"The model is in {output}.")
