"""The Trainer that every unlearning method is a small subclass of."""

# Shapes: N forget images, B of them in a batch, C classes.

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..errors import DivergenceError, ForgetSetError, IncompleteErasureWarning, ModelError
from ..features import model_inputs
from ..ledger import MOST_UNCHANGED, Unchanged, ledger_record, refuse_all_classes
from ..modeling_esc import ESCModel
from ..outputs import logits_of
from ..safetensors_trainer import SafetensorsTrainer
from ..sites import evaluating
from .batches import PairedLoader, Schedule, Step, alone, as_it_is, paired, shuffled
from .images import LabelledImages, labelled_images
from .losses import forbidden
from .training_args import UnlearningArguments

# `{"inputs": what the model takes, "labels": (B,), "rows": (B,)}`
Images = dict[str, Any]


class UnlearningTrainer(SafetensorsTrainer):
    r"""
    Trains a copy of a classifier to forget images. A method is a subclass that overrides [`unlearning_loss`], and,
    where it needs more, [`steps`] or [`prepare`].

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
        arguments (`type`): The kind of its arguments.
        teacher (`PreTrainedModel`): The given model.

    Raises:
        ForgetSetError: If a set is missing or empty, has no labels, or both share images, or if the model is wrong
            about all forget images already.
        LabelError: If a label is none of the model's, or no class would be left.
        ModelError: If it is an [`ESCModel`], or none of its weights can be trained.
        DivergenceError: By `train()`, if the loss or a weight is no longer finite. The last checkpoint stays.

    Warns:
        IncompleteErasureWarning: By `train()`, if more than 10 % of the forget images of a class were classified right
            and still are.
    """

    method: ClassVar[str]
    uses_forget: ClassVar[bool] = True
    uses_retain: ClassVar[bool] = False
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
            self.forget.refuse_overlap(self.retain)
        self.forget_labels = self.forget.labels.unique()
        if args.scenario == "classes":
            refuse_all_classes(model.config, self.forget_labels.tolist())
        self.teacher = model
        self.num_labels: Any = model.config.num_labels
        self._looked_at = {
            "image_column": image_column,
            "label_column": label_column,
            "memory": args.image_memory,
            "processor": processor,
        }
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
        self._original_logits = self.logits_of_all(self.teacher, self.forget)
        self._before = self._original_logits.argmax(dim=1)
        if args.scenario == "classes" and not (self._before == self.forget.labels).any():
            raise ForgetSetError(
                f"There is nothing to do: the model gives none of the {len(self.forget)} forget images the class that "
                "its label says. Were they erased before, or are the labels not the model's class indices?"
            )
        self.prepare()

    # What a method overrides.

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        """The loss of a step. `forget` and `retain` are those of its images, None where it has none."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What has to be known before the first step, such as the labels that images are sent to."""

    def steps(self, epoch: int, generator: torch.Generator) -> list[Step]:
        """The steps of an epoch, of all processes together, with rows drawn from `generator`."""
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
        schedule = Schedule(self.steps, args.process_index, args.world_size, seed=seed)
        return PairedLoader(self.forget, self.retain, schedule, args.dataloader_num_workers)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial):
        found = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is None or self.args.ignore_data_skip or self.args.gradient_accumulation_steps > 1:
            return found
        return self.get_train_dataloader().schedule.position(self.state.global_step)  # epochs need not be of a length

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
        kept = sorted(Path(self.args.output_dir or ".").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        return DivergenceError(
            f"{self.method} diverged at step {self.state.global_step}: {what}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint to go back to. ")
            + f"Take a smaller `learning_rate` than {self.args.learning_rate}, or clip gradients with `max_grad_norm` "
            f"(now {self.args.max_grad_norm})."
        )

    def _check_finite(self) -> None:
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise self._diverged(f"{name!r} is not finite")
        # Weights can be finite, and too large for the layers after them.
        some = self.forget.part(torch.arange(min(len(self.forget), self.args.per_device_eval_batch_size)))
        if not torch.isfinite(self.logits_of_all(self.model, some)).all():
            raise self._diverged("the logits of forget images are not finite")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """
        Train from the original's weights on, or from a checkpoint's, and write the ledger.

        Raises:
            DivergenceError: If the loss or a weight is no longer finite.
        """
        self._erased = False
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
            self.settings() | {"steps": self.state.global_step, "data": self._data()} | self._retain_images(),
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
                unchanged, self.method, "Train longer, with a larger `learning_rate`, or take another method."
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
        names += ["learning_rate", "num_train_epochs", "optim", "optim_args", "weight_decay", "max_grad_norm", "seed"]
        found = {name: getattr(args, name) for name in names}
        sizes = {"batch_size": self.forget_batch_size * args.gradient_accumulation_steps}
        if self.uses_retain:
            sizes["retain_batch_size"] = self.retain_batch_size * args.gradient_accumulation_steps
        return found | {"optim": str(getattr(args.optim, "value", args.optim))} | sizes

    # What is looked at.

    def _images_of(self, images: Any) -> Any:
        if images is None or isinstance(images, LabelledImages):
            return images
        if isinstance(images, dict):
            return {name: self._images_of(part) for name, part in images.items()}
        processor = self._looked_at["processor"]
        rest = {name: value for name, value in self._looked_at.items() if name != "processor"}
        return labelled_images(self.teacher, images, processor, what="evaluation set", **rest)[0]

    def get_eval_dataloader(self, eval_dataset: Any = None):
        """Batches of images as [`LabelledImages`] gives them."""
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        return super().get_eval_dataloader(self._images_of(eval_dataset) if given else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any):
        """Batches of images as [`LabelledImages`] gives them."""
        return super().get_test_dataloader(self._images_of(test_dataset))

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
        self._erased, erased = True, self._erased
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._erased = erased

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self._erased:
            raise ModelError("Nothing is forgotten yet, so there is no model to save: `train()` has to end first.")
        super()._save(output_dir, state_dict)


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy to be changed; a [`ModelError`] where that makes no sense."""
    if isinstance(model, ESCModel) or model.config.model_type == "esc":
        raise ModelError(
            "This is an erased model, whose projection stands in front of the head that would be trained. Unlearn "
            "first and erase from the result, or erase from this one again."
        )
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ModelError("The model, or a part of it, is offloaded. Load it whole on one device to train it.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("All weights of the model are frozen (`requires_grad` is False), and none could be trained.")
    return copy.deepcopy(model)


def unchanged_predictions(before: Tensor, after: Tensor, labels: Tensor, *, by_label: bool) -> Unchanged:
    """Which of the forget images were right and still are, as [`Unchanged`] counts them."""
    right = before == labels
    same = right & (after == before)
    shares = None
    if by_label:
        shares = {label: same[labels == label].double().mean().item() for label in labels.unique().tolist()}
    return Unchanged(same.double().mean().item(), shares, right.double().mean().item())


def warn_of_unchanged(unchanged: Unchanged, method: str, advice: str) -> None:
    """Warn where a class was not forgotten, and say what to do."""
    if unchanged.worst > MOST_UNCHANGED:
        worst = "" if len(unchanged.by_label or ()) < 2 else f", and {unchanged.worst:.1%} of those of a class,"
        warnings.warn(
            f"The erasure is incomplete: after {method}, {unchanged.share:.1%} of the forget images{worst} are still "
            f"classified as their labels say. {advice}",
            IncompleteErasureWarning,
            stacklevel=4,
        )


class _StopAtTolerance(TrainerCallback):
    def __init__(self, trainer: UnlearningTrainer):
        self.trainer = trainer

    def on_epoch_end(self, args, state, control, **kwargs):
        if args.tolerance is not None:
            trainer = self.trainer
            right = trainer.logits_of_all(trainer.model, trainer.forget).argmax(dim=1) == trainer.forget.labels
            control.should_training_stop |= right.double().mean().item() <= args.tolerance


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted = np.asarray(prediction.predictions).argmax(axis=1)
    return {"accuracy": 100 * float((predicted == prediction.label_ids).mean())}
