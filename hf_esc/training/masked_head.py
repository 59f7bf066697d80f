"""The head of a frozen classifier behind trainable masks: the only part of the model that a step of ESC-T needs."""

# Shapes: B images, D feature dimensions, those d_g of all site groups side by side, S sites, C classes.

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import MaskError
from ..features.head import apply_sites, site_modules
from ..features.sites import SiteGroup
from ..modeling.factors import LowRankFactor


class MaskedHead(nn.Module):
    r"""
    The head \(f'(x) = g(U_M U_M^\top z)\) on features z, \(U_M = U \odot M\), with the masks M as its only parameters.

    In training mode M is what is being trained. In eval mode it is the mask *in force*, the one that the erased model
    gets: binarised, \(M_R = 1[M > \tau]\), unless `threshold` is False.

    Args:
        model (`PreTrainedModel`): The classifier, whose heads are copied.
        groups (`Sequence[SiteGroup]`): Where they read features.
        weights (`torch.Tensor` of shape `(S,)`): Weights of the heads' outputs in the logits, from [`head_weights`].
        bases (`Sequence[torch.Tensor]`): U `(d_g, d_g)` of each group.
        after (`Sequence[Tensor]`): For each group directions `(d_g, k)` that stay projected out behind the mask.
        tau (`float`): τ.
        threshold (`bool`): Whether the mask in force is binary.
    """

    accepts_loss_kwargs = False
    main_input_name = "features"
    heads: Any  # a ModuleList of ModuleLists
    after: Any  # likewise
    weights: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[SiteGroup],
        weights: Tensor,
        bases: Sequence[Tensor],
        after: Sequence[Tensor],
        *,
        tau: float,
        threshold: bool = True,
    ):
        super().__init__()
        self.groups = list(groups)
        self.tau = tau
        self.threshold = threshold
        self.heads = nn.ModuleList(
            nn.ModuleList(_bare_copy(module) for module in modules) for modules in site_modules(model, groups)
        ).requires_grad_(False)
        self.after = nn.ModuleList(
            nn.ModuleList([LowRankFactor.of(basis.float())] if basis.shape[1] else []) for basis in after
        )
        self.register_buffer("weights", weights.to(torch.float32))
        for index, basis in enumerate(bases):
            self.register_buffer(f"basis_{index}", basis.to(torch.float32))
        self.masks = nn.ParameterList(nn.Parameter(torch.ones(basis.shape)) for basis in bases)

    @property
    def bases(self) -> list[Tensor]:
        """U of each group."""
        return [getattr(self, f"basis_{index}") for index in range(len(self.groups))]

    def masks_in_force(self) -> list[Tensor]:
        """The masks that the erased model gets."""
        masks = [mask.detach() for mask in self.masks]
        return [(mask > self.tau).to(mask) for mask in masks] if self.threshold else masks

    def train(self, mode: bool = True) -> MaskedHead:
        """The heads stay in eval mode."""
        super().train(mode)
        self.heads.eval()
        return self

    def logits(self, features: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, D)`): As they reach the head.
            masks (`Sequence[Tensor]`, *optional*): `(d_g, d_g)` each. The features stay as they are by default.

        Returns:
            `torch.Tensor` of shape `(B, C)`: float32. Under autocast the heads run in its precision, and the masks
                stay in float32.
        """
        with torch.autocast(features.device.type, enabled=False):  # half precision would round the mask away
            parts = list(features.float().split([group.dim for group in self.groups], dim=1))
            if masks is not None:
                for index, (mask, basis) in enumerate(zip(masks, self.bases, strict=True)):
                    masked = basis * mask
                    parts[index] = (parts[index] @ masked) @ masked.T
                    for factor in self.after[index]:
                        parts[index] = factor(parts[index])
        outputs = apply_sites(list(self.heads), self.groups, parts).float()  # (S, B, C)
        return torch.einsum("s,snc->nc", self.weights, outputs)

    @torch.no_grad()
    def still_right(self, features: Tensor, labels: Tensor, *, trained: bool = False) -> Tensor:
        """
        Which images are classified as their labels say, `(B,)`: with the masks in force, or with those being trained
        (`trained`).
        """
        masks = list(self.masks) if trained else self.masks_in_force()
        return self.logits(features, masks).argmax(dim=1) == labels

    def forward(self, features: Tensor, labels: Tensor | None = None, chosen: Tensor | None = None) -> ModelOutput:
        r"""
        Args:
            features (`torch.Tensor` of shape `(B, D)`): As they reach the head.
            labels (`torch.Tensor` of shape `(B,)`, *optional*): Class indices.
            chosen (`torch.Tensor` of shape `(B,)`, *optional*): In training, which images count for the loss.

        Returns:
            `ModelOutput`: `loss`, in training the *sum* of \(-\mathrm{CE}(f'(x), y)\) over the chosen images (Eq. 5 of
            [ESC](https://huggingface.co/papers/2504.02199)), else the mean cross-entropy; and `logits` `(B, C)`.
        """
        logits = self.logits(features, list(self.masks) if self.training else self.masks_in_force())
        if labels is None:
            return ModelOutput(logits=logits)
        if not self.training:
            return ModelOutput(loss=functional.cross_entropy(logits, labels), logits=logits)
        # The cross-entropy, in a form whose gradient 1 - p_y does not round to 0 where p_y rounds to 1.
        row = labels[:, None]
        others = logits.scatter(1, row, -torch.inf).logsumexp(dim=1)
        entropy = functional.softplus(others - logits.gather(1, row)[:, 0])
        # A product and not a selection, so that processes with no chosen image have a gradient (zero) to average.
        counted = torch.ones_like(entropy) if chosen is None else chosen.to(entropy)
        return ModelOutput(loss=-(entropy * counted).sum(), logits=logits)


def erased_span(factors: Iterable[Any]) -> Tensor:
    """
    The directions that low-rank factors have projected out so far, orthonormal `(d, k)`.

    A mask mixes directions, as it is no projection. So the directions are projected out a second time behind it, or a
    part of what was erased before would come back.
    """
    bases = [factor.basis for factor in factors if factor.joins]
    if not bases:
        return torch.empty(0, 0)
    u, s, _ = torch.linalg.svd(torch.cat(bases, dim=1).cpu().double(), full_matrices=False)
    return u[:, s > 1e-6]


@torch.no_grad()
def divide_by_largest(masks: Sequence[Tensor]) -> None:
    """Divide the gradients of all masks by the largest entry of any: the rule of [`ESCTTrainingArguments`]."""
    gradients = [mask.grad for mask in masks if mask.grad is not None]
    largest = torch.stack([gradient.abs().max() for gradient in gradients]).max() if gradients else torch.tensor(0.0)
    if largest > 0:
        for gradient in gradients:
            gradient.div_(largest)


@torch.no_grad()
def clamp(masks: Sequence[Tensor]) -> None:
    """Keep the entries of all masks in [0, 1]."""
    for mask in masks:
        mask.clamp_(0, 1)


def refuse_useless(masks: Sequence[Tensor], steps: int) -> None:
    """Raise a [`MaskError`] where a mask in force is one of ones, which erases nothing, or one of zeros."""
    for index, mask in enumerate(masks):
        if mask.any() and not (mask == 1).all():
            continue
        if not mask.any():
            what = (
                "zeros: it leaves no feature. Train more gently: a smaller `learning_rate` or `tau`, or no "
                "`learning_rate`"
            )
        elif len(masks) == 1:
            what = (
                "ones: it erases nothing. Train for more epochs, a larger `learning_rate` or `tau`, or no "
                "`learning_rate`"
            )
        else:
            what = (
                "ones: these features would stay as they are, whatever the other heads forget. Try a larger `tau`, or "
                "`erase` (ESC), which takes directions of each head's features"
            )
        raise MaskError(f"After {steps} steps, mask {index} of {len(masks)} is one of {what}.")


def _bare_copy(module: nn.Module) -> nn.Module:
    """A copy without hooks: the features at hand have passed the projection in front of the head already."""
    copied = copy.deepcopy(module)
    copied._forward_pre_hooks.clear()
    copied._forward_hooks.clear()
    return copied
