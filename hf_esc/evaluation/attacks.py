"""Attacks that try to get a forgotten class back from a model, and how much each of them gets back."""

# Shapes: N training and M test images, d feature dimensions, C classes, L hidden layers.

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import datasets
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.batches import Batch, image_channels
from ..data.image_data import ImageData
from ..errors import DataError, ProbeError
from ..modeling.configuration_esc import is_erased
from .accuracy import Accuracies, answers_of, model_classifier, shares_of
from .knowledge_retention import Part, retention_of
from .model_features import ModelFeatures

AttackName = Literal["strip", "hidden_layers", "knn", "few_shot", "finetune"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
# For each attack, who could make it and how.
MEANINGS: dict[str, str] = {
    "strip": "holds the file: takes the projection off, where there is one, and asks the head",
    "hidden_layers": "holds the file, or is given hidden_states: a converged probe on the layer that shows most",
    "knn": "is given features and has all images with labels: the 10 nearest neighbours",
    "few_shot": "is given features and has 5 images of each class with labels: the nearest class mean",
    "finetune": "holds the file and has images of the other classes alone: trains on them and asks the head",
}


@dataclass(frozen=True)
class AttackResult:
    """
    What an attack gets back. The same attack on the original is the reference: there is no more to get.

    Args:
        forget_test (`float`): Share of the test images of the forgotten classes that are classified right, in %.
        retain_test (`float`): The same for the other classes. It shows up an attack that calls every image forgotten.
        meaning (`str`): Who could make the attack and how.
        spread (`float`, *optional*): Standard deviation of `forget_test` over the draws, for attacks that draw images.
        settings (`dict`): The settings of the attack.
        any_test (`float`, *optional*): Share of the test images of the forgotten classes that are taken for any of
            these, where there are two or more, in %.
    """

    forget_test: float
    retain_test: float
    meaning: str
    spread: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    any_test: float | None = None


def strip(stripped: ModelFeatures, gone: Tensor) -> AttackResult:
    """
    Ask the head with the projection off. A model without a projection is asked as it is.

    Args:
        stripped ([`ModelFeatures`]): The model's features; an [`ESCModel`]'s within
            [`ESCModel.disable_projection`].
        gone (`torch.BoolTensor` of shape `(M,)`): Which test images are of the forgotten classes.
    """
    return _result("strip", _shares(stripped.test.logits.argmax(dim=1), stripped.test.labels, gone))


def nearest_neighbours(train: Part, test: Part) -> AttackResult:
    """
    Classify each feature by its 10 nearest neighbours: the probe `knn` of [`train_probe`].

    Args:
        train, test (`tuple`): Features, labels, and which are of the forgotten classes.
    """
    found = retention_of(train, test, probe="knn")
    return _result("knn", _test_shares(found.accuracies), found.settings)


def hidden_layers(features: ModelFeatures, train_gone: Tensor, test_gone: Tensor) -> AttackResult | None:
    """
    Train a converged probe on each hidden state, averaged over its positions, and report the layer that shows most of
    the forgotten classes. The layer is chosen on the test images, so an attacker would get a little less.

    Args:
        features ([`ModelFeatures`]): Features with hidden states.
        train_gone (`torch.BoolTensor` of shape `(N,)`): Which training images are of the forgotten classes.
        test_gone (`torch.BoolTensor` of shape `(M,)`): The same for the test images.

    Returns:
        [`AttackResult`]: Its `settings` hold the number of the best `layer`, in `layers` the shares of each layer, and
        whether the probes of all layers `converged`. None for a model that gives no hidden states, and where the probe
        of each layer is constant.
    """
    layers: list[tuple[float, float, float | None] | None] = []
    converged = True
    states = list(zip(features.train.hidden, features.test.hidden, strict=True))
    for train_state, test_state in logging.tqdm(states, desc="Hidden layers", unit="layer", leave=False):
        found = retention_of(
            (train_state, features.train.labels, train_gone),
            (test_state, features.test.labels, test_gone),
            probe="converged",
        )
        converged &= found.settings["converged"]
        layers.append(None if found.settings.get("constant") else _test_shares(found.accuracies))
    shown = {number: found for number, found in enumerate(layers) if found is not None}
    if not shown:
        return None

    def most(number: int) -> tuple[float, float]:
        """Images taken for any of several forgotten classes, or for the one; then what is right of the others."""
        forget, retain, of_any = shown[number]
        return forget if of_any is None else of_any, retain

    layer = max(shown, key=most)
    settings = {"layer": layer, "layers": [found and list(found[:2]) for found in layers], "converged": converged}
    return _result("hidden_layers", shown[layer], settings)


def few_shot(train: Part, test: Part, *, shots: int = 5, draws: int = 10, seed: int = 0) -> AttackResult:
    r"""
    Make a new head from a few labelled images. \(\mu_c\) is the mean of `shots` features of class \(c\), and a test
    feature \(z\) is assigned to the class \(\arg\min_c \|z - \mu_c\|_2\).

    Args:
        train, test (`tuple`): Features, labels, and which are of the forgotten classes.
        shots (`int`, defaults to 5): Labelled images of each class, forgotten or not; all where there are
            fewer.
        draws (`int`, defaults to 10): How often the images are drawn. The results are the means over the draws.
        seed (`int`, defaults to 0): Seed of the draws.
    """
    features, labels, _ = train
    test_features, test_labels, gone = test
    if shots < 1 or draws < 1:
        raise ProbeError(f"There should be one shot and one draw at least, not {shots} and {draws}.")
    # `cdist` takes distances from inner products. A large mean that all features share would drown the differences.
    centre = features.mean(dim=0)
    features, test_features = features - centre, test_features - centre
    classes = labels.unique()
    rows = [(labels == label).nonzero().flatten() for label in classes]
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for _ in range(draws):
        chosen = [part[torch.randperm(len(part), generator=generator)[:shots]] for part in rows]
        means = torch.stack([features[part].mean(dim=0) for part in chosen])  # (C, d)
        nearest = torch.cat([torch.cdist(z, means).argmin(dim=1) for z in test_features.split(8192)])
        shares.append(_shares(classes[nearest], test_labels, gone))
    forget, retain, either = zip(*shares, strict=True)
    of_any = None if None in either else statistics.fmean(either)
    settings = {"shots": shots, "draws": draws, "seed": seed}
    found = (statistics.fmean(forget), statistics.fmean(retain), of_any)
    return _result("few_shot", found, settings, spread=statistics.pstdev(forget))


def finetune(
    model: PreTrainedModel,
    data: ImageData,
    processor: Any,
    forget_labels: Sequence[int],
    *,
    left_out: Sequence[int] = (),
    projected: bool = True,
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> AttackResult:
    """
    Train all weights on retain images alone, and see whether the head recognises the forgotten classes again.

    The training is SGD with momentum 0.9 on the cross-entropy, without augmentation. It does not change a projection.

    Args:
        model (`PreTrainedModel`): An image classifier or an [`ESCModel`]; a copy of it is trained.
        data ([`ImageData`]): With a test split.
        processor: The model's image processor.
        forget_labels (`Sequence[int]`): The model's classes that were to be forgotten.
        left_out (`Sequence[int]`): The model's classes that are neither trained on nor tested.
        projected (`bool`, defaults to `True`): Whether the projection of an [`ESCModel`] is on. Without it, the
            original inside is trained.
        steps, learning_rate, batch_size (*optional*): Settings of the training.
        seed (`int`, defaults to 0): Seed of the order of the images and of dropout.
        num_workers (`int`): As in [`image_batches`].
    """
    retain = data.select(data.train, data.labels_from(model.config, {*forget_labels, *left_out}), keep=False)
    if not len(retain):
        raise ProbeError("There is no image of another class to fine-tune on.")
    if data.test is None:
        raise DataError(f"{data.name!r} has no test split, and what comes back can only be told on test images.")

    def batches(split: datasets.Dataset) -> Iterator[Batch]:
        yield from data.batches(
            split, processor, batch_size=batch_size, num_workers=num_workers, num_channels=image_channels(model.config)
        )

    def epochs() -> Iterator[Batch]:
        """The batches of all steps. Each epoch has a new order, and images that no step takes are not read."""
        generator = torch.Generator().manual_seed(seed)
        left = steps
        while left > 0:
            rows = torch.randperm(len(retain), generator=generator)[: left * batch_size]
            left -= -(-len(rows) // batch_size)
            yield from batches(retain.select(rows.tolist()))

    mapping = torch.tensor(data.labels_in(model.config))
    # The copy does not inherit that the original's projection may be switched off at the moment.
    on = projected and all(part.enabled for part in getattr(model, "projections", ()))
    copied = copy.deepcopy(model).float().train().requires_grad_(True)
    with torch.random.fork_rng(), projection(copied, on=on):
        torch.manual_seed(seed)  # for dropout
        bar = logging.tqdm(epochs(), total=steps, desc="Fine-tuning", unit="step", leave=False)
        _train(copied, bar, mapping, learning_rate)
        copied.eval()
        answers, labels = answers_of({"": model_classifier(copied)}, batches(data.test))
    true = mapping[labels]
    looked_at = ~torch.isin(true, torch.tensor(list(left_out), dtype=torch.long))
    true, said = true[looked_at], answers[""][looked_at]
    gone = torch.isin(true, torch.tensor(list(forget_labels)))
    settings = {"optimizer": "SGD", "learning_rate": learning_rate, "momentum": 0.9, "batch_size": batch_size}
    settings |= {"steps": steps, "seed": seed}
    return _result("finetune", _shares(said, true, gone), settings)


@torch.enable_grad()
def _train(model: PreTrainedModel, batches: Iterable[Batch], mapping: Tensor, learning_rate: float) -> None:
    """One step of SGD on the cross-entropy for each batch."""
    classify = model_classifier(model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=learning_rate, momentum=0.9)
    for batch in batches:
        logits = classify(batch)
        optimizer.zero_grad()
        functional.cross_entropy(logits, mapping[batch["labels"]].to(logits.device)).backward()
        optimizer.step()


def projection(network: Any, *, on: bool) -> AbstractContextManager:
    """A context with the projection of an erased model on or off. It changes nothing of another model."""
    return nullcontext() if on or not is_erased(network) else network.disable_projection()


# Forget and retain test images that are classified right, and forget images taken for any forgotten class, in %.
_TestShares = tuple[float, float, float | None]


def _result(
    name: str, shares: _TestShares, settings: dict[str, Any] | None = None, *, spread: float | None = None
) -> AttackResult:
    forget, retain, of_any = shares
    return AttackResult(forget, retain, MEANINGS[name], spread=spread, settings=settings or {}, any_test=of_any)


def _shares(answers: Tensor, labels: Tensor, gone: Tensor) -> _TestShares:
    forget, retain, of_any = shares_of(answers, labels, gone)
    if forget is None or retain is None:
        raise ProbeError("An attack is tried on test images of the forgotten classes and of others.")
    return forget, retain, of_any


def _test_shares(accuracies: Accuracies) -> _TestShares:
    if accuracies.forget_test is None or accuracies.retain_test is None:
        raise ProbeError("An attack is tried on test images of the forgotten classes and of others.")
    return accuracies.forget_test, accuracies.retain_test, accuracies.any_test


__all__ = ["ATTACKS", "AttackResult", "few_shot", "finetune", "hidden_layers", "nearest_neighbours", "strip"]
