"""The arguments that every training to forget shares."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import OptionError


@dataclass
class ForgettingArguments(TrainingArguments):
    """
    Arguments of a [`ForgettingTrainer`]: all of [`~transformers.TrainingArguments`], and these.

    `hub_strategy` is `"end"`, and no other value is allowed: a model in training has forgotten nothing yet.

    Args:
        scenario (`str`, defaults to `"classes"`): What to forget: the `"classes"` of the forget images, or these
            `"images"` alone, whatever their classes.
        tolerance (`float`, *optional*): The share of the forget images that may still be classified as their labels
            say when the training stops, from 0 up to but not including 1.

    Raises:
        OptionError: If a value is out of its range, or an argument is given that has no use here.
    """

    # Arguments of transformers that are refused, and the reason that the error gives.
    refused: ClassVar[tuple[str, ...]] = (
        "label_smoothing_factor",
        "fsdp",
        "deepspeed",
        "neftune_noise_alpha",
        "bf16_full_eval",
        "fp16_full_eval",
    )
    refused_because: ClassVar[str] = "the loss is that of the method"

    scenario: str = field(
        default="classes",
        metadata={
            "help": "What to forget: the classes of the forget images, or these images alone.",
            "choices": ["classes", "images"],
        },
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "Stop when at most this share of the forget images is right."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "Only the result of the training is pushed."})

    def __post_init__(self):
        super().__post_init__()
        for argument in fields(self):
            allowed = argument.metadata.get("choices")
            # TrainingArguments checks its own.
            if allowed and argument.name not in TrainingArguments.__dataclass_fields__:
                value = getattr(self, argument.name)
                if value not in allowed:
                    raise OptionError(f"`{argument.name}` is one of {', '.join(allowed)}, not {value!r}.")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise OptionError(f"`tolerance` is a share from 0 up to but not including 1, not {self.tolerance}.")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise OptionError(f"`num_train_epochs` is above 0, and it is {self.num_train_epochs}.")
        if self.hub_strategy != "end":
            raise OptionError(
                f"`hub_strategy={HubStrategy(self.hub_strategy).value!r}` would push a model in training, which has "
                "forgotten nothing yet. Use 'end'."
            )
        for name in self.refused:
            if getattr(self, name, None):
                raise OptionError(f"`{name}` has no use here: {self.refused_because}. Leave it out.")
