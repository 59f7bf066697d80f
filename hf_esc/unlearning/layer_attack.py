"""Layer attack unlearning (LAU): the head alone learns the answers that it gives to attacked features."""

# Shapes: N forget images, B in a batch, d_g feature dimensions of group g, C classes.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.labelled_images import LabelledImages
from ..errors import ModelError, OptionError
from ..features.head import apply_sites, head_weights, site_modules
from ..features.sites import evaluating, find_sites
from ..features.stream import model_inputs, stream_features
from ..training.steps import PairedLoader, Schedule
from .losses import kl_divergence
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class LayerAttackArguments(UnlearningArguments):
    """
    Reference settings: alpha 0.5, temperature 4, a step of 0.4 to 0.6.

    Args:
        alpha (`float`, defaults to 0.5): Weight of the distillation.
        temperature (`float`, defaults to 4): T of the distillation.
        attack_step (`float`, defaults to 0.5): Length s of a step of the attack in each feature dimension.
        attack_steps (`int`, defaults to 20): The most steps of the attack.
    """

    learning_rate: float = field(default=1e-2, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the forget features."})
    alpha: float = field(default=0.5, metadata={"help": "Weight of the distillation."})
    temperature: float = field(default=4.0, metadata={"help": "Temperature of the distillation."})
    attack_step: float = field(default=0.5, metadata={"help": "Length of a step in each feature dimension."})
    attack_steps: int = field(default=20, metadata={"help": "The most steps of the attack."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"`alpha` is from 0 to 1, not {self.alpha}.")
        if self.attack_step <= 0 or self.attack_steps < 1:
            raise OptionError(
                f"The attack takes 1 or more `attack_steps` above 0, not {self.attack_steps} of {self.attack_step}."
            )


class LayerAttackTrainer(UnlearningTrainer):
    r"""
    Layer attack unlearning (LAU), from the features of forget images alone; the layers before the head do not change.

    \[L = (1 - \alpha)\,\mathrm{CE}(g(z), \hat y) + \alpha T^2\,\mathrm{KL}(\mathrm{softmax}(g_0(z') / T) \,\|\,
    \mathrm{softmax}(g(z) / T)), \qquad \hat y = \arg\max_{c \ne y} g_0(z')_c\]

    with the original's head \(g_0\), features z of an image, and the features \(z'\) after a partial PGD attack: steps
    up the original's loss, \(z' \leftarrow z' + s\,\mathrm{sign}\,\nabla \mathrm{CE}(g_0(z'), y)\), until the head's
    answer changes. Features and attacks are computed once, and the head is trained on them.

    Nothing is erased from the features, so every probe of them finds what it found before.

    Source: Kim et al., AAAI 2024. Data: forget. Arguments: [`LayerAttackArguments`], and those of
    [`UnlearningTrainer`].

    Raises:
        ModelError: If the logits cannot be computed from the features that the head reads.
    """

    method = "lau"
    arguments = LayerAttackArguments

    def prepare(self) -> None:
        """Compute the features of the forget images, and the original's logits for the attacked features."""
        model = self.teacher
        batches = (batch["inputs"] for batch in self.forget.batches(self.args.per_device_eval_batch_size))
        with evaluating(model):
            first = model_inputs(model, self.forget.__getitems__([0, min(1, len(self.forget) - 1)])["inputs"])
            self.sites = find_sites(model, first)
            seen = list(stream_features(model, self.sites, batches))
            self.weights = head_weights(model, self.sites, seen[0])
        if self.weights is None:
            raise ModelError(
                f"The logits of {type(model).__name__} are not a weighted sum of what its heads compute from "
                "features, so its head cannot be trained on features alone."
            )
        self.features = [
            torch.cat([batch.features[g].float().cpu() for batch in seen]) for g in range(len(self.sites))
        ]
        parts = torch.arange(len(self.forget)).split(self.args.per_device_eval_batch_size)
        self.attacked_logits = torch.cat([self._attack(rows) for rows in parts])
        self.nearest = self.attacked_logits.masked_fill(self.forbidden(self.forget.labels), float("-inf")).argmax(1)
        # Where an attack fails, the distillation term teaches y again, so the ledger tells the share.
        failed = self.attacked_logits.argmax(dim=1) == self.forget.labels
        self.failed_attacks = failed.double().mean().item()

    def start(self) -> None:
        """Set the original's weights, and let only those of the head be trained."""
        super().start()
        heads = site_modules(self.model, self.sites)
        trained = {parameter for group in heads for module in group for parameter in module.parameters()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter in trained)

    def take_off(self) -> None:
        """All weights can be trained again that could be before."""
        for own, given in zip(self.model.parameters(), self.teacher.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)

    def settings(self) -> dict[str, Any]:
        """Adds the share of attacks that failed."""
        return super().settings() | {"failed_attacks": self.failed_attacks}

    def head(self, model: nn.Module, features: list[Tensor]) -> Tensor:
        """The logits that the head of a model computes from features, `(B, C)`."""
        outputs = apply_sites(site_modules(model, self.sites), self.sites, features)
        assert self.weights is not None
        return torch.einsum("s,snc->nc", self.weights.to(outputs), outputs).float()

    def _attack(self, rows: Tensor) -> Tensor:
        """The original's logits for the attacked features of some rows, `(n, C)`."""
        device = self.args.device
        labels = self.forget.labels[rows].to(device)
        moved = [z[rows].to(device) for z in self.features]
        with torch.enable_grad():
            for _ in range(self.args.attack_steps):
                moved = [z.detach().requires_grad_(True) for z in moved]
                logits = self.head(self.teacher, moved)
                still = logits.argmax(dim=1) == labels
                if not still.any():
                    break
                gradients = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), moved)
                step = self.args.attack_step * still[:, None]
                moved = [z + step * gradient.sign() for z, gradient in zip(moved, gradients, strict=True)]
        with torch.no_grad():
            return self.head(self.teacher, moved).cpu()

    def get_train_dataloader(self) -> PairedLoader:
        """
        Whole steps for every process: the head is small, and without the model's `forward` no gradients are shared.
        """
        rows = LabelledImages(self.forget.labels, lambda rows: {}, list, from_files=False)  # the features are at hand
        return PairedLoader(rows, None, Schedule(self.steps, 0, 1, seed=self.order_seed))

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        rows = forget["rows"].cpu()
        logits = self.head(self.accelerator.unwrap_model(model), [z[rows] for z in self.features])
        nearest, attacked = (value[rows].to(logits.device) for value in (self.nearest, self.attacked_logits))
        hard = functional.cross_entropy(logits, nearest)
        soft = kl_divergence(attacked, logits, self.args.temperature)
        return (1 - self.args.alpha) * hard + self.args.alpha * soft
