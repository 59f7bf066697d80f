"""Principal directions of a second moment, and how many of them to take."""

# Shapes: d feature dimensions, k directions.

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from numbers import Integral

import torch
from torch import Tensor

from ..errors import NonFiniteError, RankError

# An eigenvalue below this fraction of the largest is rounding error: float32 is accurate to 1e-7, its square to 1e-14.
_NOISE = 1e-12
# Fewer images than dimensions span few directions. Up to this share of d, they are looked for in a subspace.
_FEW = 8


def rank_from_percentage(p: float | str | Decimal, dim: int) -> int:
    r"""
    The rank for a percentage p of `dim` feature dimensions, \(k = \lfloor p \cdot d / 100 \rfloor\).

    The arithmetic is decimal. Binary floating point sometimes loses one: it would make 0.57 % of 10,000 equal 56.

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
        raise RankError(f"`p` should be a percentage such as 1.5, not {p!r}.") from None
    if not 0 < Decimal(str(p)) < 100:
        raise RankError(f"`p` should be a percentage above 0 and below 100, and `p={p}`.")
    if rank == 0 and dim > 1:
        raise RankError(
            f"`p={p}` of {dim} feature directions rounds down to rank 0, which erases nothing. Use "
            f"`p={smallest_percentage(dim)}` or more, or `rank=1`."
        )
    if not 1 <= rank < dim:
        raise RankError(f"`p={p}` of {dim} feature directions is rank {rank}. A rank from 1 to {dim - 1} is needed.")
    return rank


def smallest_percentage(dim: int) -> Decimal:
    """The smallest p, to two decimal places, that gives rank 1 of `dim` directions."""
    return (Decimal(100) / dim).quantize(Decimal("0.01"), ROUND_CEILING)


def check_rank(rank: int | Integral, dim: int | None = None) -> int:
    """
    Check a rank and return it as an `int`.

    Args:
        rank (`int`): The rank.
        dim (`int`, *optional*): Number of feature dimensions d, if it is known.

    Raises:
        RankError: Unless `rank` is an integer with `1 <= rank`, and `rank < dim` if `dim` is given.
    """
    if isinstance(rank, bool) or not isinstance(rank, Integral):
        raise RankError(f"`rank` should be a whole number or 'auto', not {rank!r}.")
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
    Leading eigenvectors of a second moment: the directions that carry most of the forget set.

    With \(M = \sum_i z_i z_i^\top = U \Lambda U^\top\), returns the first `rank` columns of \(U\), which are the left
    singular vectors of the stacked features (Eq. 1 of [ESC](https://huggingface.co/papers/2504.02199)).

    Args:
        second_moment (`torch.Tensor` of shape `(d, d)`): Symmetric, uncentred, float64.
        rank (`int`): `1 <= rank < d`, and no more than the number of directions that the features span.

    Returns:
        `torch.Tensor` of shape `(d, rank)`: Orthonormal columns by decreasing eigenvalue. The largest entry of each
        column in absolute value is positive, which fixes the sign.

    Raises:
        RankError: If `rank` is outside `[1, d)`, or if the features span fewer directions. The rest would be
            arbitrary.
        NonFiniteError: If the second moment is not finite.
    """
    check_rank(rank, second_moment.shape[0])
    directions = spanned_directions(second_moment)
    if rank > directions.shape[1]:
        raise _too_few(directions, rank)
    return directions[:, :rank].contiguous()


def spanned_directions(second_moment: Tensor, largest: Tensor | None = None) -> Tensor:
    """
    All eigenvectors whose eigenvalue is above rounding error, `(d, r)`, by decreasing eigenvalue, signs fixed.

    Rounding error is relative to `largest`. By default, this is the largest eigenvalue of the matrix.
    """
    eigenvalues, vectors = _eigenvectors_of_few(second_moment, largest) or _eigenvectors(second_moment)
    scale = eigenvalues[0].clamp_min(0) if largest is None else largest
    return vectors[:, eigenvalues > _NOISE * scale]


