"""One evaluation of an unlearned model, with its references beside it."""

# Shapes: N training images, C classes.

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.image_data import ImageData
from ..data.labels import erased_labels
from ..errors import DataError, LabelError, ModelError, ProbeError
from ..features.sites import evaluating
from ..ledger.record import edits_weights, label_names
from ..loading import RANDOM_SEED, load_processor, random_network
from ..modeling.fingerprints import weights_sha256
from ..modeling.remap_factor import RemapFactor
from ..version import __version__
from .attacks import (
    ATTACKS,
    AttackName,
    AttackResult,
    few_shot,
    finetune,
    hidden_layers,
    nearest_neighbours,
    projection,
    strip,
)
from .gate import GateCurve, gate_curves
from .knowledge_retention import Part, accuracies_of, retention_curve, retention_of, share_of
from .membership import LEAST, MembershipInference, attack_losses, cross_entropies
from .model_features import ModelFeatures, model_features
from .probes import PROBES, ProbeName
from .report import ModelResult, Retention, UnlearningReport
from .zrf import zero_retrain_forgetting

# Names of columns, in the order of a report.
MODEL, ORIGINAL, RETRAIN, RANDOM = "model", "original", "retrain", "random"
# In place of the original where the weights inside were edited: with its projection off, a file is what that left.
WITHOUT = "no projection"


