"""Accuracies of an erased model beside those of its original, as `erase` and `train` report them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data import ImageData


def before_and_after(
    original, erased, data: ImageData, labels: list[int], processor: Any, batch_size: int, num_workers: int
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The accuracies of both, on the same images; what an earlier request erased is neither forgotten nor retained."""
    from ..data import image_channels
    from ..evaluation.accuracy import evaluate_accuracies, model_classifier
    from ..labels import erased_labels

    mapping = data.labels_in(original.config)
    earlier = erased_labels(original.config)
    measured = evaluate_accuracies(
        {"before": model_classifier(original), "after": model_classifier(erased)},
        data,
        labels,
        leave_out=[label for label, there in enumerate(mapping) if there in earlier and label not in labels],
        mapping=mapping,
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=image_channels(original.config),
    )
    return asdict(measured["before"]), asdict(measured["after"])
