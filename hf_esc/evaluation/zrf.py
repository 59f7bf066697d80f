"""Zero retrain forgetting (ZRF): how close a model's answers on the forget set are to a random network's."""

# Shapes: N images, C classes.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from ..errors import MetricError
from .membership import finite_logits

Base = Literal[2, "e"]


@dataclass(frozen=True)
class ZeroRetrainForgetting:
    """
    ZRF of a model on forget images.

    The random network itself has 1. A retrained model does not: compare with the original and with a retrained model,
    both measured against the same random network.

    Args:
        zrf (`float`): Higher is closer to the random network: from 0 to 1 with base 2, from 1 - ln 2 = 0.307 to 1 with
            base e.
        base (`int` or `str`): Base of the logarithm, 2 or `"e"`.
        images (`int`): N, the number of forget images.
    """

    zrf: float
    base: Base
    images: int


def zero_retrain_forgetting(logits: Tensor, random_logits: Tensor, *, base: Base = 2) -> ZeroRetrainForgetting:
    r"""
    ZRF of [Chundawat et al.](https://huggingface.co/papers/2205.08096): \(1 - \frac{1}{N} \sum_i JS(p_i \| q_i)\) over
    \(D_f\), where \(p_i\) is the model's distribution over classes and \(q_i\) that of a randomly initialised network
    of the same architecture.

    The code published with that paper also takes the mean over the classes, and swaps the arguments of each
    divergence, so its numbers differ from these.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): The model's logits for the forget images.
        random_logits (`torch.Tensor` of shape `(N, C)`): The random network's logits for the same images in the same
            order.
        base (`int` or `str`, defaults to 2): Base of the logarithm: 2, with which JS and ZRF are from 0 to 1, or
            `"e"`.

    Returns:
        [`ZeroRetrainForgetting`]

    Raises:
        MetricError: If the two are not `(N, C)` of the same shape, or there is no such base.
        NonFiniteError: If a logit is NaN or infinite.
    """
    return ZeroRetrainForgetting(
        zrf=1 - jensen_shannon(logits, random_logits, base=base).mean().item(), base=base, images=len(logits)
    )


def jensen_shannon(logits: Tensor, other_logits: Tensor, *, base: Base = 2) -> Tensor:
    r"""
    The Jensen-Shannon divergence of each image,
    \(JS(p \| q) = \tfrac12 KL(p \| m) + \tfrac12 KL(q \| m)\), \(m = \tfrac12 (p + q)\).

    It is computed as \(KL(p \| m) = \sum_c p_c (\ln 2 - \ln(1 + q_c / p_c))\), which is exactly 0 where \(p = q\) and
    finite where one of them is 0.

    Args:
        logits, other_logits (`torch.Tensor` of shape `(N, C)`): Logits of 2 classes or more, on any device.
        base (`int` or `str`, defaults to 2): Base of the logarithm, 2 or `"e"`.

    Returns:
        `torch.Tensor` of shape `(N,)`: float64, on the CPU, from 0 to 1 with base 2 and to ln 2 with base e.

    Raises:
        MetricError: If the two are not `(N, C)` of the same shape, or there is no such base.
        NonFiniteError: If a logit is NaN or infinite.
    """
    if base not in get_args(Base):
        raise MetricError(f'The base of the logarithm should be 2 or "e", not {base!r}.')
    sides = finite_logits(logits, "images of the model"), finite_logits(other_logits, "images of the random network")
    if logits.shape != other_logits.shape:
        raise MetricError(
            f"The logits of the model are {tuple(logits.shape)} and of the random network "
            f"{tuple(other_logits.shape)}: both should be of the same images and classes."
        )
    p, q = (functional.log_softmax(side, dim=1) for side in sides)  # logarithms, (N, C)
    kl_p, kl_q = ((a.exp() * (math.log(2) + functional.logsigmoid(a - b))).sum(dim=1) for a, b in ((p, q), (q, p)))
    divergence = ((kl_p + kl_q) / 2).clamp(0, math.log(2))  # rounding can leave this range
    return divergence / math.log(2) if base == 2 else divergence


__all__ = ["ZeroRetrainForgetting", "jensen_shannon", "zero_retrain_forgetting"]
