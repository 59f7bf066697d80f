"""`hf-esc evaluate`: what is left of forgotten classes, with references beside each number."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LabelError, OptionError, OutputError
from . import options
from .report import accuracy_table, print_json


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
    Measure what is left of forgotten classes: accuracies, and what probes read from the features, in %.

    An erased model stands beside its original, which is the same file with the projection off, beside a model that was
    trained without the classes where one is given (--reference), and beside a randomly initialised network. The
    paper's probe is not trained to the end, so a converged one stands beside it. Of a remapped model, the operating
    curve of its gate follows.

    Example: hf-esc evaluate demo --dataset embedded
    """
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
    if chosen:
        from ..evaluation.unlearning import RETRAIN, evaluate_unlearning

        reference_model = None
        if reference is not None:
            reference_model = load_classifier(reference, device=device, trust_remote_code=trust_remote_code)
        report = evaluate_unlearning(
            classifier,
            data,
            _named(forget, data, classifier),
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
        typer.echo(f"{model} on {dataset}, forgotten: {', '.join(report.forget)}")
        typer.echo(f"Probes with any randomness are the mean of {seeds} seeds; -: not measured.\n")
        typer.echo(report.table())
        return
    run = model_classifier(classifier)
    columns = {"model": run}
    labels: list[int] | None = None
    erased: set[int] = set()
    mapping = data.labels_in(classifier.config)
    # Remote code has its own ESCModel class, so the model type decides.
    if classifier.config.model_type == ESCModel.config_class.model_type:

        def original(inputs):
            with classifier.disable_projection():
                return run(inputs)

        columns = {"original": original, "erased": run}
        erased = erased_labels(classifier.config)
        labels = [label for label, there in enumerate(mapping) if there in erased]
    if forget:
        labels = data.resolve(forget, classifier.config)
    if not labels:
        raise LabelError(f"Which classes should {model} have forgotten? It does not say; name them with --forget.")
    measured = evaluate_accuracies(
        columns,
        data,
        labels,
        # A class that was erased and is not asked for is neither forgotten nor retained.
        leave_out=[label for label, there in enumerate(mapping) if there in erased and label not in labels],
        mapping=mapping,
        processor=load_processor(classifier),
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(classifier.config),
    )
    results = {name: asdict(accuracies) for name, accuracies in measured.items()}
    names = [data.label_names[label] if data.label_names else label for label in labels]
    if json:
        print_json({"model": model, "dataset": dataset, "forget": names, "accuracies": results})
        return
    typer.echo(f"{model} on {dataset}, forgotten: {', '.join(map(str, names))}")
    typer.echo(accuracy_table(results))


def _named(forget: list[str] | None, data: Any, model: Any) -> list[int] | None:
    """The data set's classes that `--forget` means, or None for those of the ledger."""
    if forget:
        return data.resolve(forget, model.config)
    from ..labels import erased_labels

    if not erased_labels(model.config):
        raise LabelError("Which classes should the model have forgotten? It does not say; name them with --forget.")
    return None


def _names(value: str, there_are: Sequence[str], kind: str) -> list[str]:
    """The probes or attacks that an option names."""
    if value in ("all", "none"):
        return list(there_are) if value == "all" else []
    names = [name.strip().replace("-", "_") for name in value.split(",")]
    if unknown := [name for name in names if name not in there_are]:
        raise OptionError(f"There is no {kind} {unknown[0]!r}. There are: {', '.join(there_are)}, `all` and `none`.")
    return names
