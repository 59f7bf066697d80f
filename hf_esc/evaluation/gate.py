"""The operating curve of the gate of a remap: what it finds of the forget images, and what it takes for them."""

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

# Beside the argmax and the gate that the model has.
THRESHOLDS = (0.5, 0.3, 0.1, 0.03, 0.01)
# Rows that are looked at together: what a factor makes in between does not grow with the data set.
_ROWS = 8192
# Every probability is above it: a gate that finds all images.
_OPEN = -1.0


@dataclass(frozen=True)
class GatePoint:
    r"""
    What a gate does, in % of the images.

    What it misses of the forget images, 100 - recall, passes as it is: no map behind the gate keeps a reader of
    features from what the original's features tell of these.

    Args:
        threshold (`float`, *optional*): An image is remapped if the probability of the forgotten classes together is
            above it. None: if one of them is the argmax.
        in_force (`bool`): Whether it is the gate that the model has.
        recall_train, recall_test (`float`): Forget images that are remapped.
        false_alarms_train, false_alarms_test (`float`): Retain images that are remapped.
        retain_test (`float`): Retain test images that the head gets right behind this gate.
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
        labels (`list[int]`): The forgotten classes of this remap, in the model. A model can have several remaps.
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
    What the gate of each remap does, and what it would do with the argmax and with each of some thresholds.

    With \(p = \mathrm{softmax}(W z + b)\), the gate of a threshold t finds \(\{z : \sum_{c\,\text{forgotten}} p_c >
    t\}\), so recall and false alarms fall as t rises. The transport and the bank are those that are there: a model
    that is erased anew with t has a bank without vectors that its gate would find.

    Args:
        factors (`Sequence` of factors): All of a projection, in order: \(F_1, \ldots, F_m\).
        bare ([`ModelFeatures`]): Features `(N, d)` with the projection off, from which those that enter each factor
            follow.
        gone (`Collection[int]`): Classes that are not retained, those of other erasures too. A remap's own are its
            forget images.
        thresholds (`Sequence[float]`): Each in (0, 1). That of a remap is added where it has one.

    Returns:
        `list[GateCurve]`: One for each remap, in order, without those of whose classes there are no images.
        `retain_test` is of the head that the remap stores, which is the model's at the erasure.

    Raises:
        ValueError: If a threshold is not in (0, 1).
    """
    if wrong := [threshold for threshold in thresholds if not 0 < threshold < 1]:
        raise ValueError(f"Thresholds of a gate are probabilities between 0 and 1, not {wrong}.")
    curves = []
    train, test = bare.train, bare.test
    for place, factor in enumerate(factors):
        # The code that travels with checkpoints has classes of its own, so the kind decides.
        if factor.kind == RemapFactor.kind:
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
    """Of features as they enter the remap; `behind` it, factors stand before the head. None if a share is of none."""
    own, others = (torch.tensor(sorted({*factor.labels, *more})) for more in ((), gone))
    forget_train, forget_test = (torch.isin(split.labels, own) for split in (train, test))
    retain_train, retain_test = (~torch.isin(split.labels, others) for split in (train, test))
    if not all(part.any() for part in (forget_train, forget_test, retain_train, retain_test)):
        return None
    # An image is remapped or it is not, whatever the gate, so two passes tell of all gates.
    passed, remapped = test.features, _mapped(_with(factor, _OPEN), test.features)
    for later in behind:
        passed, remapped = _mapped(later, passed), _mapped(later, remapped)
    with align_module_device(factor):  # an offloaded one is on the meta device until it is asked for
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
    """The same map behind another gate; the tensors are shared."""
    other = copy.copy(factor)
    other.threshold = threshold
    return other


def _mapped(factor: Any, features: Tensor) -> Tensor:
    """What a factor makes of features `(N, d)`."""
    # By the class: what offloads a model gives its modules a `forward`, which in a copy would still be the other's.
    forward = type(factor).forward
    with align_module_device(factor):
        return torch.cat([forward(factor, rows) for rows in features.split(_ROWS)])


__all__ = ["THRESHOLDS", "GateCurve", "GatePoint", "gate_curves"]
