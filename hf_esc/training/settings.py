"""What decides the result of a training, beside its model and its images."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

# Arguments of transformers that decide it. All others say how a run is logged, saved or evaluated, and how fast it is.
DECIDING = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "tf32",
    "ddp_broadcast_buffers",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "seed",
    "data_seed",
)

GivenOptimizer = tuple[type[torch.optim.Optimizer], dict[str, Any]]


def training_settings(args: TrainingArguments, given: GivenOptimizer | None = None) -> dict[str, Any]:
    """
    The arguments that decide every training, and the optimizer with the settings that it takes.

    `num_train_epochs` is None where `max_steps` decides.

    Args:
        args (`TrainingArguments`): Of the run.
        given (`tuple`, *optional*): The optimizer's class and options, where they do not follow from `args`.
    """
    found = {name: getattr(args, name) for name in DECIDING}
    found["lr_scheduler_type"] = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if args.max_steps > 0:
        found["num_train_epochs"] = None
    return found | _optimizer(args, given)


def _optimizer(args: TrainingArguments, given: GivenOptimizer | None) -> dict[str, Any]:
    """
    Which optimizer takes the steps, and its settings as it has them: `optim_args` holds momentum for SGD, betas for
    Adam, and nothing that the optimizer was not told.
    """
    kind, options = given or Trainer.get_optimizer_cls_and_kwargs(args)
    taken = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()} | options
    # Each group of weights has its own weight decay, that of `args`. The learning rate of `args` stands beside it.
    hidden = {"params", "weight_decay"} if given else {"params", "weight_decay", "lr"}
    # What is 0 or off is not used.
    told = {name: value for name, value in taken.items() if isinstance(value, int | float | str | tuple) and value}
    found: dict[str, Any] = {
        "optim": kind.__name__ if given else getattr(args.optim, "value", args.optim),
        "optim_args": ",".join(f"{name}={value}" for name, value in told.items() if name not in hidden) or None,
    }
    return found | ({"learning_rate": taken.get("lr")} if given else {})
