"""Principal directions of a second moment, and how many of them to take."""

# Shapes: d feature dimensions, k directions.

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from numbers import Integral

import torch
from torch import Tensor

from ..errors import NonFiniteError, RankError

# An eigenvalue below this share of the largest is rounding: float32 features are good to 1e-7, squares to 1e-14.
_NOISE = 1e-12


def rank_from_percentage(p: float | str | Decimal, dim: int) -> int:
    r"""
    The number of directions that `p` percent of `dim` feature dimensions are, \(k = \lfloor p \cdot d / 100 \rfloor\).

    In decimal arithmetic: binary floating point loses one now and then (0.57 % of 10,000 would be 56).

    Args:
        p (`float`, `str` or `Decimal`): Percentage of the directions to project out, above 0 and below 100.
        dim (`int`): Number of feature dimensions d.

    Returns:
        `int`: k with `1 <= k < dim`.

    Raises:
        RankError: If k is 0, which would erase nothing, or not below `dim`.
    """
    try:
        exact = Decimal(str(p)) * dim / 100
        rank = int(exact.to_integral_value(ROUND_FLOOR))
    except (ArithmeticError, ValueError):
        raise RankError(f"`p` is a percentage such as 1.5, not {p!r}.") from None
    if not 0 < Decimal(str(p)) < 100:
        raise RankError(f"`p` is a percentage above 0 and below 100, and `p={p}`.")
    if rank == 0 and dim > 1:
        raise RankError(
            f"`p={p}` of {dim} feature directions rounds down to rank 0, which erases nothing. Use "
            f"`p={smallest_percentage(dim)}` or more, or `rank=1`."
        )
    if not 1 <= rank < dim:
        raise RankError(
            f"`p={p}` of {dim} feature directions is rank {rank}, and a rank from 1 to {dim - 1} is needed."
        )
    return rank


def smallest_percentage(dim: int) -> Decimal:
    """The smallest p, to two decimals, that gives rank 1 of `dim` directions."""
    return (Decimal(100) / dim).quantize(Decimal("0.01"), ROUND_CEILING)


def check_rank(rank: int | Integral, dim: int | None = None) -> int:
    """
    `rank` where it is an integer with `1 <= rank < dim` (`dim` where that is known), and a [`RankError`]
    otherwise.
    """
    if isinstance(rank, bool) or not isinstance(rank, Integral):
        raise RankError(f"`rank` is a whole number or 'auto', not {rank!r}.")
    rank = int(rank)
    if dim is None:
        if rank < 1:
            raise RankError(f"`rank={rank}` erases nothing. Use 1 or more, or 'auto'.")
        return rank
    if not 1 <= rank < dim:
        why = "erases nothing" if rank < 1 else "leaves no feature"
        raise RankError(f"`rank={rank}` of {dim} feature directions {why}. Use a rank from 1 to {dim - 1}.")
    return rank


def principal_directions(second_moment: Tensor, rank: int) -> Tensor:
    r"""
    The `rank` leading eigenvectors of a second moment: the directions that carry most of the forget set.

    With \(M = \sum_i z_i z_i^\top = U \Lambda U^\top\), returns the first `rank` columns of \(U\), which are the left
    singular vectors of the stacked features (Eq. 1 of [ESC](https://huggingface.co/papers/2504.02199)).

    Args:
        second_moment (`torch.Tensor` of shape `(d, d)`): Symmetric, uncentred, float64.
        rank (`int`): `1 <= rank < d`, and no more than the features span.

    Returns:
        `torch.Tensor` of shape `(d, rank)`: orthonormal columns by decreasing eigenvalue. In each, the entry of
        largest size is positive, which fixes the sign.

    Raises:
        RankError: If `rank` is outside `[1, d)`, or the features span fewer directions: the rest would be arbitrary.
        NonFiniteError: If the second moment is not finite.
    """
    check_rank(rank, second_moment.shape[0])
    directions = spanned_directions(second_moment)
    if rank > directions.shape[1]:
        raise _too_few(directions, rank)
    return directions[:, :rank].contiguous()


