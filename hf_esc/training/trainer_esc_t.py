"""ESC-T: a binary mask over the basis of the forget features, trained with the Trainer of transformers."""

# Shapes: N forget images, B of them in a batch, D feature dimensions, those d_g of all site groups side by side.

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..data.model_batches import NOTHING_TO_FORGET
from ..erasure.wrapping import wrapped_copy
from ..errors import ForgetSetError, IncompleteErasureWarning, MaskError, ModelError, SiteError
from ..features.basis import complete_basis
from ..features.moments import SecondMoment
from ..features.sites import SiteGroup
from ..hub.card import write_card
from ..ledger.record import Unchanged, ledger_record, refuse_all_classes
from ..modeling.factors import LowRankFactor, MaskedFactor
from ..modeling.modeling_esc import ESCModel
from .epochs import as_it_is
from .feature_source import FeatureSource
from .feature_store import ForgetFeatures, SharesLoader
from .mask_checkpoint import last_checkpoint, load_masks, save_masks
from .masked_head import MaskedHead, clamp, divide_by_largest, erased_span
from .safetensors_trainer import SafetensorsTrainer
from .training_args_esc_t import ESCTTrainingArguments

# How many times over an entry of the mask could go from 1 to 0 in a run, where no learning rate is given.
_CROSSINGS = 10
# And how far it goes in one step at the most.
_LARGEST_STEP = 0.2


