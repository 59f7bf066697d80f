"""The arguments that all unlearning trainers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import OptionError
from ..training.forgetting_args import ForgettingArguments


@dataclass
class UnlearningArguments(ForgettingArguments):
    r"""
    Arguments of [`UnlearningTrainer`]: all of [`~transformers.TrainingArguments`], and those of unlearning.

    These defaults differ from those of [`~transformers.TrainingArguments`], and a method can have its own again:

    - `optim` is `"sgd"` with `optim_args="momentum=0.9"`, and `lr_scheduler_type` is `"constant"`.
    - `per_device_train_batch_size` is 128, the number of *forget* images in a step; `per_device_eval_batch_size` is
      128.
    - `save_strategy` is `"epoch"` with `save_total_limit=1`: a run that diverges leaves its last good checkpoint.
    - `logging_steps` is 10, and `remove_unused_columns` is False.
    - `hub_strategy` is `"end"`, and no other value is allowed: a model in training has forgotten nothing yet.
    - What [`ForgettingArguments`] refuses has no use here.

    Args:
        scenario (`str`, defaults to `"classes"`): What to forget: the `"classes"` of the forget images, or these
            `"images"` alone, whatever their classes. A model that never saw these images would still get most of them
            right, so with `"images"` the ledger names no class, and an image that stays right is no failure.
        mask (`str`, defaults to `"own"`): Where the method sends a forget image to another class, which classes that
            may not be: the image's `"own"` class, or `"all"` classes in the forget set.
        retain_batch_size (`int`, *optional*): Retain images of each process in a step; as many as forget images by
            default. A method that shuffles both sets together does not read it: there a step has
            `per_device_train_batch_size` images of both.
        batch_norm (`str`, defaults to `"auto"`): What BatchNorm layers do in training: `"eval"` leaves their running
            statistics as they are, `"train"` updates them. `"auto"` updates them in steps with retain images alone: a
            step with images of one class would teach them that all images are like it.
        tolerance (`float`, *optional*): Stop after the first epoch that leaves no more than this share of the forget
            images right. None does not stop early.
        image_memory (`int`, defaults to 1024): The most MiB of preprocessed images in memory, for each of the two
            sets. A larger set is read and preprocessed again in each epoch.

    Raises:
        OptionError: If a value is out of its range, or an argument is given that has no use here.
    """

    mask: str = field(
        default="own",
        metadata={
            "help": "Classes that a forget image is not sent to: its own, or all forgotten ones.",
            "choices": ["own", "all"],
        },
    )
    retain_batch_size: int | None = field(default=None, metadata={"help": "Retain images in a step."})
    batch_norm: str = field(
        default="auto",
        metadata={
            "help": "What BatchNorm does in training; auto: it learns from steps with retain images.",
            "choices": ["auto", "eval", "train"],
        },
    )
    image_memory: int = field(
        default=1024, metadata={"help": "The most MiB of preprocessed images in memory, for each set."}
    )

    per_device_train_batch_size: int = field(default=128, metadata={"help": "Forget images in a step."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images in a batch of an evaluation."})
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    optim_args: str | None = field(default="momentum=0.9", metadata={"help": "Arguments of the optimizer."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The schedule of the learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log after this many steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a checkpoint is saved."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "As in TrainingArguments."})

    def __post_init__(self):
        super().__post_init__()
        if self.retain_batch_size is not None and self.retain_batch_size < 1:
            raise OptionError(f"`retain_batch_size` is 1 or more, not {self.retain_batch_size}.")
        if getattr(self, "temperature", 1) <= 0:  # several methods have one
            raise OptionError(f"`temperature` is above 0, and it is {self.temperature}.")  # type: ignore[attr-defined]
        if self.image_memory < 0:
            raise OptionError(f"`image_memory` is 0 or more, not {self.image_memory}.")
        if self.learning_rate <= 0:
            raise OptionError(
                f"`learning_rate` is above 0, and it is {self.learning_rate}: nothing would be forgotten."
            )
