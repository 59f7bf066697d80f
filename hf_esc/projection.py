"""The layer in front of the head that projects out what is forgotten, factor by factor. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, k erased directions.

import threading
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from .errors import CheckpointError

# Orthonormal columns in float32, of which up to a thousand are multiplied in any order, stay well within this.
TOLERANCE = 1e-4
# No entry of a mask has this value: a mask that was never filled must not pass for one.
_UNFILLED = 255


class _Factor(nn.Module):
    """
    One erasure, a map of features `(…, d)` that its buffers define.

    Buffers are seen by no optimizer. `basis` stays in float32 when the model is cast to less.
    """

    basis: Tensor
    kind: str

    @property
    def dim(self) -> int:
        return self.basis.shape[0]

    def config(self) -> dict[str, Any]:
        """What [`build_factor`] needs to make room for it."""
        raise NotImplementedError

    def unfill(self) -> None:
        """Make every answer NaN until a checkpoint is loaded."""
        self.basis.fill_(torch.nan)

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless the columns of `basis` are finite and orthonormal."""
        basis = self.basis
        if not torch.isfinite(basis).all():
            raise CheckpointError(f"{name} is not finite. {_DAMAGED}")
        exact = basis.cpu().double()  # not every device has float64, and some multiply float32 in less
        error = (exact.T @ exact - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max().item()
        if error > TOLERANCE:
            raise CheckpointError(
                f"{name} does not have orthonormal columns: U^T U is off the identity by {error:.2g}, and {TOLERANCE} "
                f"is allowed. {_DAMAGED}"
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


class LowRankFactor(_Factor):
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
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {_DAMAGED}")
        super().check(name)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, rank={self.rank}"


class MaskedFactor(_Factor):
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

    def restore_mask(self) -> None:
        """Back to uint8: what keeps modules in float32 while a model is loaded in less takes masks for weights."""
        if not self.mask.is_meta and self.mask.dtype == torch.float32 and ((self.mask == 0) | (self.mask == 1)).all():
            self.mask = self.mask.to(torch.uint8)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        mask = state_dict.get(prefix + "mask")
        if mask is not None and not mask.is_meta and not ((mask == 0) | (mask == 1)).all():
            errors.append(f"The projection {prefix}mask is not of zeros and ones. {_DAMAGED}")  # it would be rounded
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
                f"be (d, d). {_DAMAGED}"
            )
        if not ((self.mask == 0) | (self.mask == 1)).all():
            raise CheckpointError(f"{name} has a mask that is not of zeros and ones. {_DAMAGED}")
        if self.mask.all():
            raise CheckpointError(f"{name} has a mask of ones: it erases nothing. {_DAMAGED}")
        if not self.mask.any():
            raise CheckpointError(f"{name} has a mask of zeros: it leaves no feature. {_DAMAGED}")
        super().check(name)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def build_factor(dim: int, config: dict[str, Any]) -> _Factor:
    """
    An unfilled factor for what `config()` of a factor said.

    Raises:
        CheckpointError: If there is no such factor.
    """
    if config.get("type") == LowRankFactor.kind and isinstance(config.get("rank"), int):
        return LowRankFactor(dim, config["rank"])
    if config.get("type") == MaskedFactor.kind:
        return MaskedFactor(dim)
    raise CheckpointError(
        f"The configuration names a factor {config!r} of a projection, which this version of hf_esc does not know. "
        f"Update it. {_DAMAGED}"
    )


class _ThreadState(threading.local):
    """
    What a thread has seen and switched off, for each its own: servers run one model in several threads, and what one
    of them switches off must not un-erase the answers of another. No copy or pickle of a model takes it along.
    """

    features: Tensor | None = None  # that passed last
    times_disabled: int = 0  # contexts can overlap in any order, so they are counted

    def __deepcopy__(self, memo):
        return type(self)()

    def __reduce__(self):
        return type(self), ()


class Projection(nn.Module):
    r"""
    What stands in front of a head: \(z \mapsto F_m \cdots F_1 z\), a product of factors in the order of the erasures.

    Args:
        dim (`int`): Feature dimensions d.
        factors (`Sequence` of [`LowRankFactor`] and [`MaskedFactor`]): \(F_1, \ldots, F_m\). Without any it is the
            identity; it is so for building and is neither saved nor loaded.
        axis (`int`, defaults to -1): The axis of the head's input along which the features lie; 1 for convolutions.
    """

    factors: Any  # a ModuleList

    def __init__(self, dim: int, factors: Sequence[_Factor] = (), axis: int = -1):
        super().__init__()
        self.dim = dim
        self.axis = axis
        self.thread = _ThreadState()
        self.factors = nn.ModuleList(factors)

    @property
    def enabled(self) -> bool:
        """Whether features are projected, in this thread."""
        return self.thread.times_disabled == 0

    def forward(self, features: Tensor) -> Tensor:
        """Project features of any shape with d entries along `axis`."""
        if not self.enabled or not len(self.factors):
            return features
        if torch.is_autocast_enabled(features.device.type):  # would multiply in half precision
            with torch.autocast(features.device.type, enabled=False):
                return self._project(features)
        return self._project(features)

    def _project(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(features.dtype, torch.float32)
        last = self.axis in (-1, features.ndim - 1)
        x = (features if last else features.movedim(self.axis, -1)).to(dtype)
        for factor in self.factors:
            x = factor(x)
        if last:
            return x.to(features.dtype)
        # The head's input keeps its strides: with others, another convolution kernel may run.
        return torch.empty_like(features).copy_(x.movedim(-1, self.axis))

    def pre_hook(self, module: nn.Module, args: tuple) -> tuple:
        """Forward pre-hook of a head: its first argument is projected."""
        projected = self(args[0])
        self.thread.features = projected
        return (projected, *args[1:])

    def leading_and_basis(self) -> tuple[list[_Factor], Tensor]:
        r"""
        The basis `(d, k)` of the last factor where that is low-rank, else one with `k = 0`, and the factors before it.

        Low-rank factors in a row are one, \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\), and are kept as one.
        """
        factors = list(self.factors)
        if factors and isinstance(factors[-1], LowRankFactor):
            return factors[:-1], factors[-1].basis
        return factors, torch.zeros(self.dim, 0, device=factors[-1].basis.device if factors else None)

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless there are factors and each is what it should be."""
        if not len(self.factors):
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {_DAMAGED}")
        for index, factor in enumerate(self.factors):
            with align_module_device(factor):  # an offloaded one is on the meta device until it is asked for
                factor.check(f"Factor {index} of {name[0].lower()}{name[1:]}")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, axis={self.axis}"


def product(factors: Sequence[_Factor], dim: int) -> Tensor:
    r"""\(F_m \cdots F_1\) as a matrix `(d, d)`, float64, on the CPU: not every device has that."""
    result = torch.eye(dim, dtype=torch.float64)
    for factor in factors:
        result = factor(result)  # on rows: z^T F^T, and every factor is symmetric
    return result.T


_DAMAGED = "Such a model would not be erased; erase the original again, or fetch the checkpoint anew."