def spanned_directions(second_moment: Tensor, largest: Tensor | None = None) -> Tensor:
    """
    All eigenvectors with an eigenvalue above rounding, `(d, r)`, by decreasing eigenvalue, signs fixed.

    `largest` is the size that rounding is relative to, where that is not the largest eigenvalue of this matrix.
    """
    eigenvalues, vectors = _eigenvectors(second_moment)
    scale = eigenvalues[0].clamp_min(0) if largest is None else largest
    return vectors[:, eigenvalues > _NOISE * scale]


def complete_basis(second_moment: Tensor) -> Tensor:
    r"""
    All eigenvectors of a second moment: the full basis U of ESC-T.

    Complete also where fewer features than dimensions were seen: directions that no feature has are a part of it, in
    an arbitrary basis of their own. Without them \(U U^\top\) would not be the identity, and an untouched mask would
    erase.

    Args:
        second_moment (`torch.Tensor` of shape `(d, d)`): Symmetric, uncentred, float64.

    Returns:
        `torch.Tensor` of shape `(d, d)`: orthonormal, float64, by decreasing eigenvalue, signs fixed.

    Raises:
        NonFiniteError: If the second moment is not finite.
    """
    return _eigenvectors(second_moment)[1].contiguous()


def _eigenvectors(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """By decreasing eigenvalue; in each, the entry of largest size is positive."""
    if not torch.isfinite(second_moment).all():
        raise NonFiniteError("The second moment has NaN or infinite entries, so it has no principal directions.")
    eigenvalues, vectors = torch.linalg.eigh(second_moment.double())  # ascending
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    return eigenvalues, vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()


def remaining_directions(basis: Tensor, second_moment: Tensor, largest: Tensor | None = None) -> Tensor:
    r"""
    All principal directions of what `basis` leaves of a second moment: those of \(P M P\), \(P = I - U U^\top\).

    They are orthogonal to `basis`, also where the moment was taken of features that had been projected already: then
    null vectors of \(P M P\) could re-enter the span of `basis`, and none is returned.

    Args:
        basis (`torch.Tensor` of shape `(d, k)`): Orthonormal columns; `k = 0` for none.
        second_moment (`torch.Tensor` of shape `(d, d)`): Of features before or after the projection, which is the
            same.
        largest (`torch.Tensor`, *optional*): The size that rounding is relative to, where the moment was made smaller
            by other factors of a projection before.

    Returns:
        `torch.Tensor` of shape `(d, r)`: orthonormal, float64, by decreasing eigenvalue.
    """
    if basis.shape[1] == 0:
        return spanned_directions(second_moment, largest)
    # float32 storage is orthonormal to 1e-7 only
    old = torch.linalg.qr(basis.to(second_moment.device, torch.float64)).Q
    left = second_moment - old @ (old.T @ second_moment)
    left = left - (left @ old) @ old.T
    new = spanned_directions(
        (left + left.T) / 2, largest=second_moment.diagonal().max() if largest is None else largest
    )
    return new - old @ (old.T @ new)


def join_basis(basis: Tensor, directions: Tensor, rank: int) -> Tensor:
    r"""
    `basis` with the first `rank` of `directions` beside it, so that \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\).

    Args:
        basis (`torch.Tensor` of shape `(d, k)`): Orthonormal columns; `k = 0` for none.
        directions (`torch.Tensor` of shape `(d, r)`): From [`remaining_directions`] of that basis.
        rank (`int`): Number of directions to add.

    Returns:
        `torch.Tensor` of shape `(d, k + rank)`, float64.

    Raises:
        RankError: If `rank` is below 1, is more than the features span, or leaves nothing: `k + rank >= d`.
    """
    dim, old = basis.shape
    check_rank(rank, dim)
    if old + rank >= dim:
        raise RankError(
            f"{old} of {dim} directions are erased already, and `rank={rank}` more would leave no feature."
        )
    if rank > directions.shape[1]:
        raise _too_few(directions, rank)
    return torch.cat([basis.to(directions), directions[:, :rank]], dim=1)


def _too_few(directions: Tensor, rank: int) -> RankError:
    spanned = directions.shape[1]
    if not spanned:
        return RankError("The forget features are all zero, perhaps erased already: there is no direction to take.")
    return RankError(
        f"Rank {rank} was asked for, and the forget features span {spanned} directions. Beyond these any direction "
        f"is as "
        f"good as another. Use `rank={spanned}` or less, or more forget images."
    )
