"""How many directions to project out: from p, as given, or the fewest that change the head's predictions."""

# Shapes: n sampled images, d_g feature dimensions of site group g, k_g directions, S sites, C classes.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from ..errors import RankError
from ..features.basis import check_rank, join_basis, rank_from_percentage, remaining_directions
from ..features.head import site_outputs
from ..features.moments import SecondMoment
from ..ledger.record import MOST_UNCHANGED, Unchanged
from ..modeling.factors import LowRankFactor
from ..modeling.modeling_esc import ESCModel
from ..modeling.projection import Projection, product
from .statistics import ForgetStatistics

Rank = int | Literal["auto"] | None

# A warning looks for a sufficient rank up to this one. `rank="auto"` looks at all ranks.
MOST_SUGGESTED = 64


class RankSearch:
    """Finds the bases for a rank, and what they do to the head's predictions for the sampled images."""

    def __init__(self, model: ESCModel, statistics: ForgetStatistics):
        self.model = model
        self.statistics = statistics
        # New directions join the basis of the last factor if it is low-rank. The linear factors before it act on the
        # moments, F M F^T in float64. Factors that are not linear have acted on the features already.
        self.mapped, self.leading, self.old = zip(*(p.parts() for p in model.projections), strict=True)
        self.moments = {label: self._led(moments) for label, moments in statistics.moments.items()}
        self.before: Tensor | None = None
        # Without `per_class` each rank's basis is the beginning of the next one's: one eigendecomposition for all.
        self.directions = None
        if None in self.moments:
            self.directions = [
                remaining_directions(basis, *moment)
                for basis, moment in zip(self.old, self.moments[None], strict=True)
            ]

    def _led(self, moments: Sequence[SecondMoment]) -> list[tuple[Tensor, Tensor | None]]:
        """For each group, the moment behind the leading linear factors, and the largest diagonal entry before them."""
        result: list[tuple[Tensor, Tensor | None]] = []
        for factors, moment in zip(self.leading, moments, strict=True):
            if not factors:
                result.append((moment.matrix, None))
                continue
            matrix = product(factors, moment.dim).to(moment.matrix.device)
            led = matrix @ moment.matrix @ matrix.T
            result.append(((led + led.T) / 2, moment.matrix.diagonal().max()))
        return result

    def factors(self, bases: Sequence[Tensor]) -> list[list]:
        """All factors of each projection, with the given bases in the last one."""
        return [
            [*mapped, *led, LowRankFactor.of(basis.float())]
            for mapped, led, basis in zip(self.mapped, self.leading, bases, strict=True)
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
        """For each group, the basis so far and `rank` more directions, or `rank` of each label if `per_class`."""
        bases = []
        for group, (basis, rank) in enumerate(zip(self.old, ranks, strict=True)):
            if self.directions is not None:
                bases.append(join_basis(basis, self.directions[group], rank))
                continue
            for label in sorted(label for label in self.moments if label is not None):
                basis = join_basis(basis, remaining_directions(basis, *self.moments[label][group]), rank)
            bases.append(basis)
        return bases

    def unchanged(self, bases: Sequence[Tensor]) -> Unchanged | None:
        """The sampled images whose prediction is the same with and without `bases`; None where that is unknown."""
        weights = self.statistics.head_weights
        if weights is None:
            return None
        if self.before is None:
            erased_before = any(len(projection.factors) for projection in self.model.projections)
            self.before = self.predictions(self.old) if erased_before else self.statistics.sample.predictions
        after = self.predictions(bases)
        same = after == self.before
        labels = self.statistics.sample.labels
        if labels is None:
            return Unchanged(same.double().mean().item())
        right = self.before == labels
        return Unchanged(
            (same & right).double().mean().item(),
            _by_label(same & right, labels),
            right.double().mean().item(),
            _by_label(after == labels, labels),
        )

    def predictions(self, bases: Sequence[Tensor]) -> Tensor:
        """The head's class for each sampled image `(n,)`, with these bases projected out."""
        projected = []
        for z, factors, basis in zip(self.statistics.sample.features, self.leading, bases, strict=True):
            last = [LowRankFactor.of(basis)] if basis.shape[1] else []
            projected.append(Projection(z.shape[1], [*factors, *last])(z))
        outputs = site_outputs(self.model.model, self.statistics.groups, projected)  # (S, n, C)
        weights = cast(Tensor, self.statistics.head_weights).to(outputs)
        return torch.einsum("s,snc->nc", weights, outputs).argmax(dim=1).cpu()

    def smallest_rank(self, limit: int | None = None) -> int | None:
        """
        The smallest rank, up to `limit`, with which the head gives no label to more than `MOST_UNCHANGED` of its
        images (without labels: that leaves no more of the predictions); None if there is none.
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


def _by_label(those: Tensor, labels: Tensor) -> dict[int, float]:
    """For each label, the fraction of its images that are among `those` `(n,)`."""
    return {label: those[labels == label].double().mean().item() for label in labels.unique().tolist()}
