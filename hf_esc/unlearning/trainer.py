"""The Trainer that every unlearning method is a small subclass of."""

# Shapes: N forget images, B of them in a batch, C classes.

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from ..data.labelled_images import LabelledImages, labelled_images, with_main_input
from ..erasure.wrapping import copy_of_model
from ..errors import CheckpointError, DivergenceError, ForgetSetError, OptionError
from ..features.sites import evaluating
from ..features.stream import model_inputs
from ..ledger.record import WEIGHTS
from ..modeling.fingerprints import weights_sha256
from ..modeling.outputs import logits_of
from ..training.checkpoints import refuse_another_run, refuse_damaged
from ..training.forgetting_trainer import ForgettingTrainer
from ..training.steps import PairedLoader, Schedule, Step, alone, mixed, paired, shuffled
from .checks import (
    check_known,
    copy_of,
    logits_of_all,
    not_finite,
    read_sets,
    unchanged_predictions,
    warn_of_unchanged,
)
from .losses import forbidden
from .tolerance import StopAtTolerance
from .training_args import UnlearningArguments

# `{"inputs": what the model takes, "labels": (B,), "rows": (B,)}`
Images = dict[str, Any]
# The file beside the weights in a checkpoint that says which run it is of.
_RUN = "unlearning.json"


