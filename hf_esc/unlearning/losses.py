"""Terms that the losses of several methods share."""

# Shapes: B images, C classes.

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import LabelError


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""
    \(T^2\, \mathrm{KL}(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T))\), the mean over the images.

    The factor keeps the size of gradients the same for every temperature. Classes whose teacher logit is \(-\infty\)
    contribute nothing.

    Args:
        teacher_logits, student_logits (`torch.Tensor` of shape `(B, C)`): \(t\) and \(s\).
        temperature (`float`, defaults to 1): T.
    """
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    student = functional.log_softmax(student_logits.float() / temperature, dim=1)
    terms = torch.where(teacher.isneginf(), 0.0, teacher.exp() * (teacher - student))
    return temperature**2 * terms.sum(dim=1).mean()


def forbidden(labels: Tensor, num_labels: int, forgotten: Tensor | None = None) -> Tensor:
    r"""
    Which classes an image may not be sent to, `(B, C)`: its own, and those in `forgotten`.

    Args:
        labels (`torch.LongTensor` of shape `(B,)`): Labels of the images.
        num_labels (`int`): C.
        forgotten (`torch.LongTensor`, *optional*): All classes that are forgotten.

    Raises:
        LabelError: If no class is left.
    """
    mask = functional.one_hot(labels, num_labels).bool()
    if forgotten is not None:
        mask[:, forgotten] = True
    if mask.all(dim=1).any():
        raise LabelError(
            "No class is left that an image could be sent to: every class is to be forgotten. Take `mask='own'`."
        )
    return mask


def draw_labels(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A class for each image, uniform over those that are not in `mask` `(B, C)`: `(B,)`, on the CPU."""
    allowed = (~mask).double().cpu()
    return torch.multinomial(allowed, 1, generator=generator)[:, 0]
