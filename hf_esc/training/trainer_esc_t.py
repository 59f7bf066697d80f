"""ESC-T: a binary mask over the basis of the forget features, trained with the Trainer of transformers."""

# Shapes: N forget images, B of them in a batch, D feature dimensions, those d_g of all site groups side by side.

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from ..data.model_batches import NOTHING_TO_FORGET
from ..erasure.wrapping import wrapped_copy
from ..errors import ForgetSetError, MaskError, SiteError
from ..features.basis import complete_basis
from ..features.sites import SiteGroup
from ..ledger.record import IN_FRONT, Unchanged, refuse_all_classes, warn_if_incomplete
from ..modeling.factors import LowRankFactor, MaskedFactor
from ..modeling.modeling_esc import ESCModel
from ..saving import make_own_folder, remove_own_folder, reported
from .feature_source import FeatureSource
from .feature_store import ForgetFeatures, SharesLoader
from .forgetting_trainer import ForgettingTrainer, nothing_to_forget
from .forgotten import StopWhenForgotten, right_by_label
from .mask_checkpoint import load_masks, save_masks
from .masked_head import MaskedHead, clamp, divide_by_largest, erased_span, refuse_useless
from .training_args_esc_t import ESCTTrainingArguments

# How many times over an entry of the mask could go from 1 to 0 in a run, where no learning rate is given.
_CROSSINGS = 10
# The most that an entry moves in one step then.
_LARGEST_STEP = 0.2


