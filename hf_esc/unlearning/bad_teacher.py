"""Bad teacher: a random network teaches on the forget images, and the original on a part of the retain images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..loading import random_network
from .losses import kl_divergence
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class BadTeacherArguments(UnlearningArguments):
    """
    Reference settings: one epoch of Adam, learning rate 1e-4, batch 256, 30 % of the retain images.

    Args:
        retain_share (`float`, defaults to 0.3): Share of the retain images to train on, drawn with `seed`.
        temperature (`float`, defaults to 1): T of the distributions.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over both sets."})
    optim: str = field(default="adamw_torch", metadata={"help": "The optimizer; without weight decay it is Adam."})
    optim_args: str | None = field(default=None, metadata={"help": "Arguments of the optimizer."})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "Images in a step, of both sets."})
    retain_share: float = field(default=0.3, metadata={"help": "Share of the retain images that is trained on."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the distributions."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.retain_share <= 1:
            raise OptionError(f"`retain_share` is above 0 and up to 1, not {self.retain_share}.")


class BadTeacherTrainer(UnlearningTrainer):
    r"""
    Bad teacher (BadT).

    \[L = \mathrm{KL}(b(x) \,\|\, f(x)) \ \text{for}\ x \in D_f, \qquad \mathrm{KL}(f_0(x) \,\|\, f(x)) \ \text{for}\
    x \in D_r\]

    as the mean over a batch of both, with the original \(f_0\) and a randomly initialised network b of the same
    architecture.

    Source: Chundawat et al., arXiv 2205.08096 (AAAI 2023). Data: forget and retain. Arguments:
    [`BadTeacherArguments`], and those of [`UnlearningTrainer`].
    """

    method = "bad-teacher"
    uses_retain = mixes = True
    arguments = BadTeacherArguments

    def prepare(self) -> None:
        """Compute the bad teacher's logits for the forget images, and draw the retain images to train on."""
        assert self.retain is not None
        # With the same seed, the bad teacher could be the network that the original was trained from.
        self.bad_logits = self.logits_of_all(random_network(self.teacher, self.args.seed + 1), self.forget)
        kept = max(1, round(self.args.retain_share * len(self.retain)))
        self.retain = self.retain.part(torch.randperm(len(self.retain), generator=self.generator)[:kept].sort().values)

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        return self.mixed_loss(model, forget, retain, self._divergences)

    def _divergences(self, logits: Tensor, images: Images, *, is_forget: bool) -> Tensor:
        teacher = self.bad_logits[images["rows"].cpu()] if is_forget else self.teacher_logits(images)
        return len(logits) * kl_divergence(teacher.to(logits.device), logits, self.args.temperature)