class ESCTTrainer(SafetensorsTrainer):
    r"""
    Trains a mask over the basis of the forget features until the head is wrong about all of them (ESC-T).

    With U the complete basis of the forget features and M a mask of ones, minimise over M alone

    \[ L(M) = -\frac{1}{|S|} \sum_{x \in S} \mathrm{CE}(g(U_M U_M^\top h(x)), y), \qquad U_M = U \odot M , \]

    where S are the images of the batch that are still classified as y (Eq. 3 to 6 of
    [ESC](https://huggingface.co/papers/2504.02199)). M is clipped to [0, 1] after every step. In the end it is
    binarised, \(M_R = 1[M > \tau]\), and \(U_R U_R^\top\), \(U_R = U \odot M_R\), stands in front of the head.

    The features are computed once, in the constructor; a step is a d × d problem. "Still classified as y" is asked of
    the mask being trained and of the binarised one, and an image counts for S if either is right: what the first alone
    has forgotten would be remembered after binarising, and would no longer be trained on. Training stops at the first
    step after which the binarised mask gets no more than `args.tolerance` of *all* forget images right.

    Where several processes run, a batch is divided among them without repeating an image, and the average is taken
    over the images of all of them: two processes give the mask of one with the same global batches.

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers, or an [`ESCModel`], whose erasures stay and
            come first. It is not touched.
        args ([`ESCTTrainingArguments`]): How to train.
        train_dataset: The images to forget, with labels, as [`erase`] takes them; or their features: a
            `datasets.Dataset` with a `features` column `(D,)` and labels, batches `{"features": (B, D), "labels":
            (B,)}`, or the [`ForgetFeatures`] of another trainer. Features are what reaches the head of `model`.
        eval_dataset (*optional*): Images or features, or a dict of such, for `evaluate`: `eval_accuracy` is that of
            the mask as it will be used.
        processing_class (*optional*): The image processor; that of `model` by default.
        compute_metrics (`Callable`, *optional*): As in [`~transformers.Trainer`]; accuracy in % by default.
        callbacks, optimizer_cls_and_kwargs: As in [`~transformers.Trainer`].
        image_column, label_column (`str`, *optional*): Columns of data sets.
        sites (`Sequence[SiteGroup]`, *optional*): Where the head reads features; found by tracing otherwise.

    Attributes:
        erased_model ([`ESCModel`]): The result of `train()`, None before. `save_model` and `push_to_hub` write it.
        model ([`MaskedHead`]): What is being trained.
        train_dataset ([`ForgetFeatures`]): The features of the forget set.

    Raises:
        ForgetSetError: If the forget set is empty, has no labels, or the model is wrong about all of it already.
        LabelError: If a label is none of the model's, or no class would be left.
        SiteError: If the model has no classification head, or one that cannot be run on its features alone.
        MaskError: By `train()`, if the mask erases nothing in the end.
        CheckpointError: By `train(resume_from_checkpoint=…)`, if the checkpoint is of another model or forget set.

    Warns:
        IncompleteErasureWarning: By `train()`, if the limit was reached with more forget images right than allowed.
    """

    args: ESCTTrainingArguments
    model: MaskedHead
    train_dataset: ForgetFeatures
    # The loss is averaged over all that is accumulated, here and not by Trainer.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: ESCTTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        sites: Sequence[SiteGroup] | None = None,
    ):
        if args is None:
            args = ESCTTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, ESCTTrainingArguments):
            raise TypeError(f"`args` should be ESCTTrainingArguments, not {type(args).__name__}.")
        if train_dataset is None:
            raise ForgetSetError("ESC-T needs the images to forget, or their features, as `train_dataset`.")
        if args.n_gpu > 1:
            args._n_gpu = 1  # DataParallel would split a d × d problem at each step
        source = FeatureSource(model, args, processing_class, image_column, label_column, sites)
        if args.feature_cache_dir is not None:
            Path(args.feature_cache_dir).mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="hf_esc-", dir=args.feature_cache_dir))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.erased_model: ESCModel | None = None
        features, weights = source.features(train_dataset, self._folder / "forget.arrow")
        self._kind = "given" if source.given else "images"  # of the forget set, whatever `eval_dataset` is
        if not len(features):
            raise ForgetSetError(NOTHING_TO_FORGET)
        if args.scenario == "classes":
            refuse_all_classes(source.erased.config, features.labels.unique().tolist())
        if weights is None:
            raise SiteError(
                f"The head of this {type(source.erased.model).__name__} cannot be run on its features alone, and a "
                "mask can only be trained in front of one that can. `erase` (ESC) needs no such head."
            )
        self._moments = _second_moments(features, source.groups, args.device)
        bases = [broadcast(complete_basis(moment).float()) for moment in self._moments]
        self._wrapped = source.erased
        head = MaskedHead(
            source.erased.model,
            source.groups,
            weights,
            bases,
            [erased_span(projection.factors) for projection in source.erased.projections],
            tau=args.tau,
            threshold=args.threshold,
        )
        self._source = source
        self._looked_at = 0
        if isinstance(eval_dataset, dict | datasets.DatasetDict):
            eval_dataset = {name: self._features_of(split) for name, split in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._features_of(eval_dataset)
        super().__init__(
            model=head,
            args=args,
            data_collator=as_it_is,
            train_dataset=features,
            eval_dataset=eval_dataset,
            processing_class=source.processor,
            compute_metrics=compute_metrics or _accuracy,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.add_callback(_StopWhenForgotten(self))
        rows = range(args.process_index, len(features), args.world_size)
        self._chunks = [list(rows[start : start + 256]) for start in range(0, len(rows), 256)]
        self._chunk = 0
        self._forgotten = False
        self._saving_checkpoint = False
        self._best_step: int | None = None
        self._batch_right = 0.0
        self._step_size = 0.0
        self._right_before = self._right_by_label()
        right = sum(self._right_before.values())
        if not right:
            raise ForgetSetError(
                f"There is nothing to do: the model gives none of the {len(features)} forget images the class that "
                "its label says. Were they erased before, or are the labels not the model's class indices?"
            )
        if right <= self._most_right:
            raise ForgetSetError(
                f"There is nothing to do: the model gets {right} of the {len(features)} forget images right, and "
                f"`tolerance={args.tolerance}` lets that many stay. Lower it."
            )

    def _features_of(self, dataset: Any) -> ForgetFeatures:
        """Features of images that are to be looked at."""
        if isinstance(dataset, ForgetFeatures):
            return dataset
        self._looked_at += 1
        return self._source.features(dataset, self._folder / f"eval-{self._looked_at}.arrow")[0]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of features, of images too."""
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        return super().get_eval_dataloader(self._features_of(eval_dataset) if given else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Batches of features, of images too."""
        return super().get_test_dataloader(self._features_of(test_dataset))

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        return data_collator  # there are no columns in a batch of features

    @property
    def _seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    @property
    def _most_right(self) -> int:
        """How many forget images may stay right."""
        return int(self.args.tolerance * len(self.train_dataset) + 1e-9)

    # What is counted.

    @torch.no_grad()
    def _right_by_label(self, masks: list[Tensor] | None = None) -> dict[int, int]:
        """How many forget images of each label the head gets right, with `masks` or without any."""
        head = self.model
        total = torch.zeros(int(self.train_dataset.labels.max()) + 1, dtype=torch.long)
        for batch in self.train_dataset.batches():
            features, labels = (batch[name].to(self.args.device) for name in ("features", "labels"))
            right = head.logits(features, masks).argmax(dim=1) == labels
            total += torch.bincount(labels[right].cpu(), minlength=len(total))
        return {label: int(total[label]) for label in self.train_dataset.labels.unique().tolist()}

    @torch.no_grad()
    def _is_forgotten(self) -> bool:
        """
        Whether the mask in force gets no more than the tolerated share of all forget images right.

        Each process looks at its own part of the images, in an order that begins where the last look ended, and stops
        as soon as it has seen too many: nearly every look but the last is short.
        """
        most = self._most_right
        right = 0
        for number in range(len(self._chunks)):
            chunk = (self._chunk + number) % len(self._chunks)
            batch = self._prepare_inputs(self.train_dataset.__getitems__(self._chunks[chunk]))
            right += int(self.model.still_right(batch["features"], batch["labels"]).sum())
            if right > most:
                self._chunk = chunk
                break
        total = self.accelerator.reduce(torch.tensor(right, device=self.args.device), "sum")
        return int(total) <= most

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one step, with the images that count, and the number that the loss is divided by."""
        samples = []
        total = torch.zeros(3, device=device)  # images that count, images right with the mask in force, images
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batch = self._prepare_inputs(batch)
            features, labels = batch["features"], batch["labels"]
            in_force = self.model.still_right(features, labels)
            chosen = in_force | self.model.still_right(features, labels, trained=True)
            samples.append(batch | {"chosen": chosen})
            total += torch.stack([chosen.sum(), in_force.sum(), torch.tensor(len(chosen), device=device)]).to(total)
        total = self.accelerator.reduce(total, "sum")
        self._batch_right = (total[1] / total[2].clamp_min(1)).item()
        return samples, total[0 if self.args.loss_normalization == "correct" else 2]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch, so scaled that the gradients of all processes average to that of the global batch."""
        outputs = model(**inputs)
        loss = outputs["loss"]
        if model.training:
            loss = loss * self.args.world_size / num_items_in_batch.clamp_min(1)
        return (loss, outputs) if return_outputs else loss

    # How it is trained.

    def get_train_dataloader(self) -> DataLoader:
        """Batches of features: this process's share of each global batch, no image twice in an epoch."""
        args, seed = self.args, self._seed
        return SharesLoader(self.train_dataset, self._train_batch_size, args.process_index, args.world_size, seed=seed)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        self._step_size = min(_CROSSINGS / max_steps, _LARGEST_STEP)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of the masks, with what comes before and after each of its steps."""
        if self.optimizer is not None:
            return self.optimizer
        explicit = self.args.learning_rate
        try:
            self.args.learning_rate = self._step_size if explicit is None else explicit
            optimizer = super().create_optimizer(model)
        finally:
            self.args.learning_rate = explicit
        masks = list(self.model.masks)
        if explicit is None:
            optimizer.register_step_pre_hook(lambda *_: divide_by_largest(masks))
        if self.args.clip:
            optimizer.register_step_post_hook(lambda *_: clamp(masks))
        return optimizer

    def _run_epoch(self, *args, **kwargs):
        if self._forgotten:  # a run that was cut off after its last step: momentum alone would take more away
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the share of cut entries, and that of the last batch's images that are right with the mask in force."""
        if "loss" in logs:
            masks = torch.cat([mask.detach().flatten() for mask in self.model.masks])
            logs |= {"forget_right": self._batch_right, "mask_cut": (masks <= self.args.tau).float().mean().item()}
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """
        Train the mask and make [`erased_model`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): As in [`~transformers.Trainer`]. The run goes on to
                the very mask that it would have come to.

        Raises:
            MaskError: If the mask erases nothing.
            CheckpointError: If the checkpoint is of another model or forget set.
        """
        self.erased_model = None
        self._best_step = None
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir or "."))
        with torch.no_grad():
            for mask in self.model.masks:
                mask.fill_(1)  # a second run is not the first one's continuation, unless it resumes
        self.optimizer = self.lr_scheduler = None
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._make_erased_model()
        return output

    def _make_erased_model(self) -> None:
        head = self.model
        args, images = self.args, len(self.train_dataset)
        masks = head.masks_in_force()
        for index, mask in enumerate(masks):
            if (mask == 1).all() or not mask.any():
                raise MaskError(_useless(index, len(masks), self.state.global_step, whole=bool(mask.any())))
        right = self._right_by_label(masks)
        of = {label: int((self.train_dataset.labels == label).sum()) for label in right}
        of_classes = args.scenario == "classes"
        unchanged = Unchanged(
            sum(right.values()) / images,
            {label: right[label] / of[label] for label in right} if of_classes else None,
            sum(self._right_before.values()) / images,
        )
        incomplete = sum(right.values()) > self._most_right
        step = self.state.global_step if self._best_step is None else self._best_step
        stopped = "limit" if step >= self.state.max_steps else "interrupted" if self._best_step is None else "best"
        # That of the checkpoint, where the run was taken up again.
        rate = self.optimizer.param_groups[0].get("initial_lr", self.optimizer.param_groups[0]["lr"])
        record = ledger_record(
            self._wrapped.config,
            "esc-t",
            {
                "scenario": args.scenario,
                "tau": args.tau,
                "tolerance": args.tolerance,
                "loss_normalization": args.loss_normalization,
                "clip": args.clip,
                "threshold": args.threshold,
                "learning_rate": args.learning_rate,
                "step_size": rate if args.learning_rate is None else None,
                "batch_size": self._global_batch_size,
                "seed": self._seed,
                "features": self._kind,
                "steps": step,
                "max_steps": self.state.max_steps,
                "stopped": stopped if incomplete else "forgotten",
                "cut": [(mask == 0).float().mean().item() for mask in masks],
            },
            labels=right if of_classes else [],
            num_images=images,
            unchanged=unchanged,
            unchanged_of=images,
        )
        erased = wrapped_copy(self._wrapped, ())[0]
        factors = []
        for projection, basis, mask, after in zip(erased.projections, head.bases, masks, head.after, strict=True):
            last = [LowRankFactor.of(factor.basis.clone()) for factor in after]
            factors.append([*projection.factors, MaskedFactor.of(basis.clone(), mask), *last])
        erased.set_factors(factors, record, check=args.threshold)
        erased.image_processor = self.processing_class
        self.erased_model = erased
        if incomplete and of_classes:
            warnings.warn(
                f"The erasure is incomplete: after {step} steps, {sum(right.values())} of the {images} forget images "
                f"({unchanged.share:.1%}) are still classified as their labels say, and {args.tolerance:.1%} may be. "
                + (
                    "Train for more epochs, or with another `learning_rate` or `tau`."
                    if self._best_step is None
                    else "This is the checkpoint that `load_best_model_at_end` took for the best; leave that out."
                ),
                IncompleteErasureWarning,
                stacklevel=3,
            )

    # What is written and read.

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        if self._saving_checkpoint:
            save_masks(folder, self.model, self._settings())
            return
        if self.erased_model is None:
            raise ModelError("Nothing is erased yet, so there is no model to save: `train()` has to end first.")
        if not self.args.threshold:
            raise MaskError(
                "With `threshold=False` the mask is not binary. That is an ablation, to be looked at "
                "(`trainer.erased_model`), and is not saved."
            )
        self.erased_model.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        load_masks(Path(resume_from_checkpoint), self.model, self._moments, self._settings())

    def _save_checkpoint(self, model, trial) -> None:
        # A mask in training is written here alone, and never where a model is expected.
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    @property
    def _global_batch_size(self) -> int:
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _settings(self) -> dict[str, Any]:
        """What a run cannot change when it goes on, or its ledger would not be true."""
        args = self.args
        return {
            "tau": args.tau,
            "clip": args.clip,
            "threshold": args.threshold,
            "loss_normalization": args.loss_normalization,
            "learning_rate": args.learning_rate,
            "batch_size": self._global_batch_size,
            "seed": self._seed,
            "labels": hashlib.sha256(self.train_dataset.labels.numpy().tobytes()).hexdigest(),
        }

    def _load_best_model(self) -> None:
        self._best_step = self.state.best_global_step
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **kwargs,
    ) -> None:
        """The card of the erased model; `kwargs` of the card of a Trainer have no place in it."""
        if kwargs:
            raise TypeError(f"The card of an erased model takes language, license and tags, not {', '.join(kwargs)}.")
        if self.is_world_process_zero() and self.erased_model is not None:
            folder = Path(self.args.output_dir or ".")
            repo_id = getattr(self, "hub_model_id", None)
            write_card(self.erased_model, folder, repo_id=repo_id, language=language, license=license, tags=tags)


