"""Boundary Shrink: forget images are taught the class on the other side of their nearest boundary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.batches import image_channels
from ..errors import ModelError, OptionError
from ..features.sites import evaluating
from ..features.stream import model_inputs
from ..modeling.outputs import logits_of
from .trainer import Images, UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class BoundaryShrinkArguments(UnlearningArguments):
    """
    Reference settings: 10 epochs, learning rate 1e-5, epsilon 0.1.

    Args:
        epsilon (`float`, defaults to 0.1): Step of the attack, with pixels from 0 to 1.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the forget set."})
    epsilon: float = field(default=0.1, metadata={"help": "Step of the attack, with pixels from 0 to 1."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.epsilon <= 1:
            raise OptionError(f"`epsilon` is above 0 and up to 1, the range of pixels, not {self.epsilon}.")


class BoundaryShrinkTrainer(UnlearningTrainer):
    r"""
    Boundary Shrink (BS), from forget images alone.

    \[L = \mathrm{CE}(f(x), \hat y), \qquad \hat y = \arg\max_{c \ne y} f_0(x')_c, \qquad
    x' = \mathrm{clip}_{[0, 1]}(x + \varepsilon\,\mathrm{sign}\,\nabla_x \mathrm{CE}(f_0(x), y))\]

    with pixels x from 0 to 1: step and range are scaled to the pixels that the image processor makes. An attack that
    fails would teach y again, so y is left out of the argmax (with `mask="all"`, every class in the forget set is).
    Each image is attacked once, as the attack is one on the original.

    Source: Chen et al., arXiv 2303.11570 (CVPR 2023). Data: forget. Arguments: [`BoundaryShrinkArguments`], and those
    of [`UnlearningTrainer`].

    Raises:
        ModelError: If there is no image processor, or its output is no image.
    """

    method = "boundary-shrink"
    arguments = BoundaryShrinkArguments

    def prepare(self) -> None:
        """Attack each forget image once."""
        low, high = pixel_range(self.processing_class, self.teacher)
        self._pixels = pixels_of(self.teacher, self.forget.__getitems__([0])["inputs"])
        targets, failed = [], 0
        for batch in self.forget.batches(self.args.per_device_eval_batch_size):
            labels = batch["labels"].to(self.args.device)
            logits = self._attacked(model_inputs(self.teacher, batch["inputs"]), labels, low, high)
            failed += int((logits.argmax(dim=1) == labels).sum())
            targets.append(logits.masked_fill(self.forbidden(labels), float("-inf")).argmax(dim=1).cpu())
        self.nearest = torch.cat(targets)
        self.failed_attacks = failed / len(self.forget)

    def _attacked(self, inputs: dict[str, Tensor], labels: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The original's logits `(B, C)` for attacked images: one step along the sign of the loss's gradient."""
        name = self._pixels
        x = inputs[name].detach().requires_grad_(True)
        low, high = (bound.to(x.device, x.dtype) for bound in (low, high))
        with evaluating(self.teacher):
            with torch.enable_grad():
                logits = logits_of(self.teacher(**inputs | {name: x}), self.num_labels).float()
                [gradient] = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), x)
            with torch.no_grad():
                step = self.args.epsilon * (high - low) * gradient.sign()
                attacked = torch.minimum(torch.maximum(x + step, low), high)
                return logits_of(self.teacher(**inputs | {name: attacked}), self.num_labels).float()

    def unlearning_loss(self, model: nn.Module, forget: Images | None, retain: Images | None) -> Tensor:
        assert forget is not None
        logits = self.logits(model, forget)
        return functional.cross_entropy(logits, self.nearest[forget["rows"].cpu()].to(logits.device))

    def settings(self) -> dict[str, Any]:
        """Adds the share of attacks that failed."""
        return super().settings() | {"failed_attacks": self.failed_attacks}


def pixels_of(model: Any, batch: Mapping[str, Tensor]) -> str:
    """The name of the images in a batch. The model's main input and the processor's output can differ in name."""
    if model.main_input_name in batch:
        return model.main_input_name
    images = [name for name, value in batch.items() if value.is_floating_point() and value.dim() == 4]
    if len(images) != 1:
        raise ModelError(
            f"A batch for {type(model).__name__} holds {', '.join(batch)}, and it is unclear which are images."
        )
    return images[0]


def pixel_range(processor: Any, model: Any) -> tuple[Tensor, Tensor]:
    """
    The values of black and of white pixels after an image processor, each `(c, 1, 1)`.

    Processors rescale and normalise in many ways, so a black and a white image are processed to find out.

    Raises:
        ModelError: If there is no processor, or both images are the same after it.
    """
    if processor is None:
        raise ModelError(
            f"{type(model).__name__} has no image processor, which is needed to know the range of pixels after "
            "preprocessing. Give it as `processing_class`."
        )
    mode = "L" if image_channels(model.config) == 1 else "RGB"
    pictures = [PIL.Image.new(mode, (64, 64), color) for color in ("black", "white")]
    given = dict(processor(images=pictures, return_tensors="pt"))
    ends = given[pixels_of(model, given)].float()
    if ends.dim() != 4:
        raise ModelError(
            f"{type(processor).__name__} makes {tuple(ends.shape[1:])} of an image, and the attack moves the pixels "
            "of `(c, H, W)`."
        )
    middle = ends[:, :, ends.shape[2] // 2, ends.shape[3] // 2]  # padding is at the edges
    low, high = middle.amin(dim=0)[:, None, None], middle.amax(dim=0)[:, None, None]
    if not (torch.isfinite(middle).all() and (low < high).all()):
        raise ModelError(
            f"Black and white pixels are the same after {type(processor).__name__}, so their range cannot be told."
        )
    return low, high


__all__ = ["BoundaryShrinkArguments", "BoundaryShrinkTrainer", "pixel_range"]
