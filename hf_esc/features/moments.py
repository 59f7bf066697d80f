"""The second moment of a stream of features. The closed form needs nothing else of the forget set."""

# Shapes: N features of d dimensions.

from __future__ import annotations

import os

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import NonFiniteError


class SecondMoment:
    r"""
    The uncentred second moment \(M = \sum_i z_i z_i^\top\) of features \(z_i \in R^d\), in \(O(d^2)\) memory.

    Batches may come in any order: the sum is exact up to float64 rounding. The left singular vectors of the stacked
    features depend only on \(M\), because \(Z Z^\top = U \Sigma^2 U^\top\) (Eq. 1 of
    [ESC](https://huggingface.co/papers/2504.02199)). The sum is accumulated in float64. In float32, a large mean and
    near-tied eigenvalues would give a wrong leading subspace.

    The moment of one image is \(z z^\top\) and gives that image's feature away. Share only moments of many images.

    Args:
        dim (`int`): Number of feature dimensions d.
        device (`torch.device`, *optional*): Where to accumulate. The CPU takes the place of a device without float64.

    Attributes:
        matrix (`torch.Tensor` of shape `(d, d)`): \(M\), float64.
        n (`int`): Number of features seen.
    """

    def __init__(self, dim: int, device: torch.device | str | None = None):
        if dim < 1:
            raise ValueError(f"A second moment needs at least one dimension, and `dim` is {dim}.")
        device = torch.device(device or "cpu")
        if device.type == "mps":  # has no float64
            device = torch.device("cpu")
        self.matrix = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.n = 0

    @property
    def dim(self) -> int:
        return self.matrix.shape[0]

    @torch.no_grad()
    def update(self, features: Tensor) -> SecondMoment:
        """
        Add a batch of features.

        Args:
            features (`torch.Tensor` of shape `(N, d)`): Any floating dtype, any device.

        Raises:
            ValueError: If the shape is not `(N, d)`.
            NonFiniteError: If an entry is NaN or infinite. Then no part of the batch is added.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"Features should have the shape (N, {self.dim}), not {tuple(features.shape)}.")
        bad = (~torch.isfinite(features)).any(dim=1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise NonFiniteError(
                f"{int(bad.sum())} of the {len(features)} features in this batch are not finite; the first is row "
                f"{first}, feature {self.n + first} of the stream. Look for NaN in the images or an overflow in half "
                "precision."
            )
        features = features.to(self.matrix.device, torch.float64)
        self.matrix.addmm_(features.T, features)
        self.n += len(features)
        return self

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Add the moment of another stream. The result is the moment of both streams together."""
        if other.dim != self.dim:
            raise ValueError(f"A moment of {other.dim} dimensions cannot be merged into one of {self.dim}.")
        self.matrix += other.matrix.to(self.matrix.device)
        self.n += other.n
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """`matrix` and `n`, for `load_state_dict`."""
        return {"matrix": self.matrix, "n": torch.tensor(self.n)}

    def load_state_dict(self, state: dict[str, Tensor]) -> SecondMoment:
        """
        Load a saved state.

        Raises:
            ValueError: If the state is not a symmetric finite `(d, d)` matrix with a count.
        """
        if set(state) != {"matrix", "n"}:
            raise ValueError(f"A second moment's state has the keys 'matrix' and 'n', not {sorted(state)}.")
        matrix = state["matrix"].to(self.matrix.device, torch.float64)
        if matrix.shape != self.matrix.shape:
            raise ValueError(f"The state has the shape {tuple(matrix.shape)}, not {tuple(self.matrix.shape)}.")
        if not torch.isfinite(matrix).all() or not torch.allclose(matrix, matrix.T) or int(state["n"]) < 0:
            raise ValueError(
                "The state is not a second moment: it should be finite and symmetric, with a count of 0 or more."
            )
        self.matrix = matrix.clone()
        self.n = int(state["n"])
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> SecondMoment:
        """Read what [`SecondMoment.save`] wrote."""
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return (
            cls(state["matrix"].shape[0]).load_state_dict(state)
            if "matrix" in state
            else cls(1).load_state_dict(state)
        )
