"""The arguments of ESC-T."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import OptionError


@dataclass
class ESCTTrainingArguments(TrainingArguments):
    r"""
    Arguments of [`ESCTTrainer`]: all of [`~transformers.TrainingArguments`], and those of the mask.

    These have another default than in [`~transformers.TrainingArguments`]:

    - `num_train_epochs` is 50 and `per_device_train_batch_size` 64, as in the ESC paper's experiments; training stops
      as soon as nothing is left to forget.
    - `learning_rate` is None: the size of a step follows from the length of the run, see below.
    - `per_device_eval_batch_size` is 256: these are features, not images.
    - `optim` is `"sgd"`, `lr_scheduler_type` is `"constant"`, and `max_grad_norm` is 0: gradients are not
      clipped.
    - `logging_steps` is 10, `save_steps` 100 and `save_total_limit` 2.
    - `ddp_find_unused_parameters` is False: every step uses every mask.
    - `hub_strategy` is `"end"`, and no other is allowed: a mask in training is no erased model.
    - `label_smoothing_factor`, `fsdp`, `deepspeed`, `activation_checkpointing`, `gradient_checkpointing`,
      `neftune_noise_alpha`, `bf16_full_eval`, `fp16_full_eval` and `place_model_on_device=False` are refused: the
      loss is what it is, and a d × d mask needs no sharding.

    **The step size.** The gradient of the loss depends on the scale of the head's logits, on d, and for a confident
    model it is orders of magnitude smaller at the start than at the end, as \(\partial\,\mathrm{CE} / \partial f'_y =
    p_y - 1\). A fixed learning rate that does nothing for one model ruins another. So each gradient is divided by its
    largest entry (over all masks), and the learning rate is the most that an entry of the mask moves in a step. By
    default it is \(10 / T\) for a run of at most T steps, and never more than 0.2: an entry under steady pressure
    could go from 1 to 0 ten times over, and no single step is a large one. More epochs make gentler steps. With an
    explicit `learning_rate` there is plain gradient descent, as in the paper, and no rule.

    Args:
        scenario (`str`, defaults to `"classes"`): What is to be forgotten: the `"classes"` of the forget images, or
            these `"images"` alone, of whatever classes. Labels are needed for the loss in any case; then the images
            may be of all classes, the ledger names none, and what stays right is no failure.
        tau (`float`, defaults to 0.7): τ, from 0 up to but not including 1: an entry of the mask above it is kept, one
            at or below it is cut.
        tolerance (`float`, defaults to 0): The share of the forget images that may stay right. Training stops when no
            more than that are, with the mask as it will be used. The last few images can cost the most.
        loss_normalization (`str`, defaults to `"correct"`): The loss is summed over the images of the global batch
            that are still right and divided by their number (`"correct"`, the paper's) or by the number of images in
            the batch (`"batch"`).
        clip (`bool`, defaults to `True`): Keep the entries of the mask in [0, 1]. False is the ablation of the paper's
            Table 3.
        threshold (`bool`, defaults to `True`): Binarise the mask. False is the ablation of the paper's Table 3: the
            erased model then has the mask as it was trained, to be looked at; such a model is not saved.
        feature_batch_size (`int`, defaults to 32): Images in a batch of the one pass through the backbone.
        feature_cache (`str`, defaults to `"auto"`): Where the features are kept: `"memory"`, `"disk"` (an Arrow file
            that goes when the trainer does), or `"auto"`: in memory up to `feature_memory`, else on disk.
        feature_memory (`int`, defaults to 1024): The most MiB of features in memory, of each process.
        feature_cache_dir (`str`, *optional*): Where an Arrow file is written; the system's folder for temporary files
            by default.

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
    tau: float = field(default=0.7, metadata={"help": "Entries of the mask at or below it are cut."})
    tolerance: float = field(default=0.0, metadata={"help": "Share of the forget images that may stay right."})
    loss_normalization: str = field(
        default="correct",
        metadata={"help": "Average the loss over the images still right, or all.", "choices": ["correct", "batch"]},
    )
    clip: bool = field(default=True, metadata={"help": "Keep the entries of the mask in [0, 1]."})
    threshold: bool = field(default=True, metadata={"help": "Binarise the mask; without, nothing can be saved."})
    feature_batch_size: int = field(default=32, metadata={"help": "Images in a batch of the pass for features."})
    feature_cache: str = field(
        default="auto",
        metadata={"help": "Where features are kept.", "choices": ["auto", "memory", "disk"]},
    )
    feature_memory: int = field(default=1024, metadata={"help": "The most MiB of features in memory."})
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Where features are written that outgrow memory; a temporary folder if unset."}
    )

    num_train_epochs: float = field(default=50, metadata={"help": "The most passes over the forget features."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Forget features in a step."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Features in a batch of an evaluation."})
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Of plain gradient descent. Unset, it follows from the number of steps."},
    )
    optim: str = field(default="sgd", metadata={"help": "The optimizer."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The schedule of the learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 for not."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    save_steps: float = field(default=100, metadata={"help": "Save a checkpoint every so many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in TrainingArguments."})
    hub_strategy: str = field(default="end", metadata={"help": "Only the end of the training is pushed."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.tau < 1:
            raise OptionError(f"`tau` is a threshold from 0 up to but not including 1, and `tau={self.tau}`.")
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"`tolerance` is a share from 0 up to but not including 1, not {self.tolerance}.")
        for name, allowed in (
            ("scenario", ("classes", "images")),
            ("loss_normalization", ("correct", "batch")),
            ("feature_cache", _CACHES),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(f"`{name}` is one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise OptionError(f"`num_train_epochs` is above 0, and it is {self.num_train_epochs}.")
        if self.feature_batch_size < 1 or self.feature_memory < 0:
            raise OptionError("`feature_batch_size` is 1 or more, and `feature_memory` 0 or more.")
        if self.hub_strategy != "end":
            raise OptionError(
                f"`hub_strategy={HubStrategy(self.hub_strategy).value!r}` would push a mask in training. Use 'end'."
            )
        if self.place_model_on_device is False:
            raise OptionError("`place_model_on_device=False` has no use here: a d x d mask fits on every device.")
        for name in _NO_USE:
            if getattr(self, name, None):
                raise OptionError(
                    f"`{name}` has no use here: the loss is ESC-T's, the backbone is not trained, and a d x d mask "
                    "fits on every device. Leave it out."
                )


_NO_USE = (
    "label_smoothing_factor",
    "fsdp",
    "deepspeed",
    "activation_checkpointing",
    "gradient_checkpointing",  # its name in transformers 5.20
    "neftune_noise_alpha",
    "bf16_full_eval",
    "fp16_full_eval",
)
_CACHES = ("auto", "memory", "disk")