class ESCTTrainer(ForgettingTrainer):
    r"""
    Trains a mask over the basis of the forget features until the head is wrong about all of them (ESC-T).

    With U the complete basis of the forget features and M a mask of ones, minimise over M alone

    \[ L(M) = -\frac{1}{|S|} \sum_{x \in S} \mathrm{CE}(g(U_M U_M^\top h(x)), y), \qquad U_M = U \odot M , \]

    where S are the images of the batch that are still classified as y (Eq. 3 to 6 of
    [ESC](https://huggingface.co/papers/2504.02199)). M is clipped to [0, 1] after every step. In the end it is
    binarised, \(M_R = 1[M > \tau]\), and \(U_R U_R^\top\), \(U_R = U \odot M_R\), stands in front of the head.

    The features are computed once, in the constructor; a step is a d × d problem. An image stays in S while the mask
    being trained or the binarised mask still classifies it as y: if only the first one counted, the training would
    leave an image alone that the binarised mask still knows. Training stops after the first step at which the
    binarised mask gets no more than `args.tolerance` of *all* forget images right.

    Where several processes run, a batch is divided among them without repeating an image, and the average is taken
    over the images of all of them: two processes give the mask of one with the same global batches.

    Args:
        model (`PreTrainedModel`): Any image classifier of transformers, or an [`ESCModel`], whose erasures stay and
            come first. It is not changed.
        args ([`ESCTTrainingArguments`]): How to train.
        forget_set: The images to forget, with labels, as [`erase`] takes them; or their features: a
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
        erased_model ([`ESCModel`]): The result of `train()`; None until it has ended. `save_model` and `push_to_hub`
            write it.
        model ([`MaskedHead`]): What is being trained.
        train_dataset ([`ForgetFeatures`]): The features of the forget set.

    Raises:
        ForgetSetError: If the forget set is empty, has no labels, or the model is wrong about all of it already.
        LabelError: If the model does not have a label, or no class would be left.
        SiteError: If the model has no classification head, or one that cannot be run on its features alone.
        MaskError: By `train()`, if the mask erases nothing in the end.
        CheckpointError: By `train(resume_from_checkpoint=…)`, if the checkpoint is of another model, forget set or
            settings.

    Warns:
        IncompleteErasureWarning: By `train()`, if the limit was reached with more forget images right than allowed.
    """

    method = "esc-t"
    kind = IN_FRONT
    arguments = ESCTTrainingArguments
    needs = "the images to forget, or their features,"

    args: ESCTTrainingArguments
    model: MaskedHead
    train_dataset: ForgetFeatures
    # `get_batch_samples` counts the images of all accumulated batches, so Trainer must not average the loss again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: ESCTTrainingArguments | None = None,
        forget_set: Any = None,
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
        args = self.checked_arguments(args, forget_set)
        self._source = FeatureSource(model, args, processing_class, image_column, label_column, sites)
        if args.feature_cache_dir is not None:
            Path(args.feature_cache_dir).mkdir(parents=True, exist_ok=True)
        self._folder = make_own_folder(args.feature_cache_dir, "hf_esc-")
        weakref.finalize(self, remove_own_folder, self._folder)
        self._evaluated = 0
        with reported(self._folder):
            features, weights = self._source.features(forget_set, self._folder / "forget.arrow")
        # Remember it now: evaluation sets go through the same source, and can be of the other kind.
        self._features_are = "given" if self._source.given else "images"
        super().__init__(
            model=self._masked_head(features, weights, args),
            args=args,
            train_dataset=features,
            eval_dataset=eval_dataset,
            processing_class=self._source.processor,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self._stop = StopWhenForgotten(self)
        self.add_callback(self._stop)
        self._batch_right = 0.0
        self._step_size = 0.0
        self._right_before = self._right_by_label()
        self._refuse_nothing_to_do()

    def _masked_head(
        self, features: ForgetFeatures, weights: Tensor | None, args: ESCTTrainingArguments
    ) -> MaskedHead:
        erased, groups = self._source.erased, self._source.groups
        if not len(features):
            raise ForgetSetError(NOTHING_TO_FORGET)
        if args.scenario == "classes":
            refuse_all_classes(erased.config, features.labels.unique().tolist())
        if weights is None:
            raise SiteError(
                f"The head of this {type(erased.model).__name__} cannot be run on its features alone, and a mask can "
                "only be trained in front of one that can. `erase` (ESC) needs no such head."
            )
        self._moments = features.second_moments([group.dim for group in groups], args.device)
        return MaskedHead(
            erased.model,
            groups,
            weights,
            [broadcast(complete_basis(moment).float()) for moment in self._moments],
            [erased_span(projection.factors) for projection in erased.projections],
            tau=args.tau,
            threshold=args.threshold,
        )

    def _refuse_nothing_to_do(self) -> None:
        right = sum(self._right_before.values())
        if not right:
            raise nothing_to_forget(len(self.train_dataset))
        if right <= self.most_right:
            raise ForgetSetError(
                f"There is nothing to do: the model gets {right} of the {len(self.train_dataset)} forget images "
                f"right, and `tolerance={self.args.tolerance}` lets that many stay. Lower it."
            )

    @property
    def most_right(self) -> int:
        """How many forget images may stay right."""
        return int(self.args.tolerance * len(self.train_dataset) + 1e-9)

    @property
    def erased_model(self) -> Any:
        """The [`ESCModel`] that `train()` made; None until it has ended."""
        return self.result

    def evaluation_set(self, data: Any) -> ForgetFeatures:
        """The features of images, or features as they are."""
        if isinstance(data, ForgetFeatures):
            return data
        self._evaluated += 1
        return self._source.features(data, self._folder / f"eval-{self._evaluated}.arrow")[0]

    def _right_by_label(self, masks: list[Tensor] | None = None) -> dict[int, int]:
        return right_by_label(self.model, self.train_dataset, self.args.device, masks)

    # How it is trained.

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

    def get_train_dataloader(self) -> DataLoader:
        """Batches of features: this process's share of each global batch, no image twice in an epoch."""
        args = self.args
        return SharesLoader(
            self.train_dataset, self._train_batch_size, args.process_index, args.world_size, seed=self.order_seed
        )

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
        # A run that was cut off after its last step has nothing left to do. Momentum alone would go on cutting.
        if self._stop.at_start:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the share of cut entries, and the share of the last batch that is right with the mask in force."""
        if "loss" in logs:
            masks = torch.cat([mask.detach().flatten() for mask in self.model.masks])
            logs |= {"forget_right": self._batch_right, "mask_cut": (masks <= self.args.tau).float().mean().item()}
        super().log(logs, start_time)

    @torch.no_grad()
    def start(self) -> None:
        """Masks of ones, which erase nothing."""
        for mask in self.model.masks:
            mask.fill_(1)

    def finish(self) -> None:
        """Put the mask in front of the head, and warn where it has not forgotten enough."""
        masks = self.model.masks_in_force()
        refuse_useless(masks, self.state.global_step)
        right = self._right_by_label(masks)
        record = self._mask_record(masks, right)
        self._result = self._erased_model(masks, record)
        left, images = sum(right.values()), len(self.train_dataset)
        warn_if_incomplete(
            self._source.erased.config,
            record,
            f"after {self.last_step} steps, {left} of the {images} forget images ({left / images:.1%}) are still "
            f"classified as their labels say, and {self.args.tolerance:.1%} may be",
            advice="Train for more epochs, or with another `learning_rate` or `tau`."
            if self._best_step is None
            else "`load_best_model_at_end` took this checkpoint for the best one; leave that out.",
        )

    def _erased_model(self, masks: Sequence[Tensor], record: dict[str, Any]) -> ESCModel:
        head = self.model
        erased = wrapped_copy(self._source.erased, ())[0]
        factors = []
        for projection, basis, mask, after in zip(erased.projections, head.bases, masks, head.after, strict=True):
            last = [LowRankFactor.of(factor.basis.clone()) for factor in after]
            factors.append([*projection.factors, MaskedFactor.of(basis.clone(), mask), *last])
        erased.set_factors(factors, record, check=self.args.threshold)
        erased.image_processor = self.processing_class
        return erased

    # What is told and kept.

    def settings(self) -> dict[str, Any]:
        """Adds the arguments of the mask. Without a learning rate, gradients are divided by their largest entry."""
        args = self.args
        found = super().settings() | {
            name: getattr(args, name) for name in ("tau", "loss_normalization", "clip", "threshold")
        }
        found["batch_size"] = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
        found |= {"seed": self.order_seed, "data_seed": None}  # nothing but the order of the images is drawn
        return found | ({"learning_rate": None} if args.learning_rate is None else {})

    @property
    def may_change(self) -> frozenset[str]:
        """A run that stopped too early can be given more patience, and more time where no schedule depends on it."""
        longer = {"num_train_epochs", "max_steps"} if self.args.lr_scheduler_type == "constant" else set()
        return frozenset({"tolerance", *longer})

    def identity(self) -> dict[str, Any]:
        """The labels in their order. The basis in the checkpoint tells whether the images are the same."""
        return {"labels": hashlib.sha256(self.train_dataset.labels.numpy().tobytes()).hexdigest()}

    def _mask_record(self, masks: Sequence[Tensor], right: dict[int, int]) -> dict[str, Any]:
        """The record of these masks, with which so many images of each label are right."""
        args, labels, images = self.args, self.train_dataset.labels, len(self.train_dataset)
        shares = {label: right[label] / int((labels == label).sum()) for label in right}
        if sum(right.values()) <= self.most_right:
            stopped = "forgotten"
        elif self.last_step >= self.state.max_steps:
            stopped = "limit"
        else:
            stopped = "interrupted" if self._best_step is None else "best"
        # A run that went on has the step size of its checkpoint, so ask the optimizer.
        group = self.optimizer.param_groups[0]
        return self.record(
            self._source.erased.config,
            Unchanged(
                sum(right.values()) / images,
                shares if self.forgets_classes else None,
                sum(self._right_before.values()) / images,
                shares if self.forgets_classes else None,
            ),
            labels=right,
            num_images=images,
            step_size=group.get("initial_lr", group["lr"]) if args.learning_rate is None else None,
            features=self._features_are,
            stopped=stopped,
            cut=[(mask == 0).float().mean().item() for mask in masks],
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self._saving_checkpoint:
            if self.args.should_save:
                save_masks(Path(output_dir or self.args.output_dir or "."), self.model, self.run())
            return
        if self._finished() is not None and not self.args.threshold:
            raise MaskError(
                "With `threshold=False` the mask is not binary. That is an ablation, to be looked at "
                "(`trainer.erased_model`), and is not saved."
            )
        super()._save(output_dir, state_dict)

    def _save_result(self, folder: Path, state_dict: dict | None) -> None:
        self._finished().save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        load_masks(Path(resume_from_checkpoint), self.model, self._moments, self.run())
