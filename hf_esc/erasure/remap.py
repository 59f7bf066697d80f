"""Remap, end to end: one pass over forget and one over retain images, a bank of retain features, an erased model."""

# Shapes: d feature dimensions, C classes, n vectors in the bank, m images in a sample.

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.batches import Batch
from ..data.columns import find_image_column, find_label_column
from ..data.model_batches import NOTHING_TO_FORGET, forget_batches, label_mapping
from ..errors import DataError, ForgetSetError, LabelError, NonFiniteError, OptionError, SiteError
from ..features.basis import principal_directions
from ..features.head import head_weights, site_outputs
from ..features.moments import SecondMoment
from ..features.sample import FeatureSample
from ..features.sites import SiteGroup
from ..features.stream import FeatureBatch, model_inputs, stream_features
from ..ledger.record import (
    IN_FRONT,
    Unchanged,
    label_names,
    ledger_record,
    refuse_all_classes,
    refuse_forgotten,
    warn_if_incomplete,
)
from ..modeling.fingerprints import weights_sha256
from ..modeling.modeling_esc import ESCModel
from ..modeling.remap_factor import RemapFactor
from .statistics import check_labels
from .wrapping import wrapped_copy

BANK_SIZE = 2000
# Forget images that the ranks are computed from and the gate is tried on.
_SAMPLE_SIZE = 4096
# Look at more retain images than the bank holds: the gate takes some of them for forgotten ones.
_SPARE = 1.1