class _StopWhenForgotten(TrainerCallback):
    def __init__(self, trainer: ESCTTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._forgotten = self.trainer._is_forgotten()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= self.trainer._is_forgotten()


def _useless(index: int, count: int, steps: int, *, whole: bool) -> str:
    """What is wrong with a mask of ones (`whole`) or of zeros, and what to do."""
    if not whole:
        what = (
            "zeros: it leaves no feature. Train more gently: a smaller `learning_rate` or `tau`, or no `learning_rate`"
        )
    elif count == 1:
        what = (
            "ones: it erases nothing. Train for more epochs, a larger `learning_rate` or `tau`, or no `learning_rate`"
        )
    else:
        what = (
            "ones: these features would stay as they are, whatever the other heads forget. Try a larger `tau`, or "
            "`erase` (ESC), which takes directions of each head's features"
        )
    return f"After {steps} steps, mask {index} of {count} is one of {what}."


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted = np.asarray(prediction.predictions).argmax(axis=1)
    return {"accuracy": 100 * float((predicted == prediction.label_ids).mean())}


def _second_moments(features: ForgetFeatures, groups: Sequence[SiteGroup], device: torch.device) -> list[Tensor]:
    moments = [SecondMoment(group.dim, device) for group in groups]
    for batch in features.batches():
        parts = batch["features"].to(device).split([group.dim for group in groups], dim=1)
        for moment, z in zip(moments, parts, strict=True):
            moment.update(z)
    return [moment.matrix for moment in moments]
