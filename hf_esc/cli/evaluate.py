"""`hf-esc evaluate`: what is left of forgotten classes, with references beside each number."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LabelError, OptionError, OutputError
from . import options
from .report import accuracy_table, print_json
from .request import WAYS, Request, Wish, read_rows


def evaluate(
    model: options.Model,
    dataset: options.Dataset,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL[,LABEL]",
            help="The forgotten classes; those in an erased model's ledger by default.",
            show_default=False,
        ),
    ] = None,
    forget_fraction: options.ForgetFraction = None,
    forget_seed: options.ForgetSeed = None,
    forget_indices: options.ForgetIndices = None,
    probes: Annotated[
        str,
        typer.Option(
            metavar="PROBE[,PROBE]|all|none",
            help="Further probes of the features: mlp, knn, one_vs_rest; the paper's and a converged one are always "
            "there. `none`: accuracies of the head alone, with neither probes nor a random network.",
        ),
    ] = "paper,converged",
    curve: Annotated[
        bool, typer.Option("--curve", help="What a probe reads by the number of labelled images.")
    ] = False,
    attacks: Annotated[
        str,
        typer.Option(
            metavar="ATTACK[,ATTACK]|all|none",
            help="What somebody could do to get the classes back: strip, hidden_layers, knn, few_shot, finetune "
            "(trains each network for 100 steps).",
        ),
    ] = "none",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A model that was trained without the forgotten classes.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each probe that has any randomness.")] = 3,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there, as JSON.", show_default=False)
    ] = None,
    feature_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep features there; a run that was cut off goes on with them.", show_default=False
        ),
    ] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    batch_size: options.BatchSize = 64,
    num_workers: options.NumWorkers = 0,
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """
    Measure what is left of forgotten classes, or images: accuracies, and what probes read from the features, in %.

    An erased model stands beside its original, which is the same file with the projection off, beside a model that was
    trained without the classes where one is given (--reference), and beside a randomly initialised network. The
    paper's probe is not trained to the end, so a converged one stands beside it. Of a remapped model, the operating
    curve of its gate follows.

    Example: hf-esc evaluate demo --dataset embedded
    """
    wish = Wish(forget, forget_fraction, forget_seed, read_rows(forget_indices))
    if curve and wish.of_images:
        raise OptionError("--curve is that of classes, and these are images of classes that stay. Leave it out.")
    from ..evaluation.attacks import ATTACKS
    from ..evaluation.probes import PROBES

    chosen: list[Any] = _names(probes, PROBES, "probe")
    attempts: list[Any] = _names(attacks, ATTACKS, "attack")
    if not chosen and (reference is not None or curve or attempts or output is not None or feature_dir is not None):
        raise OptionError(
            "`--probes none` looks at the head alone: leave --reference, --curve, --attacks, --output and "
            "--feature-dir out with it."
        )
    if output is not None and output.is_dir():
        raise OutputError(f"The report {output} is a folder. Name a file.")
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError(f"The report {output} cannot be written: {output.absolute().parent} is no folder.")
    from ..data import image_channels, load_images
    from ..evaluation.accuracy import evaluate_accuracies, model_classifier
    from ..labels import erased_labels
    from ..loading import load_classifier, load_processor
    from ..modeling_esc import ESCModel

    classifier: Any = load_classifier(
        model, device=device, revision=revision or "main", trust_remote_code=trust_remote_code
    )
    data = load_images(dataset, image_column=image_column, label_column=label_column)
    request = wish.found_in(data, classifier.config) if wish else None
    if request is None and not erased_labels(classifier.config):
        raise LabelError(f"What should {model} have forgotten? It does not say. Name it with {WAYS}.")
    if chosen:
        from ..evaluation.unlearning import RETRAIN, evaluate_unlearning

        reference_model = None
        if reference is not None:
            reference_model = load_classifier(reference, device=device, trust_remote_code=trust_remote_code)
        report = evaluate_unlearning(
            classifier,
            data,
            request.labels if request is not None and request.rows is None else None,
            forget_indices=request.rows if request is not None else None,
            references={} if reference_model is None else {RETRAIN: reference_model},
            probes=chosen,
            curve=curve,
            attacks=attempts,
            seeds=range(seeds),
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
            feature_dir=feature_dir,
        )
        if output is not None:
            output.write_text(report.to_json() + "\n")
        if json:
            print_json(report.to_dict())
            return
        forgotten = ", ".join(report.forget) or f"{report.num_forget_train} training images"
        typer.echo(f"{model} on {dataset}, forgotten: {forgotten}")
        typer.echo(f"Probes with any randomness are the mean of {seeds} seeds; -: not measured.\n")
        typer.echo(report.table())
        return
    run = model_classifier(classifier)
    columns = {"model": run}
    erased = erased_labels(classifier.config)
    mapping = data.labels_in(classifier.config)
    # Remote code has its own ESCModel class, so the model type decides.
    if classifier.config.model_type == ESCModel.config_class.model_type:

        def original(inputs):
            with classifier.disable_projection():
                return run(inputs)

        columns = {"original": original, "erased": run}
    if request is None:
        request = Request(data, [label for label, there in enumerate(mapping) if there in erased])
    if not request.labels and request.rows is None:
        raise LabelError(f"{dataset!r} has no class that {model} has forgotten. Name others with {WAYS}.")
    of_images, labels = request.rows is not None, request.labels
    measured = evaluate_accuracies(
        columns,
        data,
        labels,
        forget_rows=request.rows,
        # A class that was erased and is not asked for is neither forgotten nor retained.
        leave_out=[
            label for label, there in enumerate(mapping) if there in erased and label not in labels and not of_images
        ],
        mapping=mapping,
        processor=load_processor(classifier),
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(classifier.config),
    )
    results = {name: asdict(accuracies) for name, accuracies in measured.items()}
    if json:
        rows = {} if request.rows is None else {"forget_rows": request.rows}
        print_json({"model": model, "dataset": dataset, "forget": request.names, **rows, "accuracies": results})
        return
    forgotten = ", ".join(map(str, request.names)) or f"{len(request.rows or ())} training images"
    typer.echo(f"{model} on {dataset}, forgotten: {forgotten}")
    typer.echo(accuracy_table(results))


def _names(value: str, there_are: Sequence[str], kind: str) -> list[str]:
    """The probes or attacks that an option names."""
    if value in ("all", "none"):
        return list(there_are) if value == "all" else []
    names = [name.strip().replace("-", "_") for name in value.split(",")]
    if unknown := [name for name in names if name not in there_are]:
        raise OptionError(f"There is no {kind} {unknown[0]!r}. There are: {', '.join(there_are)}, `all` and `none`.")
    return names
