"""`hf-esc erase`: from a classifier and a class to a checkpoint that has forgotten it."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ImageError, OptionError, RankError
from ..methods import METHODS
from ..saving import check_output, own_folder, write_folder
from . import options
from .job import Clock, collected_warnings
from .measure import before_and_after, forgotten_earlier
from .methods import MethodName, help_text, listed, refuse_foreign
from .report import end, note_brought_back, print_erasure
from .request import Wish, read_rows, retain_set

_LEARN_FROM_RETAIN = [method for method in METHODS.values() if method.uses_retain and method.edits_weights]


def erase(
    context: typer.Context,
    model: options.Model,
    dataset: options.Dataset,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the erased model.", show_default=False)],
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL[,LABEL]", help="Classes to forget, by name or number.", show_default=False),
    ] = None,
    forget_fraction: options.ForgetFraction = None,
    forget_seed: options.ForgetSeed = None,
    forget_indices: options.ForgetIndices = None,
    method: Annotated[
        MethodName,
        typer.Option(
            help=help_text(),
        ),
    ] = MethodName["esc"],
    p: Annotated[
        float | None,
        typer.Option(help="esc: percentage of the feature directions to project out, by default 1.5."),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="K|auto",
            help="esc: how many directions to project out; overrides --p. `auto`: the fewest that change the head's "
            "prediction for 90 % of the forget images.",
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="esc: take that many directions for each class.")
    ] = False,
    tau: Annotated[
        float | None, typer.Option(help="esc-t: entries of the mask at or below it are cut, by default 0.7.")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="esc-t: at most this many passes over the forget features, by default 50. Other trainings: passes "
            "over the images; each method has its own default."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of a training or of fisher's noise, by default 42; remap: seed of the bank, by default 0."
        ),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="remap: images whose features replace those of the forgotten classes and travel with the file. "
            f"{listed(_LEARN_FROM_RETAIN)}: images to keep, with labels. By default, the images of --dataset that are "
            "not forgotten now and were not forgotten before. All other methods use only the forget images.",
        ),
    ] = None,
    bank_size: Annotated[int | None, typer.Option(min=2, help="remap: how many of them, by default 2000.")] = None,
    gate_threshold: Annotated[
        float | None,
        typer.Option(
            help="remap: replace a feature if the forgotten classes have more than this probability; by default, if "
            "one of them is the likeliest class."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in the output folder.")] = False,
    allow_incomplete: options.AllowIncomplete = False,
    evaluate: Annotated[bool, typer.Option(help="Measure accuracies before and after.")] = True,
    dataset_config: options.DatasetConfig = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images in a batch when nothing is trained, by default 32. fisher: images whose gradients are held "
            "in memory at once, by default 8. For the batches of a training, use --per-device-train-batch-size.",
        ),
    ] = None,
    num_workers: options.NumWorkers = 0,
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """
    Erase classes, or single training images, from an image classifier.

    ESC sends the training images of the forgotten classes through the model once and projects their principal feature
    directions out in front of the head. ESC-T trains a mask over all of these directions instead. Remap replaces the
    features by those of other classes, which hides the classes from converged probes too. These three leave the
    weights as they are, and whoever holds the file can take the projection off. All other methods edit the weights and
    leave a plain checkpoint of the same architecture. `hf-esc train` keeps checkpoints of a training.

    Example: hf-esc erase embedded --dataset embedded --forget Trouser --output demo
    """
    wish = Wish(forget, forget_fraction, forget_seed, read_rows(forget_indices)).needed()
    settings = {"p": p, "rank": rank, "per-class": per_class or None, "tau": tau, "epochs": epochs, "seed": seed}
    settings |= {"retain": retain, "bank-size": bank_size, "gate-threshold": gate_threshold}
    row = METHODS[method.value]
    refuse_foreign(row, settings)
    if wish.of_images and not row.forgets_images:
        raise OptionError(
            f"{row.title} forgets classes, and these are images of classes that stay. Take esc for them."
        )
    if gate_threshold is not None and not 0 < gate_threshold < 1:
        raise OptionError(f"`--gate-threshold` is a probability between 0 and 1, not {gate_threshold}.")
    settings["rank"] = _rank(rank)
    seen = check_output(output, overwrite=overwrite)  # before the seconds that the imports below take
    clock = Clock()

    from ..data.image_data import load_images
    from ..loading import load_classifier, load_config, load_processor
    from .runners import runner

    # Only a Trainer needs a folder of its own.
    with own_folder(None, "hf_esc-") if row.trained else nullcontext() as scratch:
        # Refuse wrong settings before the model is loaded.
        run = runner(
            row,
            settings,
            context.args,
            others=[name for option in context.command.params for name in option.opts],
            scratch=scratch,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
        )
        batch_size = batch_size or 32
        source: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
        config = load_config(model, **source)
        data = load_images(
            dataset, image_column=image_column, label_column=label_column, dataset_config=dataset_config
        )
        found = wish.found_early(data, config)
        original = load_classifier(model, device=device, **source)
        request = found or wish.found_in(data, original.config)
        kept = retain_set(row, retain, request, original.config)
        processor = load_processor(original)
        clock.lap("load")
        with collected_warnings() as incomplete:
            erased = run(original, request, kept, processor)
        clock.lap("erase")

    before = after = earlier = None
    # The folder appears only when everything went well, the evaluation included: a run that fails leaves none.
    with write_folder(output, overwrite=overwrite, since=seen) as folder:
        erased.save_pretrained(folder)
        if row.edits_weights:
            processor.save_pretrained(folder)
        # Measure what others will load. This also shows that it loads.
        reloaded = load_classifier(str(folder), device=device)
        clock.lap("save")
        if evaluate:
            measured = (original, reloaded, request, processor, batch_size, num_workers)
            try:
                before, after = before_and_after(*measured)
                earlier = forgotten_earlier(*measured)
            except ImageError as error:
                raise ImageError(
                    f"{error} Only the accuracies need this image. Repair it, or erase without accuracies: "
                    "`--no-evaluate`."
                ) from error
            note_brought_back(folder, reloaded.config, earlier)
            clock.lap("evaluate")

    complete = print_erasure(
        model,
        dataset,
        reloaded.config,
        str(output),
        incomplete=incomplete,
        before=before,
        after=after,
        earlier=earlier,
        seconds=clock.seconds,
        as_json=json,
    )
    end(complete, allow_incomplete=allow_incomplete)


def _rank(value: str | None):
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise RankError(f"`--rank` is a whole number or `auto`, not {value!r}.") from None
