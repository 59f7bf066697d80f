"""A factor that is no projection: features of a forgotten class become others. Travels with checkpoints."""

# Shapes: B images, d feature dimensions, C classes, L forgotten labels, n vectors in the bank.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .errors import CheckpointError
from .factors import DAMAGED, Factor


class RemapFactor(Factor):
    r"""
    Features that the head would call forgotten are replaced by features of other classes; all others pass untouched.

    The gate: an image passes as it is unless the head's \(\arg\max_c (W z + b)_c\) is a forgotten label, or, with a
    threshold t, unless \(\sum_{c\,\text{forgotten}} p_c > t\). The transport: with the forgotten label c that is
    likeliest, the rank of \(v_c^\top z\) among the forget features picks the vector of the same rank of the bank,
    which is in the order of its own first principal direction. The map is deterministic, moves gradually with the
    input, and over the forget features its values are distributed as the bank is.

    Args:
        dim (`int`): Feature dimensions d.
        size (`int`): Vectors in the bank, n.
        labels (`Sequence[int]`): Forgotten labels of the head.
        num_labels (`int`): C.
        threshold (`float`, *optional*): t; without one, the argmax is the gate.

    Attributes:
        bank (`torch.Tensor` of shape `(n, d)`): Features of other classes, float16, in the order of their ranks.
        directions (`torch.Tensor` of shape `(L, d)`): The first principal direction within each forgotten class.
        ranks (`torch.Tensor` of shape `(L, n - 1)`): What separates n equal parts of the forget features along it.
        weight, bias (`torch.Tensor` of shapes `(C, d)` and `(C,)`): The head that is the gate. It is a copy, so that
            the bank can be checked against it on loading, and a head that is trained further does not move the gate.
    """

    kind = "remap"
    linear = False
    stored = {
        "bank": torch.float16,
        "directions": torch.float32,
        "ranks": torch.float32,
        "weight": torch.float32,
        "bias": torch.float32,
    }
    bank: Tensor
    directions: Tensor
    ranks: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, size: int, labels: Sequence[int], num_labels: int, threshold: float | None = None):
        super().__init__()
        self.dim = dim
        self.labels = sorted(int(label) for label in labels)
        self.threshold = threshold
        self.make_room("bank", size, dim)
        self.make_room("directions", len(self.labels), dim)
        self.make_room("ranks", len(self.labels), size - 1)
        self.make_room("weight", num_labels, dim)
        self.make_room("bias", num_labels)

    @classmethod
    def build(cls, dim: int, config: dict[str, Any]) -> "RemapFactor":
        """
        An unfilled factor for what `config()` said.

        Raises:
            CheckpointError: If that is no configuration of a remap.
        """
        try:
            threshold = config["threshold"]
            labels = [int(label) for label in config["labels"]]
            size, num_labels = int(config["size"]), int(config["num_labels"])
            fits = size > 1 and labels and min(labels) >= 0 and max(labels) < num_labels
            if not fits or (threshold is not None and not 0 < threshold < 1):
                raise ValueError("its numbers do not fit each other")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The configuration names a remap {config!r} that is none: {error}. {DAMAGED}"
            ) from error
        return cls(dim, size, labels, num_labels, threshold)

    def config(self) -> dict[str, Any]:
        return {
            "type": self.kind,
            "size": len(self.bank),
            "labels": self.labels,
            "num_labels": len(self.bias),
            "threshold": self.threshold,
        }

    def logits(self, x: Tensor) -> Tensor:
        """What the gate's head says to features `(…, d)`: `(…, C)`."""
        return functional.linear(x, self.weight.to(x.device, x.dtype), self.bias.to(x.device, x.dtype))

    def gate(self, logits: Tensor) -> Tensor:
        """Which images are remapped, `(…,)`, by their logits `(…, C)`."""
        labels = torch.tensor(self.labels, device=logits.device)
        if self.threshold is None:
            return (logits.argmax(dim=-1, keepdim=True) == labels).any(dim=-1)
        return logits.softmax(dim=-1).index_select(-1, labels).sum(dim=-1) > self.threshold

    def rank(self, x: Tensor, likeliest: Tensor) -> Tensor:
        """Which vector of the bank features `(…, d)` become, `(…,)` of n, as forgotten labels `(…,)` of L."""
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision, ranks that are near would be one
        place = (x.to(wide) * self.directions.to(x.device, wide)[likeliest]).sum(dim=-1)
        return (place.unsqueeze(-1) > self.ranks.to(x.device, wide)[likeliest]).sum(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        gated = self.gate(logits)
        labels = torch.tensor(self.labels, device=x.device)
        likeliest = logits.index_select(-1, labels).argmax(dim=-1)  # (…,) of L
        vector = self.bank.to(x.device)[self.rank(x, likeliest)].to(x.dtype)
        # Half precision leaves zeros in the last digits, by which a stored vector could be told from a feature.
        digits = x * 4096
        vector = vector * (1 + (digits - digits.floor() - 0.5) * 2.0**-11)
        return torch.where(gated.unsqueeze(-1), vector, x)

    def check(self, name: str = "The projection") -> None:
        """
        Raise a [`CheckpointError`] unless all buffers are finite, directions of length 1, ranks in order, and no
        vector of the bank one that the gate would take for forgotten.
        """
        for what, buffer in self.named_buffers():
            if not torch.isfinite(buffer).all():
                raise CheckpointError(f"{name} has {what} that are not finite. {DAMAGED}")
        if ((self.directions.float().norm(dim=1) - 1).abs() > 1e-3).any():
            raise CheckpointError(f"{name} has directions that are not of length 1. {DAMAGED}")
        if (self.ranks.diff(dim=1) < 0).any():
            raise CheckpointError(f"{name} has ranks that are not in order. {DAMAGED}")
        if leaks := int(self.gate(self.logits(self.bank.float())).sum()):
            raise CheckpointError(f"{name} has {leaks} vectors in its bank that the head calls forgotten. {DAMAGED}")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, size={len(self.bank)}, labels={self.labels}, threshold={self.threshold}"