def remap(
    model: PreTrainedModel,
    forget_set: datasets.Dataset | datasets.IterableDataset | Iterable[Mapping[str, Tensor]],
    retain_set: datasets.Dataset | datasets.IterableDataset | Iterable[Mapping[str, Tensor]],
    *,
    bank_size: int = BANK_SIZE,
    threshold: float | None = None,
    seed: int = 0,
    processing_class: Any = None,
    batch_size: int = 32,
    num_workers: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    sites: Sequence[SiteGroup] | None = None,
) -> ESCModel:
    r"""
    Make an image classifier forget classes in a way that a converged probe does not undo: where the head would say a
    forgotten class, the feature is replaced by one of another class.

    A linear projection hides a class from the head only. This map is not linear. If the gate finds an image, the
    output is the feature of a retain image and tells little else; see [`RemapFactor`] for the formula. The gate is the
    head itself. Images of the forgotten classes that it misses pass as they are.

    A related idea is known by its title: "Robustly Erasing Space Concepts via Stochastic Feature Remapping" (2026).

    The file holds features of retain images, in half precision. If those must not travel, take other images for
    `retain_set`, such as public ones: any images that do not show the forgotten classes will do.

    Whoever holds the file can take the map off, like any projection.

    Args:
        model, forget_set, processing_class, batch_size, num_workers, image_column, label_column, sites: As in
            [`erase`][hf_esc.erasure.esc.erase]. The forget set needs labels: the gate acts on classes.
        retain_set: Images for the bank, in the same forms as the forget set. They need no labels.
        bank_size (`int`, defaults to 2000): n. A larger bank leaves less to be read. Each vector adds 2 d bytes to the
            file.
        threshold (`float`, *optional*): Replace a feature if the forgotten classes together have more than this
            probability. A lower threshold misses less and has more false alarms. Without one, the argmax decides.
        seed (`int`, defaults to 0): Seed of the choice of images for the bank.

    Returns:
        [`ESCModel`]: Its ledger says `gate_recall`, the share of (a sample of) the forget images that the gate finds,
        and `false_alarms`, the share of retain images that it takes for forgotten ones.

    Raises:
        ForgetSetError: If a set is empty, the forget set has no labels, or the head finds fewer than two of its images
            of a class.
        LabelError: If the retain set has images of a forgotten class, or no class of the model would be left.
        SiteError: If the model has no head, or one that this cannot stand in front of: several feature tensors,
            several positions of an image, or one that is not linear.
        NonFiniteError: If a feature is NaN or infinite, or too large for half precision.
        OptionError: If `bank_size` or `threshold` is out of its range.

    Warns:
        IncompleteErasureWarning: If more than 10 % of the forget images of a class keep their prediction.
    """
    if not isinstance(bank_size, numbers.Integral) or bank_size < 2:
        raise OptionError(f"`bank_size` should be a whole number from 2 on, not {bank_size!r}.")
    if threshold is not None and not (isinstance(threshold, numbers.Real) and 0 < threshold < 1):
        raise OptionError(f"`threshold` is a probability between 0 and 1, not {threshold!r}.")
    if retain_set is None:
        raise ForgetSetError("A remap needs a `retain_set`: images that are not of the forgotten classes.")
    bank_size = int(bank_size)
    columns = (processing_class, batch_size, num_workers, image_column, label_column)
    batches, image_processor = forget_batches(model, forget_set, *columns)
    erased, batches = wrapped_copy(model, batches, sites)
    erased.image_processor = image_processor
    groups = [SiteGroup.from_dict(site) for site in erased.config.sites]
    if len(groups) > 1:
        raise SiteError(
            f"The heads of this {type(erased.model).__name__} read {len(groups)} feature tensors, and what is "
            "remapped is one. Take ESC for it."
        )
    with ThreadPoolExecutor(1) as other_thread:
        fingerprint = other_thread.submit(weights_sha256, erased.model)
        forget, first, labels = _forget_sample(erased, groups, batches)
    refuse_all_classes(erased.config, labels)
    weight, bias = _linear_head(erased, groups, first)
    wanted = int(_SPARE * bank_size) + 10
    chosen, own_columns = _retain_part(retain_set, erased.config, image_column, label_column, wanted, seed)
    retain_batches, _ = forget_batches(
        model, chosen, image_processor, batch_size, num_workers, *own_columns, what="retain set"
    )
    # Try the features as they will be stored, in half precision.
    retain = _retain_sample(erased, groups, retain_batches, labels, wanted, seed).half().float()

    gate = RemapFactor(groups[0].dim, bank_size, labels, len(bias), threshold)
    gate.weight, gate.bias = weight, bias
    gated = gate.gate(gate.logits(retain))
    bank = retain[~gated][:bank_size]
    if len(bank) < 2:
        raise ForgetSetError(
            f"Of the {len(retain)} retain images, {len(bank)} are not taken for a forgotten class. A bank needs two."
        )
    factor = _filled(erased.config, weight, bias, bank, forget, labels, threshold)
    features = forget.features[0]
    found = factor.gate(factor.logits(features))
    after = factor.logits(factor(features)).argmax(dim=1)
    before = factor.logits(features).argmax(dim=1)
    truth = torch.as_tensor(forget.labels)
    same, right = after == before, before == truth
    of = {label: truth == label for label in labels}
    record = ledger_record(
        model.config,
        "remap",
        {
            "bank_size": len(bank),
            "gate": "argmax" if threshold is None else "threshold",
            "threshold": threshold,
            "gate_recall": found.double().mean().item(),
            "false_alarms": gated.double().mean().item(),
            "retain_images": len(retain),
            "seed": seed,
            "base_sha256": fingerprint.result(),
        },
        kind=IN_FRONT,
        labels=labels,
        num_images=forget.n,
        unchanged=Unchanged(
            (same & right).double().mean().item(),
            {label: (same & right)[rows].double().mean().item() for label, rows in of.items()},
            right.double().mean().item(),
            {label: (after == label)[rows].double().mean().item() for label, rows in of.items()},
        ),
        unchanged_of=len(features),
        processor=image_processor,
    )
    warn_if_incomplete(
        model.config,
        record,
        f"the gate finds {record['gate_recall']:.1%} of the forget images, and the head still gives up to "
        f"{max(record['right_after_by_label']):.1%} of those of a class their class",
        advice="Take a lower `threshold`, or forget images that are more like those that will come.",
        unseen=", and only those are remapped",
    )
    erased.set_factors([[*erased.projections[0].factors, factor]], record)
    _try(erased, first, factor)
    return erased


