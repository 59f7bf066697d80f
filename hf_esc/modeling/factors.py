"""What a projection is made of: one factor for each erasure. Travels with checkpoints."""

# Shapes: d feature dimensions, k erased directions.

from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError

# Orthonormal columns in float32, of which up to a thousand are multiplied in any order, stay well within this.
TOLERANCE = 1e-4
# No entry of a mask has this value: a mask that was never filled must not pass for one.
_UNFILLED = 255
DAMAGED = "Such a model would not be erased; erase the original again, or fetch the checkpoint anew."


class Factor(nn.Module):
    """
    One erasure, a map of features `(…, d)` that its buffers define. Buffers are seen by no optimizer.
    """

    kind: str
    dim: int

    def config(self) -> dict[str, Any]:
        """What `build_factor` needs to make room for it."""
        raise NotImplementedError

    def unfill(self) -> None:
        """Make every answer NaN until a checkpoint is loaded."""
        raise NotImplementedError

    def restore(self) -> None:
        """Back to the types in which buffers are stored, after a model was loaded in another."""

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless it is a factor of its kind, and erases something."""
        raise NotImplementedError


class BasisFactor(Factor):
    """A linear factor of orthonormal directions. `basis` stays in float32 when the model is cast to less."""

    basis: Tensor

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.basis.shape[0]

    def unfill(self) -> None:
        self.basis.fill_(torch.nan)

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless the columns of `basis` are finite and orthonormal."""
        basis = self.basis
        if not torch.isfinite(basis).all():
            raise CheckpointError(f"{name} is not finite. {DAMAGED}")
        exact = basis.cpu().double()  # not every device has float64, and some multiply float32 in less
        error = (exact.T @ exact - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max().item()
        if error > TOLERANCE:
            raise CheckpointError(
                f"{name} does not have orthonormal columns: U^T U is off the identity by {error:.2g}, and {TOLERANCE} "
                f"is allowed. {DAMAGED}"
            )

    def _apply(self, fn, recurse=True):
        before = self.basis
        super()._apply(fn, recurse)
        if self.basis.dtype != before.dtype and torch.finfo(self.basis.dtype).bits < 32:
            self.basis = before.to(self.basis.device)  # half precision would leave a part of the class behind
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if prefix + "basis" in state_dict and not self.basis.is_meta:
            try:
                self.check(f"The projection {prefix}basis")
            except CheckpointError as error:
                errors.append(str(error))


class LowRankFactor(BasisFactor):
    r"""
    The orthogonal projection \(P = I - U U^\top\) that removes the span of the k columns of `basis` (ESC).

    Args:
        dim (`int`): Feature dimensions d.
        rank (`int`): Erased directions k.
    """

    kind = "low_rank"

    def __init__(self, dim: int, rank: int):
        super().__init__()
        self.register_buffer("basis", torch.full((dim, rank), torch.nan))

    @classmethod
    def of(cls, basis: Tensor) -> "LowRankFactor":
        """The factor of a basis `(d, k)`."""
        factor = cls(*basis.shape)
        factor.basis = basis
        return factor

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def config(self) -> dict[str, Any]:
        return {"type": self.kind, "rank": self.rank}

    def forward(self, x: Tensor) -> Tensor:
        basis = self.basis.to(x.device, x.dtype)
        return x - (x @ basis) @ basis.T

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless there is a column and the columns are finite and orthonormal."""
        if self.rank == 0:
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {DAMAGED}")
        super().check(name)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, rank={self.rank}"


class MaskedFactor(BasisFactor):
    r"""
    The map \(U_R U_R^\top\), \(U_R = U \odot M_R\), of a complete orthonormal basis and a binary mask (ESC-T, Eq. 6 of
    [ESC](https://huggingface.co/papers/2504.02199)).

    It is symmetric and no projection: it stays of full rank where few entries are cut. U and the mask are stored, not
    their product, so that what is loaded can be checked.

    Args:
        dim (`int`): Feature dimensions d.

    Attributes:
        basis (`torch.Tensor` of shape `(d, d)`): U.
        mask (`torch.Tensor` of shape `(d, d)`): M_R, uint8: 1 where an entry of U is kept, 0 where it is cut.
    """

    kind = "masked"
    mask: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("basis", torch.full((dim, dim), torch.nan))
        self.register_buffer("mask", torch.full((dim, dim), _UNFILLED, dtype=torch.uint8))

    @classmethod
    def of(cls, basis: Tensor, mask: Tensor) -> "MaskedFactor":
        """
        The factor of U `(d, d)` and a mask `(d, d)`.

        A mask that is not binary, of booleans or of zeros and ones, is taken as it is and refused by `check`.
        """
        factor = cls(basis.shape[0])
        factor.basis = basis
        binary = mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())
        factor.mask = mask.detach().to(basis.device, torch.uint8 if binary else torch.float32)
        return factor

    def restore(self) -> None:
        """Back to uint8: what keeps modules in float32 while a model is loaded in less takes masks for weights."""
        if not self.mask.is_meta and self.mask.dtype == torch.float32 and ((self.mask == 0) | (self.mask == 1)).all():
            self.mask = self.mask.to(torch.uint8)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        mask = state_dict.get(prefix + "mask")
        if mask is not None and not mask.is_meta and not ((mask == 0) | (mask == 1)).all():
            errors.append(f"The projection {prefix}mask is not of zeros and ones. {DAMAGED}")  # it would be rounded
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def config(self) -> dict[str, Any]:
        return {"type": self.kind}

    def unfill(self) -> None:
        super().unfill()
        self.mask.fill_(_UNFILLED)

    def forward(self, x: Tensor) -> Tensor:
        masked = self.basis.to(x.device, x.dtype) * self.mask.to(x.device, x.dtype)
        return (x @ masked) @ masked.T

    def check(self, name: str = "The projection") -> None:
        """
        Raise a [`CheckpointError`] unless U is finite and orthonormal, and the mask holds zeros and ones, and both.
        """
        if self.mask.shape != self.basis.shape or self.basis.shape[0] != self.basis.shape[1]:
            raise CheckpointError(
                f"{name} has a basis {tuple(self.basis.shape)} and a mask {tuple(self.mask.shape)}, which should both "
                f"be (d, d). {DAMAGED}"
            )
        if not ((self.mask == 0) | (self.mask == 1)).all():
            raise CheckpointError(f"{name} has a mask that is not of zeros and ones. {DAMAGED}")
        if self.mask.all():
            raise CheckpointError(f"{name} has a mask of ones: it erases nothing. {DAMAGED}")
        if not self.mask.any():
            raise CheckpointError(f"{name} has a mask of zeros: it leaves no feature. {DAMAGED}")
        super().check(name)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
