"""The end of a training where few enough forget images are left."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class StopAtTolerance(TrainerCallback):
    """
    Stops the training after the first epoch that leaves no more than `args.tolerance` of the forget images right.

    Args:
        trainer ([`UnlearningTrainer`]): The Trainer, which has the images and their labels.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        if args.tolerance is not None:
            trainer = self.trainer
            right = trainer.logits_of_all(trainer.model, trainer.forget).argmax(dim=1) == trainer.forget.labels
            # Each process has BatchNorm statistics of its own, and all processes have to stop at once.
            total = trainer.accelerator.reduce(right.sum().to(args.device), "sum").item()
            control.should_training_stop |= total <= args.tolerance * len(right) * args.world_size + 1e-9
