"""`hf-esc evaluate`: accuracies on forget and retain images, with the original beside an erased model."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import LabelError
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
    Measure accuracies on forget and retain images, in %.

    An erased model stands beside its original, which is the same file with the projection off.

    Example: hf-esc evaluate demo --dataset embedded
    """
    from ..data import image_channels, load_images
    from ..evaluation.accuracy import evaluate_accuracies, model_classifier
    from ..loading import load_classifier, load_processor
    from ..modeling_esc import ESCModel

    classifier: Any = load_classifier(
        model, device=device, revision=revision or "main", trust_remote_code=trust_remote_code
    )
    data = load_images(dataset, image_column=image_column, label_column=label_column)
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
        erased = {label for record in classifier.config.erasures for label in record.get("label_ids") or ()}
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
