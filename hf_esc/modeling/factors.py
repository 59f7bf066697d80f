"""The factors of a projection, one for each erasure. Travels with checkpoints."""

# Shapes: d feature dimensions, k erased directions.

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import CheckpointError

# Up to a thousand orthonormal columns in float32, multiplied in any order, stay well within this tolerance.
TOLERANCE = 1e-4
# No entry of a valid mask has this value, so a mask that was never filled does not pass the check.
_UNFILLED = 255
DAMAGED = "Such a model would not be erased; erase the original again, or fetch the checkpoint anew."


class Factor(nn.Module):
    """
    One erasure: a map of features `(…, d)`, defined by buffers. Optimizers do not see buffers.

    Attributes:
        kind (`str`): Its name in `ESCConfig.factors`.
        linear (`bool`): Whether it is a linear map. A linear map also acts on second moments.
        joins (`bool`): Whether this factor also takes the directions of a later erasure of the same kind.
        stored (`dict[str, torch.dtype]`): Its buffers and the type in which each is stored. They keep this type when a
            model is cast to half precision, because rounding would leave a part of the class behind.
    """

    kind: ClassVar[str]
    linear: ClassVar[bool] = True
    joins: ClassVar[bool] = False
    stored: ClassVar[dict[str, torch.dtype]]

    dim: int

    @classmethod
    def build(cls, dim: int, config: dict[str, Any]) -> "Factor":
        """
        Make an unfilled factor from its configuration, which `config` returned.

        Raises:
            CheckpointError: If the configuration does not describe a factor of this kind.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The configuration of this factor: its `kind` as `type`, and the sizes that `build` needs."""
        raise NotImplementedError

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless this is a valid factor of its kind that erases something."""
        raise NotImplementedError

    def make_room(self, name: str, *shape: int) -> None:
        """Register the buffer `name` in its stored type, unfilled."""
        dtype = self.stored[name]
        self.register_buffer(name, torch.full(shape, _unfilled(dtype), dtype=dtype))

    def unfill(self) -> None:
        """Fill all buffers with values that give NaN or fail the check, until a checkpoint is loaded."""
        for name in self.stored:
            buffer = getattr(self, name)
            buffer.fill_(_unfilled(buffer.dtype))

    def restore(self) -> None:
        """
        Put buffers of less than four bytes back to their stored types.

        transformers keeps this module in float32 when it loads a model in lower precision, and casts these buffers
        too. A buffer whose values would change stays as it is, and `check` refuses it.
        """
        for name, dtype in self.stored.items():
            buffer = getattr(self, name)
            if buffer.is_meta or buffer.dtype == dtype or dtype.itemsize >= 4:
                continue
            small = buffer.to(dtype)
            if torch.equal(small.to(buffer.dtype), buffer):
                setattr(self, name, small)

    def _apply(self, fn, recurse=True):
        before = {name: getattr(self, name) for name in self.stored}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            mine = getattr(self, name)
            narrower = mine.dtype.itemsize < 4 or self.stored[name].itemsize < 4
            if mine.dtype != tensor.dtype and narrower:
                setattr(self, name, tensor.to(mine.device))
        return self


def _unfilled(dtype: torch.dtype) -> float:
    return torch.nan if dtype.is_floating_point else _UNFILLED


class BasisFactor(Factor):
    """A linear factor made of orthonormal directions, the columns of `basis`."""

    stored = {"basis": torch.float32}
    basis: Tensor

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.basis.shape[0]

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless the columns of `basis` are finite and orthonormal."""
        basis = self.basis
        if not torch.isfinite(basis).all():
            raise CheckpointError(f"{name} is not finite. {DAMAGED}")
        exact = basis.cpu().double()  # some devices lack float64, some multiply float32 less exactly
        error = (exact.T @ exact - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max().item()
        if error > TOLERANCE:
            raise CheckpointError(
                f"{name} does not have orthonormal columns: U^T U is off the identity by {error:.2g}, and {TOLERANCE} "
                f"is allowed. {DAMAGED}"
            )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if prefix + "basis" in state_dict and not self.basis.is_meta:
            try:
                self.check(f"The projection {prefix}basis")
            except CheckpointError as error:
                errors.append(str(error))


class LowRankFactor(BasisFactor):
    r"""
    The orthogonal projection \(P = I - U U^\top\) that projects out the k columns U of `basis` (ESC).

    Two in a row with orthogonal columns are merged into one, \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\).

    Args:
        dim (`int`): Feature dimensions d.
        rank (`int`): Erased directions k.
    """

    kind = "low_rank"
    joins = True

    def __init__(self, dim: int, rank: int):
        super().__init__()
        self.make_room("basis", dim, rank)

    @classmethod
    def build(cls, dim: int, config: dict[str, Any]) -> "LowRankFactor":
        if not isinstance(config.get("rank"), int):
            raise CheckpointError(f"The configuration names a factor {config!r} without its rank. {DAMAGED}")
        return cls(dim, config["rank"])

    @classmethod
    def of(cls, basis: Tensor) -> "LowRankFactor":
        """The factor with the basis `(d, k)`."""
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
        """Raise a [`CheckpointError`] unless there is at least one column and all are finite and orthonormal."""
        if self.rank == 0:
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {DAMAGED}")
        super().check(name)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, rank={self.rank}"


class MaskedFactor(BasisFactor):
    r"""
    The map \(U_R U_R^\top\), \(U_R = U \odot M_R\), of a complete orthonormal basis and a binary mask (ESC-T, Eq. 6 of
    [ESC](https://huggingface.co/papers/2504.02199)).

    The map is symmetric but not a projection: it keeps full rank if few entries are cut. U and the mask are stored
    separately, so that both can be checked after loading.

    Args:
        dim (`int`): Feature dimensions d.

    Attributes:
        basis (`torch.Tensor` of shape `(d, d)`): U.
        mask (`torch.Tensor` of shape `(d, d)`): M_R, uint8: 1 where an entry of U is kept, 0 where it is cut.
    """

    kind = "masked"
    stored = {"basis": torch.float32, "mask": torch.uint8}
    mask: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.make_room("basis", dim, dim)
        self.make_room("mask", dim, dim)

    @classmethod
    def build(cls, dim: int, config: dict[str, Any]) -> "MaskedFactor":
        return cls(dim)

    @classmethod
    def of(cls, basis: Tensor, mask: Tensor) -> "MaskedFactor":
        """
        The factor with the basis U `(d, d)` and a mask `(d, d)` of booleans or of zeros and ones.

        A mask with other values is kept as it is, and `check` refuses it.
        """
        factor = cls(basis.shape[0])
        factor.basis = basis
        binary = mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())
        factor.mask = mask.detach().to(basis.device, torch.uint8 if binary else torch.float32)
        return factor

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        mask = state_dict.get(prefix + "mask")
        if mask is not None and not mask.is_meta and not ((mask == 0) | (mask == 1)).all():
            errors.append(f"The projection {prefix}mask is not of zeros and ones. {DAMAGED}")  # loading would round it
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def config(self) -> dict[str, Any]:
        return {"type": self.kind}

    def forward(self, x: Tensor) -> Tensor:
        masked = self.basis.to(x.device, x.dtype) * self.mask.to(x.device, x.dtype)
        return (x @ masked) @ masked.T

    def check(self, name: str = "The projection") -> None:
        """
        Raise a [`CheckpointError`] unless U is finite and orthonormal, and the mask has zeros, ones and nothing else.
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
