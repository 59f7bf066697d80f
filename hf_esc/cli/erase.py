"""`hf-esc erase`: from a classifier and a class to a checkpoint that has forgotten it."""

import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ModelError, OptionError, RankError
from . import options
from .job import Clock, collected_warnings
from .measure import before_and_after
from .output_folder import check_output, write_folder
from .report import print_erasure


class Method(str, Enum):
    """How to erase."""

    ESC = "esc"
    ESC_T = "esc-t"
    REMAP = "remap"


def erase(
    model: options.Model,
    dataset: options.Dataset,
    forget: Annotated[
        list[str],
        typer.Option(metavar="LABEL[,LABEL]", help="Classes to forget, by name or number.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the erased model.", show_default=False)],
    method: Annotated[
        Method,
        typer.Option(
            help="`esc`: closed form. `esc-t`: a trained mask. `remap`: features become those of other classes."
        ),
    ] = Method.ESC,
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
        float | None, typer.Option(help="esc-t: the most passes over the forget features, by default 50.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="esc-t: seed of the training, by default 42.")] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="remap: pictures whose features stand in for those of the forgotten classes, and travel with the "
            "file; by default those of --dataset that are not forgotten.",
        ),
    ] = None,
    bank_size: Annotated[int | None, typer.Option(min=2, help="remap: how many of them, by default 2000.")] = None,
    gate_threshold: Annotated[
        float | None,
        typer.Option(
            help="remap: take an image for forgotten from this probability on; by default, the likeliest class."
        ),
    ] = None,
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
    Erase classes from an image classifier.

    The training images of the forgotten classes go through the model once. ESC then projects their principal feature
    directions out in front of the head; ESC-T trains a mask over all of their directions instead (`hf-esc train` takes
    every setting of that); remap replaces their features by those of other classes, which hides them from converged
    probes too. The backbone is not changed, and whoever holds the file can take the projection off.

    Example: hf-esc erase embedded --dataset embedded --forget Trouser --output demo
    """
    closed_form = {"p": p, "rank": rank, "per-class": per_class or None}
    training = {"tau": tau, "epochs": epochs, "seed": seed}
    remapping = {"retain": retain, "bank-size": bank_size, "gate-threshold": gate_threshold}
    if method is Method.REMAP and seed is not None:
        remapping, training = remapping | {"seed": seed}, training | {"seed": None}
    for other, settings in ((Method.ESC, closed_form), (Method.ESC_T, training), (Method.REMAP, remapping)):
        if method is not other and (given := [f"--{name}" for name, value in settings.items() if value is not None]):
            raise OptionError(f"{', '.join(given)} belongs to `--method {other.value}`, and this is {method.value}.")
    rank_value = _rank(rank)
    check_output(output, overwrite=overwrite)  # before the seconds that the imports below take
    clock = Clock()

    from ..data import load_images
    from ..erasure import erase as run_erase
    from ..loading import load_classifier, load_processor
    from ..remapping import BANK_SIZE, remap

    if gate_threshold is not None and not 0 < gate_threshold < 1:
        raise OptionError(f"`--gate-threshold` is a probability between 0 and 1, not {gate_threshold}.")
    original = load_classifier(model, device=device, revision=revision or "main", trust_remote_code=trust_remote_code)
    data = load_images(dataset, image_column=image_column, label_column=label_column)
    labels = data.resolve(forget, original.config)
    forget_set = data.forget_set(labels)
    processor = load_processor(original)
    common: dict[str, Any] = {"image_column": data.image_column, "label_column": data.label_column}
    clock.lap("load")

    with collected_warnings() as incomplete:
        if method is Method.REMAP:
            erased = remap(
                original,
                forget_set,
                _retain_set(retain, data, labels, original.config),
                bank_size=BANK_SIZE if bank_size is None else bank_size,
                threshold=gate_threshold,
                seed=seed or 0,
                processor=processor,
                batch_size=batch_size,
                num_workers=num_workers,
                **common,
            )
        elif method is Method.ESC:
            erased = run_erase(
                original,
                forget_set,
                p=1.5 if p is None else p,
                rank=rank_value,
                per_class=per_class,
                processor=processor,
                batch_size=batch_size,
                num_workers=num_workers,
                **common,
            )
        else:
            erased = _train_mask(original, forget_set, processor, training, batch_size, num_workers, device, common)
    clock.lap("erase")

    before = after = None
    # The folder takes its place when all has gone well, evaluation included: a run that fails leaves none.
    with write_folder(output, overwrite=overwrite) as folder:
        erased.save_pretrained(folder)
        # What is measured is what others will load, and it does load.
        reloaded = load_classifier(str(folder), device=device)
        clock.lap("save")
        if evaluate:
            before, after = before_and_after(original, reloaded, data, labels, processor, batch_size, num_workers)
            clock.lap("evaluate")

    print_erasure(
        model,
        dataset,
        reloaded.config,
        str(output),
        incomplete=incomplete,
        before=before,
        after=after,
        seconds=clock.seconds,
        as_json=json,
    )


def _retain_set(name: str | None, data, labels: list[int], config):
    """The pictures for the bank: those of a data set of their own, or what is neither forgotten now nor was before."""
    from ..data import load_pictures
    from ..labels import erased_labels

    if name is not None:
        return load_pictures(name)
    earlier = erased_labels(config)
    gone = {label for label, there in enumerate(data.labels_in(config)) if there in earlier}
    return data.select(data.train, {*labels, *gone}, keep=False)


def _train_mask(original, forget_set, processor, given, batch_size, num_workers, device, columns: dict[str, Any]):
    """ESC-T with the settings that were given, without logs and checkpoints."""
    import torch

    from ..trainer_esc_t import ESCTTrainer
    from ..training_args_esc_t import ESCTTrainingArguments
    from .progress import progress_on_stderr

    if device is not None and torch.device(device).index:
        raise ModelError(f"Training runs on the first device that is visible, not on {device!r}. Hide the others.")
    settings = {"tau": given["tau"], "num_train_epochs": given["epochs"], "seed": given["seed"]}
    with tempfile.TemporaryDirectory() as scratch:
        args = ESCTTrainingArguments(
            output_dir=scratch,
            use_cpu=device is not None and torch.device(device).type == "cpu",
            feature_batch_size=batch_size,
            dataloader_num_workers=num_workers,
            save_strategy="no",
            **{name: value for name, value in settings.items() if value is not None},
        )
        trainer = ESCTTrainer(original, args, forget_set, processing_class=processor, **columns)
        progress_on_stderr(trainer, logs=False)
        trainer.train()
    return trainer.erased_model


def _rank(value: str | None):
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise RankError(f"`--rank` is a whole number or `auto`, not {value!r}.") from None
