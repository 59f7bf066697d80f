"""`hf-esc erase`: from a classifier and a class to a checkpoint that has forgotten it."""

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import IncompleteErasureWarning, RankError
from . import options
from .output_folder import check_output, write_folder
from .report import accuracy_table, print_json


def erase(
    model: options.Model,
    dataset: options.Dataset,
    forget: Annotated[
        list[str],
        typer.Option(metavar="LABEL[,LABEL]", help="Classes to forget, by name or number.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the erased model.", show_default=False)],
    p: Annotated[float, typer.Option(help="Percentage of the feature directions to project out.")] = 1.5,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="K|auto",
            help="How many directions to project out; overrides --p. `auto`: the fewest that change the head's "
            "prediction for 90 % of the forget images.",
        ),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Take that many directions for each class.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the output folder.")] = False,
    evaluate: Annotated[bool, typer.Option(help="Measure accuracies before and after.")] = True,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    batch_size: options.BatchSize = 32,
    num_workers: options.NumWorkers = 0,
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """
    Erase classes from an image classifier, in closed form (ESC).

    The training images of the forgotten classes go through the model once. Their principal feature directions are then
    projected out in front of the head. The backbone is not changed, and whoever holds the file can take the projection
    off.

    Example: hf-esc erase embedded --dataset embedded --forget Trouser --output demo
    """
    rank_value = _rank(rank)
    check_output(output, overwrite=overwrite)  # before the seconds that the imports below take
    clock = _Clock()

    from ..data import image_channels, load_images
    from ..erasure import erase as run_erase
    from ..evaluation.accuracy import evaluate_accuracies, model_classifier
    from ..loading import load_classifier, load_processor

    original = load_classifier(model, device=device, revision=revision or "main", trust_remote_code=trust_remote_code)
    data = load_images(dataset, image_column=image_column, label_column=label_column)
    labels = data.resolve(forget, original.config)
    forget_set = data.forget_set(labels)
    processor = load_processor(original)
    clock.lap("load")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category=UserWarning)
        erased = run_erase(
            original,
            forget_set,
            p=p,
            rank=rank_value,
            per_class=per_class,
            processor=processor,
            batch_size=batch_size,
            num_workers=num_workers,
            image_column=data.image_column,
            label_column=data.label_column,
        )
    for warning in caught:
        typer.echo(f"Warning: {warning.message}", err=True)
    clock.lap("erase")

    before = after = None
    # The folder takes its place when all has gone well, evaluation included: a run that fails leaves none.
    with write_folder(output, overwrite=overwrite) as folder:
        erased.save_pretrained(folder)
        # What is measured is what others will load, and it does load.
        reloaded = load_classifier(str(folder), device=device)
        clock.lap("save")
        if evaluate:
            mapping = data.labels_in(original.config)
            # What an earlier request erased is neither forgotten now nor retained.
            earlier = {i for record in getattr(original.config, "erasures", []) for i in record.get("label_ids") or ()}
            measured = evaluate_accuracies(
                {"before": model_classifier(original), "after": model_classifier(reloaded)},
                data,
                labels,
                leave_out=[label for label, there in enumerate(mapping) if there in earlier and label not in labels],
                mapping=mapping,
                processor=processor,
                batch_size=batch_size,
                num_workers=num_workers,
                num_channels=image_channels(original.config),
            )
            before, after = asdict(measured["before"]), asdict(measured["after"])
            clock.lap("evaluate")

    record = reloaded.config.erasures[-1]
    incomplete = [warning for warning in caught if issubclass(warning.category, IncompleteErasureWarning)]
    if json:
        print_json(
            {
                "model": model,
                "dataset": dataset,
                "forget": record["labels"],
                "before": before,
                "after": after,
                "rank": record["rank"],
                "features": sum(site["dim"] for site in reloaded.config.sites),
                "num_forget": record["num_images"],
                "unchanged": record["unchanged"],
                "unchanged_by_label": record["unchanged_by_label"],
                "complete": None if record["unchanged"] is None else not incomplete,
                "seconds": clock.seconds,
                "output": str(output),
            }
        )
        return
    dims = " + ".join(str(site["dim"]) for site in reloaded.config.sites)
    each = " for each class" if record["per_class"] and len(labels) > 1 else ""
    typer.echo(
        f"Erased {', '.join(map(str, record['labels']))} from {model}: {record['num_images']} images, rank "
        f"{record['rank']}"
        f"{each} of {dims} feature directions."
    )
    if before and after:
        typer.echo(accuracy_table({"before": before, "after": after}))
    if incomplete:
        typer.echo(f"NOT ERASED WHOLE. {incomplete[-1].message}")
    elif record["unchanged"] is None:
        typer.echo("Whether the head has lost the class is not known: look at the accuracies.")
    else:
        typer.echo("Hidden from the head. A probe trained on the features may still read it.")
    typer.echo(f"The model is in {output}.")


def _rank(value: str | None):
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise RankError(f"`--rank` is a whole number or `auto`, not {value!r}.") from None


class _Clock:
    """Seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._start, 3)
        self._start = now