def evaluate_unlearning(
    model: PreTrainedModel,
    data: ImageData,
    forget_labels: Sequence[int] | None = None,
    *,
    forget_indices: Sequence[int] | None = None,
    references: Mapping[str, PreTrainedModel] | None = None,
    probes: Sequence[ProbeName] = ("paper", "converged"),
    curve: bool = False,
    attacks: Sequence[AttackName] = (),
    seeds: Sequence[int] = (0, 1, 2),
    processor: Any = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    feature_dir: str | Path | None = None,
) -> UnlearningReport:
    """
    What is left of forgotten classes or images in a model, beside the models that give each number its meaning.

    Beside the model under test stand the original (of an [`ESCModel`], the same file with the projection off, unless
    another is given or its weights were edited too: then that column is called `no projection`), a retrained model
    where one is given, and a randomly initialised network of the same architecture, made on the spot: what anyone can
    learn from the pictures. Each runs over the data once; everything is measured on what that leaves. (With another
    original, an erased model runs over it once more with its projection off where an attack or the gate of a remap
    asks for that.)

    Args:
        model (`PreTrainedModel`): The model under test.
        data ([`ImageData`]): With a test split.
        forget_labels (`Sequence[int]`, *optional*): The data set's classes that were to be forgotten; those of the
            ledger by default.
        forget_indices (`Sequence[int]`, *optional*): Instead, rows of the training split that were to be forgotten,
            of any class. There is no forgotten test data then, and no HM. A model that has forgotten random images of
            all classes still classifies them, as a retrained one does: after ESC, the paper has D_f = 100.
        references (`Mapping[str, PreTrainedModel]`, *optional*): `original`, `retrain`, or others by any name.
        probes (`Sequence[str]`): Of [`train_probe`]. `paper` and `converged` are always there.
        curve (`bool`, defaults to `False`): The KR curve too, of the converged probe.
        attacks (`Sequence[str]`): Of `ATTACKS`, see [`AttackResult`]: what somebody could do to get the classes
            back. `finetune` trains a copy of each network but the random one.
        seeds (`Sequence[int]`): For probes that have any randomness, and for membership inference.
        processor (*optional*): Image processor for all; by default each network has its own, and that of `model` where
            it has none.
        batch_size, num_workers: As in [`model_features`].
        device (*optional*): Where probes are trained.
        feature_dir (`str` or `Path`, *optional*): Where features are kept, and reused by a later run.

    Returns:
        [`UnlearningReport`]

    Raises:
        LabelError: If it is not known what was to be forgotten.
        ForgetSetError: If `forget_indices` are no rows, as [`ImageData.check_rows`] says.
        ModelError: If a reference has other classes than the model, or in another order.
        DataError: If the data set has no test split.
        ProbeError: If there is no such probe or attack, a forget label has no training or no test images, and as
            [`knowledge_retention`].
    """
    chosen: list[ProbeName] = [probe for probe in PROBES if probe in {"paper", "converged", *probes}]
    if unknown := set(probes) - set(PROBES):
        raise ProbeError(f"There is no probe {sorted(unknown)}. There are: {', '.join(PROBES)}.")
    if strange := set(attacks) - set(ATTACKS):
        raise ProbeError(f"There is no attack {sorted(strange)}. There are: {', '.join(ATTACKS)}.")
    if attacks and forget_indices is not None:
        raise ProbeError("Attacks try to get a class back. Of images of all classes there is none to get back.")
    if not len(seeds):
        raise ProbeError("`seeds` is empty: a probe needs one.")
    if data.test is None:
        raise DataError(f"{data.name!r} has no test split, and what a probe reads can only be told on test images.")
    gone_labels = _forget_labels(model, data, forget_labels, forget_indices)
    _check_images(model, data, gone_labels)
    # A class that was erased and is not asked for is neither forgotten nor retained.
    left_out = sorted(erased_labels(model.config) - set(gone_labels)) if forget_indices is None else []
    columns = _columns(model, dict(references or {}), data, processor)
    folder = Path(feature_dir) if feature_dir is not None else None

    def look(name: str, column: _Column, *, hidden: bool = False) -> ModelFeatures:
        with evaluating(column.network), projection(column.network, on=column.projected):
            found = model_features(
                column.network,
                data,
                column.processor,
                name=name,
                hidden=hidden,
                folder=folder,
                batch_size=batch_size,
                num_workers=num_workers,
            )
        return ModelFeatures(found.train.without(left_out), found.test.without(left_out)) if left_out else found

    seen = {name: look(name, column, hidden="hidden_layers" in attacks) for name, column in columns.items()}

    @functools.cache
    def bare(name: str) -> ModelFeatures:
        """A network with its projection off."""
        without = replace(columns[name], projected=False)
        # A network without a projection, or with it off, was seen so already; so was, mostly, the original.
        if not columns[name].is_erased:
            return seen[name]
        seen_so = next((other for other, column in columns.items() if column == without), None)
        return seen[seen_so] if seen_so else look(f"{name}-stripped", without)

    def attacked(attack: AttackName, name: str, parts: tuple[Part, Part]) -> AttackResult | None:
        column, gone_train, gone_test = columns[name], parts[0][2], parts[1][2]
        if attack == "strip":
            return strip(bare(name), gone_test)
        if attack == "hidden_layers":
            return hidden_layers(seen[name], gone_train, gone_test)
        if attack == "knn":
            return nearest_neighbours(*parts)
        if attack == "few_shot":
            return few_shot(*parts, seed=seeds[0])
        if name == RANDOM:  # there is nothing to bring back
            return None
        return finetune(
            column.network,
            data,
            column.processor,
            gone_labels,
            left_out=left_out,
            projected=column.projected,
            num_workers=num_workers,
            seed=seeds[0],
        )

    results: dict[str, ModelResult] = {}
    bar = logging.tqdm(total=len(columns) * (len(chosen) + len(attacks)), desc="Probes and attacks", unit="probe")
    for name, features in seen.items():
        result = measure(
            features,
            seen[RANDOM],
            gone_labels,
            forget_indices=forget_indices,
            probes=chosen,
            seeds=seeds,
            device=device,
            done=bar.update,
        )
        if curve and forget_indices is None:
            train, test = features.train, features.test
            points = retention_curve(
                train.features, train.labels, test.features, test.labels, gone_labels, seeds=seeds, device=device
            )
            result = replace(result, curve=points)
        parts = _parts(features, gone_labels, forget_indices)
        attempts: dict[str, AttackResult | None] = {}
        for attack in (attack for attack in ATTACKS if attack in attacks):
            attempts[attack] = attacked(attack, name, parts)
            bar.update()
        results[name] = replace(result, attacks=attempts or None)
    bar.close()
    gone_train, gone_test = (part[2] for part in _parts(seen[MODEL], gone_labels, forget_indices))
    return UnlearningReport(
        model=str(model.config._name_or_path or type(model).__name__),
        dataset=data.name,
        dataset_id=data.hub_id,
        projection_sha256=_fingerprint(model),
        weights_sha256=_weights_fingerprint(model),
        forget=[str(name) for name in label_names(model.config, gone_labels).values()],
        forget_labels=list(gone_labels),
        left_out=[str(name) for name in label_names(model.config, left_out).values()],
        num_forget_train=int(gone_train.sum()),
        num_forget_test=int(gone_test.sum()),
        method=[str(record.get("method")) for record in getattr(model.config, "erasures", [])],
        seeds=list(seeds),
        random_seed=None if references and RANDOM in references else RANDOM_SEED,
        models=results,
        gates=_gates(model, bare, {*gone_labels, *erased_labels(model.config)}),
        versions={"hf_esc": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    )


def measure(
    features: ModelFeatures,
    random: ModelFeatures,
    forget_labels: Sequence[int],
    *,
    forget_indices: Sequence[int] | None = None,
    probes: Sequence[ProbeName] = ("paper", "converged"),
    seeds: Sequence[int] = (0, 1, 2),
    device: torch.device | str | None = None,
    done: Callable[[], object] = lambda: None,
) -> ModelResult:
    """
    One column of [`evaluate_unlearning`], of a network whose features are at hand, without curve and attacks.

    Args:
        features, random ([`ModelFeatures`]): Of the network, and of a randomly initialised one.
        forget_labels (`Sequence[int]`): The model's classes that were to be forgotten.
        forget_indices, probes, seeds, device: As there.
        done (`Callable`): Called after each probe.
    """
    parts = _parts(features, list(forget_labels), forget_indices)
    retentions: dict[str, Retention] = {}
    for probe in probes:
        retentions[probe] = _retention(parts, probe, seeds, device)
        done()
    return ModelResult(
        accuracies=_head(features, parts),
        retention=retentions,
        curve=None,
        membership=_membership(features, parts, seeds),
        zrf=_zrf(features, random, parts),
        attacks=None,
        by_class=None if forget_indices is not None else _by_class(features, forget_labels),
    )


def _forget_labels(model, data: ImageData, forget_labels, forget_indices) -> list[int]:
    """The model's classes that were to be forgotten; none where it is rows."""
    if forget_indices is not None:
        if forget_labels is not None:
            raise LabelError("Name classes or rows that were to be forgotten, not both.")
        data.check_rows(forget_indices)
        return []
    mapping = data.labels_in(model.config)
    if forget_labels is not None:
        if wrong := [label for label in forget_labels if label not in range(len(mapping))]:
            raise LabelError(f"There are no classes {wrong} in {data.name!r}, which has {len(mapping)}.")
        labels = list({mapping[int(label)] for label in forget_labels})
    else:
        erased = erased_labels(model.config)
        labels = [label for label in mapping if label in erased]
    if not labels:
        raise LabelError("Which classes should the model have forgotten? It does not say; name them.")
    if len(labels) == len(mapping):
        raise LabelError(f"All {len(labels)} classes of {data.name!r} were to be forgotten: nothing else is there.")
    return sorted(labels)


def _gates(
    model: PreTrainedModel, bare: Callable[[str], ModelFeatures], gone: Collection[int]
) -> list[GateCurve] | None:
    """The gate of each remap; None of a model without one, or with its projection off."""
    projections: Any = getattr(model, "projections", ())
    if model.config.model_type != "esc" or len(projections) != 1 or not projections[0].enabled:
        return None  # of several feature tensors none is remapped
    factors = projections[0].factors
    if all(factor.kind != RemapFactor.kind for factor in factors):
        return None
    return gate_curves(factors, bare(MODEL), gone) or None


def _fingerprint(model) -> str | None:
    """Of the last record in the ledger: which erased model this is."""
    ledger = getattr(model.config, "erasures", [])
    return ledger[-1].get("projection_sha256") if ledger else None


def _weights_fingerprint(model) -> str | None:
    """Of the classifier inside, or of the whole where its weights were edited."""
    if model.config.model_type == "esc":
        return weights_sha256(model.model)
    return weights_sha256(model) if getattr(model.config, "erasures", []) else None


def _check_images(model, data: ImageData, labels: list[int]) -> None:
    """Raise unless each of these classes has training and test images."""
    mapping = data.labels_in(model.config)
    for what, split in (("training", data.train), ("test", data.test)):
        there = {mapping[label] for label in set(split.with_format(None)[data.label_column])} if split else set()
        if absent := label_names(model.config, set(labels) - there):
            names = ", ".join(map(str, absent.values()))
            raise ProbeError(f"There is no {what} image of the forgotten classes {names}: nothing can be said.")


@dataclass(frozen=True)
class _Column:
    """
    A network of the report.

    Args:
        network (`PreTrainedModel`): The network.
        processor: Its image processor.
        projected (`bool`): Whether its projection is on, which matters for an erased model alone.
    """

    network: Any
    processor: Any
    projected: bool = True

    @property
    def is_erased(self) -> bool:
        """Whether there is a projection, and it is on."""
        return self.projected and self.network.config.model_type == "esc"


def _columns(model, references: dict[str, Any], data: ImageData, processor: Any) -> dict[str, _Column]:
    """The networks of a report by name, in its order."""
    if MODEL in references:
        raise ModelError(f"{MODEL!r} is the name of the model under test. Call the reference something else.")
    own = processor if processor is not None else load_processor(model)

    def reference(network: Any) -> _Column:
        """A reference, with an image processor of its own where it has one and none was given for all."""
        if processor is not None:
            return _Column(network, processor)
        try:
            return _Column(network, load_processor(network))
        except ModelError:
            return _Column(network, own)

    columns = {MODEL: _Column(model, own)}
    if ORIGINAL in references:
        columns[ORIGINAL] = reference(references.pop(ORIGINAL))
    elif model.config.model_type == "esc":
        edited = any(map(edits_weights, model.config.erasures))
        columns[WITHOUT if edited else ORIGINAL] = _Column(model, own, projected=False)
    if RETRAIN in references:
        columns[RETRAIN] = reference(references.pop(RETRAIN))
    columns |= {name: reference(network) for name, network in references.items()}
    if RANDOM not in columns:
        columns[RANDOM] = _Column(random_network(model), own)
    for name, column in columns.items():
        config = column.network.config
        if config.num_labels != model.config.num_labels:
            raise ModelError(
                f"The reference {name!r} has {config.num_labels} classes, and the model has "
                f"{model.config.num_labels}. A retrained model keeps the class that it has never seen."
            )
        if data.labels_in(config) != data.labels_in(model.config):
            raise ModelError(
                f"The reference {name!r} numbers its classes otherwise than the model, and what they say could not be "
                "compared. Put its head and `id2label` in the model's order."
            )
    return columns


def _parts(features: ModelFeatures, labels: list[int], indices: Sequence[int] | None) -> tuple[Part, Part]:
    """Features, labels and what was to be forgotten, of both splits."""
    train, test = features.train, features.test
    if indices is not None:
        gone = torch.zeros(len(train.labels), dtype=torch.bool)
        gone[torch.tensor(list(indices))] = True
        return (train.features, train.labels, gone), (
            test.features,
            test.labels,
            torch.zeros(len(test.labels), dtype=torch.bool),
        )
    forget = torch.tensor(labels)
    return (train.features, train.labels, torch.isin(train.labels, forget)), (
        test.features,
        test.labels,
        torch.isin(test.labels, forget),
    )


def _head(features: ModelFeatures, parts: tuple[Part, Part]):
    shares = []
    for split, (_, _, gone) in zip((features.train, features.test), parts, strict=True):
        shares += [share_of(split.right(), gone), share_of(split.right(), ~gone)]
    return accuracies_of(shares)


def _by_class(features: ModelFeatures, labels: Sequence[int]) -> list[list[float | None]]:
    """The head's shares of each class, training and test."""
    splits = [(split.right(), split.labels) for split in (features.train, features.test)]
    return [[share_of(right, there == label) for right, there in splits] for label in labels]


def _retention(parts: tuple[Part, Part], probe: ProbeName, seeds: Sequence[int], device) -> Retention:
    """The mean over seeds where there are any, and the spread of each number."""
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


def _membership(features: ModelFeatures, parts: tuple[Part, Part], seeds: Sequence[int]) -> MembershipInference | None:
    """
    Forget images: training against test; where rows were forgotten, these against all test images.

    The accuracy depends on the draw and the splits: it is the mean over the seeds, and its spread that of all splits.
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


def _zrf(features: ModelFeatures, random: ModelFeatures, parts: tuple[Part, Part]):
    gone = parts[0][2]
    return zero_retrain_forgetting(features.train.logits[gone], random.train.logits[gone])