class UnlearningTrainer(ForgettingTrainer):
    r"""
    Trains a copy of a classifier to forget images. A method is a subclass that overrides `unlearning_loss` and, where
    it needs more, `steps` or `prepare`.

    The trained copy has the same architecture as before and nothing in front of its head, and loads with plain
    `from_pretrained`. The ledger in its configuration (`erasures`) says what was done. The given model is the frozen
    teacher, in eval mode, and is not changed. Images come without augmentation.

    Editing weights moves the head's answers. What the features still tell of the class is measured by
    [`evaluate_unlearning`][hf_esc.evaluation.unlearning.evaluate_unlearning].

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers; no [`ESCModel`].
        args ([`UnlearningArguments`]): Arguments of the method, of the class `arguments`.
        forget_set: The images to forget, with labels: a `datasets.Dataset`, or an iterable of ready batches.
        retain_set (*optional*): Images to keep, likewise. Methods with `uses_retain` need it, and the others do not
            read it.
        eval_dataset (*optional*): Images for `evaluate`, or a dict of such: accuracy in %.
        processing_class (*optional*): The image processor; that of `model` by default.
        compute_metrics, callbacks, optimizer_cls_and_kwargs: As in [`~transformers.Trainer`].
        image_column, label_column (`str`, *optional*): Columns of data sets.

    Attributes:
        method (`str`): The method's name on the command line and in the ledger.
        uses_forget, uses_retain (`bool`): Which images the method trains on.
        mixes (`bool`): Whether images of both sets are shuffled together, so that a step can lack one of them.
        arguments (`type`): The class of the method's arguments.
        teacher (`PreTrainedModel`): The given model, or a copy of it where the training runs on another device.
        result (`PreTrainedModel`): The trained copy; None until `train()` has ended.

    Raises:
        ForgetSetError: If a set is missing or empty, has no labels, or both share images, or if the model is wrong
            about all forget images already.
        LabelError: If the model does not have a label, no class would be left, or the retain set has images of a class
            that is to be forgotten.
        ModelError: If it is an [`ESCModel`], is offloaded, or none of its weights can be trained.
        DivergenceError: By `train()`, if the loss or a weight is no longer finite. The last checkpoint stays.
        CheckpointError: By `train(resume_from_checkpoint=…)`, if the checkpoint is of another model, other images or
            other settings. A run that goes on comes to the same weights as if it had not been stopped.

    Warns:
        IncompleteErasureWarning: By `train()`, if more than 10 % of the forget images of a class are classified right
            after it, or less than that were before.
    """

    kind = WEIGHTS
    uses_forget: ClassVar[bool] = True
    uses_retain: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    arguments: ClassVar[type[UnlearningArguments]] = UnlearningArguments

    # The loss is the mean over its batch, so Trainer averages it over the batches that are accumulated.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: UnlearningArguments | None = None,
        forget_set: Any = None,
        retain_set: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ):
        args = self.checked_arguments(args, forget_set)
        if self.uses_retain and retain_set is None:
            raise ForgetSetError(
                f"{type(self).__name__} trains on retain images too and needs a `retain_set`. Methods that need none: "
                "`delete`, `neg-grad`, `random-label`, `boundary-shrink`, `lau`, and `erase`."
            )
        student = copy_of(model)
        retain_set = retain_set if self.uses_retain else None
        options = {"image_column": image_column, "label_column": label_column, "memory": args.image_memory}
        self.forget, self.retain, processor = read_sets(
            model, forget_set, retain_set, processing_class, args.scenario, **options
        )
        self._options = {**options, "processor": processor, "what": "evaluation set"}
        self.forget_labels = self.forget.labels.unique()
        self.num_labels: Any = model.config.num_labels
        self.teacher = model
        if next(model.parameters()).device != args.device:
            # Teacher and student are compared, so both are on one device. The given model stays where it is.
            moved: Any = copy_of_model(model)
            self.teacher = moved.to(args.device)
        super().__init__(
            model=student,
            args=args,
            train_dataset=self.forget if self.uses_forget else self.retain,
            eval_dataset=eval_dataset,
            processing_class=processor,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        # Trainer writes one into the configuration, for language models.
        vars(self.model.config).pop("use_cache", None)
        if hasattr(model.config, "use_cache"):
            self.model.config.use_cache = model.config.use_cache
        self.add_callback(StopAtTolerance(self))
        # `prepare` draws from a generator of its own, so that it does not depend on what was drawn before.
        self.generator = torch.Generator().manual_seed(args.seed)
        self._teacher_sha256: str | None = None
        self._original_logits = self.logits_of_all(self.teacher, self.forget)
        self._before = self._original_logits.argmax(dim=1)
        check_known(self._before, self.forget.labels, args.scenario)
        self.prepare()

    # What a method overrides.

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        """The loss of a step, from its forget and retain images; None where the step has no such images."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Compute once what all steps need, such as the labels that images are sent to."""

    def steps(self, epoch: int, generator: torch.Generator) -> list[Step]:
        """The steps of an epoch, for all processes together, with rows drawn from `generator`."""
        if self.mixes:
            return mixed(len(self.forget), len(self.retain or ()), self.forget_batch_size, generator)
        sides = []
        for images, size, used in (
            (self.forget, self.forget_batch_size, self.uses_forget),
            (self.retain, self.retain_batch_size, self.uses_retain),
        ):
            sides.append(shuffled(len(images), size, generator) if images is not None and used else [])
        if sides[0] and sides[1]:
            return paired(*sides)
        return alone(sides[0] or sides[1], forget=bool(sides[0]))

    # What a method can use.

    @property
    def forget_batch_size(self) -> int:
        """Forget images in a step, of all processes together."""
        return self.args.per_device_train_batch_size * self.args.world_size

    @property
    def retain_batch_size(self) -> int:
        """Retain images in a step, of all processes together."""
        size = self.args.retain_batch_size
        return (size if size is not None else self.args.per_device_train_batch_size) * self.args.world_size

    def logits(self, model: nn.Module, images: Images) -> Tensor:
        """The logits of a model for a batch, `(B, C)`, in float32."""
        return logits_of(model(**model_inputs(self.model, images["inputs"])), self.num_labels).float()

    def logits_of_both(self, model: nn.Module, forget: Images, retain: Images) -> tuple[Tensor, Tensor]:
        """The logits for both batches, computed in one pass: BatchNorm sees them as one batch."""
        inputs = {name: torch.cat([value, retain["inputs"][name]]) for name, value in forget["inputs"].items()}
        both = self.logits(model, {"inputs": inputs})
        return both[: len(forget["labels"])], both[len(forget["labels"]) :]

    @torch.no_grad()
    def teacher_logits(self, images: Images) -> Tensor:
        """The teacher's logits for a batch in eval mode, `(B, C)`, in float32."""
        with evaluating(self.teacher):
            output = self.teacher(**model_inputs(self.teacher, images["inputs"]))
        return logits_of(output, self.num_labels).float().to(self.args.device)

    def forbidden(self, labels: Tensor) -> Tensor:
        """Which classes forget images of these labels may not be sent to, `(B, C)`; see `mask` of the arguments."""
        forgotten = self.forget_labels.to(labels.device) if self.args.mask == "all" else None
        return forbidden(labels, self.num_labels, forgotten)

    def original_logits(self, forget: Images) -> Tensor:
        """The teacher's logits for forget images, `(B, C)`, which were computed once: there is no augmentation."""
        return self._original_logits[forget["rows"].cpu()].to(self.args.device)

    def mixed_loss(
        self, model: nn.Module, forget: Images | None, retain: Images | None, terms: Callable[..., Tensor]
    ) -> Tensor:
        """
        The mean loss over the images of both sets, computed in one pass. A step can lack the images of one set.

        Args:
            terms (`Callable`): From the logits of one set, its images and `is_forget` to the sum of the loss over
                these images.
        """
        if forget is None or retain is None:
            images = forget if forget is not None else retain
            assert images is not None
            return terms(self.logits(model, images), images, is_forget=forget is not None) / len(images["labels"])
        logits, retain_logits = self.logits_of_both(model, forget, retain)
        total = terms(logits, forget, is_forget=True) + terms(retain_logits, retain, is_forget=False)
        return total / (len(logits) + len(retain_logits))

    def logits_of_all(self, model: PreTrainedModel, images: LabelledImages) -> Tensor:
        """The logits of a model for all images in eval mode, `(N, C)`, in float32 on the CPU."""
        return logits_of_all(model, images, self.args.per_device_eval_batch_size)

    @classmethod
    def refuse_unfinished(cls) -> None:
        """As in [`ForgettingTrainer`]; a method is its loss, too."""
        super().refuse_unfinished()
        if cls.unlearning_loss is UnlearningTrainer.unlearning_loss:
            raise TypeError(f"{cls.__name__} has no loss. Define `unlearning_loss` in the class.")

    # How it is trained.

    def get_train_dataloader(self) -> PairedLoader:
        """This process's share of each step."""
        args = self.args
        schedule = Schedule(self.steps, args.process_index, args.world_size, seed=self.order_seed, together=self.mixes)
        return PairedLoader(self.forget, self.retain, schedule, args.dataloader_num_workers)

    def set_initial_training_values(self, args, dataloader):
        """As in Trainer, for epochs that can differ in length."""
        epochs, *between, steps = super().set_initial_training_values(args, dataloader)
        if args.gradient_accumulation_steps == 1:
            if args.max_steps > 0:
                epochs = dataloader.schedule.position(steps - 1)[0] + 1
            else:
                steps = dataloader.schedule.steps_in(args.num_train_epochs)
        return epochs, *between, steps

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial):
        found = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is None or self.args.ignore_data_skip or self.args.gradient_accumulation_steps > 1:
            return found
        return self.get_train_dataloader().schedule.position(self.state.global_step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a step, which has to be finite."""
        holds_retain = "retain" in inputs
        if self.args.batch_norm == "eval" or (self.args.batch_norm == "auto" and not holds_retain):
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        loss = self.unlearning_loss(model, inputs.get("forget"), inputs.get("retain"))
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        return (loss, {}) if return_outputs else loss

    def _diverged(self, what: str) -> DivergenceError:
        kept = self._last_checkpoint
        # The checkpoint that the run went on from can have been removed since, to make room for newer ones.
        there = kept is not None and kept.is_dir()
        return DivergenceError(
            f"{self.method} diverged at step {self.state.global_step}: {what}. "
            + (f"The last good checkpoint is {kept}. " if there else "There is no checkpoint to go back to. ")
            + f"Take a smaller `learning_rate` than {self.args.learning_rate}, or clip gradients with `max_grad_norm` "
            f"(now {self.args.max_grad_norm})."
        )

    def _check_finite(self) -> None:
        some = self.forget.part(torch.arange(min(len(self.forget), self.args.per_device_eval_batch_size)))
        if what := not_finite(self.model, self.logits_of_all(self.model, some)):
            raise self._diverged(what)

    def start(self) -> None:
        """Set the weights that training starts from, the original's, with the original's ledger and no record more."""
        if self.train_dataset is not (self.forget if self.uses_forget else self.retain):
            raise OptionError("`trainer.train_dataset` was set, and steps do not read it. Pass `forget_set` instead.")
        self.model.load_state_dict(self.teacher.state_dict())
        self.model.config.__dict__.pop("erasures", None)  # that of an earlier `train()`
        if ledger := getattr(self.teacher.config, "erasures", None):
            self.model.config.erasures = list(ledger)

    def finish(self) -> None:
        """Look at what the training left, write the ledger, and warn where it has not forgotten enough."""
        self._check_finite()
        after = self.logits_of_all(self.model, self.forget).argmax(dim=1)
        unchanged = unchanged_predictions(self._before, after, self.forget.labels, by_label=self.forgets_classes)
        config = self.teacher.config
        schedule = self.get_train_dataloader().schedule
        data = schedule.sides(self.last_step, self.args.gradient_accumulation_steps)
        retained = {"num_retain_images": len(self.retain)} if self.retain is not None and "retain" in data else {}
        record = self.record(
            config,
            unchanged,
            labels=self.forget_labels.tolist(),
            num_images=len(self.forget),
            data=" + ".join(data),
            **retained,
            base_sha256=self._weights_before(),
            weights_sha256=weights_sha256(self.model),
        )
        self.model.config.erasures = [*getattr(config, "erasures", []), record]
        self._result = self.model.eval()
        warn_of_unchanged(
            config, record, advice="Train longer, with a larger `learning_rate`, or take another method."
        )

    # What is told and kept.

    def settings(self) -> dict[str, Any]:
        """Adds the arguments of the method and of unlearning, and how many images a step has."""
        args = self.args
        own = set(self.arguments.__dataclass_fields__) - set(UnlearningArguments.__dataclass_fields__)
        found = super().settings() | {name: getattr(args, name) for name in ("mask", "batch_norm", *sorted(own))}
        # BatchNorm sees the images of a process and of a pass together.
        found |= {"processes": args.world_size, "gradient_accumulation_steps": args.gradient_accumulation_steps}
        if self.uses_forget:
            found["batch_size"] = self.forget_batch_size * args.gradient_accumulation_steps
        if self.uses_retain and not self.mixes:
            found["retain_batch_size"] = self.retain_batch_size * args.gradient_accumulation_steps
        return found

    def identity(self) -> dict[str, Any]:
        """The method, the original's weights, and the images and labels."""
        own: dict[str, Any] = {"method": self.method, "model": self._weights_before()}
        for name, images in (("forget", self.forget), ("retain", self.retain)):
            own |= {f"{name} images": images and images.sha256, f"{name} labels": images and images.labels_sha256}
        return own

    def _weights_before(self) -> str:
        if self._teacher_sha256 is None:
            self._teacher_sha256 = weights_sha256(self.teacher)
        return self._teacher_sha256

    # What is evaluated.

    def evaluation_set(self, data: Any) -> LabelledImages:
        """Images as [`LabelledImages`]."""
        return data if isinstance(data, LabelledImages) else labelled_images(self.teacher, data, **self._options)[0]

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        """Metrics can ask for what the model takes (`include_for_metrics`), which Trainer looks for in the batch."""
        asked = "inputs" in self.args.include_for_metrics
        return partial(with_main_input, name=self.model.main_input_name) if asked else data_collator

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Cross-entropy, logits and labels."""
        with torch.no_grad():
            logits = self.logits(model, inputs)
        labels = inputs["labels"].to(logits.device)
        loss = functional.cross_entropy(logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    # What is saved.

    def _save_checkpoint(self, model, trial) -> None:
        self._check_finite()  # before this checkpoint takes the place of the last good one
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._saving_checkpoint and self.args.should_save:
            (Path(output_dir or ".") / _RUN).write_text(json.dumps(self.run(), indent=2), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        try:
            stored = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is no checkpoint of {self.method}: {error}") from error
        refuse_another_run(folder, stored, self.run())
        refuse_damaged(folder)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._last_checkpoint = folder