def _eigenvectors_of_few(second_moment: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor] | None:
    r"""
    The eigenvectors of a matrix that spans at most d / 8 directions; None if it spans more.

    \(Q\), an orthonormal basis of \(M \Omega\) with random \(\Omega\) `(d, d / 8)`, then spans them all, and the
    eigenvectors are \(Q\) times those of the small \(Q^\top M Q\)
    ([Halko et al.](https://arxiv.org/abs/0909.4061)). Whether it does is checked: the trace tells what is left out.
    """
    moment = second_moment.double()
    dim = len(moment)
    if dim < _FEW or not torch.isfinite(moment).all():
        return None
    drawn = torch.randn(dim, dim // _FEW, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.linalg.qr(moment @ drawn.to(moment.device)).Q
    small = q.T @ moment @ q
    eigenvalues, vectors = _eigenvectors((small + small.T) / 2)
    scale = eigenvalues[0].clamp_min(0) if largest is None else largest
    if (moment.trace() - small.trace()).abs() > 0.1 * _NOISE * scale:
        return None
    return eigenvalues, _with_sign(q @ vectors)


def complete_basis(second_moment: Tensor) -> Tensor:
    r"""
    All eigenvectors of a second moment: the full basis U of ESC-T.

    It is complete even if there were fewer features than dimensions. It then includes directions that no feature has,
    in an arbitrary basis of their own. Without these, \(U U^\top\) would not be the identity, and a mask of ones would
    erase something.

    Args:
        second_moment (`torch.Tensor` of shape `(d, d)`): Symmetric, uncentred, float64.

    Returns:
        `torch.Tensor` of shape `(d, d)`: Orthonormal columns, float64, by decreasing eigenvalue, signs fixed.

    Raises:
        NonFiniteError: If the second moment is not finite.
    """
    return _eigenvectors(second_moment)[1].contiguous()


def _eigenvectors(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues in decreasing order and their eigenvectors, the largest entry of each in absolute value positive."""
    if not torch.isfinite(second_moment).all():
        raise NonFiniteError("The second moment has NaN or infinite entries, so it has no principal directions.")
    eigenvalues, vectors = torch.linalg.eigh(second_moment.double())  # ascending
    return eigenvalues.flip(0), _with_sign(vectors.flip(1))


def _with_sign(vectors: Tensor) -> Tensor:
    """Columns whose largest entry in absolute value is positive."""
    return vectors * vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()


def remaining_directions(basis: Tensor, second_moment: Tensor, largest: Tensor | None = None) -> Tensor:
    r"""
    All principal directions that are left of a second moment once `basis` is projected out.

    These are the principal directions of \(P M P\) with \(P = I - U U^\top\). They are orthogonal to `basis`, even if
    the features had already been projected: null vectors of \(P M P\), which could re-enter the span of `basis`, are
    left out.

    Args:
        basis (`torch.Tensor` of shape `(d, k)`): U, orthonormal columns; `k = 0` for none.
        second_moment (`torch.Tensor` of shape `(d, d)`): M, of features before or after the projection. Both give the
            same result.
        largest (`torch.Tensor`, *optional*): The size that rounding error is relative to, if earlier factors of a
            projection have made the moment smaller.

    Returns:
        `torch.Tensor` of shape `(d, r)`: Orthonormal columns, float64, by decreasing eigenvalue.
    """
    if basis.shape[1] == 0:
        return spanned_directions(second_moment, largest)
    # A basis stored in float32 is orthonormal only to 1e-7.
    old = torch.linalg.qr(basis.to(second_moment.device, torch.float64)).Q
    left = second_moment - old @ (old.T @ second_moment)
    left = left - (left @ old) @ old.T
    new = spanned_directions(
        (left + left.T) / 2, largest=second_moment.diagonal().max() if largest is None else largest
    )
    return new - old @ (old.T @ new)


def join_basis(basis: Tensor, directions: Tensor, rank: int) -> Tensor:
    r"""
    Put the first `rank` of `directions` beside `basis`, so that \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\).

    Args:
        basis (`torch.Tensor` of shape `(d, k)`): Orthonormal columns; `k = 0` for none.
        directions (`torch.Tensor` of shape `(d, r)`): From [`remaining_directions`] of that basis.
        rank (`int`): Number of directions to add.

    Returns:
        `torch.Tensor` of shape `(d, k + rank)`, float64.

    Raises:
        RankError: If `rank` is below 1 or more than the features span, or if no feature would be left
            (`k + rank >= d`).
    """
    dim, old = basis.shape
    check_rank(rank, dim)
    if old + rank >= dim:
        raise RankError(
            f"{old} of {dim} directions are erased already, and `rank={rank}` more would leave no feature. Use a "
            "smaller rank."
        )
    if rank > directions.shape[1]:
        raise _too_few(directions, rank)
    return torch.cat([basis.to(directions), directions[:, :rank]], dim=1)


def _too_few(directions: Tensor, rank: int) -> RankError:
    spanned = directions.shape[1]
    if not spanned:
        return RankError("The forget features are all zero, perhaps erased already: there is no direction to take.")
    return RankError(
        f"Rank {rank} was asked for, and the forget features span {spanned} directions. Further directions would be "
        f"arbitrary. Use `rank={spanned}` or less, or more forget images."
    )
