"""The evaluation of an unlearned model, with its references beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.image_data import ImageData
from ..data.labels import erased_labels
from ..data.model_batches import check_model
from ..errors import DataError, ProbeError
from ..ledger.record import label_names
from ..loading import RANDOM_SEED
from ..modeling.configuration_esc import is_erased
from ..modeling.fingerprints import weights_sha256
from ..version import __version__
from .attacks import (
    ATTACKS,
    AttackName,
    AttackResult,
    few_shot,
    finetune,
    hidden_layers,
    nearest_neighbours,
    strip,
)
from .columns import MODEL, RANDOM, ColumnFeatures, find_columns
from .forgotten import Forgotten, find_forgotten
from .gate import GateCurve, gate_curves
from .measures import measure
from .probes import PROBES, ProbeName
from .report import ModelResult, UnlearningReport


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
    processing_class: Any = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    feature_dir: str | Path | None = None,
) -> UnlearningReport:
    """
    Measure what is left of forgotten classes or images in a model, and in the references that give each number its
    meaning.

    The report has a column for each of these:

    - `model`: the model under test.
    - `original`: the reference of that name. Without one, an [`ESCModel`] with its projection off takes its place. If
      its weights were edited too, that is not the original, and the column is called `no projection`.
    - `retrain`: a model trained without the forgotten data, if it is among the references.
    - any other reference, by its name.
    - `random`: a randomly initialised network of the same architecture. It shows what anyone can learn from the
      images.

    Each network runs over the data once, and everything is measured on the features and logits of that pass. An erased
    model runs over the data again with its projection off if an attack or the gate of a remap needs those features and
    no column has them. [`report_text.table`][hf_esc.evaluation.report_text.table] makes a table of the report.

    Args:
        model (`PreTrainedModel`): The model under test.
        data ([`ImageData`]): The data set, with a test split.
        forget_labels (`Sequence[int]`, *optional*): The data set's classes that should be forgotten; by default those
            in the model's ledger.
        forget_indices (`Sequence[int]`, *optional*): Rows of the training split that should be forgotten, in place of
            classes. They may be of any class. There is no forget test data then, and no HM. A model that has forgotten
            random images of all classes still classifies them, as a retrained model does: the paper has D_f = 100
            after ESC.
        references (`Mapping[str, PreTrainedModel]`, *optional*): `original`, `retrain`, or others by any name.
        probes (`Sequence[str]`): Names of probes, as in [`train_probe`]. `paper` and `converged` are always trained.
        curve (`bool`, defaults to `False`): Whether the KR curve of the converged probe is measured.
        attacks (`Sequence[str]`): Names in `ATTACKS`: what somebody could do to get the classes back, see
            [`AttackResult`]. `finetune` trains a copy of each network but the random one.
        seeds (`Sequence[int]`): Seeds of the probes that have any randomness and of membership inference. Attacks take
            the first.
        processing_class (*optional*): The image processor of all networks; by default each has its own, or that of
            `model` if it has none.
        batch_size, num_workers: As in [`model_features`].
        device (*optional*): Where probes are trained.
        feature_dir (`str` or `Path`, *optional*): A folder that keeps the features for a later run.

    Returns:
        [`UnlearningReport`]

    Raises:
        LabelError: If neither the caller nor the ledger says what should be forgotten, or a class is not in the data
            set.
        ForgetSetError: If `forget_indices` are not rows, as in [`ImageData.check_rows`].
        ModelError: If a reference has other classes than the model, or has them in another order.
        DataError: If the data set has no test split.
        ProbeError: If there is no such probe or attack, a forget label has no training or no test images, or in the
            cases of [`knowledge_retention`].
    """
    check_model(model)
    _check_options(data, probes, attacks, seeds, of_images=forget_indices is not None)
    forgotten = find_forgotten(model.config, data, forget_labels, forget_indices)
    subject = _subject(model, forgotten)
    columns = find_columns(model, references or {}, data, processing_class)
    features = ColumnFeatures(
        columns,
        data,
        forgotten.left_out,
        hidden="hidden_layers" in attacks,
        folder=Path(feature_dir) if feature_dir is not None else None,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    chosen: list[ProbeName] = [probe for probe in PROBES if probe in {"paper", "converged", *probes}]
    attempts = [attack for attack in ATTACKS if attack in attacks]
    attacker = _Attacker(features, forgotten, seed=seeds[0], num_workers=num_workers)
    results: dict[str, ModelResult] = {}
    total = len(columns) * (len(chosen) + len(attempts))
    with logging.tqdm(total=total, desc="Probes and attacks", unit="probe") as bar:
        for name, seen in features.seen.items():
            common: dict[str, Any] = {"seeds": seeds, "curve": curve, "device": device, "done": bar.update}
            result = measure(seen, features.seen[RANDOM], forgotten, probes=chosen, **common)
            found: dict[str, AttackResult | None] = {}
            for attack in attempts:
                found[attack] = attacker.result(attack, name)
                bar.update()
            results[name] = replace(result, attacks=found or None)
    gone_train, gone_test = (gone for _, _, gone in forgotten.parts(features.seen[MODEL]))
    return UnlearningReport(
        **subject,
        dataset=data.name,
        dataset_id=data.hub_id,
        num_forget_train=int(gone_train.sum()),
        num_forget_test=int(gone_test.sum()),
        seeds=list(seeds),
        random_seed=None if references and RANDOM in references else RANDOM_SEED,
        models=results,
        gates=_gates(model, features, forgotten),
        versions={"hf_esc": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    )


def _check_options(
    data: ImageData, probes: Sequence[str], attacks: Sequence[str], seeds: Sequence[int], *, of_images: bool
) -> None:
    if unknown := set(probes) - set(PROBES):
        raise ProbeError(f"There is no probe {sorted(unknown)}. There are: {', '.join(PROBES)}.")
    if strange := set(attacks) - set(ATTACKS):
        raise ProbeError(f"There is no attack {sorted(strange)}. There are: {', '.join(ATTACKS)}.")
    if attacks and of_images:
        raise ProbeError("Attacks try to get a class back. Of images of all classes there is none to get back.")
    if not len(seeds):
        raise ProbeError("`seeds` is empty: a probe needs one.")
    if data.test is None:
        raise DataError(f"{data.name!r} has no test split, and what a probe reads can only be told on test images.")


def _subject(model: PreTrainedModel, forgotten: Forgotten) -> dict[str, Any]:
    """What a report says of the model under test and of what it should have forgotten, by the report's names."""
    config: Any = model.config
    ledger = getattr(config, "erasures", [])
    weights = None
    if is_erased(config):
        weights = weights_sha256(model.model)
    elif ledger:  # its weights were edited
        weights = weights_sha256(model)
    return {
        "model": str(config._name_or_path or type(model).__name__),
        "projection_sha256": ledger[-1].get("projection_sha256") if ledger else None,
        "weights_sha256": weights,
        "method": [str(record.get("method")) for record in ledger],
        "forget": [str(name) for name in label_names(config, forgotten.labels).values()],
        "forget_labels": list(forgotten.labels),
        "left_out": [str(name) for name in label_names(config, forgotten.left_out).values()],
    }


