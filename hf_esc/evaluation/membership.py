"""Membership inference: whether a model's losses tell the images that it was trained on from others."""

# Shapes: N members, M non-members, C classes.

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor
from torch.nn import functional

from ..errors import MetricError, NonFiniteError

# A tenth of each side is held out, which needs 10 images; one false positive is 1 % of 100 non-members.
LEAST = 10
LEAST_FOR_1_PERCENT = 100


@dataclass(frozen=True)
class MembershipInference:
    """
    How well members are told from non-members, in %.

    A number alone says little. 50 % is chance, but where the two sides differ in other ways, a model that never saw
    the members is not at 50 % either. Compare with the original and with a retrained model, which is the reference.

    Args:
        accuracy (`float`): Accuracy of the attack on images that it was not fitted on, the mean over 5 splits. 50 is
            chance.
        spread (`float`): Standard deviation of the 5 accuracies. Another seed also draws other images, and can move
            the mean by as much.
        auc (`float`): How often a member has a lower loss than a non-member, ties counted as half. 50 is chance.
        tpr_at_1_fpr (`float`, *optional*): Share of the members that are found when at most 1 % of the non-members are
            taken for members. 1 is chance. None with fewer than 100 non-members.
        members (`int`): N, the members given.
        nonmembers (`int`): M, the non-members given.
        drawn (`int`): Images of each side that enter `accuracy`: the smaller of N and M.
    """

    accuracy: float
    spread: float
    auc: float
    tpr_at_1_fpr: float | None
    members: int
    nonmembers: int
    drawn: int


def membership_inference(
    member_logits: Tensor,
    member_labels: Tensor,
    nonmember_logits: Tensor,
    nonmember_labels: Tensor,
    *,
    seed: int = 0,
) -> MembershipInference:
    r"""
    MIA of Table 1 of [ESC](https://huggingface.co/papers/2504.02199): logistic regression on the cross-entropy of each
    image. Members are \(D_f\), the training images of the forgotten classes; non-members are \(D_{ft}\), their test
    images.

    Take the logits of both sides without augmentation, or the attack learns which images were augmented. 50 % is
    chance, but the reference is a retrained model's value: training and test images may differ for a model that saw
    neither. Above the reference, the losses still show which images were trained on.

    Args:
        member_logits (`torch.Tensor` of shape `(N, C)`): The model's logits for images the original was trained on.
        member_labels (`torch.LongTensor` of shape `(N,)`): Their true classes, from 0 to C - 1.
        nonmember_logits (`torch.Tensor` of shape `(M, C)`): Its logits for images the original was not trained on.
        nonmember_labels (`torch.LongTensor` of shape `(M,)`): Their true classes.
        seed (`int`): Seed of the draw from the larger side and of the splits.

    Returns:
        [`MembershipInference`]: [`attack_losses`] says how each number is computed.

    Raises:
        MetricError: If logits and labels do not fit each other, a label is not from 0 to C - 1, or a side has fewer
            than 10 images.
        NonFiniteError: If a logit is NaN or infinite.
    """
    if member_logits.ndim == nonmember_logits.ndim == 2 and member_logits.shape[1] != nonmember_logits.shape[1]:
        raise MetricError(
            f"Members have logits of {member_logits.shape[1]} classes and non-members of {nonmember_logits.shape[1]}: "
            "both should be of one model."
        )
    return attack_losses(
        cross_entropies(member_logits, member_labels, "members"),
        cross_entropies(nonmember_logits, nonmember_labels, "non-members"),
        seed=seed,
    )


def cross_entropies(logits: Tensor, labels: Tensor, what: str = "images") -> Tensor:
    r"""
    The cross-entropy of each image, \(\log(1 + e^{-m})\) with the margin
    \(m = s_y - \log \sum_{c \ne y} e^{s_c}\) of its logits \(s\).

    In this form and in float64, it does not overflow for large logits, and it does not become 0 for confident
    predictions, whose order the attack reads.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): Logits of 2 classes or more, on any device.
        labels (`torch.LongTensor` of shape `(N,)`): True classes, from 0 to C - 1.
        what (`str`): What errors call the images.

    Returns:
        `torch.Tensor` of shape `(N,)`: float64, on the CPU.

    Raises:
        MetricError: If logits and labels do not fit each other, or a label is not from 0 to C - 1.
        NonFiniteError: If a logit is NaN or infinite.
    """
    scores = finite_logits(logits, what)
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise MetricError(
            f"There are logits of {len(logits)} {what} and labels of the shape {tuple(labels.shape)} "
            f"({labels.dtype}): each needs one class index."
        )
    labels = labels.detach().cpu().long()
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise MetricError(
            f"The labels of the {what} range from {labels.min()} to {labels.max()}, and there are {logits.shape[1]} "
            "classes. Are they the data set's numbers, and the model has its own?"
        )
    scores = scores - scores.amax(dim=1, keepdim=True)  # without this, large logits would swallow the logarithm
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], True)
    margin = scores[own] - scores.masked_fill(own, -torch.inf).logsumexp(dim=1)
    return -functional.logsigmoid(margin)


