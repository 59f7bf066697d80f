"""How many forget images ESC-T has left to forget, and the end of the training when nothing is left."""

# Shapes: N forget images.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from .feature_store import ForgetFeatures
from .masked_head import MaskedHead

# How many images are looked at before the next decision whether to go on looking.
_CHUNK = 256


@torch.no_grad()
def right_by_label(
    head: MaskedHead, features: ForgetFeatures, device: torch.device, masks: list[Tensor] | None = None
) -> dict[int, int]:
    """How many images of each label the head gets right, behind `masks` or without any."""
    total = torch.zeros(int(features.labels.max()) + 1, dtype=torch.long)
    for batch in features.batches():
        z, labels = (batch[name].to(device) for name in ("features", "labels"))
        right = head.logits(z, masks).argmax(dim=1) == labels
        total += torch.bincount(labels[right].cpu(), minlength=len(total))
    return {label: int(total[label]) for label in features.labels.unique().tolist()}


class StopWhenForgotten(TrainerCallback):
    """
    Stops the training after the first step at which the mask in force gets few enough of all forget images right.

    Args:
        trainer ([`ESCTTrainer`]): The Trainer of the mask, which says how many of the N images may stay right.

    Attributes:
        at_start (`bool`): Whether the images were forgotten when the training began, by a run that it goes on from.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.at_start = False
        args = trainer.args
        rows = range(args.process_index, len(trainer.train_dataset), args.world_size)
        self._chunks = [list(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        self._first = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.at_start = self.is_forgotten()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.is_forgotten()

    @torch.no_grad()
    def is_forgotten(self) -> bool:
        """
        Whether no more images are right than may be. All processes get the same answer.

        Each process looks at its own part of the images and stops as soon as it has seen too many that are right. It
        begins where its last look ended, so nearly every look but the last is short.
        """
        trainer = self.trainer
        right = 0
        for number in range(len(self._chunks)):
            chunk = (self._first + number) % len(self._chunks)
            batch = trainer._prepare_inputs(trainer.train_dataset.__getitems__(self._chunks[chunk]))
            right += int(trainer.model.still_right(batch["features"], batch["labels"]).sum())
            if right > trainer.most_right:
                self._first = chunk
                break
        total = trainer.accelerator.reduce(torch.tensor(right, device=trainer.args.device), "sum")
        return int(total) <= trainer.most_right
