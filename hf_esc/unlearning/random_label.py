"""Training on random labels: of all weights (RL), or only of those that the forget images depend on (SalUn)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import OptionError
from ..features.sites import evaluating
from .losses import draw_labels
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class RandomLabelArguments(UnlearningArguments):
    """
    Reference settings: 20 epochs, learning rate 3e-4.

    Args:
        redraw (`bool`, defaults to `False`): Draw each image's label again in every step, and not only once.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the forget set."})
    redraw: bool = field(default=False, metadata={"help": "Whether to draw labels again in every step."})


class RandomLabelTrainer(UnlearningTrainer):
    r"""
    Random labels (RL): train the forget images on labels other than their own.

    \[L = \mathrm{CE}(f(x), \hat y), \quad x \in D_f, \qquad \hat y \sim \mathcal{U}(\{1, …, C\} \setminus \{y\})\]

    With `mask="all"`, no label in the forget set is drawn. Labels are drawn once with `seed`, or again in every step
    (`redraw`).

    Source: Golatkar et al., arXiv 1911.04933. Data: forget. Arguments: [`RandomLabelArguments`], and those of
    [`UnlearningTrainer`].
    """

    method = "random-label"
    arguments = RandomLabelArguments

    def prepare(self) -> None:
        """Draw a label for each forget image."""
        self.drawn = draw_labels(self.forbidden(self.forget.labels), self.generator)

    def targets(self, forget: Images) -> Tensor:
        """The labels that a batch of forget images is trained on, `(B,)`."""
        if self.args.redraw:
            # The state of torch's own generator is in the checkpoints, so a run that goes on draws the same labels.
            return draw_labels(self.forbidden(forget["labels"].cpu()), torch.default_generator)
        return self.drawn[forget["rows"].cpu()]

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        logits = self.logits(model, forget)
        return functional.cross_entropy(logits, self.targets(forget).to(logits.device))


@dataclass
class SalUnArguments(RandomLabelArguments):
    """
    Reference settings: 10 epochs, learning rate 0.013, half of the weights.

    Args:
        saliency (`float`, defaults to 0.5): Share of the weights to train.
    """

    learning_rate: float = field(default=0.013, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over both sets."})
    saliency: float = field(default=0.5, metadata={"help": "Share of the weights to train."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.saliency <= 1:
            raise OptionError(f"`saliency` is a share above 0 and up to 1, not {self.saliency}.")


class SalUnTrainer(RandomLabelTrainer):
    r"""
    SalUn: random labels for the forget images, but only the weights are trained that these images depend on most.

    The mask holds the `saliency` largest of \(|\sum_{D_f} \nabla_\theta \mathrm{CE}(f_0(x), y)|\), of all weights
    together. Then the cross-entropy on \(D_f\) with random labels and \(D_r\) with its own, shuffled together, is
    minimised over these weights. All other weights stay the original's, bit for bit: weight decay and momentum
    move weights whose gradient is zero, so these weights are put back after each step.

    Source: Fan et al., arXiv 2310.12508 (ICLR 2024). Data: forget and retain. Arguments: [`SalUnArguments`], and those
    of [`UnlearningTrainer`].
    """

    method = "salun"
    uses_retain = mixes = True
    arguments = SalUnArguments

    def prepare(self) -> None:
        """Draw labels, and find the weights to train."""
        super().prepare()
        self._hooks: list[Any] = []
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights.values()]
        with evaluating(self.model), torch.enable_grad():
            for batch in self.forget.batches(self.args.per_device_eval_batch_size):
                logits = self.logits(self.model, batch)
                loss = functional.cross_entropy(logits, batch["labels"].to(logits.device), reduction="sum")
                for kept, gradient in zip(total, torch.autograd.grad(loss, list(weights.values())), strict=True):
                    kept += gradient
        saliency = torch.cat([part.abs().flatten() for part in total])
        kept = max(1, round(self.args.saliency * len(saliency)))
        chosen = torch.zeros_like(saliency, dtype=torch.bool)
        chosen[saliency.topk(kept).indices] = True  # a threshold would let more in where values are equal
        parts = chosen.split([part.numel() for part in total])
        self.mask = {
            name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)
        }

    def start(self) -> None:
        """Set the original's weights, and mask their gradients."""
        super().start()
        # Gradients are clipped by their norm, in which only the weights that are trained should count.
        self._hooks += [
            weight.register_hook(lambda gradient, name=name: gradient * self.mask[name])
            for name, weight in self.model.named_parameters()
            if name in self.mask
        ]

    def take_off(self) -> None:
        """Whoever trains the result further trains all of its weights."""
        while self._hooks:
            self._hooks.pop().remove()

    def create_optimizer(self, *args, **kwargs):
        """The optimizer, which puts the other weights back after each step."""
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_post_hook(lambda *_: self._put_back())
        return optimizer

    @torch.no_grad()
    def _put_back(self) -> None:
        original = dict(self.teacher.named_parameters())
        weights = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        for name, mask in self.mask.items():
            weights[name].copy_(torch.where(mask, weights[name], original[name].to(weights[name].device)))

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        return self.mixed_loss(model, forget, retain, self._cross_entropies)

    def _cross_entropies(self, logits: Tensor, images: Images, *, is_forget: bool) -> Tensor:
        targets = self.targets(images) if is_forget else images["labels"]
        return functional.cross_entropy(logits, targets.to(logits.device), reduction="sum")
