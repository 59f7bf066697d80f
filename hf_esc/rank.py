"""How many directions to take: from p, outright, or the fewest that change the head's mind about the forget set."""

# Shapes: n sampled images, d_g feature dimensions of site group g, k_g directions, S sites, C classes.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from .basis import check_rank, join_basis, rank_from_percentage, remaining_directions
from .errors import RankError
from .features import site_outputs
from .forget_statistics import ForgetStatistics
from .modeling_esc import ESCModel

Rank = int | Literal["auto"] | None

# The share of unchanged predictions above which an erasure is called incomplete.
MOST_UNCHANGED = 0.10
# How far a warning looks for a rank that would do; `rank="auto"` looks at them all.
MOST_SUGGESTED = 64


@dataclass(frozen=True)
class Unchanged:
    """
    What a projection leaves of the head's predictions for the forget images.

    With labels, only a prediction that was right counts as one to be changed: an image that the head took for another
    class already has nothing to lose.

    Args:
        share (`float`): Of the sampled images, those whose prediction stays.
        by_label (`dict[int, float]`, *optional*): The same for each label: a class that stays whole must not hide
            behind others that went.
        right_before (`float`, *optional*): With labels, the share whose prediction was right before.
    """

    share: float
    by_label: dict[int, float] | None = None
    right_before: float | None = None

    @property
    def worst(self) -> float:
        """The largest share of any label."""
        return max(self.by_label.values()) if self.by_label else self.share


class RankSearch:
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

    def unchanged(self, bases: Sequence[Tensor]) -> Unchanged | None:
        """The sampled images whose prediction is the same with and without `bases`; None where that is unknown."""
        weights = self.statistics.head_weights
        if weights is None:
            return None
        if self.before is None:
            erased_before = any(basis.shape[1] for basis in self.old)
            self.before = self._predictions(self.old) if erased_before else self.statistics.sample.predictions
        same = self._predictions(bases) == self.before
        labels = self.statistics.sample.labels
        if labels is None:
            return Unchanged(same.double().mean().item())
        right = self.before == labels
        by_label = {
            label: (same & right)[labels == label].double().mean().item() for label in labels.unique().tolist()
        }
        return Unchanged((same & right).double().mean().item(), by_label, right.double().mean().item())

    def _predictions(self, bases: Sequence[Tensor]) -> Tensor:
        """The head's class for each sampled image `(n,)`, with these bases projected out."""
        projected = []
        for z, basis in zip(self.statistics.sample.features, bases, strict=True):
            u = basis.to(z.device, torch.promote_types(z.dtype, torch.float32))
            projected.append((z.to(u) - (z.to(u) @ u) @ u.T).to(z.dtype))
        outputs = site_outputs(self.model.model, self.statistics.groups, projected)  # (S, n, C)
        weights = cast(Tensor, self.statistics.head_weights).to(outputs)
        return torch.einsum("s,snc->nc", weights, outputs).argmax(dim=1).cpu()

    def smallest_rank(self, limit: int | None = None) -> int | None:
        """
        The smallest rank, up to `limit`, that leaves no more than `MOST_UNCHANGED` of the predictions of any label;
        None where there is none.
        """
        groups = range(len(self.old))
        largest = max(group.dim for group in self.statistics.groups) - 1
        for rank in range(1, min(largest, limit or largest) + 1):
            try:
                bases = self.bases([rank for _ in groups])
            except RankError:
                return None
            unchanged = self.unchanged(bases)
            if unchanged is not None and unchanged.worst <= MOST_UNCHANGED:
                return rank
        return None
