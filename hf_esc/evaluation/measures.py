"""Everything that is measured of one network, from its features."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .accuracy import Accuracies, accuracies_of, share_of, shares_of
from .forgotten import Forgotten
from .knowledge_retention import CurvePoint, Part, retention_curve, retention_of
from .membership import LEAST, MembershipInference, attack_losses, cross_entropies
from .model_features import ModelFeatures
from .probes import ProbeName
from .report import ModelResult, Retention
from .zrf import zero_retrain_forgetting


def measure(
    features: ModelFeatures,
    random: ModelFeatures,
    forgotten: Forgotten,
    *,
    probes: Sequence[ProbeName] = ("paper", "converged"),
    seeds: Sequence[int] = (0, 1, 2),
    curve: bool = False,
    device: torch.device | str | None = None,
    done: Callable[[], object] = lambda: None,
) -> ModelResult:
    """
    One column of [`evaluate_unlearning`] without its attacks.

    Args:
        features ([`ModelFeatures`]): The network's.
        random ([`ModelFeatures`]): Those of a randomly initialised network, for ZRF.
        forgotten ([`Forgotten`]): What the network should have forgotten.
        probes, seeds, device: As in [`evaluate_unlearning`].
        curve (`bool`, defaults to `False`): Whether the KR curve is measured too, where classes were forgotten.
        done (`Callable`): Called after each probe.
    """
    parts = forgotten.parts(features)
    retentions: dict[str, Retention] = {}
    for probe in probes:
        retentions[probe] = _retention(parts, probe, seeds, device)
        done()
    gone_train = parts[0][2]
    of_classes = forgotten.rows is None
    return ModelResult(
        accuracies=_head(features, parts, of_images=not of_classes),
        retention=retentions,
        curve=_curve(features, forgotten.labels, seeds, device) if curve and of_classes else None,
        membership=_membership(features, parts, seeds),
        zrf=zero_retrain_forgetting(features.train.logits[gone_train], random.train.logits[gone_train]),
        by_class=_by_class(features, forgotten.labels) if of_classes else None,
    )


def _head(features: ModelFeatures, parts: tuple[Part, Part], *, of_images: bool) -> Accuracies:
    splits = zip((features.train, features.test), parts, strict=True)
    shares = [shares_of(split.logits.argmax(dim=1), split.labels, gone) for split, (_, _, gone) in splits]
    return accuracies_of(*shares, of_images=of_images)


def _by_class(features: ModelFeatures, labels: Sequence[int]) -> list[list[float | None]]:
    """The head's accuracy on each class, on training and on test images."""
    splits = [(split.right(), split.labels) for split in (features.train, features.test)]
    return [[share_of(right, there == label) for right, there in splits] for label in labels]


def _retention(parts: tuple[Part, Part], probe: ProbeName, seeds: Sequence[int], device) -> Retention:
    """Mean and spread over the seeds. A probe without randomness runs once."""
    runs = [
        retention_of(*parts, probe=probe, seed=seed, device=device)
        for seed in (seeds if probe in ("paper", "mlp") else seeds[:1])
    ]
    values: dict[str, list[float | None]] = {
        key: [getattr(run.accuracies, key) for run in runs] for key in runs[0].accuracies.__dataclass_fields__
    }
    present = {key: [value for value in found if value is not None] for key, found in values.items()}
    return Retention(
        mean={key: statistics.fmean(found) if found else None for key, found in present.items()},
        spread={key: statistics.pstdev(found) if found else None for key, found in present.items()},
        runs=len(runs),
        settings={key: value for key, value in runs[0].settings.items() if key != "seed"},
    )


def _curve(features: ModelFeatures, labels: Sequence[int], seeds: Sequence[int], device) -> list[CurvePoint]:
    train, test = features.train, features.test
    return retention_curve(
        train.features, train.labels, test.features, test.labels, labels, seeds=seeds, device=device
    )


def _membership(features: ModelFeatures, parts: tuple[Part, Part], seeds: Sequence[int]) -> MembershipInference | None:
    """
    Forget images of the training split against those of the test split, or against all test images where single images
    were forgotten. None with too few images on a side.

    The accuracy depends on the draw and on the splits: it is the mean over the seeds, and its spread is that of all
    splits of all seeds.
    """
    (_, _, gone_train), (_, _, gone_test) = parts
    others: Tensor = gone_test if gone_test.any() else torch.ones_like(gone_test)
    train, test = features.train, features.test
    if min(int(gone_train.sum()), int(others.sum())) < LEAST:
        return None
    members = cross_entropies(train.logits[gone_train], train.labels[gone_train])
    nonmembers = cross_entropies(test.logits[others], test.labels[others])
    runs = [attack_losses(members, nonmembers, seed=seed) for seed in seeds]
    accuracies = [run.accuracy for run in runs]
    variance = statistics.pvariance(accuracies) + statistics.fmean(run.spread**2 for run in runs)
    return replace(runs[0], accuracy=statistics.fmean(accuracies), spread=math.sqrt(variance))
