"""Gradient ascent on the forget images: NegGrad, and NegGrad+, which holds retain images against it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from ..errors import OptionError
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class NegGradArguments(UnlearningArguments):
    """Reference settings: 5 epochs, learning rate 1e-4 (5e-6 for All-CNN). Stops when no forget image is right."""

    learning_rate: float = field(default=1e-4, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=5, metadata={"help": "The most passes over the forget set."})
    tolerance: float | None = field(
        default=0.0, metadata={"help": "Stop when no more than this share of the forget images is right."}
    )


class NegGradTrainer(UnlearningTrainer):
    r"""
    NegGrad: gradient ascent on the forget images.

    \[L = -\mathrm{CE}(f(x), y), \quad (x, y) \in D_f\]

    The loss has no lower bound. So training stops after the first epoch that leaves no forget image right
    (`tolerance`), gradients are clipped (`max_grad_norm`), and BatchNorm statistics stay as they are.

    Source: Golatkar et al., arXiv 1911.04933. Data: forget. Arguments: [`NegGradArguments`], and those of
    [`UnlearningTrainer`].
    """

    method = "neg-grad"
    arguments = NegGradArguments

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        logits = self.logits(model, forget)
        return -functional.cross_entropy(logits, forget["labels"].to(logits.device))


@dataclass
class NegGradPlusArguments(UnlearningArguments):
    """
    Reference settings: 5 epochs, learning rate 1e-4, alpha 0.9999.

    Args:
        alpha (`float`, defaults to 0.9999): Weight of the retain images.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=5, metadata={"help": "Passes over the larger set."})
    alpha: float = field(default=0.9999, metadata={"help": "Weight of the retain images."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise OptionError(f"`alpha` is from 0 up to but not including 1, not {self.alpha}.")


class NegGradPlusTrainer(UnlearningTrainer):
    r"""
    NegGrad+: gradient ascent on the forget images and descent on retain images.

    \[L = \alpha\,\mathrm{CE}(f(x_r), y_r) - (1 - \alpha)\,\mathrm{CE}(f(x_f), y_f)\]

    with a batch of each set in every step. An epoch passes over the larger set once, and over the smaller one as often
    as it takes.

    Source: Kurmanji et al., arXiv 2302.09880 (NeurIPS 2023). Data: forget and retain. Arguments:
    [`NegGradPlusArguments`], and those of [`UnlearningTrainer`].
    """

    method = "neg-grad-plus"
    uses_retain = True
    arguments = NegGradPlusArguments

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        assert retain is not None
        logits, retain_logits = self.logits_of_both(model, forget, retain)
        kept = functional.cross_entropy(retain_logits, retain["labels"].to(logits.device))
        gone = functional.cross_entropy(logits, forget["labels"].to(logits.device))
        return self.args.alpha * kept - (1 - self.args.alpha) * gone
