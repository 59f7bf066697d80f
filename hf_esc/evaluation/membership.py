"""Membership inference: whether a model's losses tell the images it was trained on from others."""

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

# A tenth of a smaller side is no image, and of fewer non-members one alone is more than 1 %.
LEAST = 10
LEAST_FOR_1_PERCENT = 100


@dataclass(frozen=True)
class MembershipInference:
    """
    How well members are told from non-members, in %.

    A number alone says little: 50 % is chance, but a model that never saw the members is not at 50 % where the two
    sides differ in other ways. Read it beside the original's and a retrained model's, which is the reference.

    Args:
        accuracy (`float`): Of the attack on images that it was not fitted on, the mean over 5 splits. 50 is chance.
        spread (`float`): Standard deviation of the 5 accuracies. Another seed, which also draws other images, can
            move their mean as much.
        auc (`float`): How often a member has a lower loss than a non-member, ties counted as half. 50 is chance.
        tpr_at_1_fpr (`float`, *optional*): Share of the members that are found when at most 1 % of the
            non-members are taken for members. 1 is chance. None with fewer than 100 non-members.
        members (`int`): N, as given.
        nonmembers (`int`): M, as given.
        drawn (`int`): Images of each side that `accuracy` is of: the smaller of N and M.
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
    image, \(D_f\) (training images of the forgotten classes, members) against \(D_{ft}\) (their test images).

    Both sides without augmentation: the attack would otherwise learn who was augmented. 50 % is chance, but the
    reference is a retrained model's value: training and test images may differ for a model that saw neither. Above it,
    the losses still show who was in the training set.

    Args:
        member_logits (`torch.Tensor` of shape `(N, C)`): Of images that the original was trained on.
        member_labels (`torch.LongTensor` of shape `(N,)`): Their true classes, from 0 to C - 1.
        nonmember_logits (`torch.Tensor` of shape `(M, C)`): Of images that it was not trained on.
        nonmember_labels (`torch.LongTensor` of shape `(M,)`): Their true classes.
        seed (`int`): Of the draw from the larger side and of the splits.

    Returns:
        [`MembershipInference`]: See [`attack_losses`] for how each number comes about.

    Raises:
        MetricError: If logits and labels do not fit each other, a label is outside, or a side has fewer than 10
            images.
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

    In this form, and in float64, it neither overflows for large logits nor becomes 0 for sure predictions, whose order
    the attack reads.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): Of 2 classes or more, on any device.
        labels (`torch.LongTensor` of shape `(N,)`): True classes, from 0 to C - 1.
        what (`str`): Whose they are, for errors.

    Returns:
        `torch.Tensor` of shape `(N,)`: float64, on the CPU.

    Raises:
        MetricError: If logits and labels do not fit each other, or a label is outside.
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
    scores = scores - scores.amax(dim=1, keepdim=True)  # beside a large number, the logarithm would be lost
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], True)
    margin = scores[own] - scores.masked_fill(own, -torch.inf).logsumexp(dim=1)
    return -functional.logsigmoid(margin)


def finite_logits(logits: Tensor, what: str) -> Tensor:
    """
    Logits in float64 on the CPU, whose differences are finite too.

    Raises:
        MetricError: Unless they are `(N, C)` of one image and two classes or more.
        NonFiniteError: If one is NaN or infinite.
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
    The attack on losses that were computed already.

    - `accuracy`: as many images are drawn of the larger side as the smaller has. 5 times, stratified, 10 % of them are
      held out, and scikit-learn's logistic regression (C = 1) on the loss is fitted to the others. It is solved by
      Newton's method on standardised losses with the penalty of unstandardised ones: scikit-learn's own start is
      within its tolerance where losses are small, and its answer then always the same. float64 resolves losses that
      spread over nine orders of magnitude.
    - `auc` of all images: \(\frac{1}{NM} \sum_{i,j} \big(1[a_i < b_j] + \tfrac12 1[a_i = b_j]\big)\) for the losses
      \(a\) of members and \(b\) of non-members. It has no threshold, no draw and no side: it stays as it is under any
      rising function of the loss, and is below 50 where members have the higher losses.
    - `tpr_at_1_fpr` of all images: with \(t\) the \(\lfloor M / 100 \rfloor + 1\) smallest of \(b\), the share
      of \(a < t\). It is the highest that a threshold on the loss reaches with 1 % of false positives or fewer;
      nothing is interpolated between the thresholds.

    Args:
        member_losses (`torch.Tensor` of shape `(N,)`): Of 10 images or more.
        nonmember_losses (`torch.Tensor` of shape `(M,)`): Of 10 images or more.
        seed (`int`): Of the draw and the splits.

    Returns:
        [`MembershipInference`]

    Raises:
        MetricError: If losses are not of one dimension, or a side has fewer than 10.
        NonFiniteError: If a loss is NaN or infinite.
    """
    sides = []
    for losses, what in ((member_losses, "members"), (nonmember_losses, "non-members")):
        if losses.ndim != 1 or len(losses) < LEAST:
            raise MetricError(
                f"There should be one loss for each of {LEAST} {what} or more, and the losses have the shape "
                f"{tuple(losses.shape)}. With fewer, a tenth to try the attack on is no image."
            )
        sides.append(losses.detach().cpu().double())
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
    """So many, in the order in which they came."""
    return losses[torch.randperm(len(losses), generator=generator)[:count].sort().values]


def _right_answers(members: Tensor, nonmembers: Tensor, seed: int) -> np.ndarray:
    """Where the attack is right: a row for each split, of its held-out images."""
    losses = torch.cat([members, nonmembers]).numpy()
    is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
    splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=seed).split(losses[:, None], is_member)
    return np.array([_attack(losses[fit], is_member[fit], losses[held]) == is_member[held] for fit, held in splits])


def _attack(losses: np.ndarray, is_member: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Who of the held-out is a member, by a logistic regression on the others."""
    if losses.min() == losses.max():
        return np.ones_like(held, dtype=int)  # nothing to go by, and any answer is right for half of them
    # The square of a huge loss is no number. Division by a power of two changes no digit.
    unit = 2.0 ** np.floor(np.log2(np.abs(losses).max()))
    centre, width = (losses / unit).mean(), (losses / unit).std()
    # min |w|²/2 + C Σ loss is the same for w and C as for w times and C over the square of the width. Beyond the
    # bounds, C no longer moves the threshold.
    with np.errstate(over="ignore"):
        strength = float(np.clip((width * unit) ** 2, 1e-8, 1e30))
    classifier = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the last steps where the sides are far apart
        classifier.fit(((losses / unit - centre) / width)[:, None], is_member)
    return classifier.predict(((held / unit - centre) / width)[:, None])


def _auc(members: Tensor, nonmembers: Tensor) -> float:
    ordered = nonmembers.sort().values
    below, up_to = (torch.searchsorted(ordered, members, right=right) for right in (False, True))
    # Twice the pairs, so that halves are whole numbers.
    won = int((2 * len(ordered) - below - up_to).sum())
    return 100 * won / (2 * len(members) * len(ordered))


def _tpr_at_1_fpr(members: Tensor, nonmembers: Tensor) -> float | None:
    if len(nonmembers) < LEAST_FOR_1_PERCENT:
        return None
    threshold = nonmembers.sort().values[len(nonmembers) // 100]
    return 100 * int((members < threshold).sum()) / len(members)


__all__ = ["MembershipInference", "attack_losses", "cross_entropies", "membership_inference"]
