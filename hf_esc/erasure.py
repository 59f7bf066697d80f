"""ESC, end to end: one pass over the forget set, the closed-form projection, an erased model."""

# Shapes: N forget images, n of them in a bounded sample, d_g feature dimensions of site group g, C classes.

from __future__ import annotations

import copy
import datetime
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import datasets
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from .basis import check_rank, rank_from_percentage
from .data import (
    Batch,
)
from .errors import ForgetSetError, HfEscError, IncompleteErasureWarning, LabelError, ModelError
from .features import (
    MODEL_ERRORS,
    model_inputs,
    refused_batch,
)
from .forget_set import NOTHING_TO_FORGET, forget_batches
from .forget_statistics import collect
from .labels import model_label_names
from .modeling_esc import ESCModel, wrap
from .projection import Projection
from .rank import MOST_SUGGESTED, MOST_UNCHANGED, Rank, RankSearch, Unchanged
from .sites import SiteGroup, find_sites, graph_tensors
from .version import __version__

Model = TypeVar("Model", bound=PreTrainedModel)


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
        classified right and still is. `unchanged_by_label` has that for each of `label_ids`, and the warning and
        `rank="auto"` go by the worst.

    Raises:
        ForgetSetError: If the forget set is empty or no forget set.
        RankError: If k is 0, at least d, or more than the forget features span.
        NonFiniteError: If a feature is NaN or infinite; the batch is named.
        SiteError: If the model has no classification head that reads features.
        LabelError: If the data set's labels are not the model's, or no class of the model would be left.
        DataError: If a column cannot be found or an image cannot be read.
        ModelError: If a data set came without an image processor for it.

    Warns:
        IncompleteErasureWarning: If more than 10 % of the predictions are unchanged. The smallest rank that would do
            is named.
    """
    _check_arguments(p, rank)
    erased = _copy(model) if isinstance(model, ESCModel) else None
    batches, image_processor = forget_batches(
        model, forget_set, processor, batch_size, num_workers, image_column, label_column
    )
    if erased is None:
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            raise ForgetSetError(NOTHING_TO_FORGET)
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
    search = RankSearch(erased, statistics)
    ranks = search.ranks(p, rank)
    bases = search.bases(ranks)
    unchanged = search.unchanged(bases)
    labels = sorted(statistics.labels)
    names = model_label_names(model.config)
    shown = {label: names[label] if names else label for label in labels}
    gone = set(labels).union(*(record.get("label_ids") or () for record in erased.config.erasures))
    if len(gone) == model.config.num_labels:
        raise LabelError(
            f"All {len(gone)} classes of the model are to be forgotten, which leaves nothing to keep. To forget "
            f"images of "
            "every class, drop their labels (`remove_columns`)."
        )
    if unchanged is None:
        warnings.warn("Whether the head's predictions changed is not known: run the model and see.", stacklevel=2)
    elif unchanged.right_before is not None and unchanged.right_before < MOST_UNCHANGED:
        warnings.warn(
            f"The erasure is incomplete, or cannot be seen: only {unchanged.right_before:.1%} of the forget images "
            f"had the "
            "prediction that their label says. Were they erased before, or are the labels not the model's class "
            "indices?",
            IncompleteErasureWarning,
            stacklevel=2,
        )
    elif unchanged.worst > MOST_UNCHANGED:
        _warn(unchanged, ranks, shown, search.smallest_rank(limit=MOST_SUGGESTED))
    erased.set_bases(
        bases,
        {
            "method": "esc",
            "p": None if rank is not None else float(p),
            "rank": ranks[0] if len(set(ranks)) == 1 else ranks,
            "per_class": per_class,
            "labels": list(shown.values()) or None,
            "label_ids": labels or None,
            "num_images": statistics.num_images,
            "unchanged": unchanged.share if unchanged else None,
            "unchanged_by_label": list(unchanged.by_label.values()) if unchanged and unchanged.by_label else None,
            "right_before": unchanged.right_before if unchanged else None,
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


def _copy(model: Model) -> Model:
    """A deep copy, also of a model that caches tensors with a graph, which refuse to be copied."""
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise ModelError("The model, or a part of it, is offloaded. Load it whole on one device to erase from it.")
    if not isinstance(model, ESCModel):
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(getattr(hook, "__self__", None), Projection):
                    raise ModelError(
                        "This is the inside of an erased model, and its erasure would be lost on saving. Pass the "
                        "ESCModel."
                    )
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for _, _, tensor in graph_tensors(model)})


def _check_arguments(p: float, rank: Rank) -> None:
    """What is wrong with p or rank whatever the model: said before the forward pass, not after it."""
    if rank is None:
        rank_from_percentage(p, 10**9)
    elif rank != "auto":
        check_rank(rank)


def _sites_of(model: PreTrainedModel, batch: Batch) -> list[SiteGroup]:
    inputs = model_inputs(model, batch)
    try:
        return find_sites(model, inputs)
    except HfEscError:
        raise
    except MODEL_ERRORS as error:
        raise refused_batch(model, 0, inputs, error) from error


def _warn(unchanged: Unchanged, ranks: Sequence[int], names: dict[int, Any], smallest: int | None) -> None:
    advice = (
        f"`rank={smallest}` (or `rank='auto'`) would bring it to {MOST_UNCHANGED:.0%} or less."
        if smallest is not None
        else f"No rank that was tried brings that to {MOST_UNCHANGED:.0%} or less: do the images share a class?"
    )
    worst = ""
    if unchanged.by_label and len(unchanged.by_label) > 1:
        label = max(unchanged.by_label.items(), key=lambda item: item[1])[0]
        worst = f", and {unchanged.worst:.1%} of those of class {names[label]!r}"
    warnings.warn(
        f"The erasure is incomplete: with rank {ranks[0] if len(set(ranks)) == 1 else list(ranks)}, the head still "
        f"gives "
        f"{unchanged.share:.1%} of the forget images{worst} the prediction that it gave before. {advice}",
        IncompleteErasureWarning,
        stacklevel=3,
    )