def finite_logits(logits: Tensor, what: str) -> Tensor:
    """
    Logits in float64 on the CPU, bounded so that their differences are finite too.

    Raises:
        MetricError: Unless they are `(N, C)` with at least one image and two classes.
        NonFiniteError: If a logit is NaN or infinite.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        raise MetricError(
            f"The logits of the {what} should be (N, C) with N of 1 and C of 2 or more, not {tuple(logits.shape)}."
        )
    if bad := int((~torch.isfinite(logits)).any(dim=1).sum()):
        raise NonFiniteError(f"The logits of {bad} of the {len(logits)} {what} are not finite.")
    return logits.detach().cpu().double().clamp(-1e300, 1e300)


def attack_losses(member_losses: Tensor, nonmember_losses: Tensor, *, seed: int = 0) -> MembershipInference:
    r"""
    The attack on losses that are already computed.

    - `accuracy`: the larger side is cut to the size of the smaller by a random draw. 5 times, a stratified 10 % of the
      images are held out, and scikit-learn's logistic regression (C = 1) on the loss is fitted to the others. It is
      solved by Newton's method on standardised losses, with the penalty that C = 1 means for unstandardised ones:
      where losses are small, scikit-learn's starting point is already within its tolerance, and it would return that.
      float64 resolves losses that spread over nine orders of magnitude.
    - `auc`, over all images: \(\frac{1}{NM} \sum_{i,j} \big(1[a_i < b_j] + \tfrac12 1[a_i = b_j]\big)\) for the losses
      \(a\) of members and \(b\) of non-members. It involves no threshold and no draw, and any increasing function of
      the loss gives the same value. It is below 50 where members have the higher losses.
    - `tpr_at_1_fpr`, over all images: the share of \(a < t\), where \(t\) is the
      \((\lfloor M / 100 \rfloor + 1)\)-th smallest of \(b\). No threshold on the loss finds more members with at most
      1 % false positives; nothing is interpolated between thresholds.

    Args:
        member_losses (`torch.Tensor` of shape `(N,)`): Losses of 10 members or more.
        nonmember_losses (`torch.Tensor` of shape `(M,)`): Losses of 10 non-members or more.
        seed (`int`): Seed of the draw and of the splits.

    Returns:
        [`MembershipInference`]

    Raises:
        MetricError: If losses do not have one dimension, or a side has fewer than 10.
        NonFiniteError: If a loss is NaN or infinite.
    """
    sides = []
    for losses, what in ((member_losses, "members"), (nonmember_losses, "non-members")):
        if losses.ndim != 1 or len(losses) < LEAST:
            raise MetricError(
                f"There should be one loss for each of {LEAST} {what} or more, and the losses have the shape "
                f"{tuple(losses.shape)}. With fewer, a tenth to try the attack on is no image."
            )
        # Sorted, so that the draw and the splits do not depend on the order of the rows.
        sides.append(losses.detach().cpu().double().sort().values)
        if bad := int((~torch.isfinite(sides[-1])).sum()):
            raise NonFiniteError(f"{bad} of the {len(losses)} losses of {what} are not finite.")
    members, nonmembers = sides
    drawn = min(len(members), len(nonmembers))
    generator = torch.Generator().manual_seed(seed)
    right = _right_answers(_draw(members, drawn, generator), _draw(nonmembers, drawn, generator), seed)
    return MembershipInference(
        accuracy=100 * float(right.mean()),
        spread=100 * float(right.mean(axis=1).std()),
        auc=_auc(members, nonmembers),
        tpr_at_1_fpr=_tpr_at_1_fpr(members, nonmembers),
        members=len(members),
        nonmembers=len(nonmembers),
        drawn=drawn,
    )


def _draw(losses: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random draw of `count` losses, in their order."""
    return losses[torch.randperm(len(losses), generator=generator)[:count].sort().values]


def _right_answers(members: Tensor, nonmembers: Tensor, seed: int) -> np.ndarray:
    """Whether the attack is right: a row for each split, a column for each of its held-out images."""
    losses = torch.cat([members, nonmembers]).numpy()
    is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
    splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=seed).split(losses[:, None], is_member)
    return np.array([_attack(losses[fit], is_member[fit], losses[held]) == is_member[held] for fit, held in splits])


def _attack(losses: np.ndarray, is_member: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Predict which of the held-out losses are of members, by a logistic regression on the other losses."""
    if losses.min() == losses.max():
        return np.ones_like(held, dtype=int)  # all losses are equal, and any answer is right for half of the images
    # The square of a huge loss overflows, so losses are scaled. Division by a power of two is exact.
    unit = 2.0 ** np.floor(np.log2(np.abs(losses).max()))
    centre, width = (losses / unit).mean(), (losses / unit).std()
    # Dividing the losses by their width multiplies w by it, so C times the squared width keeps the minimum of
    # |w|²/2 + C Σ loss where it is. Beyond the bounds, C no longer moves the threshold.
    with np.errstate(over="ignore"):
        strength = float(np.clip((width * unit) ** 2, 1e-8, 1e30))
    classifier = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the last steps, where the sides are far apart
        classifier.fit(((losses / unit - centre) / width)[:, None], is_member)
    return classifier.predict(((held / unit - centre) / width)[:, None])


def _auc(members: Tensor, nonmembers: Tensor) -> float:
    ordered = nonmembers.sort().values
    below, up_to = (torch.searchsorted(ordered, members, right=right) for right in (False, True))
    # Pairs are counted twice, so that half a pair is a whole number.
    won = int((2 * len(ordered) - below - up_to).sum())
    return 100 * won / (2 * len(members) * len(ordered))


def _tpr_at_1_fpr(members: Tensor, nonmembers: Tensor) -> float | None:
    if len(nonmembers) < LEAST_FOR_1_PERCENT:
        return None
    threshold = nonmembers.sort().values[len(nonmembers) // 100]
    return 100 * int((members < threshold).sum()) / len(members)


__all__ = ["MembershipInference", "attack_losses", "cross_entropies", "membership_inference"]
