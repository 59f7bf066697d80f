"""Training on retain images, from the original's weights (Finetune, l1-sparse) or from the start (Retrain)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError, OptionError
from ..loading import load_classifier, random_network
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class FinetuneArguments(UnlearningArguments):
    """Reference settings: 10 epochs, learning rate 0.01."""

    learning_rate: float = field(default=0.01, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the retain set."})


class FinetuneTrainer(UnlearningTrainer):
    r"""
    Finetune: continue to train the original on the retain images alone.

    \[L = \mathrm{CE}(f(x), y), \quad (x, y) \in D_r\]

    Only the drift of the weights forgets, so a whole class takes long, and how much of it goes varies from run to run.

    Source: Golatkar et al., arXiv 1911.04933. Data: retain; the forget images are evaluated and not trained on.
    Arguments: [`FinetuneArguments`], and those of [`UnlearningTrainer`].
    """

    method = "finetune"
    uses_forget, uses_retain = False, True
    arguments = FinetuneArguments

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert retain is not None
        logits = self.logits(model, retain)
        return functional.cross_entropy(logits, retain["labels"].to(logits.device))


@dataclass
class L1SparseArguments(FinetuneArguments):
    """
    Reference settings: those of Finetune, gamma about 1e-4.

    Args:
        gamma (`float`, defaults to 1e-4): Strength of the penalty in the first step.
    """

    gamma: float = field(default=1e-4, metadata={"help": "Strength of the l1 penalty in the first step."})

    def __post_init__(self):
        super().__post_init__()
        if self.gamma < 0:
            raise OptionError(f"`gamma` is 0 or more, not {self.gamma}.")


class L1SparseTrainer(FinetuneTrainer):
    r"""
    ℓ1-sparse: Finetune with a penalty that drives weights to zero, and that fades to 0 by the last step.

    \[L = \mathrm{CE}(f(x), y) + \gamma_t \lVert\theta\rVert_1, \quad (x, y) \in D_r, \qquad
    \gamma_t = \gamma\,(1 - t / T)\]

    with step t of T and θ all weights that are trained.

    Source: Jia et al., arXiv 2304.04934 (NeurIPS 2023). Data: retain. Arguments: [`L1SparseArguments`], and those of
    [`UnlearningTrainer`].
    """

    method = "l1-sparse"
    arguments = L1SparseArguments

    @property
    def gamma(self) -> float:
        """Strength of the penalty in this step."""
        steps = max(self.state.max_steps, 1)
        return self.args.gamma * max(0.0, 1 - self.state.global_step / steps)

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        penalty = sum(weight.abs().sum() for weight in model.parameters() if weight.requires_grad)
        return super().unlearning_loss(model, forget, retain) + self.gamma * penalty


@dataclass
class RetrainArguments(FinetuneArguments):
    """
    Set these as the original was trained. The defaults are a first try for small networks.

    Args:
        start (`str`, *optional*): The model that the original was trained from, a folder or an id on the Hub. Random
            weights, drawn with `seed`, by default.
    """

    learning_rate: float = field(default=0.1, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the retain set."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The schedule of the learning rate."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay."})
    start: str | None = field(default=None, metadata={"help": "Model to start from; random weights by default."})


class RetrainTrainer(FinetuneTrainer):
    r"""
    Retrain: a network that never saw the forget images. Other methods are compared with it.

    It minimises the cross-entropy on retain images, from the same start as the original. A probe of its features can
    still tell the forget images apart: that is what images reveal to a network that was not trained on them.

    Data: retain. Arguments: [`RetrainArguments`], and those of [`UnlearningTrainer`].
    """

    method = "retrain"
    arguments = RetrainArguments

    def start(self) -> None:
        """Set random weights, or those that the original was trained from."""
        super().start()
        if self.args.start is None:
            first = random_network(self.teacher, self.args.seed)
        else:
            first = load_classifier(self.args.start, device=str(self.args.device))
        try:
            self.model.load_state_dict(first.state_dict())
        except RuntimeError as error:
            raise ModelError(
                f"`start` {self.args.start!r} is not of the original's architecture and classes: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error

    def settings(self) -> dict[str, Any]:
        """Tells what kind of start it was, and not its path: do not leak a local path."""
        return super().settings() | {"start": "random" if self.args.start is None else "pretrained"}
