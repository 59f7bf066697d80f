"""The operating curve of a remap's gate: how many forget images it finds, and how many others it takes for them."""

# Shapes: N images of a split, d feature dimensions.

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from ..modeling.remap_factor import RemapFactor
from .accuracy import share_of
from .model_features import ModelFeatures, SplitFeatures

# Thresholds of a curve. The argmax and the model's own threshold join them.
THRESHOLDS = (0.5, 0.3, 0.1, 0.03, 0.01)
# Features that a factor maps at a time, so that its temporaries do not grow with the data set.
_ROWS = 8192
# Every probability is above this threshold, so its gate finds all images.
_OPEN = -1.0


@dataclass(frozen=True)
class GatePoint:
    r"""
    What a gate does, in % of the images.

    The forget images that it misses, 100 - recall, pass unchanged: whoever reads their features reads the original's,
    whatever the map behind the gate.

    Args:
        threshold (`float`, *optional*): An image is remapped if the forgotten classes together have a probability
            above it. With None, an image is remapped if a forgotten class is the argmax.
        in_force (`bool`): Whether this is the model's own gate.
        recall_train, recall_test (`float`): Share of the forget images that are remapped.
        false_alarms_train, false_alarms_test (`float`): Share of the retain images that are remapped.
        retain_test (`float`): Share of the retain test images that the head gets right behind this gate.
    """

    threshold: float | None
    in_force: bool
    recall_train: float
    recall_test: float
    false_alarms_train: float
    false_alarms_test: float
    retain_test: float


@dataclass(frozen=True)
class GateCurve:
    """
    The gate of one remap.

    Args:
        labels (`list[int]`): The model's classes that this remap forgets. A model can have several remaps.
        points (`list[GatePoint]`): The argmax, then thresholds from high to low.
    """

    labels: list[int]
    points: list[GatePoint]


@torch.no_grad()
def gate_curves(
    factors: Sequence[Any],
    bare: ModelFeatures,
    gone: Collection[int],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[GateCurve]:
    r"""
    What the gate of each remap does, and what it would do with the argmax and with other thresholds.

    With \(p = \mathrm{softmax}(W z + b)\), the gate of a threshold t finds \(\{z : \sum_{c\,\text{forgotten}} p_c >
    t\}\), so recall and false alarms fall as t rises. All points share the transport and the bank of the remap. A
    model that is erased anew with threshold t differs in that: its bank has no vectors that its own gate would find.

    Args:
        factors (`Sequence` of factors): All of a projection, in order: \(F_1, \ldots, F_m\).
        bare ([`ModelFeatures`]): Features `(N, d)` with the projection off. The features that enter each factor are
            computed from them.
        gone (`Collection[int]`): The model's classes that are not retained, also those of other erasures. The forget
            images of a remap are those of its own classes.
        thresholds (`Sequence[float]`): Each in (0, 1). The threshold of a remap that has one is added.

    Returns:
        `list[GateCurve]`: One for each remap, in order. A remap is left out if a split has no images of its classes,
        or no retain images. `retain_test` is that of the head stored in the remap: the model's head at the erasure.

    Raises:
        ValueError: If a threshold is not in (0, 1).
    """
    if wrong := [threshold for threshold in thresholds if not 0 < threshold < 1]:
        raise ValueError(f"Thresholds of a gate are probabilities between 0 and 1, not {wrong}.")
    curves = []
    train, test = bare.train, bare.test
    for place, factor in enumerate(factors):
        # Code that travels with a checkpoint brings classes of its own, so ask for the kind and not the class.
        if not factor.linear:
            curves.append(_curve(factor, train, test, gone, factors[place + 1 :], thresholds))
        train, test = (replace(split, features=_mapped(factor, split.features)) for split in (train, test))
    return [curve for curve in curves if curve is not None]


def _curve(
    factor: RemapFactor,
    train: SplitFeatures,
    test: SplitFeatures,
    gone: Collection[int],
    behind: Sequence[Any],
    thresholds: Sequence[float],
) -> GateCurve | None:
    """
    The curve of one remap, from the features that enter it. The factors `behind` stand between it and the head. None
    if there are no forget or no retain images in a split.
    """
    own, others = (torch.tensor(sorted({*factor.labels, *more})) for more in ((), gone))
    forget_train, forget_test = (torch.isin(split.labels, own) for split in (train, test))
    retain_train, retain_test = (~torch.isin(split.labels, others) for split in (train, test))
    if not all(part.any() for part in (forget_train, forget_test, retain_train, retain_test)):
        return None
    # A gate only decides which images are remapped, so one pass with all remapped and one with none serve all gates.
    passed, remapped = test.features, _mapped(_with(factor, _OPEN), test.features)
    for later in behind:
        passed, remapped = _mapped(later, passed), _mapped(later, remapped)
    with align_module_device(factor):  # an offloaded factor is on the meta device until it is asked for
        said_train, said_test = factor.logits(train.features), factor.logits(test.features)
        right_passed, right_remapped = (
            factor.logits(features).argmax(dim=1) == test.labels for features in (passed, remapped)
        )
    points = []
    own_threshold = set() if factor.threshold is None else {factor.threshold}
    for threshold in (None, *sorted({*thresholds} | own_threshold, reverse=True)):
        gate = _with(factor, threshold).gate
        found_train, found_test = gate(said_train), gate(said_test)
        shares: dict[str, Any] = {  # no part is empty, so none of them is None
            "recall_train": share_of(found_train, forget_train),
            "recall_test": share_of(found_test, forget_test),
            "false_alarms_train": share_of(found_train, retain_train),
            "false_alarms_test": share_of(found_test, retain_test),
            "retain_test": share_of(torch.where(found_test, right_remapped, right_passed), retain_test),
        }
        points.append(GatePoint(threshold, in_force=threshold == factor.threshold, **shares))
    return GateCurve(list(factor.labels), points)


def _with(factor: RemapFactor, threshold: float | None) -> RemapFactor:
    """A copy of the factor with another threshold. The tensors are shared."""
    other = copy.copy(factor)
    other.threshold = threshold
    return other


def _mapped(factor: Any, features: Tensor) -> Tensor:
    """Features `(N, d)` after a factor."""
    # Offloading sets a `forward` on the instance. In a copy that would still run the original, so call the class's.
    forward = type(factor).forward
    with align_module_device(factor):
        return torch.cat([forward(factor, rows) for rows in features.split(_ROWS)])


__all__ = ["THRESHOLDS", "GateCurve", "GatePoint", "gate_curves"]
