"""The Trainer that every unlearning method is a small subclass of."""

# Shapes: N forget images, B of them in a batch, C classes.

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import TrainOutput

from ..data.labelled_images import LabelledImages, labelled_images
from ..erasure.wrapping import copy_of_model
from ..errors import CheckpointError, DivergenceError, ForgetSetError, ModelError
from ..features.sites import evaluating
from ..features.stream import model_inputs
from ..hub.card import write_card
from ..ledger.record import ledger_record
from ..modeling.fingerprints import weights_sha256
from ..modeling.outputs import logits_of
from ..training.epochs import as_it_is
from ..training.safetensors_trainer import SafetensorsTrainer
from ..training.steps import PairedLoader, Schedule, Step, alone, mixed, paired, shuffled
from .checks import check_known, check_sets, copy_of, not_finite, unchanged_predictions, warn_of_unchanged
from .losses import forbidden
from .training_args import UnlearningArguments

# `{"inputs": what the model takes, "labels": (B,), "rows": (B,)}`
Images = dict[str, Any]
# Beside the weights in a checkpoint: what a run cannot change when it goes on, or its ledger would not be true.
_RUN = "unlearning.json"


class UnlearningTrainer(SafetensorsTrainer):
    r"""
    Trains a copy of a classifier to forget images. A method is a subclass that overrides `unlearning_loss`, and, where
    it needs more, `steps` or `prepare`.

    The trained copy stays what it was, of the same architecture and without anything in front of its head, and loads
    with plain `from_pretrained`. Its configuration has a ledger (`erasures`) that says what was done. The given model
    is the frozen teacher, in eval mode, and is not touched. Images come without augmentation.

    Weight editing moves the head's answers. What the features still say of the class is for
    [`evaluate_unlearning`][hf_esc.evaluation.unlearning.evaluate_unlearning] to tell.

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers; no [`ESCModel`].
        args ([`UnlearningArguments`]): Of the method's own kind, its `arguments`.
        forget_set: The images to forget, with labels: a `datasets.Dataset`, or an iterable of ready batches.
        retain_set (*optional*): Images to keep, likewise. Methods with `uses_retain` need it, and the others do not
            read it.
        eval_dataset (*optional*): Images for `evaluate`, or a dict of such: accuracy in %.
        processing_class (*optional*): The image processor; that of `model` by default.
        compute_metrics, callbacks, optimizer_cls_and_kwargs: As in [`~transformers.Trainer`].
        image_column, label_column (`str`, *optional*): Columns of data sets.

    Attributes:
        method (`str`): Its name on the command line and in the ledger.
        uses_forget, uses_retain (`bool`): Which images the method trains on.
        mixes (`bool`): Whether images of both sides are shuffled together, so that a step can lack one.
        arguments (`type`): The kind of its arguments.
        teacher (`PreTrainedModel`): The given model, or a copy of it where that is on another device.

    Raises:
        ForgetSetError: If a set is missing or empty, has no labels, or both share images, or if the model is wrong
            about all forget images already.
        LabelError: If a label is none of the model's, no class would be left, or the retain set has images of a class
            that is to be forgotten.
        ModelError: If it is an [`ESCModel`], is offloaded, or none of its weights can be trained.
        DivergenceError: By `train()`, if the loss or a weight is no longer finite. The last checkpoint stays.
        CheckpointError: By `train(resume_from_checkpoint=…)`, if the checkpoint is of another model, other images or
            other settings. A run goes on as it began, and to the same weights as if it had not been stopped.

    Warns:
        IncompleteErasureWarning: By `train()`, if more than 10 % of the forget images of a class are classified right
            after it, or less than that were before.
    """

    method: ClassVar[str]
    uses_forget: ClassVar[bool] = True
    uses_retain: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    arguments: ClassVar[type[UnlearningArguments]] = UnlearningArguments

    args: Any
    model: Any
    # Each loss is the mean over its batch.
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
        name = type(self).__name__
        if args is None:
            args = self.arguments(output_dir="tmp_trainer")
        if not isinstance(args, self.arguments):
            raise TypeError(f"`args` of {name} should be {self.arguments.__name__}, not {type(args).__name__}.")
        if forget_set is None:
            raise ForgetSetError(f"{name} needs the images to forget as `forget_set`.")
        if self.uses_retain and retain_set is None:
            raise ForgetSetError(
                f"{name} trains on retain images too and needs a `retain_set`. Methods that need none: `delete`, "
                "`neg-grad`, `random-label`, `boundary-shrink`, `lau`, and `erase`."
            )
        student = copy_of(model)
        options: dict[str, Any] = {
            "image_column": image_column,
            "label_column": label_column,
            "memory": args.image_memory,
        }
        self.forget, processor = labelled_images(model, forget_set, processing_class, **options)
        self.retain = None
        if self.uses_retain:
            options["what"] = "retain set"
            self.retain, processor = labelled_images(model, retain_set, processor, **options)
        check_sets(model.config, self.forget, self.retain, args.scenario)
        self.forget_labels = self.forget.labels.unique()
        # Features and logits of both are compared, so both are on one device; the given model stays where it is.
        self.teacher = model
        if next(model.parameters()).device != args.device:
            moved: Any = copy_of_model(model)
            self.teacher = moved.to(args.device)
        self.num_labels: Any = model.config.num_labels
        self._options = options | {"processor": processor, "what": "evaluation set"}
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel does not divide nested batches
        super().__init__(
            model=student,
            args=args,
            data_collator=as_it_is,
            train_dataset=self.forget if self.uses_forget else self.retain,
            eval_dataset=self._images_of(eval_dataset),
            processing_class=processor,
            compute_metrics=compute_metrics or _accuracy,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.add_callback(_StopAtTolerance(self))
        # One for what is drawn before the training, so that it does not depend on anything that was drawn since.
        self.generator = torch.Generator().manual_seed(args.seed)
        self._erased = False
        self._saving_checkpoint = False
        self._last_checkpoint: Path | None = None
        self._best_step: int | None = None
        self._teacher_sha256: str | None = None
        self._original_logits = self.logits_of_all(self.teacher, self.forget)
        self._before = self._original_logits.argmax(dim=1)
        check_known(self._before, self.forget.labels, args.scenario)
        self.prepare()

    # What a method overrides.

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        """The loss of a step. `forget` and `retain` are those of its images, None where it has none."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What has to be known before the first step, such as the labels that images are sent to."""

    def steps(self, epoch: int, generator: torch.Generator) -> list[Step]:
        """The steps of an epoch, of all processes together, with rows drawn from `generator`."""
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
        """What a model says to images, `(B, C)`, in float32."""
        return logits_of(model(**model_inputs(self.model, images["inputs"])), self.num_labels).float()

    def logits_of_both(self, model: nn.Module, forget: Images, retain: Images) -> tuple[Tensor, Tensor]:
        """Of both sides in one pass: BatchNorm sees them as one batch."""
        inputs = {name: torch.cat([value, retain["inputs"][name]]) for name, value in forget["inputs"].items()}
        both = self.logits(model, {"inputs": inputs})
        return both[: len(forget["labels"])], both[len(forget["labels"]) :]

    @torch.no_grad()
    def teacher_logits(self, images: Images) -> Tensor:
        """What the original says to images in eval mode, `(B, C)`, in float32."""
        with evaluating(self.teacher):
            output = self.teacher(**model_inputs(self.teacher, images["inputs"]))
        return logits_of(output, self.num_labels).float().to(self.args.device)

    def forbidden(self, labels: Tensor) -> Tensor:
        """Which classes forget images of these labels may not be sent to, `(B, C)`; see `mask` of the arguments."""
        forgotten = self.forget_labels.to(labels.device) if self.args.mask == "all" else None
        return forbidden(labels, self.num_labels, forgotten)

    def original_logits(self, forget: Images) -> Tensor:
        """What the original says to forget images, `(B, C)`; images come without augmentation, so it is asked once."""
        return self._original_logits[forget["rows"].cpu()].to(self.args.device)

    def mixed_loss(
        self, model: nn.Module, forget: Images | None, retain: Images | None, terms: Callable[..., Tensor]
    ) -> Tensor:
        """
        The mean over a batch of both sides, either of which it can lack, in one pass.

        Args:
            terms (`Callable`): From the logits of one side, its images and `is_forget` to the sum over these images.
        """
        if forget is None or retain is None:
            images = forget if forget is not None else retain
            assert images is not None
            return terms(self.logits(model, images), images, is_forget=forget is not None) / len(images["labels"])
        logits, retain_logits = self.logits_of_both(model, forget, retain)
        total = terms(logits, forget, is_forget=True) + terms(retain_logits, retain, is_forget=False)
        return total / (len(logits) + len(retain_logits))

    @torch.no_grad()
    def logits_of_all(self, model: PreTrainedModel, images: LabelledImages) -> Tensor:
        """What a model says to each image in eval mode, `(N, C)`, in float32 on the CPU."""
        found = []
        with evaluating(model):
            for batch in images.batches(self.args.per_device_eval_batch_size):
                output = model(**model_inputs(model, batch["inputs"]))
                found.append(logits_of(output, self.num_labels).float().cpu())
        return torch.cat(found)

    # How it is trained.

    def get_train_dataloader(self) -> PairedLoader:
        """This process's share of each step."""
        args = self.args
        seed = args.data_seed if args.data_seed is not None else args.seed
        schedule = Schedule(self.steps, args.process_index, args.world_size, seed=seed, together=self.mixes)
        return PairedLoader(self.forget, self.retain, schedule, args.dataloader_num_workers)

    def set_initial_training_values(self, args, dataloader):
        """As in Trainer, where epochs need not be of a length."""
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
        kept = kept if kept is not None and kept.is_dir() else None  # it can be rotated away for one of another run
        return DivergenceError(
            f"{self.method} diverged at step {self.state.global_step}: {what}. "
            + (f"The last good checkpoint is {kept}. " if kept else "There is no checkpoint to go back to. ")
            + f"Take a smaller `learning_rate` than {self.args.learning_rate}, or clip gradients with `max_grad_norm` "
            f"(now {self.args.max_grad_norm})."
        )

    def _check_finite(self) -> None:
        some = self.forget.part(torch.arange(min(len(self.forget), self.args.per_device_eval_batch_size)))
        if what := not_finite(self.model, self.logits_of_all(self.model, some)):
            raise self._diverged(what)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """
        Train from the original's weights on, or from a checkpoint's, and write the ledger.

        Raises:
            DivergenceError: If the loss or a weight is no longer finite.
        """
        self._erased = False
        self._last_checkpoint = self._best_step = None
        set_seed(self.args.seed)  # whatever was drawn since the trainer was made
        self.start()
        self.optimizer = self.lr_scheduler = None
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.finish()
        return output

    def start(self) -> None:
        """The weights that training starts from: the original's."""
        self.model.load_state_dict(self.teacher.state_dict())

    def finish(self) -> None:
        """Look at what the training left, say so, and write the ledger."""
        self._check_finite()
        after = self.logits_of_all(self.model, self.forget).argmax(dim=1)
        of_classes = self.args.scenario == "classes"
        unchanged = unchanged_predictions(self._before, after, self.forget.labels, by_label=of_classes)
        record = ledger_record(
            self.teacher.config,
            self.method,
            self.settings()
            | {"steps": self._best_step or self.state.global_step, "data": self._data()}
            | self._retain_images()
            | {"base_sha256": self._weights_before()},
            labels=self.forget_labels.tolist() if of_classes else [],
            num_images=len(self.forget),
            unchanged=unchanged,
            unchanged_of=len(self.forget),
        )
        self.model.config.erasures = [*getattr(self.teacher.config, "erasures", []), record]
        self.model.eval()
        self._erased = True
        if of_classes:
            warn_of_unchanged(
                self.teacher.config,
                self.forget_labels.tolist(),
                unchanged,
                self.method,
                "Train longer, with a larger `learning_rate`, or take another method.",
            )

    def _data(self) -> str:
        return " + ".join(name for name, used in (("forget", self.uses_forget), ("retain", self.uses_retain)) if used)

    def _retain_images(self) -> dict[str, int]:
        return {} if self.retain is None else {"num_retain_images": len(self.retain)}

    def settings(self) -> dict[str, Any]:
        """What the ledger says of the training: the arguments of the method, and those that every training has."""
        args = self.args
        own = set(self.arguments.__dataclass_fields__) - set(UnlearningArguments.__dataclass_fields__)
        names = ["scenario", "mask", "batch_norm", "tolerance", *sorted(own)]
        names += ["learning_rate", "lr_scheduler_type", "num_train_epochs", "optim", "optim_args"]
        names += ["weight_decay", "max_grad_norm", "seed", "data_seed"]
        found = {name: getattr(getattr(args, name), "value", getattr(args, name)) for name in dict.fromkeys(names)}
        if self.optimizer_cls_and_kwargs is not None:
            kind, options = self.optimizer_cls_and_kwargs
            found |= {"optim": kind.__name__, "optim_args": ",".join(f"{k}={v}" for k, v in options.items())}
            found["learning_rate"] = options.get("lr", args.learning_rate)
        if self.uses_forget:
            found["batch_size"] = self.forget_batch_size * args.gradient_accumulation_steps
        if self.uses_retain and not self.mixes:
            found["retain_batch_size"] = self.retain_batch_size * args.gradient_accumulation_steps
        return found

    # What is looked at.

    def _images_of(self, images: Any) -> Any:
        if images is None or isinstance(images, LabelledImages):
            return images
        if isinstance(images, dict):
            return {name: self._images_of(part) for name, part in images.items()}
        return labelled_images(self.teacher, images, **self._options)[0]

    def get_eval_dataloader(self, eval_dataset: Any = None):
        """Batches of images as [`LabelledImages`] gives them."""
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        return super().get_eval_dataloader(self._images_of(eval_dataset) if given else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any):
        """Batches of images as [`LabelledImages`] gives them."""
        return super().get_test_dataloader(self._images_of(test_dataset))

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        return data_collator  # there are no columns in a batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Cross-entropy, logits and labels."""
        with torch.no_grad():
            logits = self.logits(model, inputs)
        labels = inputs["labels"].to(logits.device)
        loss = functional.cross_entropy(logits, labels)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    # What is written.

    def _save_checkpoint(self, model, trial) -> None:
        self._check_finite()  # or the one before it would be gone
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False
        self._last_checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self._erased and not self._saving_checkpoint:
            raise ModelError("Nothing is forgotten yet, so there is no model to save: `train()` has to end first.")
        super()._save(output_dir, state_dict)
        if self._saving_checkpoint:
            (Path(output_dir or ".") / _RUN).write_text(json.dumps(self._run(), indent=2), encoding="utf-8")

    def _weights_before(self) -> str:
        if self._teacher_sha256 is None:
            self._teacher_sha256 = weights_sha256(self.teacher)
        return self._teacher_sha256

    def _run(self) -> dict[str, Any]:
        """What a run cannot change when it goes on."""
        own = {"method": self.method, "model": self._weights_before(), "max_steps": self.args.max_steps}
        own |= {name: getattr(self.args, name) for name in ("warmup_steps", "lr_scheduler_kwargs")}
        sides = {"forget": self.forget, "retain": self.retain}
        for name, images in sides.items():
            own |= {f"{name} images": images and images.sha256, f"{name} labels": images and images.labels_sha256}
        return own | self.settings()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / _RUN
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{resume_from_checkpoint} is no checkpoint of {self.method}: {error}") from error
        own = json.loads(json.dumps(self._run()))
        if other := [name for name in {**own, **found} if own.get(name) != found.get(name)]:
            raise CheckpointError(
                f"{resume_from_checkpoint} is of another run: "
                + ", ".join(f"{name} was {found.get(name)!r} and is {own.get(name)!r}" for name in other)
                + ". A run goes on as it began; for other settings begin a new one."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._last_checkpoint = Path(resume_from_checkpoint)

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
        """The card of what `train()` left; `kwargs` of the card of a Trainer have no place in it."""
        if kwargs:
            raise TypeError(
                f"The card of an unlearned model takes language, license and tags, not {', '.join(kwargs)}."
            )
        if self.is_world_process_zero() and self._erased:
            write_card(
                self.model,
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
            if entry.get("step") == (self._best_step or self.state.global_step):
                found |= {
                    name.removesuffix("accuracy").strip("_"): value
                    for name, value in entry.items()
                    if re.fullmatch(r"(eval|test)_(\w+_)?accuracy", name)
                }
        return found


class _StopAtTolerance(TrainerCallback):
    def __init__(self, trainer: UnlearningTrainer):
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        if args.tolerance is not None:
            trainer = self.trainer
            right = trainer.logits_of_all(trainer.model, trainer.forget).argmax(dim=1) == trainer.forget.labels
            # Each process has running statistics of its own, and all have to stop at once.
            total = trainer.accelerator.reduce(right.sum().to(args.device), "sum").item()
            control.should_training_stop |= total <= args.tolerance * len(right) * args.world_size + 1e-9


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted = np.asarray(prediction.predictions).argmax(axis=1)
    return {"accuracy": 100 * float((predicted == prediction.label_ids).mean())}
