"""Accuracies of an erased model beside those of its original, as `erase` and `train` report them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .request import Request


def before_and_after(
    original, erased, request: Request, processor: Any, batch_size: int, num_workers: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """
    The accuracies of both, on the same images.

    What an earlier request erased is neither forgotten nor retained. Where single images were forgotten, all others
    are retain images, and so are all test images.
    """
    from ..data import image_channels
    from ..evaluation.accuracy import evaluate_accuracies, model_classifier
    from ..labels import erased_labels

    data, labels = request.data, request.labels
    mapping = data.labels_in(original.config)
    earlier = erased_labels(original.config) if request.rows is None else set()
    measured = evaluate_accuracies(
        {"before": model_classifier(original), "after": model_classifier(erased)},
        data,
        labels,
        forget_rows=request.rows,
        leave_out=[label for label, there in enumerate(mapping) if there in earlier and label not in labels],
        mapping=mapping,
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(original.config),
    )
    return asdict(measured["before"]), asdict(measured["after"])
