"""One evaluation of an unlearned model, with its references beside it."""

# Shapes: N training images, C classes.

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.utils import logging

from ..data import ImageData
from ..errors import LabelError, ModelError, ProbeError
from ..ledger import label_names
from ..loading import load_processor
from ..version import __version__
from .knowledge_retention import Part, accuracies_of, retention_curve, retention_of, share_of
from .membership import LEAST, membership_inference
from .model_features import ModelFeatures, model_features
from .probes import PROBES, ProbeName
from .report import ModelResult, Retention, UnlearningReport
from .zrf import zero_retrain_forgetting

# Names of columns, in the order of a report.
MODEL, ORIGINAL, RETRAIN, RANDOM = "model", "original", "retrain", "random"


def evaluate_unlearning(
    model: PreTrainedModel,
    data: ImageData,
    forget_labels: Sequence[int] | None = None,
    *,
    forget_indices: Sequence[int] | None = None,
    references: Mapping[str, PreTrainedModel] | None = None,
    probes: Sequence[ProbeName] = ("paper", "converged"),
    curve: bool = False,
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
    another is given), a retrained model where one is given, and a randomly initialised network of the same
    architecture, made on the spot: what anyone can learn from the pictures. Each runs over the data once; everything
    is measured on what that leaves.

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
        seeds (`Sequence[int]`): For probes that have any randomness.
        processor (*optional*): Image processor; that of `model` by default.
        batch_size, num_workers: As in [`model_features`].
        device (*optional*): Where probes are trained.
        feature_dir (`str` or `Path`, *optional*): Where features are kept, and reused by a later run.

    Returns:
        [`UnlearningReport`]

    Raises:
        LabelError: If it is not known what was to be forgotten.
        ModelError: If a reference has other classes than the model.
        DataError: If the data set has no test split.
        ProbeError: If a forget label has no test images, and as [`knowledge_retention`].
    """
    chosen: list[ProbeName] = [probe for probe in PROBES if probe in {"paper", "converged", *probes}]
    if unknown := set(probes) - set(PROBES):
        raise ProbeError(f"There is no probe {sorted(unknown)}. There are: {', '.join(PROBES)}.")
    if not len(seeds):
        raise ProbeError("`seeds` is empty: a probe needs one.")
    processor = processor if processor is not None else load_processor(model)
    gone_labels = _forget_labels(model, data, forget_labels, forget_indices)
    columns = _columns(model, dict(references or {}))
    folder = Path(feature_dir) if feature_dir is not None else None
    seen: dict[str, ModelFeatures] = {}
    for name, (network, projected) in columns.items():
        with torch.no_grad(), _projection(network, on=projected):
            seen[name] = model_features(
                network,
                data,
                processor,
                name=name,
                batch_size=batch_size,
                num_workers=num_workers,
                folder=folder,
            )
    results: dict[str, ModelResult] = {}
    work = [(name, probe) for name in columns for probe in chosen]
    bar = logging.tqdm(total=len(work), desc="Probes", unit="probe")
    for name, features in seen.items():
        parts = _parts(features, gone_labels, forget_indices)
        retentions: dict[str, Retention] = {}
        for probe in chosen:
            retentions[probe] = _retention(parts, probe, seeds, device)
            bar.update()
        points = None
        if curve and forget_indices is None:
            train, test = features.train, features.test
            points = retention_curve(
                train.features, train.labels, test.features, test.labels, gone_labels, seeds=seeds, device=device
            )
        results[name] = ModelResult(
            accuracies=_head(features, parts),
            retention=retentions,
            curve=points,
            membership=_membership(features, parts),
            zrf=_zrf(features, seen[RANDOM], parts),
        )
    bar.close()
    return UnlearningReport(
        model=str(model.config._name_or_path or type(model).__name__),
        dataset=data.name,
        forget=[str(name) for name in label_names(model.config, gone_labels).values()],
        forget_labels=list(gone_labels),
        num_forget_train=int(_parts(seen[MODEL], gone_labels, forget_indices)[0][2].sum()),
        num_forget_test=int(_parts(seen[MODEL], gone_labels, forget_indices)[1][2].sum()),
        method=[str(record.get("method")) for record in getattr(model.config, "erasures", [])],
        seeds=list(seeds),
        models=results,
        versions={"hf_esc": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    )


def random_network(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A randomly initialised network of the architecture of `model`, of what is inside an [`ESCModel`]."""
    base = model.model if model.config.model_type == "esc" else model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            network = type(base)._from_config(base.config)
        except (AttributeError, TypeError):
            network = AutoModelForImageClassification.from_config(base.config)
    first = next(model.parameters())
    return network.to(first.device, first.dtype).eval()


