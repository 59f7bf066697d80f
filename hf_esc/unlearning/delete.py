"""DELETE: a student that learns its teacher's answers without the forgotten class."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .losses import kl_divergence
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class DELETEArguments(UnlearningArguments):
    """
    Reference settings (CIFAR-10, ResNet-18): 20 epochs of SGD with momentum 0.9, batch 128, learning rate 1e-3.

    Args:
        temperature (`float`, defaults to 1): T of both distributions.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the forget set."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of both distributions."})


class DELETETrainer(UnlearningTrainer):
    r"""
    DELETE, from forget images alone.

    \[L = \mathrm{KL}(q \,\|\, p_\theta(x)), \qquad q = \mathrm{softmax}(f_0(x)\ \text{with}\ f_0(x)_y = -\infty)\]

    as the mean over the batch, \(f_0\) being the original in eval mode. With the student's probabilities p and
    \(\tilde p\), those renormalised without y, the loss is \(-\log(1 - p_y) + \mathrm{KL}(q \,\|\, \tilde p)\): the
    first term forgets, the second keeps the original's answers among the other classes. Its gradient with respect to
    the logits is \(p - q\), which is bounded.

    With `mask="all"`, q leaves out every class in the forget set, and not only the image's own.

    Source: arXiv 2503.23751 (CVPR 2025). Data: forget. Arguments: [`DELETEArguments`], and those of
    [`UnlearningTrainer`].
    """

    method = "delete"
    arguments = DELETEArguments

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        student = self.logits(model, forget)
        teacher = self.original_logits(forget).masked_fill(self.forbidden(forget["labels"]), float("-inf"))
        return kl_divergence(teacher.to(student.device), student, self.args.temperature)
