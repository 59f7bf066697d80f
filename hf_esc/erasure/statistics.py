"""Statistics of the forget features, collected in one pass: second moments, and a bounded sample."""

# Shapes: B images in a batch, N forget images, n of them in the sample, d_g feature dimensions of site group g.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..data.batches import Batch
from ..data.model_batches import NOTHING_TO_FORGET
from ..errors import ForgetSetError, LabelError, NonFiniteError
from ..features.head import head_weights
from ..features.moments import SecondMoment
from ..features.sample import FeatureSample
from ..features.sites import SiteGroup
from ..features.stream import FeatureBatch, stream_features
from ..modeling.factors import Factor
from ..modeling.modeling_esc import ESCModel

# Forget images whose predictions are compared before and after: enough to know a share to 1.5 %.
SAMPLE_SIZE = 1024


@dataclass
class ForgetStatistics:
    """
    Statistics of the forget features. Their size does not grow with the number of images.

    Args:
        groups (`list[SiteGroup]`): Where the features were read.
        moments (`dict[int | None, list[SecondMoment]]`): By label where `per_class`, else under None: one for each
            group.
        sample ([`FeatureSample`]): Features and predictions of a bounded sample.
        labels (`set[int]`): The labels seen.
        num_images (`int`): N.
        head_weights (`torch.Tensor`, *optional*): From [`head_weights`]; None if the head cannot be run on features
            alone.
    """

    groups: list[SiteGroup]
    moments: dict[int | None, list[SecondMoment]] = field(default_factory=dict)
    sample: FeatureSample = field(default_factory=lambda: FeatureSample(SAMPLE_SIZE))
    labels: set[int] = field(default_factory=set)
    num_images: int = 0
    head_weights: Tensor | None = None


def collect(model: ESCModel, batches: Iterable[Batch], *, per_class: bool = False) -> ForgetStatistics:
    """
    One pass over the forget set: second moments and a bounded sample of the features that reach the head.

    Args:
        model ([`ESCModel`]): In eval mode.
        batches (`Iterable[dict[str, torch.Tensor]]`): Batches, with `labels` where `per_class`.
        per_class (`bool`): One second moment for each label.

    Returns:
        [`ForgetStatistics`]

    Raises:
        ForgetSetError: If there is no image, or no label where one is needed.
        NonFiniteError: If a feature is not finite; the batch is named.
    """
    groups = [SiteGroup.from_dict(site) for site in model.config.sites]
    statistics = ForgetStatistics(groups)
    mapped = [projection.parts()[0] for projection in model.projections]
    for number, batch in enumerate(stream_features(model.model, groups, batches)):
        if bool(statistics.labels) != (batch.labels is not None) and number:
            raise ForgetSetError(
                f"Batch {number} of the forget set has {'no labels' if statistics.labels else 'labels'}, and those "
                f"before it have {'them' if statistics.labels else 'none'}."
            )
        if per_class and batch.labels is None:
            raise ForgetSetError(f"`per_class` needs labels, and batch {number} of the forget set has none.")
        check_labels(batch, number, model.config.num_labels)
        features = [after(factors, z) for factors, z in zip(mapped, batch.features, strict=True)]
        parts: dict[int | None, Any] = {None: slice(None)}
        if batch.labels is not None:
            seen = batch.labels.unique().tolist()
            statistics.labels.update(seen)
            if per_class:
                parts = {label: (batch.labels == label).nonzero().flatten() for label in seen}
        for label, rows in parts.items():
            moments = statistics.moments.setdefault(
                label, [SecondMoment(z.shape[1], z.device) for z in batch.features]
            )
            for moment, z in zip(moments, features, strict=True):
                try:
                    moment.update(z[rows])
                except NonFiniteError as error:
                    raise NonFiniteError(f"Batch {number} of the forget set: {error}") from error
        if number == 0:  # only now are the features known to be finite
            statistics.head_weights = head_weights(model.model, groups, batch)
        statistics.sample.update(replace(batch, features=features))
        statistics.num_images += len(batch.logits)
    if statistics.num_images == 0:
        raise ForgetSetError(NOTHING_TO_FORGET)
    return statistics


def after(factors: Sequence[Factor], features: Tensor) -> Tensor:
    """Apply factors to features in float64: what rounding leaves of an erased class could pass for a new direction."""
    if not factors:
        return features
    exact = features.double()
    for factor in factors:
        exact = factor(exact)
    return exact


def check_labels(batch: FeatureBatch, number: int, num_labels: int | None) -> None:
    """Raise unless the labels of a batch, where it has any, are whole numbers `(B,)` of the model's classes."""
    labels, count = batch.labels, len(batch.logits)
    if labels is None:
        return
    if labels.is_floating_point() or labels.shape != (count,):
        raise ForgetSetError(
            f"The labels of batch {number} should be {count} whole numbers, one class index for each image, and are "
            f"{labels.dtype} of the shape {tuple(labels.shape)}."
        )
    if num_labels is not None and (labels.min() < 0 or labels.max() >= num_labels):
        raise LabelError(
            f"The labels of batch {number} range from {labels.min()} to {labels.max()}, and the model has "
            f"{num_labels} classes. Ready batches have the model's class indices."
        )
