"""Knowledge retention (KR): how much of the forgotten classes a probe reads from a model's features."""

# Shapes: N training and M test features of d dimensions, C classes.

from __future__ import annotations

import operator
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ProbeError
from .accuracy import Accuracies, Shares, accuracies_of, shares_of
from .probes import PROBES, ProbeName, check_features, train_probe

# Labelled forget images of each class at each point of the curve; None for all.
CURVE = (1, 2, 5, 10, 20, 50, 100, None)


@dataclass(frozen=True)
class KnowledgeRetention:
    """
    Accuracies of a probe on features, in %.

    The number of a probe means nothing alone. Compare it with those of the original, of a retrained model and of a
    randomly initialised network.

    Args:
        probe (`str`): The name of the probe.
        accuracies ([`Accuracies`]): The probe's, on forget and retain data. For `one_vs_rest`, the shares of the
            forget and of the retain features that it recognises as such. All None where the probe is `constant`.
        settings (`dict`): What the probe was trained with, whether it converged, and whether it is `constant`: it
            learnt nothing but how frequent the classes are, and would be right or wrong by their order.
    """

    probe: str
    accuracies: Accuracies
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A flat dictionary, as `kr_score` returns it."""
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
    Train a probe on the features of all training images, forgotten classes included, and measure its accuracies.

    With `probe="paper"`, this is KR of [ESC](https://huggingface.co/papers/2504.02199). That probe is not trained to
    the end, so it tells how readily a class is read. The other probes of [`train_probe`] tell whether it can be read
    at all.

    Args:
        train_features (`torch.Tensor` of shape `(N, d)`): Features of the full training set.
        train_labels (`torch.LongTensor` of shape `(N,)`): Class indices.
        test_features (`torch.Tensor` of shape `(M, d)`): Features of the test set.
        test_labels (`torch.LongTensor` of shape `(M,)`): Class indices.
        forget_labels (`Sequence[int]`): The classes that were to be forgotten.
        probe (`str`, defaults to `"paper"`): One of [`train_probe`].
        seed (`int`): Seed of the probe's weights and batches.
        device (*optional*): As in [`train_probe`].

    Returns:
        [`KnowledgeRetention`]

    Raises:
        ProbeError: If features and labels do not fit each other, a forget label has no training or no test images, or
            all images of a split have forget labels.
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


# Features `(N, d)`, labels `(N,)`, and which images should be forgotten, booleans `(N,)`.
Part = tuple[Tensor, Tensor, Tensor]


def retention_of(
    train: Part, test: Part, *, probe: ProbeName = "paper", seed: int = 0, device: torch.device | str | None = None
) -> KnowledgeRetention:
    """
    [`knowledge_retention`] of any forget set: whole classes or single images.

    Args:
        train, test (`tuple`): Features `(N, d)`, labels `(N,)`, and which of the images should be forgotten, booleans
            `(N,)`. Where no test image should be, `forget_test` and both harmonic means are None.
        probe, seed, device: As in [`knowledge_retention`].
    """
    truth = [train[1], test[1]]
    num_labels = int(torch.cat(truth).max()) + 1
    if probe == "one_vs_rest":
        truth, num_labels = [train[2].long(), test[2].long()], 2
    trained = train_probe(probe, train[0], truth[0], num_labels=num_labels, seed=seed, device=device)
    shares: list[Shares] = []
    for (features, _, gone), labels in zip((train, test), truth, strict=True):
        constant = trained.settings.get("constant", False)
        found = (None,) * 3 if constant else shares_of(trained.predict(features).cpu(), labels.cpu(), gone.cpu())
        shares.append(found)
    of_images = not test[2].any()  # forgotten classes have test images, and forgotten images have none
    return KnowledgeRetention(probe, accuracies_of(*shares, of_images=of_images), trained.settings)


@dataclass(frozen=True)
class CurvePoint:
    """
    A point of the KR curve.

    Args:
        labelled (`int`): Labelled forget features of each class. Where all are labelled, those of the smallest class.
        forget_test, retain_test (`float`, *optional*): Test accuracies of the probe in %, means over the seeds. None
            where a probe is constant.
        spread (`float`, *optional*): Standard deviation of `forget_test` over the seeds.
        any_test (`float`, *optional*): Forget test images that are taken for any of the forgotten classes, where there
            are two or more.
    """

    labelled: int
    forget_test: float | None
    retain_test: float | None
    spread: float | None
    any_test: float | None = None


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
    KR against the number of labelled forget images: how many labels it takes to read a class again.

    The probe is trained on all retain features and on a random draw of `count` features of each forgotten class.

    Args:
        train_features, train_labels, test_features, test_labels, forget_labels: As in [`knowledge_retention`].
        counts (`Sequence[int]`): Labelled features of each forgotten class; None for all. Counts that are not
            below the size of the smallest class are skipped.
        probe, device: As in [`knowledge_retention`].
        seeds (`Sequence[int]`): Seeds of the draw and of the probe.

    Returns:
        `list[CurvePoint]`: One for each count that is not skipped.

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
            # In the order of the set, so that all labels give the very probe of `knowledge_retention`.
            rows = torch.cat([retain, *(part.to(retain) for part in chosen)]).sort().values
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
        points.append(_point(most if count is None else count, found))
    return points


def _point(labelled: int, runs: Sequence[Accuracies]) -> CurvePoint:
    """The means over the runs. A constant probe has no accuracy, so there is no mean with one."""
    values = {key: [getattr(run, key) for run in runs] for key in ("forget_test", "retain_test", "any_test")}
    means = {key: None if None in each else statistics.fmean(each) for key, each in values.items()}
    spread = None if means["forget_test"] is None else statistics.pstdev(values["forget_test"])
    return CurvePoint(labelled, spread=spread, **means)


def check_retention_data(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forget_labels: Sequence[int],
) -> Tensor:
    """
    The forget labels as a sorted tensor, after a check of everything that [`knowledge_retention`] takes.

    Raises:
        ProbeError: As [`knowledge_retention`].
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