@dataclass(frozen=True)
class _Attacker:
    """
    The attacks of an evaluation.

    Args:
        features ([`ColumnFeatures`]): The features of all columns.
        forgotten ([`Forgotten`]): The classes to get back.
        seed (`int`): Seed of the attacks that have any randomness.
        num_workers (`int`): As in [`image_batches`].
    """

    features: ColumnFeatures
    forgotten: Forgotten
    seed: int
    num_workers: int

    def result(self, attack: AttackName, name: str) -> AttackResult | None:
        """What an attack gets back from a column; None where it cannot be made."""
        seen = self.features.seen[name]
        train, test = self.forgotten.parts(seen)
        if attack == "strip":
            return strip(self.features.stripped(name), test[2])
        if attack == "hidden_layers":
            return hidden_layers(seen, train[2], test[2])
        if attack == "knn":
            return nearest_neighbours(train, test)
        if attack == "few_shot":
            return few_shot(train, test, seed=self.seed)
        if name == RANDOM:  # it has never known the classes, so training cannot bring them back
            return None
        column = self.features.columns[name]
        return finetune(
            column.network,
            self.features.data,
            column.processor,
            self.forgotten.labels,
            left_out=self.forgotten.left_out,
            projected=column.projected,
            num_workers=self.num_workers,
            seed=self.seed,
        )


def _gates(model: PreTrainedModel, features: ColumnFeatures, forgotten: Forgotten) -> list[GateCurve] | None:
    """The gate of each remap in the model; None where there is no remap, or the projection is off."""
    projections: Any = getattr(model, "projections", ())
    if not is_erased(model) or len(projections) != 1 or not projections[0].enabled:
        return None  # a model with several feature tensors has no remap
    factors = projections[0].factors
    if all(factor.linear for factor in factors):
        return None
    not_retained = {*forgotten.labels, *erased_labels(model.config)}
    return gate_curves(factors, features.stripped(MODEL), not_retained) or None