def _forget_labels(model, data: ImageData, forget_labels, forget_indices) -> list[int]:
    """The model's classes that were to be forgotten; none where it is rows."""
    if forget_indices is not None:
        if forget_labels is not None:
            raise LabelError("Name classes or rows that were to be forgotten, not both.")
        rows = list(forget_indices)
        if not rows or min(rows) < 0 or max(rows) >= len(data.train) or len(set(rows)) != len(rows):
            raise LabelError(
                f"`forget_indices` should be rows of the {len(data.train)} training images, each once, one at least."
            )
        return []
    mapping = data.labels_in(model.config)
    if forget_labels is not None:
        if wrong := [label for label in forget_labels if not 0 <= label < len(mapping)]:
            raise LabelError(f"There are no classes {wrong} in {data.name!r}, which has {len(mapping)}.")
        labels = [mapping[label] for label in forget_labels]
    else:
        erased = {i for record in getattr(model.config, "erasures", []) for i in record.get("label_ids") or ()}
        labels = [label for label in mapping if label in erased]
    if not labels:
        raise LabelError("Which classes should the model have forgotten? It does not say; name them.")
    return sorted(labels)


def _columns(model, references: dict[str, Any]) -> dict[str, tuple[Any, bool]]:
    """Networks by name, and whether the projection is on, which matters for an erased model alone."""
    if MODEL in references:
        raise ModelError(f"{MODEL!r} is the name of the model under test. Call the reference something else.")
    columns: dict[str, tuple[Any, bool]] = {MODEL: (model, True)}
    if ORIGINAL in references:
        columns[ORIGINAL] = (references.pop(ORIGINAL), True)
    elif model.config.model_type == "esc":
        columns[ORIGINAL] = (model, False)
    if RETRAIN in references:
        columns[RETRAIN] = (references.pop(RETRAIN), True)
    columns |= {name: (network, True) for name, network in references.items()}
    columns.setdefault(RANDOM, (random_network(model), True))
    for name, (network, _) in columns.items():
        if network.config.num_labels != model.config.num_labels:
            raise ModelError(
                f"The reference {name!r} has {network.config.num_labels} classes, and the model has "
                f"{model.config.num_labels}. A retrained model keeps the class that it has never seen."
            )
        network.eval()
    return columns


class _projection:  # noqa: N801 (a context)
    """The projection of an erased model on or off; nothing for another model."""

    def __init__(self, network, *, on: bool):
        self.context = None if on or network.config.model_type != "esc" else network.disable_projection()

    def __enter__(self):
        if self.context is not None:
            self.context.__enter__()

    def __exit__(self, *details):
        if self.context is not None:
            self.context.__exit__(*details)


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
    if not torch.isin(test.labels, forget).any():
        raise ProbeError("There is no test image of the forgotten classes, so nothing can be said of them.")
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


def _membership(features: ModelFeatures, parts: tuple[Part, Part]):
    """Forget images: training against test; where rows were forgotten, these against all test images."""
    (_, _, gone_train), (_, _, gone_test) = parts
    others: Tensor = gone_test if gone_test.any() else torch.ones_like(gone_test)
    train, test = features.train, features.test
    if min(int(gone_train.sum()), int(others.sum())) < LEAST:
        return None
    return membership_inference(
        train.logits[gone_train], train.labels[gone_train], test.logits[others], test.labels[others]
    )


def _zrf(features: ModelFeatures, random: ModelFeatures, parts: tuple[Part, Part]):
    gone = parts[0][2]
    return zero_retrain_forgetting(features.train.logits[gone], random.train.logits[gone])
