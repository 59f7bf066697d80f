"""The layer in front of the head that projects the forgotten directions out. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, k erased directions.

import threading

import torch
from torch import Tensor, nn

from .errors import CheckpointError

# Orthonormal columns in float32, of which up to a thousand are multiplied in any order, stay well within this.
TOLERANCE = 1e-4


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
    The orthogonal projection \(P = I - U U^\top\) that removes the span of the k columns of `basis` from features.

    `basis` is a buffer: no optimizer sees it, and it stays in float32 when the model is cast to less.

    Args:
        dim (`int`): Feature dimensions d.
        rank (`int`): Erased directions k. Rank 0 is the identity; it is for building and is neither saved nor loaded.
        axis (`int`, defaults to -1): The axis of the head's input along which the features lie; 1 for convolutions.
    """

    basis: Tensor

    def __init__(self, dim: int, rank: int, axis: int = -1):
        super().__init__()
        self.axis = axis
        self.thread = _ThreadState()
        # NaN until a basis is loaded: a projection that was never filled must not pass for one.
        self.register_buffer("basis", torch.full((dim, rank), torch.nan))

    @property
    def enabled(self) -> bool:
        """Whether features are projected, in this thread."""
        return self.thread.times_disabled == 0

    @property
    def dim(self) -> int:
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """Remove the erased directions from features of any shape with d entries along `axis`."""
        if not self.enabled or self.rank == 0:
            return features
        if torch.is_autocast_enabled(features.device.type):  # would multiply in half precision
            with torch.autocast(features.device.type, enabled=False):
                return self._project(features)
        return self._project(features)

    def _project(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(features.dtype, self.basis.dtype)
        basis = self.basis.to(features.device, dtype)
        if self.axis in (-1, features.ndim - 1):
            x = features.to(dtype)
            return (x - (x @ basis) @ basis.T).to(features.dtype)
        x = features.movedim(self.axis, -1).to(dtype)
        projected = (x - (x @ basis) @ basis.T).movedim(-1, self.axis)
        # The head's input keeps its strides: with others, another convolution kernel may run.
        return torch.empty_like(features).copy_(projected)

    def pre_hook(self, module: nn.Module, args: tuple) -> tuple:
        """Forward pre-hook of a head: its first argument is projected."""
        projected = self(args[0])
        self.thread.features = projected
        return (projected, *args[1:])

    def check(self, name: str = "The projection") -> None:
        """
        Raise a [`CheckpointError`] unless `basis` has at least one column and its columns are finite and orthonormal.
        """
        basis = self.basis
        if basis.shape[1] == 0:
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {_DAMAGED}")
        if not torch.isfinite(basis).all():
            raise CheckpointError(f"{name} is not finite. {_DAMAGED}")
        exact = basis.cpu().double()  # not every device has float64, and some multiply float32 in less
        error = (exact.T @ exact - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max().item()
        if error > TOLERANCE:
            raise CheckpointError(
                f"{name} does not have orthonormal columns: U^T U is off the identity by {error:.2g}, and "
                f"{TOLERANCE} is "
                f"allowed. {_DAMAGED}"
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

    def extra_repr(self) -> str:
        return f"dim={self.dim}, rank={self.rank}, axis={self.axis}"


_DAMAGED = "Such a model would not be erased; erase the original again, or fetch the checkpoint anew."
