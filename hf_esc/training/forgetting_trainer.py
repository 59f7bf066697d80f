"""What all Trainers share that make a classifier forget: ESC-T and the unlearning methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import TrainOutput

from ..errors import ForgetSetError, ModelError, OptionError
from ..ledger.record import Unchanged, ledger_record, refuse_incomplete
from ..saving import write_into
from .accuracy import Accuracy
from .checkpoints import LAST_FILE, last_checkpoint
from .epochs import as_it_is
from .forgetting_args import ForgettingArguments
from .safetensors_trainer import SafetensorsTrainer
from .settings import training_settings


class ForgettingTrainer(SafetensorsTrainer):
    """
    A Trainer whose result is a classifier that has forgotten, with a record of that in its ledger.

    A run starts from the seed, whatever was drawn before it, and a second `train()` of one trainer repeats the first.
    A run that was cut off goes on from its last checkpoint as if it had not been stopped, and a checkpoint of another
    run is refused. Nothing is saved, pushed or described on a card before `train()` has ended.

    A subclass makes what is trained in its constructor, adds its own `settings`, and defines `identity`, `start`,
    `finish` and `evaluation_set`.

    Args:
        model (`torch.nn.Module`): What is trained.
        args ([`ForgettingArguments`]): As `checked_arguments` returns them.
        train_dataset: What the subclass trains on, ready for its own loaders.
        eval_dataset (*optional*): What `evaluation_set` takes, or a dict of such.
        processing_class, callbacks, optimizer_cls_and_kwargs: As in [`~transformers.Trainer`].
        compute_metrics (`Callable`, *optional*): As in [`~transformers.Trainer`]; accuracy in % by default.

    Attributes:
        method (`str`): The method's name on the command line and in the ledger.
        kind (`str`): Whether its result stands in front of the head or in the weights, as a record says it.
        arguments (`type`): The class of the method's arguments.
        needs (`str`): What `forget_set` is, for the error if it is missing.
        write_card (`Callable`): Writes the card of a model to a folder. `hf_esc.registration` sets it, as this package
            knows nothing of the Hub.
    """

    method: ClassVar[str]
    kind: ClassVar[str]
    arguments: ClassVar[type[ForgettingArguments]] = ForgettingArguments
    needs: ClassVar[str] = "the images to forget"
    write_card: ClassVar[Callable[..., None]]

    args: Any
    model: Any

    def __init__(
        self,
        model: torch.nn.Module,
        args: ForgettingArguments,
        *,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        compute_metrics: Callable[[EvalPrediction], dict] | None,
        callbacks: list[TrainerCallback] | None,
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None,
    ):
        self._result: PreTrainedModel | None = None
        self._saving_checkpoint = False
        self._best_step: int | None = None
        self._last_checkpoint: Path | None = None
        self._left_by_run: dict[str, Any] = {}
        self._given_forward = {name: value for name, value in vars(model).items() if name == "forward"}
        super().__init__(
            model=model,
            args=args,
            data_collator=as_it_is,
            train_dataset=train_dataset,
            eval_dataset=self._evaluation_sets(eval_dataset),
            processing_class=processing_class,
            compute_metrics=compute_metrics or Accuracy(),
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )

    @classmethod
    def checked_arguments(cls, args: Any, forget_set: Any) -> Any:
        """
        The arguments of a run, or the defaults of the method where `args` is None.

        Raises:
            TypeError: If the arguments are of another class.
            ForgetSetError: If there is no forget set.
        """
        if args is None:
            args = cls.arguments(output_dir="tmp_trainer")
        if not isinstance(args, cls.arguments):
            raise TypeError(f"`args` of {cls.__name__} should be {cls.arguments.__name__}, not {type(args).__name__}.")
        if forget_set is None:
            raise ForgetSetError(f"{cls.__name__} needs {cls.needs} as `forget_set`.")
        cls.refuse_unfinished()
        if args.n_gpu > 1:
            # DataParallel cannot divide nested batches, and dividing a d × d problem at each step gains nothing.
            args._n_gpu = 1
        return args

    @classmethod
    def refuse_unfinished(cls) -> None:
        """Raise a `TypeError` where a subclass lacks what the end of a run needs, before the training."""
        if not isinstance(getattr(cls, "method", None), str):
            raise TypeError(
                f"{cls.__name__} has no `method`, the name that its records in the ledger have. Set it in the class: "
                '`method = "my-method"`.'
            )

    # What a subclass defines.

    def settings(self) -> dict[str, Any]:
        """What decides the result, beside model and images. The ledger tells it, and a run goes on with the same."""
        own = {name: getattr(self.args, name) for name in ("scenario", "tolerance")}
        return own | training_settings(self.args, self.optimizer_cls_and_kwargs)

    @property
    def may_change(self) -> frozenset[str]:
        """Settings that may change when a run goes on."""
        return frozenset()

    def identity(self) -> dict[str, Any]:
        """What else makes a run this run and no other: fingerprints of its model and images."""
        raise NotImplementedError

    def start(self) -> None:
        """Set the weights that training starts from."""
        raise NotImplementedError

    def take_off(self) -> None:
        """Take off what `start` put on the model beside weights, such as hooks. Also called if the training fails."""

    def finish(self) -> None:
        """Make the result of the training, with its record in the ledger."""
        raise NotImplementedError

    def evaluation_set(self, data: Any) -> Any:
        """A data set for `evaluate` or `predict`, in the form that the loaders read."""
        raise NotImplementedError

    # A run.

    @property
    def result(self) -> PreTrainedModel | None:
        """The classifier that has forgotten; None until `train()` has ended."""
        return self._result

    @property
    def forgets_classes(self) -> bool:
        """Whether classes are forgotten, and not single images."""
        return self.args.scenario == "classes"

    @property
    def order_seed(self) -> int:
        """The seed of the order of the images: `data_seed`, or `seed` where there is none."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """
        Train, and make `result`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): As in [`~transformers.Trainer`]. The run goes on to
                the result that it would have had without the interruption.

        Raises:
            CheckpointError: If there is no checkpoint, or it is of another model, other images or other settings.
            OptionError: If an optimizer or a schedule was set on the trainer.
            MaskError: If a mask erases nothing in the end.
            DivergenceError: If the loss or a weight is no longer finite.
        """
        self._result = self._best_step = self._last_checkpoint = None
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir or "."))
        self._refuse_set_by_hand()
        set_seed(self.args.seed)
        self.optimizer = self.lr_scheduler = None
        try:
            self.start()
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.take_off()
            self._take_off_library()
        self.finish()
        return output

    def _refuse_set_by_hand(self) -> None:
        """A run makes its own optimizer and schedule, or a second one would not repeat the first."""
        for name, instead in (("optimizer", "optimizer_cls_and_kwargs"), ("lr_scheduler", "args.lr_scheduler_type")):
            if getattr(self, name) not in (None, self._left_by_run.get(name)):
                raise OptionError(f"`trainer.{name}` was set, and a run makes its own. Set `{instead}` instead.")

    def _take_off_library(self) -> None:
        """Take off what the libraries put on the model for a training, also one that failed."""
        self._left_by_run = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        self.is_in_train = False
        self.model_wrapped = self.model
        self.model.zero_grad()
        self.model.eval()
        self._own_forward()

    def _own_forward(self) -> None:
        """In half precision, accelerate replaces `forward`, and a result would answer otherwise once it is loaded."""
        if vars(self.model).pop("_original_forward", None) is not None:
            del self.model.forward
            vars(self.model).update(self._given_forward)

    def evaluation_loop(self, *args, **kwargs):
        """As in [`~transformers.Trainer`]; what accelerate puts on the model for it is taken off again."""
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            if not self.is_in_train:
                self._own_forward()

    @property
    def last_step(self) -> int:
        """The step that the weights at hand are of."""
        return self.state.global_step if self._best_step is None else self._best_step

    def run(self) -> dict[str, Any]:
        """What cannot change when a run goes on, or its ledger would not be true. Checkpoints hold it."""
        return self.identity() | {k: value for k, value in self.settings().items() if k not in self.may_change}

    def record(
        self, config: Any, unchanged: Unchanged, *, labels: Iterable[int], num_images: int, **outcome: Any
    ) -> dict[str, Any]:
        """
        The record of this run for the ledger.

        Args:
            config (`PretrainedConfig`): Of the model that was given.
            unchanged ([`Unchanged`]): Which predictions for the forget images stayed.
            labels (`Iterable[int]`): Those of the forget images. Where single images are forgotten, none are told.
            num_images (`int`): N.
            outcome: What is told beside the settings, the steps that were taken, and the most that there could be.
        """
        return ledger_record(
            config,
            self.method,
            self.settings() | {"steps": self.last_step, "max_steps": self.state.max_steps} | outcome,
            kind=self.kind,
            labels=labels if self.forgets_classes else [],
            num_images=num_images,
            unchanged=unchanged,
            unchanged_of=num_images,
            processor=self.processing_class,
        )

    # What is evaluated.

    def _evaluation_sets(self, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: self._evaluation_sets(part) for name, part in data.items()}
        return None if data is None else self.evaluation_set(data)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of a data set, of whatever kind `eval_dataset` can be."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else self._evaluation_sets(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of a data set, of whatever kind `eval_dataset` can be."""
        return super().get_test_dataloader(self._evaluation_sets(test_dataset))

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        return data_collator  # batches have no columns that could be removed

    # What is saved.

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # A checkpoint of an earlier run is no longer whole once this one is written into it.
            (folder / LAST_FILE).unlink(missing_ok=True)
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False
        self._last_checkpoint = folder

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return  # one process writes: another one would take its files away
        if self._saving_checkpoint:
            super()._save(output_dir, state_dict)
            return
        self._finished()
        with write_into(Path(output_dir or self.args.output_dir or ".")) as folder:
            self._save_result(folder, state_dict)

    def push_to_hub(self, *args, allow_incomplete: bool = False, **kwargs):
        """
        As in `Trainer`, but for a model from which the class is not gone: that needs `allow_incomplete`.

        Raises:
            HubError: If the erasure is incomplete.
        """
        if not allow_incomplete:
            refuse_incomplete(self._finished().config.erasures)
        return super().push_to_hub(*args, **kwargs)

    def _save_result(self, folder: Path, state_dict: dict | None) -> None:
        """Write the result of the training to a folder."""
        super()._save(str(folder), state_dict)

    def _finished(self) -> Any:
        if self._result is None:
            raise ModelError("Nothing is erased yet, so there is no model to save: `train()` has to end first.")
        return self._result

    def _load_best_model(self) -> None:
        self._best_step = self.state.best_global_step
        super()._load_best_model()

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **kwargs,
    ) -> None:
        """Write the card of `result`, if there is one. Other arguments of a Trainer's card are refused."""
        if kwargs:
            raise TypeError(f"The card of an erased model takes language, license and tags, not {', '.join(kwargs)}.")
        if self.is_world_process_zero() and self._result is not None:
            self.write_card(
                self._result,
                Path(self.args.output_dir or "."),
                repo_id=getattr(self, "hub_model_id", None),
                accuracies=self._last_accuracies(),
                language=language,
                license=license,
                tags=tags,
            )

    def _last_accuracies(self) -> dict[str, float]:
        """What `evaluate` found after the last step, by the name of the data."""
        found: dict[str, float] = {}
        for entry in self.state.log_history:
            if entry.get("step") == self.last_step:
                found |= {
                    name.removesuffix("accuracy").strip("_"): value
                    for name, value in entry.items()
                    if re.fullmatch(r"(eval|test)_(\w+_)?accuracy", name)
                }
        return found


def nothing_to_forget(num_images: int) -> ForgetSetError:
    """The error for a forget set that the model is wrong about already."""
    return ForgetSetError(
        f"There is nothing to do: the model gives none of the {num_images} forget images the class that its label "
        "says. Were they erased before, or are the labels not the model's class indices?"
    )
