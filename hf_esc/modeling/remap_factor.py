"""A factor that replaces the features of forgotten classes by others. Travels with checkpoints."""

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
    Replaces features that the head takes for a forgotten class by features of other classes. All others pass
    unchanged.

    The gate: an image passes unless the head's \(\arg\max_c (W z + b)_c\) is a forgotten label. With a threshold t, it
    passes unless \(\sum_{c\,\text{forgotten}} p_c > t\).

    The transport: let c be the likeliest forgotten label. The rank of \(v_c^\top z\) among the forget features picks
    the vector of the bank with the same rank. The bank is ordered along its own first principal direction. The map is
    deterministic and moves gradually with the input. Over the forget features, it uses all vectors of the bank equally
    often.

    Args:
        dim (`int`): Feature dimensions d.
        size (`int`): Vectors in the bank, n.
        labels (`Sequence[int]`): Forgotten labels of the head.
        num_labels (`int`): C.
        threshold (`float`, *optional*): t. Without it, the argmax is the gate.

    Attributes:
        bank (`torch.Tensor` of shape `(n, d)`): Features of other classes, float16, in the order of their ranks.
        directions (`torch.Tensor` of shape `(L, d)`): \(v_c\), the first principal direction within each forgotten
            class.
        ranks (`torch.Tensor` of shape `(L, n - 1)`): For each forgotten class, the bounds that split its forget
            features into n equal parts along \(v_c\).
        weight, bias (`torch.Tensor` of shapes `(C, d)` and `(C,)`): The head of the gate. It is a copy, so that the
            bank can be checked against it on loading, and so that further training of the model's head does not move
            the gate.
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
        Make an unfilled factor from its configuration, which `config` returned.

        Raises:
            CheckpointError: If the configuration does not describe a remap.
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
        """The logits `(…, C)` of the gate's head for features `(…, d)`."""
        return functional.linear(x, self.weight.to(x.device, x.dtype), self.bias.to(x.device, x.dtype))

    def gate(self, logits: Tensor) -> Tensor:
        """Whether each image is remapped, `(…,)`, given its logits `(…, C)`."""
        labels = torch.tensor(self.labels, device=logits.device)
        if self.threshold is None:
            return (logits.argmax(dim=-1, keepdim=True) == labels).any(dim=-1)
        return logits.softmax(dim=-1).index_select(-1, labels).sum(dim=-1) > self.threshold

    def rank(self, x: Tensor, likeliest: Tensor) -> Tensor:
        """
        The index `(…,)` into the bank that replaces features `(…, d)`.

        `likeliest` holds indices `(…,)` into the forgotten labels.
        """
        wide = torch.promote_types(x.dtype, torch.float32)  # in half precision, neighbouring ranks would coincide
        place = (x.to(wide) * self.directions.to(x.device, wide)[likeliest]).sum(dim=-1)
        return (place.unsqueeze(-1) > self.ranks.to(x.device, wide)[likeliest]).sum(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        gated = self.gate(logits)
        labels = torch.tensor(self.labels, device=x.device)
        likeliest = logits.index_select(-1, labels).argmax(dim=-1)  # (…,), indices into the L labels
        vector = self.bank.to(x.device)[self.rank(x, likeliest)].to(x.dtype)
        # Half precision leaves zeros in the last digits, which would tell a stored vector from a feature. So the
        # digits of the replaced feature fill them.
        digits = x * 4096
        vector = vector * (1 + (digits - digits.floor() - 0.5) * 2.0**-11)
        return torch.where(gated.unsqueeze(-1), vector, x)

    def check(self, name: str = "The projection") -> None:
        """
        Raise a [`CheckpointError`] unless all buffers are finite, the directions have length 1, the ranks are in
        order, and every vector of the bank passes the gate.
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
