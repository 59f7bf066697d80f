"""Knowledge retention (KR): what a probe reads of the forgotten classes from a model's features."""

# Shapes: N training and M test features of d dimensions, C classes.

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ProbeError
from .accuracy import Accuracies, accuracies_of, share_of
from .probes import PROBES, ProbeName, check_features, train_probe

# How many forget samples of each class are labelled for a point of the curve; None for all.
CURVE = (1, 2, 5, 10, 20, 50, 100, None)


@dataclass(frozen=True)
class KnowledgeRetention:
    """
    Accuracies of a probe on features, in %.

    A number of a probe means nothing alone: read it beside the original's, a retrained model's, and a randomly
    initialised network's.

    Args:
        probe (`str`): Which one.
        accuracies ([`Accuracies`]): Of the probe on forget and retain data. For `one_vs_rest`, the shares of forget
            and of retain features that it takes for what they are.
        settings (`dict`): What it was trained with, and whether it converged.
    """

    probe: str
    accuracies: Accuracies
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Flat, as `kr_score` gives it."""
        return {**asdict(self.accuracies), "probe": self.probe, "settings": dict(self.settings)}


def knowledge_retention(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forget_labels: Sequence[int],
    *,
    probe: ProbeName = "paper",
    seed: int = 0,
    device: torch.device | str | None = None,
) -> KnowledgeRetention:
    r"""
    Train a probe on the features of all training images, the forgotten classes included, and see what it gets right.

    This is KR of [ESC](https://huggingface.co/papers/2504.02199) where `probe` is `"paper"`. That probe is not trained
    to the end: it tells how readily a class is read, and the others of [`train_probe`] whether it can be.

    Args:
        train_features (`torch.Tensor` of shape `(N, d)`): Of the full training set.
        train_labels (`torch.LongTensor` of shape `(N,)`): Class indices.
        test_features (`torch.Tensor` of shape `(M, d)`): Of the test set.
        test_labels (`torch.LongTensor` of shape `(M,)`): Class indices.
        forget_labels (`Sequence[int]`): The classes that were to be forgotten.
        probe (`str`, defaults to `"paper"`): One of [`train_probe`].
        seed (`int`): Of its weights and batches.
        device (*optional*): As in [`train_probe`].

    Returns:
        [`KnowledgeRetention`]

    Raises:
        ProbeError: If features and labels do not fit each other, a forget label has no training or no test images, or
            there is nothing but forget labels.
        NonFiniteError: If a feature is NaN or infinite.
    """
    forget = check_retention_data(train_features, train_labels, test_features, test_labels, forget_labels)
    return retention_of(
        (train_features, train_labels, torch.isin(train_labels, forget)),
        (test_features, test_labels, torch.isin(test_labels, forget)),
        probe=probe,
        seed=seed,
        device=device,
    )


Part = tuple[Tensor, Tensor, Tensor]


def retention_of(
    train: Part, test: Part, *, probe: ProbeName = "paper", seed: int = 0, device: torch.device | str | None = None
) -> KnowledgeRetention:
    """
    [`knowledge_retention`] where what was forgotten need not be classes.

    Args:
        train, test (`tuple`): Features `(N, d)`, labels `(N,)`, and which of them were to be forgotten, booleans
            `(N,)`. Where no test feature was, `forget_test` and both harmonic means are None.
        probe, seed, device: As there.
    """
    truth = [train[1], test[1]]
    num_labels = int(torch.cat(truth).max()) + 1
    if probe == "one_vs_rest":
        truth, num_labels = [train[2].long(), test[2].long()], 2
    trained = train_probe(probe, train[0], truth[0], num_labels=num_labels, seed=seed, device=device)
    shares: list[float | None] = []
    for (features, _, gone), labels in zip((train, test), truth, strict=True):
        right = trained.predict(features).cpu() == labels.cpu()
        shares += [share_of(right, gone.cpu()), share_of(right, ~gone.cpu())]
    of_images = not test[2].any()  # forgotten classes have test images, and forgotten images have none
    return KnowledgeRetention(probe, accuracies_of(shares, of_images=of_images), trained.settings)


@dataclass(frozen=True)
class CurvePoint:
    """
    A point of the KR curve.

    Args:
        labelled (`int`): Labelled forget features of each class; where all are, of the smallest class.
        forget_test, retain_test (`float`): Test accuracies of the probe, in %, the mean over the seeds.
        spread (`float`): Standard deviation of `forget_test` over the seeds.
    """

    labelled: int
    forget_test: float
    retain_test: float
    spread: float


def retention_curve(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forget_labels: Sequence[int],
    *,
    counts: Sequence[int | None] = CURVE,
    probe: ProbeName = "converged",
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str | None = None,
) -> list[CurvePoint]:
    """
    KR against the number of forget images that somebody has labels for: how much it takes to read a class again.

    The probe is trained on all retain features and, of each forgotten class, on so many that are drawn by the seed.

    Args:
        counts (`Sequence[int]`): How many; None for all. Those beyond what a class has are left out.
        probe, seeds, device: As in [`knowledge_retention`].

    Returns:
        `list[CurvePoint]`: One for each count.

    Raises:
        ProbeError: As [`knowledge_retention`].
    """
    forget = check_retention_data(train_features, train_labels, test_features, test_labels, forget_labels)
    per_class = {label: (train_labels == label).nonzero().flatten() for label in forget.tolist()}
    most = min(len(rows) for rows in per_class.values())
    retain = (~torch.isin(train_labels, forget)).nonzero().flatten()
    points = []
    for count in counts:
        if count is not None and count >= most:
            continue
        found = []
        for seed in seeds if count is not None or probe in ("paper", "mlp") else seeds[:1]:
            generator = torch.Generator().manual_seed(seed)
            chosen = [rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in per_class.values()]
            rows = torch.cat([retain, *(part.to(retain) for part in chosen)])
            found.append(
                knowledge_retention(
                    train_features[rows],
                    train_labels[rows],
                    test_features,
                    test_labels,
                    forget_labels,
                    probe=probe,
                    seed=seed,
                    device=device,
                ).accuracies
            )
        forgotten = torch.tensor([accuracies.forget_test for accuracies in found], dtype=torch.float64)
        kept = torch.tensor([accuracies.retain_test for accuracies in found], dtype=torch.float64)
        points.append(
            CurvePoint(
                most if count is None else count,
                forgotten.mean().item(),
                kept.mean().item(),
                forgotten.std(correction=0).item(),
            )
        )
    return points


def check_retention_data(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forget_labels: Sequence[int],
) -> Tensor:
    """
    The forget labels as a tensor.

    Raises:
        ProbeError: If features and labels do not fit each other, or a forget label has no images.
        NonFiniteError: If a feature is NaN or infinite.
    """
    check_features(train_features, train_labels, "training")
    check_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ProbeError(
            f"Training features have {train_features.shape[1]} dimensions and test features {test_features.shape[1]}."
        )
    try:
        forget = torch.tensor(sorted({operator.index(label) for label in forget_labels}), dtype=torch.long)
    except TypeError:
        raise ProbeError(f"`forget_labels` are class indices, whole numbers, not {list(forget_labels)}.") from None
    if not len(forget):
        raise ProbeError("Which classes were to be forgotten? `forget_labels` is empty.")
    for what, labels in (("training", train_labels), ("test", test_labels)):
        there = set(labels.unique().tolist())
        if missing := [label for label in forget.tolist() if label not in there]:
            raise ProbeError(f"The forget labels {missing} have no {what} image, so nothing can be said of them.")
        if not there - set(forget.tolist()):
            raise ProbeError(f"All {what} images have forget labels: without others there is nothing to tell apart.")
    return forget.to(train_labels.device)


__all__ = ["CURVE", "PROBES", "CurvePoint", "KnowledgeRetention", "knowledge_retention", "retention_curve"]
