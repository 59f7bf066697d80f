"""ESC, end to end: one pass over the forget set, the closed-form projection, an erased model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import datasets
from torch import Tensor
from transformers import PreTrainedModel

from ..data.model_batches import forget_batches
from ..errors import OptionError, warn
from ..features.basis import check_rank, rank_from_percentage
from ..features.sites import SiteGroup
from ..ledger.record import (
    IN_FRONT,
    MOST_UNCHANGED,
    is_complete,
    label_names,
    ledger_record,
    refuse_all_classes,
    warn_if_incomplete,
)
from ..modeling.fingerprints import weights_sha256
from ..modeling.modeling_esc import ESCModel
from .rank import MOST_SUGGESTED, Rank, RankSearch
from .statistics import collect
from .wrapping import wrapped_copy


def erase(
    model: PreTrainedModel,
    forget_set: datasets.Dataset | datasets.IterableDataset | Iterable[Mapping[str, Tensor]],
    *,
    scenario: Literal["classes", "images"] = "classes",
    p: float = 1.5,
    rank: Rank = None,
    per_class: bool = False,
    processing_class: Any = None,
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

    A linear projection hides the class from the head and from under-trained probes. A probe that is trained to
    convergence can still read it, and whoever holds the file can take the projection off.

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers, or an [`ESCModel`]. It is not touched.
        forget_set: The images to forget: a `datasets.Dataset` or `IterableDataset` with an image column, or an
            iterable of ready batches, dicts of tensors as the model takes them, `labels` (the model's class indices)
            optional.
        scenario (`str`, defaults to `"classes"`): What is to be forgotten: the `"classes"` of the forget images, or
            these `"images"` alone, of whatever classes. With `"images"`, labels are not looked at, the ledger names no
            class, and the head may still say what it said: a model that never saw these images would say it too.
        p (`float`, defaults to 1.5): Percentage of the d feature directions to project out,
            \(k = \lfloor pd/100 \rfloor\).
        rank (`int` or `"auto"`, *optional*): k outright; overrides `p`. `"auto"` takes the smallest k that changes the
            head's prediction for at least 90 % of the forget images.
        per_class (`bool`, defaults to `False`): Take k directions for each forgotten label, one label after the other
            in ascending order, and not k of all together. Needs labels.
        processing_class (*optional*): The image processor; that of `model.config._name_or_path` by default. It is
            saved with the result.
        batch_size (`int`, defaults to 32): Images in a batch, where `forget_set` is a data set.
        num_workers (`int`, defaults to 0): Processes that read images, where `forget_set` is a data set.
        image_column, label_column (`str`, *optional*): Columns of a data set, found where there is one candidate.
            Without a label column, no labels are used. Labels with names are matched to the model's by name.
        sites (`Sequence[SiteGroup]`, *optional*): Where the head reads features; found by tracing otherwise.

    Returns:
        [`ESCModel`]: In eval mode, with weights of its own. `config.erasures[-1]["unchanged"]` is the share of a
        sample of the forget images whose prediction the projection did not change; with labels, the share that was
        classified right and still is. `right_after_by_label` has, for each of `label_ids`, the share that the head
        gives that label after the erasure. The warning and `rank="auto"` go by the worst of these.

    Raises:
        ForgetSetError: If the forget set is empty or no forget set.
        RankError: If k is 0, at least d, or more than the forget features span.
        NonFiniteError: If a feature is NaN or infinite; the batch is named.
        SiteError: If the model has no classification head that reads features.
        LabelError: If the data set's labels are not the model's, or no class of the model would be left.
        DataError: If a column cannot be found or an image cannot be read.
        ModelError: If a data set came without an image processor for it.
        OptionError: If `scenario="images"` meets `per_class`, which needs classes.

    Warns:
        IncompleteErasureWarning: If the head gives more than 10 % of the forget images of a class that class, or
            without labels, leaves more than 10 % of the predictions. The smallest rank that would do is named.
    """
    _check_arguments(scenario, p, rank, per_class)
    batches, image_processor = forget_batches(
        model,
        forget_set,
        processing_class,
        batch_size,
        num_workers,
        image_column,
        label_column,
        with_labels=scenario == "classes",
    )
    erased, batches = wrapped_copy(model, batches, sites)
    erased.image_processor = image_processor

    # A fingerprint takes as long as some images, and a core that the forward pass leaves idle.
    with ThreadPoolExecutor(1) as other_thread, erased.disable_projection():
        fingerprint = other_thread.submit(weights_sha256, erased.model)
        # The features are taken before any projection, which is then applied in float64: after it, what its rounding
        # leaves of an erased class could pass for new directions.
        statistics = collect(erased, batches, per_class=per_class)
    search = RankSearch(erased, statistics)
    ranks = search.ranks(p, rank)
    bases = search.bases(ranks)
    unchanged = search.unchanged(bases)
    refuse_all_classes(erased.config, statistics.labels)
    record = ledger_record(
        model.config,
        "esc",
        {
            "scenario": scenario,
            "p": None if rank is not None else float(p),
            "rank": ranks[0] if len(set(ranks)) == 1 else ranks,
            "per_class": per_class,
            "base_sha256": fingerprint.result(),
        },
        kind=IN_FRONT,
        labels=statistics.labels,
        num_images=statistics.num_images,
        unchanged=unchanged,
        unchanged_of=len(statistics.sample.predictions),
        processor=image_processor,
    )
    if unchanged is None and scenario == "classes":
        warn("Whether the head's predictions changed is not known: run the model and see.")
    _warn_if_incomplete(model.config, record, search)
    erased.set_factors(search.factors(bases), record)
    return erased


def _check_arguments(scenario: str, p: float, rank: Rank, per_class: bool) -> None:
    """Say before the forward pass, and not after it, what is wrong with the arguments whatever the model."""
    if scenario not in ("classes", "images"):
        raise OptionError(f"`scenario` is classes or images, not {scenario!r}.")
    if scenario == "images" and per_class:
        raise OptionError("`per_class` takes directions for each class, and these are images of classes that stay.")
    if rank is None:
        rank_from_percentage(p, 10**9)
    elif rank != "auto":
        check_rank(rank)


def _warn_if_incomplete(config, record: Mapping[str, Any], search: RankSearch) -> None:
    """With the smallest rank that would do. To look for it takes time, so it is looked for where it is said."""
    if is_complete(record) is not False:
        return
    smallest = search.smallest_rank(limit=MOST_SUGGESTED)
    advice = (
        f"A rank of {smallest} (or `auto`) would bring it to {MOST_UNCHANGED:.0%} or less."
        if smallest is not None
        else f"No rank that was tried brings that to {MOST_UNCHANGED:.0%} or less: do the images share a class?"
    )
    after = dict(zip(record["label_ids"] or (), record["right_after_by_label"] or (), strict=False))
    if after:
        label, share = max(after.items(), key=lambda item: item[1])
        of = f" those of class {label_names(config, after)[label]!r} among" if len(after) > 1 else ""
        left = f"{share:.1%} of{of} the forget images their class ({record['right_before']:.1%} of all before)"
    else:
        left = f"{record['unchanged']:.1%} of the forget images the prediction that it gave before"
    what = f"with rank {record['rank']}, the head still gives {left}"
    warn_if_incomplete(config, record, what, advice=advice)
