"""Accuracies of a model beside those of its original, as `erase`, `train` and `evaluate` report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from .request import Request

# By model, the numbers of `Accuracies`.
Columns = dict[str, dict[str, float | None]]


def before_and_after(
    original, erased, request: Request, processor: Any, batch_size: int, num_workers: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """
    The accuracies of both, on the same images.

    What an earlier request erased is neither forgotten nor retained. Where single images were forgotten, all others
    are retain images, and so are all test images.
    """
    left_out = _left_out(request, original.config)
    measured = _measured(
        _both(original, erased), original.config, request, left_out, processor, batch_size, num_workers
    )
    return measured["before"], measured["after"]


def forgotten_earlier(
    original, erased, request: Request, processor: Any, batch_size: int, num_workers: int
) -> dict[str, Columns | None]:
    """
    By class, the accuracies of both on what earlier requests erased: what is trained later can bring it back.

    None of a class of which the data set has no images: nothing tells what has become of it.
    """
    from ..ledger.record import label_names

    data, config = request.data, original.config
    mapping = data.labels_in(config)
    earlier = _erased_earlier(request, config)
    names = label_names(config, earlier)
    found: dict[str, Columns | None] = dict.fromkeys(map(str, names.values()))
    for label in data.labels_from(config, earlier):
        test = data.select(data.test, [label]) if data.test is not None else None
        own = replace(data, train=data.select(data.train, [label]), test=test)
        if not len(own.train) and not test:
            continue
        alone = Request(own, [label])
        columns = _measured(_both(original, erased), config, alone, [], processor, batch_size, num_workers)
        found[str(names[mapping[label]])] = {
            name: {key: values[key] for key in ("forget_train", "forget_test")} for name, values in columns.items()
        }
    return found


def beside_original(classifier, before, request: Request, batch_size: int, num_workers: int) -> Columns:
    """
    The accuracies of a model beside its original's.

    Args:
        classifier (`PreTrainedModel`): The model.
        before (`PreTrainedModel`, *optional*): The original; by default the same with its projection off, and none of
            a model that has none.
        request ([`Request`]): What it should have forgotten.
    """
    from ..evaluation.accuracy import model_classifier
    from ..ledger.record import edits_weights
    from ..loading import load_processor
    from ..modeling.modeling_esc import ESCModel

    left_out = _left_out(request, classifier.config)
    run = model_classifier(classifier)

    def without_projection(inputs):
        with classifier.disable_projection():
            return run(inputs)

    def measured(network: Any, classifiers: Mapping[str, Any]) -> Columns:
        processor = load_processor(network)
        return _measured(classifiers, network.config, request, left_out, processor, batch_size, num_workers)

    if before is not None:  # it has an image processor of its own
        return measured(before, {"original": model_classifier(before)}) | measured(classifier, {"erased": run})
    # Remote code has its own ESCModel class, so the model type decides.
    if classifier.config.model_type == ESCModel.config_class.model_type:
        edited = any(map(edits_weights, classifier.config.erasures))
        return measured(classifier, {"no projection" if edited else "original": without_projection, "erased": run})
    return measured(classifier, {"model": run})


def _both(original, erased) -> dict[str, Any]:
    from ..evaluation.accuracy import model_classifier

    return {"before": model_classifier(original), "after": model_classifier(erased)}


def _left_out(request: Request, config: Any) -> list[int]:
    """The data set's classes that are neither forgotten nor retained: none where single images are forgotten."""
    return [] if request.rows is not None else request.data.labels_from(config, _erased_earlier(request, config))


def _erased_earlier(request: Request, config: Any) -> list[int]:
    """The model's classes that an earlier request erased and this one does not name."""
    from ..data.labels import erased_earlier

    mapping = request.data.labels_in(config)
    return erased_earlier(config, [mapping[label] for label in request.labels])


def _measured(
    classifiers: Mapping[str, Any],
    config: Any,
    request: Request,
    left_out: Sequence[int],
    processor: Any,
    batch_size: int,
    num_workers: int,
) -> Columns:
    """The accuracies of classifiers that read the same inputs and number their classes as `config` does."""
    from ..data.batches import image_channels
    from ..evaluation.accuracy import evaluate_accuracies

    measured = evaluate_accuracies(
        classifiers,
        request.data,
        request.labels,
        forget_rows=request.rows,
        leave_out=left_out,
        mapping=request.data.labels_in(config),
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(config),
    )
    return {name: asdict(accuracies) for name, accuracies in measured.items()}