def _forget_sample(
    model: ESCModel, groups: list[SiteGroup], batches: Iterable[Batch]
) -> tuple[FeatureSample, tuple[Batch, FeatureBatch], list[int]]:
    """A sample of the forget features as they reach the head, the first batch, and all labels."""
    sample = FeatureSample(_SAMPLE_SIZE)
    first: list[Any] = []
    kept: list[Batch] = []
    labels: set[int] = set()

    def remembered() -> Iterable[Batch]:
        for batch in batches:
            if not kept:
                kept.append(batch)
            yield batch

    for number, batch in enumerate(stream_features(model.model, groups, remembered())):
        if batch.labels is None:
            raise ForgetSetError(f"Remap needs labels, and batch {number} of the forget set has none.")
        check_labels(batch, number, model.config.num_labels)
        _check_finite(batch.features[0], f"Batch {number} of the forget set")
        if not first:
            first.append(batch)
        sample.update(batch)
        labels.update(batch.labels.tolist())
    if not first:
        raise ForgetSetError(NOTHING_TO_FORGET)
    return sample, (kept[0], first[0]), sorted(labels)


def _retain_sample(
    model: ESCModel, groups: list[SiteGroup], batches: Iterable[Batch], forgotten: list[int], size: int, seed: int
) -> Tensor:
    """A sample of the retain features `(m, d)` as they reach the head."""
    sample = FeatureSample(size, seed)
    for number, batch in enumerate(stream_features(model.model, groups, batches)):
        if batch.labels is not None:
            instead = ", or drop the labels if they are those of another data set"
            refuse_forgotten(model.config, forgotten, batch.labels.tolist(), instead)
        _check_finite(batch.features[0], f"Batch {number} of the retain set")
        sample.update(batch)
    if not sample.n:
        raise ForgetSetError("The retain set is empty: there is nothing to fill the bank with.")
    return sample.features[0].float()


def _check_finite(features: Tensor, what: str) -> None:
    if bad := int((~torch.isfinite(features)).any(dim=1).sum()):
        raise NonFiniteError(f"{what}: {bad} of its {len(features)} features are not finite.")
    if features.abs().max() > torch.finfo(torch.float16).max:
        raise NonFiniteError(
            f"{what}: features go up to {features.abs().max():.3g}, and a bank is stored in half precision."
        )


def _retain_part(
    retain_set: Any, config, image_column: str | None, label_column: str | None, size: int, seed: int
) -> tuple[Any, tuple[str | None, str | None]]:
    """
    `size` images of a data set, drawn by the seed (all images of a stream), and its columns of images and labels.

    Labels that are not the model's are left out. Anything but a data set is passed on as it is.
    """
    features = getattr(retain_set, "features", None)
    if features is None or isinstance(retain_set, datasets.DatasetDict | datasets.IterableDatasetDict):
        return retain_set, (None, None)
    images = find_image_column(features, image_column if image_column in features else None)
    labels: str | None
    try:
        labels = find_label_column(features, label_column if label_column in features else None)
        label_mapping(features[labels], config)
    except (DataError, LabelError):
        labels = None
    chosen = retain_set.select_columns([images] if labels is None else [images, labels])
    if isinstance(chosen, datasets.Dataset):
        rows = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:size]
        chosen = chosen.select(rows.sort().values.tolist())
    return chosen, (images, labels)


