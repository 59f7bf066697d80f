"""The arguments of ESC-T."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import OptionError
from .forgetting_args import ForgettingArguments

_FITS = "the backbone is not trained, and a d x d mask fits on every device"


@dataclass
class ESCTTrainingArguments(ForgettingArguments):
    r"""
    Arguments of [`ESCTTrainer`]: all of [`~transformers.TrainingArguments`], and those of the mask.

    These defaults differ from those of [`~transformers.TrainingArguments`]:

    - `num_train_epochs` is 50 and `per_device_train_batch_size` 64, as in the ESC paper's experiments. Training stops
      as soon as nothing is left to forget.
    - `learning_rate` is None: the step size then follows from the length of the run, see below.
    - `per_device_eval_batch_size` is 256, as a batch holds features and not images.
    - `optim` is `"sgd"`, `lr_scheduler_type` is `"constant"`, and `max_grad_norm` is 0: gradients are not clipped.
    - `logging_steps` is 10, `save_steps` 100 and `save_total_limit` 2.
    - `ddp_find_unused_parameters` is False: every step uses every mask.
    - `hub_strategy` is `"end"`, and no other value is allowed: a mask in training is no erased model.
    - What [`ForgettingArguments`] refuses has no use here, and no more have `activation_checkpointing`,
      `gradient_checkpointing` and `place_model_on_device=False`: the backbone is not trained, and a d × d mask fits
      on every device.

    **The step size.** The gradient of the loss depends on the scale of the head's logits and on d. For a confident
    model it is also orders of magnitude smaller at the start than at the end, as \(\partial\,\mathrm{CE} / \partial
    f'_y = p_y - 1\). A fixed learning rate that does nothing for one model ruins another. So each gradient is divided
    by its largest entry (over all masks), and the learning rate is the most that an entry of the mask moves in a step.
    By default it is \(10 / T\) for a run of at most T steps, and never more than 0.2: an entry under steady pressure
    could go from 1 to 0 ten times over, and no single step is a large one. More epochs make gentler steps. With an
    explicit `learning_rate` the training is plain gradient descent, as in the paper, and gradients are not divided.

    Args:
        scenario (`str`, defaults to `"classes"`): What to forget: the `"classes"` of the forget images, or these
            `"images"` alone, whatever their classes. The loss needs labels in both cases. With `"images"`, images of
            all classes can be forgotten at once, the ledger names no class, and an image that stays right is no
            failure.
        tau (`float`, defaults to 0.7): The threshold τ, from 0 up to but not including 1. Entries of the mask above it
            are kept, all others are cut.
        tolerance (`float`, defaults to 0): The share of the forget images that may stay right. Training stops as soon
            as no more are right with the mask as it will be used. Forgetting the last few images can cost the most
            accuracy on the others.
        loss_normalization (`str`, defaults to `"correct"`): The loss is summed over the images of the global batch
            that are still right. It is then divided by the number of these images (`"correct"`, as in the paper), or
            by the number of all images in the batch (`"batch"`).
        clip (`bool`, defaults to `True`): Keep the entries of the mask in [0, 1]. False is an ablation in the paper's
            Table 3.
        threshold (`bool`, defaults to `True`): Binarise the mask. False is an ablation in the paper's Table 3: the
            erased model then has the mask as it was trained. It can be looked at and is not saved.
        feature_batch_size (`int`, defaults to 32): Images in a batch while the backbone computes the features.
        feature_cache (`str`, defaults to `"auto"`): Where the features are kept: in `"memory"`, on `"disk"` (in an
            Arrow file that is deleted with the trainer), or `"auto"`: in memory up to `feature_memory`, else on disk.
        feature_memory (`int`, defaults to 1024): The most MiB of features that each process keeps in memory.
        feature_cache_dir (`str`, *optional*): Folder of the Arrow file. The system's folder for temporary files by
            default.

    Raises:
        OptionError: If a value is out of its range, or an argument is given that has no use here.
    """

    refused: ClassVar[dict[str, str]] = ForgettingArguments.refused | {
        "label_smoothing_factor": "the loss is ESC-T's",
        "activation_checkpointing": _FITS,
        "gradient_checkpointing": _FITS,  # its name in transformers 5.20
    }

    tau: float = field(default=0.7, metadata={"help": "Entries of the mask at or below this threshold are cut."})
    tolerance: float = field(
        default=0.0, metadata={"help": "Stop when at most this share of the forget images is right."}
    )
    loss_normalization: str = field(
        default="correct",
        metadata={
            "help": "Divide the loss by the number of images that are still right, or of all in the batch.",
            "choices": ["correct", "batch"],
        },
    )
    clip: bool = field(default=True, metadata={"help": "Whether to keep the entries of the mask in [0, 1]."})
    threshold: bool = field(
        default=True, metadata={"help": "Whether to binarise the mask; a mask that is not binary cannot be saved."}
    )
    feature_batch_size: int = field(
        default=32, metadata={"help": "Images in a batch while the features are computed."}
    )
    feature_cache: str = field(
        default="auto",
        metadata={
            "help": "Where the features are kept; auto: in memory up to feature_memory, else on disk.",
            "choices": ["auto", "memory", "disk"],
        },
    )
    feature_memory: int = field(default=1024, metadata={"help": "The most MiB of features in memory."})
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for features on disk; a temporary folder if unset."}
    )

    num_train_epochs: float = field(default=50, metadata={"help": "The most passes over the forget features."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Forget features in a step."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Features in a batch of an evaluation."})
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Learning rate of plain gradient descent; if unset, it follows from the number of steps."},
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The schedule of the learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 does not clip."})
    logging_steps: float = field(default=10, metadata={"help": "Log after this many steps."})
    save_steps: float = field(default=100, metadata={"help": "Save a checkpoint after this many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in TrainingArguments."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.tau < 1:
            raise OptionError(f"`tau` is a threshold from 0 up to but not including 1, and `tau={self.tau}`.")
        if self.tolerance is None:
            raise OptionError("ESC-T stops at a `tolerance` from 0 up to but not including 1, and it is None.")
        if self.feature_batch_size < 1 or self.feature_memory < 0:
            raise OptionError("`feature_batch_size` is 1 or more, and `feature_memory` 0 or more.")
        if self.place_model_on_device is False:
            raise OptionError(f"`place_model_on_device=False` has no use here: {_FITS}.")
