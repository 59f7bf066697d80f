"""The arguments that all unlearning trainers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import OptionError


@dataclass
class UnlearningArguments(TrainingArguments):
    r"""
    Arguments of [`UnlearningTrainer`]: all of [`~transformers.TrainingArguments`], and those of unlearning.

    These have another default than in [`~transformers.TrainingArguments`], and those of a method may differ again:

    - `optim` is `"sgd"` with `optim_args="momentum=0.9"`, and `lr_scheduler_type` is `"constant"`.
    - `per_device_train_batch_size` is 128, the number of *forget* images in a step; `per_device_eval_batch_size` 128.
    - `save_strategy` is `"epoch"` with `save_total_limit=1`: a run that diverges leaves its last good checkpoint.
    - `logging_steps` is 10, and `remove_unused_columns` False.
    - `hub_strategy` is `"end"`, and no other is allowed: a model in training has forgotten nothing yet.
    - `label_smoothing_factor`, `fsdp`, `deepspeed`, `neftune_noise_alpha`, `bf16_full_eval`, `fp16_full_eval` and
      `auto_find_batch_size` are refused: the loss is that of the method, the teacher is a whole model, an evaluation
      leaves the weights in their precision, and a step has the size that the ledger says.

    Args:
        scenario (`str`, defaults to `"classes"`): What is to be forgotten: the `"classes"` of the forget images, or
            these `"images"` alone, of whatever classes, which a model that never saw them would still get right. Then
            no class is named in the ledger, and what stays right is no failure.
        mask (`str`, defaults to `"own"`): Which classes a forget image is kept away from, where the method sends it to
            another: its `"own"` label, or `"all"` labels in the forget set.
        retain_batch_size (`int`, *optional*): Retain images of each process in a step; as many as forget images by
            default. It has no use where both are shuffled together: there a step is of `per_device_train_batch_size`
            images of both.
        batch_norm (`str`, defaults to `"auto"`): What BatchNorm layers do in training: `"eval"` leaves their running
            statistics as they are, `"train"` learns them anew. `"auto"` learns them from steps that hold retain
            images: a step of one class alone would teach them that all images are like it.
        tolerance (`float`, *optional*): Stop after the first epoch at whose end no more than this share of the forget
            images is classified right. None for never.
        image_memory (`int`, defaults to 1024): The most MiB of preprocessed images in memory, of each of the two sets.
            Beyond it images are read and preprocessed in each epoch.

    Raises:
        OptionError: If a value is out of its range.
    """

    scenario: str = field(
        default="classes",
        metadata={
            "help": "Forget the classes of the forget images, or these images.",
            "choices": ["classes", "images"],
        },
    )
    mask: str = field(
        default="own",
        metadata={"help": "Keep a forget image from its own label, or from all forgotten.", "choices": ["own", "all"]},
    )
    retain_batch_size: int | None = field(default=None, metadata={"help": "Retain images in a step."})
    batch_norm: str = field(
        default="auto",
        metadata={
            "help": "BatchNorm in training; auto: learns from retain images.",
            "choices": ["auto", "eval", "train"],
        },
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "Stop when no more than this share of the forget images is right."}
    )
    image_memory: int = field(default=1024, metadata={"help": "The most MiB of preprocessed images in memory."})

    per_device_train_batch_size: int = field(default=128, metadata={"help": "Forget images in a step."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images in a batch of an evaluation."})
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    optim_args: str | None = field(default="momentum=0.9", metadata={"help": "Arguments of the optimizer."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The schedule of the learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    save_strategy: str = field(default="epoch", metadata={"help": "When a checkpoint is saved."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints are kept."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "As in TrainingArguments."})
    hub_strategy: str = field(default="end", metadata={"help": "Only the end of the training is pushed."})

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (
            ("scenario", ("classes", "images")),
            ("mask", ("own", "all")),
            ("batch_norm", ("auto", "eval", "train")),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(f"`{name}` is one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise OptionError(f"`tolerance` is a share from 0 up to but not including 1, not {self.tolerance}.")
        if self.retain_batch_size is not None and self.retain_batch_size < 1:
            raise OptionError(f"`retain_batch_size` is 1 or more, not {self.retain_batch_size}.")
        if getattr(self, "temperature", 1) <= 0:  # of the methods that have one
            raise OptionError(f"`temperature` is above 0, and it is {self.temperature}.")  # type: ignore[attr-defined]
        if self.image_memory < 0:
            raise OptionError(f"`image_memory` is 0 or more, not {self.image_memory}.")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise OptionError(f"`num_train_epochs` is above 0, and it is {self.num_train_epochs}.")
        if self.learning_rate <= 0:
            raise OptionError(
                f"`learning_rate` is above 0, and it is {self.learning_rate}: nothing would be forgotten."
            )
        if self.hub_strategy != "end":
            raise OptionError(
                f"`hub_strategy={HubStrategy(self.hub_strategy).value!r}` would push a model in training. Use 'end'."
            )
        for name in _NO_USE:
            if getattr(self, name, None):
                raise OptionError(
                    f"`{name}` has no use here: the loss is that of the method, the teacher is a whole model, and "
                    "weights stay in their precision. Leave it out."
                )


_NO_USE = (
    "label_smoothing_factor",
    "fsdp",
    "deepspeed",
    "neftune_noise_alpha",
    "bf16_full_eval",
    "fp16_full_eval",
    "auto_find_batch_size",
)
