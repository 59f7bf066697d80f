"""The layer in front of the head that projects out what is forgotten. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, k erased directions.

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
    Make an unfilled factor from its configuration, which [`Factor.config`] returned.

    Raises:
        CheckpointError: If there is no factor of that kind, or the configuration does not describe one.
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
    State that each thread has for itself. A copy or a pickle of a model starts with a fresh one.
    """

    def __init__(self):
        self.features: Tensor | None = None  # the features that passed last
        # What a compiled graph looks at: an attribute that is there before the graph is. Contexts can overlap in any
        # order, so they are counted.
        self.times_disabled = 0

    def __deepcopy__(self, memo):
        return type(self)()

    def __reduce__(self):
        return type(self), ()


class _Disabled:
    """A context in which projections are off. It ends for all who inherited it when it ends."""

    def __init__(self, projections: Sequence[nn.Module]):
        self.projections = list(projections)
        self.active = True


# The contexts around the running code. Servers run one model in several threads and asyncio tasks: where one of them
# switches the projection off, the answers of the others must stay erased. A thread starts without contexts, and a task
# with those around its creation, which is why each says itself when it has ended.
_CONTEXTS: ContextVar[tuple[_Disabled, ...]] = ContextVar("hf_esc_disabled_projections", default=())


@contextmanager
def disabled(projections: Sequence["Projection"]) -> Iterator[None]:
    """
    Within the context, these projections are off, for the thread or the asyncio task that entered it.

    A generator that is suspended inside the context shares it with its caller, as Python's context variables do.
    Within a graph of `torch.compile`, which not every version of torch lets look at them, the thread decides.
    """
    context = _Disabled(projections)
    _CONTEXTS.set((*_CONTEXTS.get(), context))
    for projection in projections:
        projection.thread.times_disabled += 1
    try:
        yield
    finally:
        context.active = False
        _CONTEXTS.set(tuple(other for other in _CONTEXTS.get() if other is not context))
        for projection in projections:
            projection.thread.times_disabled -= 1


class Projection(nn.Module):
    r"""
    The layer in front of a head: \(z \mapsto F_m \cdots F_1 z\), a product of factors in the order of the erasures.

    Args:
        dim (`int`): Feature dimensions d.
        factors (`Sequence` of [`Factor`]): \(F_1, \ldots, F_m\). Without factors it is the identity. A model has that
            only while it is being wrapped, and it is neither saved nor loaded.
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
        """Whether features are projected, here: see [`disabled`]."""
        if torch.compiler.is_dynamo_compiling():
            return self.thread.times_disabled <= 0
        return not any(context.active and self in context.projections for context in _CONTEXTS.get())

    def forward(self, features: Tensor) -> Tensor:
        """Project features of any shape with d entries along `axis`."""
        if not self.enabled or not len(self.factors):
            return features
        if torch.is_autocast_enabled(features.device.type):  # autocast would multiply in half precision
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
        # Keep the strides of the head's input: with other strides, another convolution kernel may run.
        return torch.empty_like(features).copy_(x.movedim(-1, self.axis))

    def pre_hook(self, module: nn.Module, args: tuple) -> tuple:
        """Forward pre-hook of a head. It projects the first argument."""
        projected = self(args[0])
        self.thread.features = projected
        return (projected, *args[1:])

    def stand_before(self, module: nn.Module) -> None:
        """
        Run before `module` at every call, and before no module inside it.

        A head that is replaced has no hook, and one that is wrapped, as by an adapter, has it on the inside, where the
        adapter's own weights would read features that are not projected. So each call looks anew.
        """
        if _is_before(module):
            return
        for inner in module.modules():
            for key, hook in list(inner._forward_pre_hooks.items()):
                if isinstance(getattr(hook, "__self__", None), Projection):
                    del inner._forward_pre_hooks[key]
        module.register_forward_pre_hook(self.pre_hook)

    def parts(self) -> tuple[list[Factor], list[Factor], Tensor]:
        r"""
        Split the factors into three parts.

        Returns:
            The factors up to the last one that is not linear; the linear factors after it; and the basis `(d, k)` of
            the last factor if it is low-rank, else a basis with `k = 0`. A low-rank last factor is in neither list,
            so that a further low-rank erasure can be merged into it:
            \(P_2 P_1 = I - [U_1 U_2][U_1 U_2]^\top\).
        """
        factors = list(self.factors)
        start = max((place + 1 for place, factor in enumerate(factors) if not factor.linear), default=0)
        mapped, linear = factors[:start], factors[start:]
        if linear and linear[-1].joins:
            return mapped, linear[:-1], linear[-1].basis
        device = next(factors[-1].buffers()).device if factors else None
        return mapped, linear, torch.zeros(self.dim, 0, device=device)

    def check(self, name: str = "The projection") -> None:
        """Raise a [`CheckpointError`] unless there is at least one factor and all factors are valid."""
        if not len(self.factors):
            raise CheckpointError(f"{name} has rank 0: it erases nothing. {DAMAGED}")
        for index, factor in enumerate(self.factors):
            with align_module_device(factor):  # an offloaded factor stays on the meta device until it is used
                factor.check(f"Factor {index} of {name[0].lower()}{name[1:]}")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, axis={self.axis}"


def _is_before(module: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), Projection) for hook in module._forward_pre_hooks.values())


def product(factors: Sequence[Factor], dim: int) -> Tensor:
    r"""The product \(F_m \cdots F_1\) of linear factors, `(d, d)`, float64, on the CPU: some devices lack float64."""
    result = torch.eye(dim, dtype=torch.float64)
    for factor in factors:
        result = factor(result)  # a factor acts on rows, z^T F^T, and every factor is symmetric
    return result.T
