"""ESC, end to end: one pass over the forget set, the closed-form projection, an erased model."""

# Shapes: N forget images, n of them in a bounded sample, d_g feature dimensions of site group g, C classes.

from __future__ import annotations

import copy
import datetime
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypeVar, cast

import datasets
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .basis import check_rank, join_basis, rank_from_percentage, remaining_directions
from .data import (
    Batch,
    class_names,
    find_image_column,
    find_label_column,
    image_batches,
    ready_batches,
    usual_label_columns,
)
from .errors import (
    DataError,
    ForgetSetError,
    HfEscError,
    IncompleteErasureWarning,
    LabelError,
    ModelError,
    NonFiniteError,
    RankError,
)
from .features import (
    MODEL_ERRORS,
    FeatureBatch,
    FeatureSample,
    head_weights,
    model_inputs,
    refused_batch,
    site_outputs,
    stream_features,
)
from .labels import match_labels, model_label_names
from .loading import load_processor
from .modeling_esc import ESCModel, wrap
from .moments import SecondMoment
from .sites import SiteGroup, find_sites, graph_tensors
from .version import __version__

# Of how many forget images the head's prediction is looked at, before and after: enough for a share to 1.5 %.
SAMPLE_SIZE = 1024
# The share of unchanged predictions above which an erasure is called incomplete.
MOST_UNCHANGED = 0.10

Model = TypeVar("Model", bound=PreTrainedModel)
Rank = int | Literal["auto"] | None


@dataclass
class ForgetStatistics:
    """
    What one pass over the forget set leaves: nothing in it grows with the number of images.

    Args:
        groups (`list[SiteGroup]`): Where the features were read.
        moments (`dict[int | None, list[SecondMoment]]`): By label where `per_class`, else under None: one for each
            group.
        sample ([`FeatureSample`]): Features and predictions of a bounded sample.
        labels (`set[int]`): The labels seen.
        num_images (`int`): N.
        head_weights (`torch.Tensor`, *optional*): From [`head_weights`]; None if the head cannot be run on features
            alone.
    """

    groups: list[SiteGroup]
    moments: dict[int | None, list[SecondMoment]] = field(default_factory=dict)
    sample: FeatureSample = field(default_factory=lambda: FeatureSample(SAMPLE_SIZE))
    labels: set[int] = field(default_factory=set)
    num_images: int = 0
    head_weights: Tensor | None = None


