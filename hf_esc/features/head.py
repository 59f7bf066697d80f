"""Runs the head of a classifier on features, without the backbone."""

# Shapes: n features, d_g feature dimensions of group g, S sites, C classes.

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .sites import SiteGroup
from .stream import FeatureBatch


def site_modules(model: nn.Module, groups: Sequence[SiteGroup]) -> list[list[nn.Module]]:
    """The modules of each group of sites."""
    return [[model.get_submodule(path) for path in group.modules] for group in groups]


def apply_sites(
    modules: Sequence[Iterable[nn.Module]], groups: Sequence[SiteGroup], features: Sequence[Tensor]
) -> Tensor:
    """
    Run each site on features `(n, d_g)`, one tensor for each group. Returns `(S, n, C)` for S sites.

    The backbone does not run, nor do hooks on the sites.
    """
    outputs = []
    for group, sites, z in zip(groups, modules, features, strict=True):
        for module in sites:
            weight = next(module.parameters())
            z_in = z.to(weight.device, weight.dtype)
            if group.axis == 1:
                z_in = z_in.reshape(*z_in.shape, *(1,) * (weight.ndim - 2))  # (n, d, 1, 1) for a 2-d convolution
            outputs.append(module.forward(z_in).flatten(1))
    return torch.stack(outputs)


@torch.no_grad()
def site_outputs(model: nn.Module, groups: Sequence[SiteGroup], features: Sequence[Tensor]) -> Tensor:
    """[`apply_sites`] of the sites in `model`."""
    return apply_sites(site_modules(model, groups), groups, features)


def head_weights(model: nn.Module, groups: Sequence[SiteGroup], batch: FeatureBatch) -> Tensor | None:
    r"""
    The weights \(a_s\) with which the logits are a sum of the sites' outputs, \(\sum_s a_s g_s(z)\).

    A single site has the weight 1. Two heads whose logits are averaged have 1/2 each. With these weights, the head can
    be run on features without the backbone. None if the logits are not such a sum.
    """
    outputs = site_outputs(model, groups, batch.features).cpu().double()  # (S, n, C)
    logits = batch.logits.cpu().double()
    count = len(outputs)
    if outputs.shape[1:] != logits.shape or not (torch.isfinite(outputs).all() and torch.isfinite(logits).all()):
        return None
    candidates = [torch.full((count,), 1 / count, dtype=torch.float64)]
    if count > 1 and logits.numel() >= 4 * count:  # any fewer logits are always such a sum
        candidates.append(torch.linalg.lstsq(outputs.flatten(1).T, logits.flatten()[:, None]).solution[:, 0])
    exact = batch.logits.dtype in (torch.float32, torch.float64)
    allowed = (1e-3 if exact else 5e-2) * logits.abs().max().clamp_min(1e-6)
    for weights in candidates:
        if (torch.einsum("s,snc->nc", weights, outputs) - logits).abs().max() <= allowed:
            return weights
    return None
