"""The layer in front of the head that projects out what is forgotten, factor by factor. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, k erased directions.

import threading
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from .errors import CheckpointError
from .factors import DAMAGED, Factor, LowRankFactor, MaskedFactor
from .remap_factor import RemapFactor

FACTORS: dict[str, type[Factor]] = {factor.kind: factor for factor in (LowRankFactor, MaskedFactor, RemapFactor)}


def build_factor(dim: int, config: dict[str, Any]) -> Factor:
    """
    An unfilled factor for what `config()` of a factor said.

    Raises:
        CheckpointError: If there is no such factor.
    """
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in FACTORS:
        raise CheckpointError(
            f"The configuration names a factor {config!r} of a projection, which this version of hf_esc does not "
            f"know. Update it. {DAMAGED}"
        )
    return FACTORS[kind].build(dim, config)


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
        factors (`Sequence` of [`Factor`]): \(F_1, \ldots, F_m\). Without any it is the identity, as a model that is
            being wrapped has it; that is neither saved nor loaded.
        axis (`int`, defaults to -1): The axis of the head's input along which the features lie; 1 for convolutions.
    """

    factors: Any  # a ModuleList

    def __init__(self, dim: int, factors: Sequence[Factor] = (), axis: int = -1):
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

    def parts(self) -> tuple[list[Factor], list[Factor], Tensor]:
        r"""
        The factors in three parts: those up to the last that is not linear; the linear ones after it; and the basis
        `(d, k)` of the last factor where that is low-rank (it is in neither list), else one with `k = 0`.

        Low-rank factors in a row are one, \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\), and are kept as one.
        """
        factors = list(self.factors)
        start = max((place + 1 for place, factor in enumerate(factors) if not factor.linear), default=0)
        mapped, linear = factors[:start], factors[start:]
        if linear and linear[-1].joins:
            return mapped, linear[:-1], linear[-1].basis
        device = next(factors[-1].buffers()).device if factors else None
        return mapped, linear, torch.zeros(self.dim, 0, device=device)

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless there are factors and each is what it should be."""
        if not len(self.factors):
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {DAMAGED}")
        for index, factor in enumerate(self.factors):
            with align_module_device(factor):  # an offloaded one is on the meta device until it is asked for
                factor.check(f"Factor {index} of {name[0].lower()}{name[1:]}")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, axis={self.axis}"


def product(factors: Sequence[Factor], dim: int) -> Tensor:
    r"""\(F_m \cdots F_1\) of linear factors as a matrix `(d, d)`, float64, on the CPU: not every device has that."""
    result = torch.eye(dim, dtype=torch.float64)
    for factor in factors:
        result = factor(result)  # on rows: z^T F^T, and every factor is symmetric
    return result.T