def erase(
    model: PreTrainedModel,
    forget_set: datasets.Dataset | datasets.IterableDataset | Iterable[Mapping[str, Tensor]],
    *,
    p: float = 1.5,
    rank: Rank = None,
    per_class: bool = False,
    processor: Any = None,
    batch_size: int = 32,
    num_workers: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    sites: Sequence[SiteGroup] | None = None,
) -> ESCModel:
    r"""
    Make an image classifier forget the images of `forget_set`, without training.

    One pass in eval mode collects the second moment of the forget features,
    \(M = \sum_i z_i z_i^\top = U \Lambda U^\top\), and the projection \(P = I - U_k U_k^\top\) of its k leading
    directions is put in front of the head:
    \(f'(x) = g(P h(x))\) (Eq. 1 and 2 of [ESC](https://huggingface.co/papers/2504.02199)).

    Erasing an [`ESCModel`] again composes: \(P_2 P_1\). The order of requests matters, and two requests in turn are
    not one request with both sets.

    A linear projection hides the class from the head and from under-trained probes. A probe trained to convergence can
    still read it, and whoever holds the file can take the projection off.

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers, or an [`ESCModel`]. It is not touched.
        forget_set: The images to forget: a `datasets.Dataset` or `IterableDataset` with an image column, or an
            iterable of ready batches, dicts of tensors as the model takes them, `labels` (the model's class indices)
            optional.
        p (`float`, defaults to 1.5): Percentage of the d feature directions to project out,
            \(k = \lfloor pd/100 \rfloor\).
        rank (`int` or `"auto"`, *optional*): k outright; overrides `p`. `"auto"` takes the smallest k that changes the
            head's prediction for at least 90 % of the forget images.
        per_class (`bool`, defaults to `False`): Take k directions for each forgotten label, one label after the other
            in ascending order, and not k of all together. Needs labels.
        processor (*optional*): Image processor; that of `model.config._name_or_path` by default. Saved with the
            result.
        batch_size (`int`, defaults to 32): Images in a batch, where `forget_set` is a data set.
        num_workers (`int`, defaults to 0): Processes that read images, where `forget_set` is a data set.
        image_column, label_column (`str`, *optional*): Columns of a data set, found where there is one candidate.
            Without a label column, no labels are used. Labels with names are matched to the model's by name.
        sites (`Sequence[SiteGroup]`, *optional*): Where the head reads features; found by tracing otherwise.

    Returns:
        [`ESCModel`]: In eval mode, with weights of its own. `config.erasures[-1]["unchanged"]` is the share of a
        sample of the forget images whose prediction the projection did not change; with labels, the share that was
        classified right and still is.

    Raises:
        ForgetSetError: If the forget set is empty or no forget set.
        RankError: If k is 0, at least d, or more than the forget features span.
        NonFiniteError: If a feature is NaN or infinite; the batch is named.
        SiteError: If the model has no classification head that reads features.
        LabelError: If the data set's labels are not the model's.
        DataError: If a column cannot be found or an image cannot be read.
        ModelError: If a data set came without an image processor for it.

    Warns:
        IncompleteErasureWarning: If more than 10 % of the predictions are unchanged. The smallest rank that would do
            is named.
    """
    _check_arguments(p, rank)
    erased = _copy(model) if isinstance(model, ESCModel) else None
    batches, image_processor = _batches(
        model, forget_set, processor, batch_size, num_workers, image_column, label_column
    )
    if erased is None:
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            raise ForgetSetError(_EMPTY)
        base = _copy(model)
        groups = list(sites) if sites is not None else _sites_of(base, first)
        erased = wrap(base, [group.to_dict() for group in groups])
        batches = chain([first], batches)
    elif sites is not None:
        raise ValueError("`sites` are those of the ESCModel already; leave them out.")
    erased.eval()
    erased.image_processor = image_processor

    # The features are taken before any projection, which is then applied in float64: after it, what its rounding
    # leaves of an erased class could pass for new directions.
    with erased.disable_projection():
        statistics = collect(erased, batches, per_class=per_class)
    search = _Search(erased, statistics)
    ranks = search.ranks(p, rank)
    bases = search.bases(ranks)
    unchanged = search.unchanged(bases)
    if unchanged is None:
        warnings.warn("Whether the head's predictions changed is not known: run the model and see.", stacklevel=2)
    elif unchanged > MOST_UNCHANGED:
        _warn(unchanged, ranks, search.smallest_rank())
    labels = sorted(statistics.labels)
    names = model_label_names(model.config)
    erased.set_bases(
        bases,
        {
            "method": "esc",
            "p": None if rank is not None else float(p),
            "rank": ranks[0] if len(set(ranks)) == 1 else ranks,
            "per_class": per_class,
            "labels": [names[label] if names else label for label in labels] if labels else None,
            "label_ids": labels or None,
            "num_images": statistics.num_images,
            "unchanged": unchanged,
            "unchanged_of": len(statistics.sample.predictions),
            "versions": {
                "hf_esc": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    )
    return erased


def collect(model: ESCModel, batches: Iterable[Batch], *, per_class: bool = False) -> ForgetStatistics:
    """
    One pass over the forget set: second moments and a bounded sample of the features that reach the head.

    Args:
        model ([`ESCModel`]): In eval mode.
        batches (`Iterable[dict[str, torch.Tensor]]`): Batches, with `labels` where `per_class`.
        per_class (`bool`): One second moment for each label.

    Returns:
        [`ForgetStatistics`]

    Raises:
        ForgetSetError: If there is no image, or no label where one is needed.
        NonFiniteError: If a feature is not finite; the batch is named.
    """
    groups = [SiteGroup(**site | {"modules": tuple(site["modules"])}) for site in model.config.sites]
    statistics = ForgetStatistics(groups)
    for number, batch in enumerate(stream_features(model.model, groups, batches)):
        _check_labels(batch, number, model.config.num_labels, labelled=bool(statistics.labels))
        if per_class and batch.labels is None:
            raise ForgetSetError(f"`per_class` needs labels, and batch {number} of the forget set has none.")
        parts: dict[int | None, Any] = {None: slice(None)}
        if batch.labels is not None:
            seen = batch.labels.unique().tolist()
            statistics.labels.update(seen)
            if per_class:
                parts = {label: (batch.labels == label).nonzero().flatten() for label in seen}
        for label, rows in parts.items():
            moments = statistics.moments.setdefault(
                label, [SecondMoment(z.shape[1], z.device) for z in batch.features]
            )
            for moment, z in zip(moments, batch.features, strict=True):
                try:
                    moment.update(z[rows])
                except NonFiniteError as error:
                    raise NonFiniteError(f"Batch {number} of the forget set: {error}") from error
        if number == 0:  # only now are the features known to be finite
            statistics.head_weights = head_weights(model.model, groups, batch)
        statistics.sample.update(batch)
        statistics.num_images += len(batch.logits)
    if statistics.num_images == 0:
        raise ForgetSetError(_EMPTY)
    return statistics


class _Search:
    """Bases for a rank, and what each does to the head's predictions for the sampled images."""

    def __init__(self, model: ESCModel, statistics: ForgetStatistics):
        self.model = model
        self.statistics = statistics
        self.old = [projection.basis for projection in model.projections]
        self.before: Tensor | None = None
        # Without `per_class` each rank's basis is the beginning of the next one's: one eigendecomposition for all.
        self.directions = None
        if None in statistics.moments:
            self.directions = [
                remaining_directions(basis, moment.matrix)
                for basis, moment in zip(self.old, statistics.moments[None], strict=True)
            ]

    def ranks(self, p: float, rank: Rank) -> list[int]:
        """The rank for each group."""
        dims = [group.dim for group in self.statistics.groups]
        if rank == "auto":
            smallest = self.smallest_rank() if self.statistics.head_weights is not None else None
            if smallest is None:
                raise RankError(
                    f"No rank changes the head's prediction for {1 - MOST_UNCHANGED:.0%} of the forget images, or "
                    f"the head "
                    "cannot be tried on features alone. Are the images to forget all of a few classes? Name a "
                    "`rank` to "
                    "project out that many directions all the same."
                )
            return [smallest] * len(dims)
        return [rank_from_percentage(p, d) if rank is None else check_rank(rank, d) for d in dims]

    def bases(self, ranks: Sequence[int]) -> list[Tensor]:
        """For each group the basis so far with `rank` directions more, of each label where `per_class`."""
        bases = []
        for group, (basis, rank) in enumerate(zip(self.old, ranks, strict=True)):
            if self.directions is not None:
                bases.append(join_basis(basis, self.directions[group], rank))
                continue
            for label in sorted(label for label in self.statistics.moments if label is not None):
                moment = self.statistics.moments[label][group]
                basis = join_basis(basis, remaining_directions(basis, moment.matrix), rank)
            bases.append(basis)
        return bases

    def unchanged(self, bases: Sequence[Tensor]) -> float | None:
        """
        The share of sampled images whose prediction is the same with and without `bases`; None where that is unknown.

        With labels, only a prediction that was right counts as one to be changed: an image that the head took for
        another class already has nothing to lose.
        """
        weights = self.statistics.head_weights
        if weights is None:
            return None
        if self.before is None:
            erased_before = any(basis.shape[1] for basis in self.old)
            self.before = self._predictions(self.old) if erased_before else self.statistics.sample.predictions
        same = self._predictions(bases) == self.before
        if (labels := self.statistics.sample.labels) is not None:
            same &= self.before == labels
        return same.double().mean().item()

    def _predictions(self, bases: Sequence[Tensor]) -> Tensor:
        """The head's class for each sampled image `(n,)`, with these bases projected out."""
        projected = []
        for z, basis in zip(self.statistics.sample.features, bases, strict=True):
            u = basis.to(z.device, torch.promote_types(z.dtype, torch.float32))
            projected.append((z.to(u) - (z.to(u) @ u) @ u.T).to(z.dtype))
        outputs = site_outputs(self.model.model, self.statistics.groups, projected)  # (S, n, C)
        weights = cast(Tensor, self.statistics.head_weights).to(outputs)
        return torch.einsum("s,snc->nc", weights, outputs).argmax(dim=1).cpu()

    def smallest_rank(self) -> int | None:
        """The smallest rank that leaves no more than `MOST_UNCHANGED` of the predictions; None where there is none."""
        groups = range(len(self.old))
        for rank in range(1, max(group.dim for group in self.statistics.groups)):
            try:
                bases = self.bases([rank for _ in groups])
            except RankError:
                return None
            unchanged = self.unchanged(bases)
            if unchanged is not None and unchanged <= MOST_UNCHANGED:
                return rank
        return None


def _copy(model: Model) -> Model:
    """A deep copy, also of a model that caches tensors with a graph, which refuse to be copied."""
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for _, _, tensor in graph_tensors(model)})


