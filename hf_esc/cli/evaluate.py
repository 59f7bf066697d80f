"""`hf-esc evaluate`: what is left of forgotten classes, with references beside each number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LabelError, OptionError, OutputError
from ..saving import check_place, write_file
from . import options
from .measure import beside_original
from .report import accuracy_table, print_json
from .request import WAYS, Request, Wish, read_rows
from .terminal import say


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
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What the model was before; by default, the same file with its projection off. Of a model whose "
            "weights were edited there is none in the file.",
            show_default=False,
        ),
    ] = None,
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
    dataset_config: options.DatasetConfig = None,
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

    An erased model stands beside its original, which is the same file with the projection off unless another is given
    (--original), beside a model that was trained without the classes where one is given (--reference), and beside a
    randomly initialised network. A file whose weights were edited does not hold its original: name it. The paper's
    probe is not trained to the end, so a converged one stands beside it. Of a remapped model, the operating curve of
    its gate follows.

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
    _check_output(output)
    if feature_dir is not None:
        check_place(feature_dir)
    from ..data.image_data import load_images
    from ..data.labels import erased_labels
    from ..loading import load_classifier, load_config

    source: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    config = load_config(model, **source)
    if not wish and not erased_labels(config):
        raise LabelError(f"What should {model} have forgotten? It does not say. Name it with {WAYS}.")
    data = load_images(dataset, image_column=image_column, label_column=label_column, dataset_config=dataset_config)
    request = wish.found_early(data, config) if wish else None
    classifier: Any = load_classifier(model, device=device, **source)
    if wish and request is None:
        request = wish.found_in(data, classifier.config)
    data = request.data if request is not None else data.without_unclear(classifier.config)
    loading: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code}
    before = _original(original, model, classifier, **loading)
    retrained = load_classifier(reference, **loading) if reference is not None else None
    if not chosen:
        request = request or Request(data, data.labels_from(classifier.config, erased_labels(classifier.config)))
        _print_head(model, dataset, classifier, before, request, batch_size, num_workers, as_json=json)
        return
    from ..evaluation.columns import ORIGINAL, RETRAIN
    from ..evaluation.unlearning import evaluate_unlearning

    given = {ORIGINAL: before, RETRAIN: retrained}
    report = evaluate_unlearning(
        classifier,
        data,
        request.labels if request is not None and request.rows is None else None,
        forget_indices=request.rows if request is not None else None,
        references={name: network for name, network in given.items() if network is not None},
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
        write_file(output, report.to_json() + "\n")
    _print_report(model, dataset, report, as_json=json)


def _check_output(output: Path | None) -> None:
    """Raise, before any work, where a report could not be written."""
    if output is not None and output.is_dir():
        raise OutputError(f"The report {output} is a folder. Name a file.")
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError(f"The report {output} cannot be written: {output.absolute().parent} is no folder.")
    if output is not None:
        check_place(output.absolute().parent)


def _print_report(model: str, dataset: str, report: Any, *, as_json: bool) -> None:
    from ..evaluation.report_text import table

    if as_json:
        print_json(report.to_dict())
        return
    forgotten = ", ".join(report.forget) or f"{report.num_forget_train} training images"
    say(f"{model} on {dataset}, forgotten: {forgotten}")
    say(f"Probes with any randomness are the mean of {len(report.seeds)} seeds; -: not measured.", "")
    say(*table(report).split("\n"))


def _print_head(
    model: str,
    dataset: str,
    classifier: Any,
    before: Any,
    request: Request,
    batch_size: int,
    num_workers: int,
    *,
    as_json: bool,
) -> None:
    """The accuracies of the head alone, beside the original's."""
    if not request.labels and request.rows is None:
        raise LabelError(f"{dataset!r} has no class that {model} has forgotten. Name others with {WAYS}.")
    rows, results = request.rows, beside_original(classifier, before, request, batch_size, num_workers)
    if as_json:
        named = {} if rows is None else {"forget_rows": rows}
        print_json({"model": model, "dataset": dataset, "forget": request.names, **named, "accuracies": results})
        return
    forgotten = ", ".join(map(str, request.names)) or f"{len(rows or ())} training images"
    say(f"{model} on {dataset}, forgotten: {forgotten}")
    say(*accuracy_table(results).split("\n"))


def _original(name: str | None, model: str, classifier: Any, **options: Any) -> Any:
    """
    What `--original` names, None where it is not given.

    A warning where it is not what the ledger says that the model was made from, or where it is missing and nothing in
    the file can stand for it.
    """
    from ..ledger.record import base_on_the_hub, edits_weights
    from ..loading import load_classifier
    from ..modeling.fingerprints import weights_sha256

    ledger = getattr(classifier.config, "erasures", [])
    base, revision = base_on_the_hub(classifier.config)
    if name is None:
        if any(map(edits_weights, ledger)):
            say(
                f"Warning: the weights of {model} were edited, and it does not hold what they were before. Name that "
                f"with `--original {base or 'MODEL'}`: it is the reference of each number here.",
                err=True,
            )
        return None
    # The ledger says which commit of its base it is of.
    at = {"revision": revision} if name == base and revision else {}
    before = load_classifier(name, **options, **at)
    if ledger and ledger[0].get("base_sha256") not in (None, weights_sha256(before)):
        say(
            f"Warning: {name} does not have the weights that {model} was made from, by the fingerprint in its ledger: "
            "in another precision, or another model.",
            err=True,
        )
    return before


def _names(value: str, there_are: Sequence[str], kind: str) -> list[str]:
    """The probes or attacks that an option names."""
    if value in ("all", "none"):
        return list(there_are) if value == "all" else []
    names = [name.strip().replace("-", "_") for name in value.split(",")]
    if unknown := [name for name in names if name not in there_are]:
        raise OptionError(f"There is no {kind} {unknown[0]!r}. There are: {', '.join(there_are)}, `all` and `none`.")
    return names
