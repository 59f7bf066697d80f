"""SCRUB: a student that moves away from its teacher on forget images and stays close to it on retain images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import OptionError
from ..training.steps import Step, alone, shuffled
from .losses import kl_divergence
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class SCRUBArguments(UnlearningArguments):
    """
    Reference settings: 3 epochs of which 2 forget, SGD with learning rate 5e-4, batches of 512 forget and 256 retain
    images, gamma 0.99, alpha 0.001, temperature 4.

    Args:
        forget_epochs (`int`, defaults to 2): The first epochs, which begin with the forget images.
        gamma (`float`, defaults to 0.99): Weight of the labels.
        alpha (`float`, defaults to 0.001): Weight of the teacher.
        temperature (`float`, defaults to 4): T.
    """

    learning_rate: float = field(default=5e-4, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=3, metadata={"help": "Passes over the retain set."})
    per_device_train_batch_size: int = field(default=512, metadata={"help": "Forget images in a step."})
    retain_batch_size: int | None = field(default=256, metadata={"help": "Retain images in a step."})
    forget_epochs: int = field(default=2, metadata={"help": "The first epochs, which begin with the forget images."})
    gamma: float = field(default=0.99, metadata={"help": "Weight of the labels."})
    alpha: float = field(default=0.001, metadata={"help": "Weight of the teacher."})
    temperature: float = field(default=4.0, metadata={"help": "Temperature of the distributions."})

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_accumulation_steps > 1:
            raise OptionError(
                "`gradient_accumulation_steps` would mix gradients that forget and those that retain. Leave it at 1."
            )
        if self.forget_epochs < 1:
            raise OptionError(f"`forget_epochs` is 1 or more, not {self.forget_epochs}: nothing would be forgotten.")
        if self.gamma < 0 or self.alpha < 0:
            raise OptionError(f"`gamma` and `alpha` are 0 or more, not {self.gamma} and {self.alpha}.")


class SCRUBTrainer(UnlearningTrainer):
    r"""
    SCRUB: ascent on the forget images and descent on the retain images, in turn.

    Each of the first `forget_epochs` epochs begins with the forget images and maximises the distance from the teacher
    (\(L_f\)). Then every epoch passes over the retain images and minimises \(L_r\):

    \[L_f = -T^2\,\mathrm{KL}(f_0(x) \,\|\, f(x)), \qquad
    L_r = \gamma\,\mathrm{CE}(f(x), y) + \alpha T^2\,\mathrm{KL}(f_0(x) \,\|\, f(x))\]

    The ascent has no bound, so it takes few steps, and gradients are clipped (`max_grad_norm`).

    Source: Kurmanji et al., arXiv 2302.09880 (NeurIPS 2023), without its rewinding. Data: forget and retain.
    Arguments: [`SCRUBArguments`], and those of [`UnlearningTrainer`].
    """

    method = "scrub"
    uses_retain = True
    arguments = SCRUBArguments

    def steps(self, epoch: int, generator: torch.Generator) -> list[Step]:
        """The forget set, in the first epochs, and then the retain set."""
        forget = shuffled(len(self.forget), self.forget_batch_size, generator)
        retain = shuffled(len(self.retain or ()), self.retain_batch_size, generator)
        return alone(forget if epoch < self.args.forget_epochs else [], forget=True) + alone(retain, forget=False)

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        if forget is not None:
            logits = self.logits(model, forget)
            return -kl_divergence(self.original_logits(forget).to(logits.device), logits, self.args.temperature)
        assert retain is not None
        logits = self.logits(model, retain)
        hard = functional.cross_entropy(logits, retain["labels"].to(logits.device))
        soft = kl_divergence(self.teacher_logits(retain), logits, self.args.temperature)
        return self.args.gamma * hard + self.args.alpha * soft
