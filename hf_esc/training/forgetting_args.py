"""The arguments that every training to forget shares."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import OptionError

_WHOLE = "each process holds the whole model"
_PRECISION = "an evaluation leaves the weights in their precision"
_BATCHES = "the Trainer draws batches and shares them out itself, so that a run goes on as if it had not been stopped"
# What `accelerator_config` says of batches, by default.
_SHARING = {"split_batches": False, "dispatch_batches": False, "even_batches": True, "use_seedable_sampler": True}


@dataclass
class ForgettingArguments(TrainingArguments):
    """
    Arguments of a [`ForgettingTrainer`]: all of [`~transformers.TrainingArguments`], and these.

    `hub_strategy` is `"end"`, and no other value is allowed: a model in training has forgotten nothing yet.

    Refused, as they have no use here, are `label_smoothing_factor`, `neftune_noise_alpha`, `use_liger_kernel` and
    `optim_target_modules`; `fsdp`, `deepspeed` and `parallelism_config`, as each process holds the whole model;
    `bf16_full_eval` and `fp16_full_eval`, as an evaluation leaves the weights in their precision; and what would
    change the batches: `auto_find_batch_size`, `dataloader_drop_last`, `train_sampling_strategy`, `group_by_length`,
    `ignore_data_skip`, and in `accelerator_config` `split_batches`, `dispatch_batches`, `even_batches` and
    `use_seedable_sampler`.

    Args:
        scenario (`str`, defaults to `"classes"`): What to forget: the `"classes"` of the forget images, or these
            `"images"` alone, whatever their classes.
        tolerance (`float`, *optional*): The share of the forget images that may still be classified as their labels
            say when the training stops, from 0 up to but not including 1.

    Raises:
        OptionError: If a value is out of its range, or an argument is given that has no use here.
    """

    # Arguments of transformers that are refused, each with the reason that the error gives.
    refused: ClassVar[dict[str, str]] = {
        "label_smoothing_factor": "the loss is that of the method",
        "neftune_noise_alpha": "the images are taken as they are",
        "use_liger_kernel": "its kernels are those of language models",
        "optim_target_modules": "all weights are trained that the method trains",
        "fsdp": _WHOLE,
        "deepspeed": _WHOLE,
        "parallelism_config": _WHOLE,
        "bf16_full_eval": _PRECISION,
        "fp16_full_eval": _PRECISION,
        "auto_find_batch_size": "a step has the size that the ledger says",
        "dataloader_drop_last": _BATCHES,
        "train_sampling_strategy": _BATCHES,
        "group_by_length": _BATCHES,
        "ignore_data_skip": _BATCHES,
    }
    # Arguments that count something, and the least that they can be.
    _least: ClassVar[dict[str, int]] = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    }

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
        for name, least in self._least.items():
            if getattr(self, name) < least:
                raise OptionError(f"`{name}` is {least} or more, and it is {getattr(self, name)}.")
        if self.max_steps == 0:
            raise OptionError("`max_steps` is 1 or more, or -1 for as many as `num_train_epochs` takes, and it is 0.")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise OptionError(f"`num_train_epochs` is above 0, and it is {self.num_train_epochs}.")
        if self.hub_strategy != "end":
            raise OptionError(
                f"`hub_strategy={HubStrategy(self.hub_strategy).value!r}` would push a model in training, which has "
                "forgotten nothing yet. Use 'end'."
            )
        known = TrainingArguments.__dataclass_fields__
        for name, why in self.refused.items():
            if name in known and (value := getattr(self, name)) and value != known[name].default:
                raise OptionError(f"`{name}` has no use here: {why}. Leave it out.")
        for name, default in _SHARING.items():
            if getattr(self.accelerator_config, name) not in (default, None):
                raise OptionError(f"`accelerator_config={{'{name}': …}}` has no use here: {_BATCHES}. Leave it out.")
