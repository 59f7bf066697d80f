"""How far models are apart: from a retrained one in their metrics, from the original in weights and classes."""

# Shapes: N features of d dimensions, C classes.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import MetricError, NonFiniteError
from ..modeling.modeling_esc import inner_classifier


def average_gap(values: Mapping[str, float], reference: Mapping[str, float]) -> float:
    r"""
    Avg Gap of Table 5 of [ESC](https://huggingface.co/papers/2504.02199): \(\frac{1}{n} \sum_m |v_m - r_m|\) over the
    metrics \(m\). The paper takes the accuracies on \(D_f\), \(D_r\) and \(D_t\) and the MIA of a model and of
    Retrain.

    Args:
        values (`Mapping[str, float]`): A model's metrics, all in the same unit.
        reference (`Mapping[str, float]`): The same metrics of the retrained model.

    Returns:
        `float`: 0 or more, in the unit of the metrics; 0 where all metrics are the same.

    Raises:
        MetricError: If there is no metric, a metric is on one side only, or one is None, NaN or infinite.
    """
    if not values or set(values) != set(reference):
        raise MetricError(
            f"The gap is over the same metrics on both sides, one or more. Only in the values: "
            f"{sorted(set(values) - set(reference))}; only in the reference: {sorted(set(reference) - set(values))}."
        )
    for side in (values, reference):
        if bad := [name for name, value in side.items() if value is None or not math.isfinite(value)]:
            raise MetricError(
                f"The metrics {bad} are no finite numbers. Measure them, or leave them out on both sides."
            )
    return sum(abs(values[name] - reference[name]) for name in values) / len(values)


@dataclass(frozen=True)
class WeightDifference:
    r"""
    How far a parameter is from the same parameter of the original.

    Args:
        name (`str`): As in the original's `named_parameters`.
        norm (`float`): \(\|w - w_0\|_2\).
        relative (`float`, *optional*): \(\|w - w_0\|_2 / \|w_0\|_2\), exactly 0 where nothing changed. None where all
            of \(w_0\) is 0 and \(w\) is not, as for biases that start at 0.
    """

    name: str
    norm: float
    relative: float | None


def weight_differences(model: nn.Module, original: nn.Module) -> list[WeightDifference]:
    """
    The layer-wise weight difference of Fig. 2 of [ESC](https://huggingface.co/papers/2504.02199), for each parameter.

    For an [`ESCModel`], the classifier inside is compared: the projection does not change weights, so all differences
    are 0 after ESC and ESC-T. Buffers, such as the running statistics of batch normalisation, are not compared.

    Args:
        model (`nn.Module`): The model after unlearning.
        original (`nn.Module`): The model before unlearning, of the same architecture. It may be on another device or
            in another precision: differences are computed in float64.

    Returns:
        `list[WeightDifference]`: In the order of the model's layers. Empty if the model has no parameters.

    Raises:
        MetricError: If the two do not have the same parameters in the same shapes.
        NonFiniteError: If a weight is NaN or infinite.
    """
    after, before = (dict(inner_classifier(side).named_parameters()) for side in (model, original))
    if set(after) != set(before):
        raise MetricError(
            "Weights are compared between models of the same architecture. Only in the model: "
            f"{_some(set(after) - set(before))}; only in the original: {_some(set(before) - set(after))}."
        )
    if other := [name for name in before if after[name].shape != before[name].shape]:
        shapes = ", ".join(f"{name} {tuple(after[name].shape)} for {tuple(before[name].shape)}" for name in other[:3])
        raise MetricError(f"{len(other)} parameters have other shapes in the model than in the original: {shapes}.")
    return [_difference(name, after[name], weight) for name, weight in before.items()]


def _difference(name: str, after: Tensor, before: Tensor) -> WeightDifference:
    w, w0 = (weight.detach().cpu().double() for weight in (after, before))
    for weight, whose in ((w, "model"), (w0, "original")):
        if not torch.isfinite(weight).all():
            raise NonFiniteError(f"{name!r} of the {whose} has weights that are NaN or infinite.")
    norm, size = torch.linalg.vector_norm(w - w0).item(), torch.linalg.vector_norm(w0).item()
    return WeightDifference(name, norm, norm / size if size else (None if norm else 0.0))


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def class_similarity(features: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    r"""
    The similarity between classes in Fig. 3 of [ESC](https://huggingface.co/papers/2504.02199): for each pair of
    classes, the cosine \(\mu_a^\top \mu_b / (\|\mu_a\| \|\mu_b\|)\) of their mean features \(\mu\).

    Features are not centred. Where all classes share a large mean, such as after a ReLU, all cosines are high.

    Args:
        features (`torch.Tensor` of shape `(N, d)`): What the head of a model reads.
        labels (`torch.LongTensor` of shape `(N,)`): True classes, from 0 to `num_labels - 1`.
        num_labels (`int`): C.

    Returns:
        `torch.Tensor` of shape `(C, C)`: float64, on the CPU, from -1 to 1, symmetric, 1 on the diagonal. The row and
        column of a class are NaN if it has no images, or if its mean is 0 and so has no direction.

    Raises:
        MetricError: If features and labels do not fit each other, or a label is not from 0 to `num_labels - 1`.
        NonFiniteError: If a feature is NaN or infinite.
    """
    if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1] or labels.is_floating_point():
        raise MetricError(
            f"Features should be (N, d) with N of 1 or more, and labels N class indices; they are "
            f"{tuple(features.shape)} and {tuple(labels.shape)} ({labels.dtype})."
        )
    if bad := int((~torch.isfinite(features)).any(dim=1).sum()):
        raise NonFiniteError(f"{bad} of the {len(features)} features are not finite.")
    z, y = features.detach().cpu().double(), labels.detach().cpu().long()
    if y.min() < 0 or y.max() >= num_labels:
        raise MetricError(f"Labels range from {y.min()} to {y.max()}, and there are {num_labels} classes.")
    sums = z.new_zeros(num_labels, z.shape[1]).index_add_(0, y, z)  # (C, d), each in the direction of its mean
    directions = sums / torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    return (directions @ directions.T).clamp(-1, 1)


__all__ = ["WeightDifference", "average_gap", "class_similarity", "weight_differences"]