def _linear_head(model: ESCModel, groups: list[SiteGroup], first: tuple[Batch, FeatureBatch]) -> tuple[Tensor, Tensor]:
    """The head as one linear map `(C, d)` and `(C,)` of its features."""
    batch = first[1]
    # The features have passed the projections, and so have the logits.
    weights = head_weights(model.model, groups, batch)
    if weights is not None:
        basis = torch.cat([torch.zeros(1, groups[0].dim), torch.eye(groups[0].dim)])
        outputs = torch.einsum(
            "s,snc->nc", weights, site_outputs(model.model, groups, [basis]).cpu().double()
        )  # (1 + d, C)
        bias, weight = outputs[0], (outputs[1:] - outputs[0]).T
        found = batch.features[0].cpu().double() @ weight.T + bias
        allowed = (1e-3 if batch.logits.dtype in (torch.float32, torch.float64) else 5e-2) * found.abs().max()
        if (found - batch.logits.cpu().double()).abs().max() <= allowed.clamp_min(1e-6):
            return weight.float(), bias.float()
    raise SiteError(
        f"The head of this {type(model.model).__name__} is no linear map of its features, which the gate has to be. "
        "Take ESC for it."
    )


def _filled(
    config, weight: Tensor, bias: Tensor, bank: Tensor, forget: FeatureSample, labels: list[int], threshold
) -> RemapFactor:
    """The factor for a bank and the forget features that its gate finds."""
    factor = RemapFactor(bank.shape[1], len(bank), labels, len(bias), threshold)
    factor.weight, factor.bias = weight, bias
    features = forget.features[0].float().cpu()
    logits = factor.logits(features)
    gated = factor.gate(logits)
    likeliest = logits[:, labels].argmax(dim=1)
    bank = bank.cpu()
    factor.bank = bank[(bank @ _first_direction(bank)).argsort()].half()
    for place, label in enumerate(labels):
        own = features[gated & (likeliest == place)]
        if len(own) < 2:
            name = label_names(config, [label])[label]
            raise ForgetSetError(
                f"The head says {name!r} to {len(own)} of the forget images that were looked at, so there is nothing "
                "to remap. Was it erased before, or are the labels not the model's class indices?"
            )
        direction = _first_direction(own)
        factor.directions[place] = direction
        factor.ranks[place] = _separators((own @ direction).double().sort().values, len(bank)).float()
    return factor


def _separators(ordered: Tensor, parts: int) -> Tensor:
    """
    The values `(parts - 1,)` that divide a distribution into `parts` equal parts. m sorted samples of it are given.

    A fraction (j + 1/2) / m of the distribution lies below sample j, and between two samples it is uniform. So there
    can be more parts than samples, and new samples reach nearly all parts. No separator equals a sample: rounding
    would then decide on which side it falls.
    """
    place = torch.arange(1, parts, dtype=torch.float64) * len(ordered) / parts - 0.5
    at = place.floor().clamp(0, len(ordered) - 2).long()
    below, above = ordered[at], ordered[at + 1]
    found = torch.lerp(below, above, place - at)  # beyond the ends, this extrapolates the two nearest samples
    margin = torch.minimum((above - below) / 2, 1e-5 * (ordered[-1] - ordered[0]))
    between = torch.minimum(torch.maximum(found, below + margin), above - margin)
    return torch.where(
        place < 0,
        torch.minimum(found, ordered[0] - margin),
        torch.where(place > len(ordered) - 1, torch.maximum(found, ordered[-1] + margin), between),
    )


def _first_direction(features: Tensor) -> Tensor:
    """The first principal direction `(d,)` of features about their mean."""
    moment = SecondMoment(features.shape[1])
    moment.update(features - features.mean(dim=0))
    return principal_directions(moment.matrix, 1)[:, 0].float()


@torch.no_grad()
def _try(model: ESCModel, first: tuple[Batch, FeatureBatch], factor: RemapFactor) -> None:
    """Raise unless the model does to images what the factor does to their features."""
    batch, seen = first
    output: Any = model(**model_inputs(model.model, batch))
    expected = factor(seen.features[0].float().cpu())
    if not torch.allclose(output.pooler_output.float().cpu(), expected, rtol=1e-2, atol=1e-3):
        raise SiteError(
            f"The head of this {type(model.model).__name__} reads several positions of an image, and what is remapped "
            "is one feature vector. Take ESC for it."
        )