def _check_arguments(p: float, rank: Rank) -> None:
    """What is wrong with p or rank whatever the model: said before the forward pass, not after it."""
    if rank is None:
        rank_from_percentage(p, 10**9)
    elif rank != "auto":
        check_rank(rank)


def _batches(model, forget_set, processor, batch_size: int, num_workers: int, image_column, label_column):
    """Batches with the model's class indices as labels, and the image processor where one was needed."""
    if isinstance(forget_set, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ForgetSetError(
            f"The forget set is one split, and this has {list(forget_set)}. Choose one, such as `['train']`."
        )
    if not isinstance(forget_set, datasets.Dataset | datasets.IterableDataset):
        if not isinstance(forget_set, Iterable):
            raise ForgetSetError(
                f"A forget set is a data set or an iterable of batches, not {type(forget_set).__name__}."
            )
        return ready_batches(forget_set), processor if processor is not None else _processor_at_hand(model)
    total = None
    if isinstance(forget_set, datasets.Dataset):
        if not len(forget_set):
            raise ForgetSetError(_EMPTY)
        total = -(-len(forget_set) // batch_size)
    features = forget_set.features or _resolved_features(forget_set)
    image_column = find_image_column(features, image_column)
    try:
        label_column = find_label_column(features, label_column)
    except DataError:
        if label_column is not None or len(usual_label_columns(features)) > 1:
            raise
        mapping = None
    else:
        mapping = _label_mapping(features[label_column], model.config)
    processor = processor if processor is not None else load_processor(model)
    batches = image_batches(
        forget_set,
        processor,
        image_column=image_column,
        label_column=label_column,
        batch_size=batch_size,
        num_workers=num_workers,
        num_channels=getattr(model.config, "num_channels", 3),
    )
    bar = logging.tqdm(batches, total=total, desc="Forget features", unit="batch")
    return (batch if mapping is None else _map_labels(batch, mapping) for batch in bar), processor


def _resolved_features(stream: datasets.IterableDataset):
    try:
        return stream._resolve_features().features
    except StopIteration:
        raise ForgetSetError(_EMPTY) from None
    except Exception as error:  # pyarrow's and datasets' own, of many types
        raise DataError(
            f"The columns of the forget set are not known ({error}). Give `features=` to its `map`."
        ) from error


def _label_mapping(feature, config) -> list[int]:
    """For each class index of the data set, the model's."""
    names = model_label_names(config)
    if isinstance(feature, datasets.ClassLabel):
        return match_labels(class_names(feature.names), names, feature.num_classes, config.num_labels)
    if not feature.dtype.startswith(("int", "uint", "bool")):
        raise DataError(
            f"The label column holds text or fractions ({feature.dtype}). Turn it into a ClassLabel with "
            "`class_encode_column`, so that its names can be matched to the model's."
        )
    return list(range(config.num_labels))


def _map_labels(batch: Batch, mapping: list[int]) -> Batch:
    labels = batch["labels"]
    if labels.min() < 0 or labels.max() >= len(mapping):
        raise DataError(
            f"The label column has values from {labels.min()} to {labels.max()}, beyond the {len(mapping)} classes."
        )
    return batch | {"labels": torch.tensor(mapping)[labels]}


def _processor_at_hand(model: PreTrainedModel):
    """The model's image processor, or None: ready batches need none, and the result carries it where there is one."""
    try:
        return load_processor(model)
    except ModelError:
        return None


def _sites_of(model: PreTrainedModel, batch: Batch) -> list[SiteGroup]:
    inputs = model_inputs(model, batch)
    try:
        return find_sites(model, inputs)
    except HfEscError:
        raise
    except MODEL_ERRORS as error:
        raise refused_batch(model, 0, inputs, error) from error


def _check_labels(batch: FeatureBatch, number: int, num_labels: int | None, *, labelled: bool) -> None:
    """Labels are whole numbers `(B,)` of the model's classes, in every batch or in none."""
    labels, count = batch.labels, len(batch.logits)
    if labels is None:
        if labelled:
            raise ForgetSetError(f"Batch {number} of the forget set has no labels, and those before it have.")
        return
    if number and not labelled:
        raise ForgetSetError(f"Batch {number} of the forget set has labels, and those before it have none.")
    if labels.is_floating_point() or labels.shape != (count,):
        raise ForgetSetError(
            f"The labels of batch {number} should be {count} whole numbers, one class index for each image, and are "
            f"{labels.dtype} of the shape {tuple(labels.shape)}."
        )
    if num_labels is not None and (labels.min() < 0 or labels.max() >= num_labels):
        raise LabelError(
            f"The labels of batch {number} range from {labels.min()} to {labels.max()}, and the model has "
            f"{num_labels} classes. Ready batches have the model's class indices."
        )


def _warn(unchanged: float, ranks: Sequence[int], smallest: int | None) -> None:
    advice = (
        f"`rank={smallest}` (or `rank='auto'`) would bring it to {MOST_UNCHANGED:.0%} or less."
        if smallest is not None
        else "No rank brings that to 10 % or less: do the images share a class?"
    )
    warnings.warn(
        f"The erasure is incomplete: with rank {ranks[0] if len(set(ranks)) == 1 else list(ranks)}, the head still "
        f"gives "
        f"{unchanged:.1%} of the forget images the prediction that it gave before. {advice}",
        IncompleteErasureWarning,
        stacklevel=3,
    )


_EMPTY = "The forget set is empty: there is nothing to forget. Check the split and the label that it was selected by."
