"""Stream features, logits and labels out of a frozen classifier, and keep a bounded sample of them."""

# Shapes: B images in a batch, n sampled images, d_g feature dimensions of group g, C classes.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .errors import ForgetSetError, SiteError
from .outputs import logits_of, pooled
from .sites import SiteGroup, edited_features


@dataclass(frozen=True)
class FeatureBatch:
    """
    What one batch of images gives.

    Args:
        features (`list[torch.Tensor]`): One tensor `(B, d_g)` for each group of sites.
        logits (`torch.Tensor` of shape `(B, C)`): The model's logits.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): The batch's `labels`, where it has them.
        hidden (`list[torch.Tensor]`): One tensor `(B, d_l)` for each hidden state, the mean over its positions, where
            they were asked for and the model has them.
    """

    features: list[Tensor]
    logits: Tensor
    labels: Tensor | None
    hidden: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def stream_features(
    model: PreTrainedModel,
    groups: Sequence[SiteGroup],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    hidden: bool = False,
) -> Iterator[FeatureBatch]:
    """
    Run batches through `model` in eval mode and yield what its heads read.

    The caller sets eval mode. The features are those that reach the sites, after every hook that is there already.

    Args:
        model (`PreTrainedModel`): An image classifier.
        groups (`Sequence[SiteGroup]`): From [`find_sites`].
        batches (`Iterable[Mapping[str, torch.Tensor]]`): What the model takes; `labels` are held back from it.
        hidden (`bool`, defaults to `False`): The hidden states too.

    Yields:
        [`FeatureBatch`]

    Raises:
        ForgetSetError: If a batch cannot be run through the model.
        SiteError: If a site does not run, or reads another width than the model's configuration says.
    """
    if model.training:
        raise RuntimeError("Features are taken in eval mode: in training mode BatchNorm would learn the forget set.")
    read: dict[int, Tensor] = {}

    def edit(group: int, features: Tensor) -> None:
        read[group] = features

    options = {"output_hidden_states": True} if hidden else {}
    for number, batch in enumerate(batches):
        inputs = model_inputs(model, batch)
        read.clear()
        with edited_features(model, list(groups), edit):
            try:
                output = model(**inputs, **options)
            except MODEL_ERRORS as error:
                raise refused_batch(model, number, inputs, error) from error
        if len(read) != len(groups):
            raise SiteError(f"{len(groups) - len(read)} of the {len(groups)} heads did not run in the forward pass.")
        features = [pooled(read[index], group.axis, group.position) for index, group in enumerate(groups)]
        for group, z in zip(groups, features, strict=True):
            if z.shape[1] != group.dim:
                raise SiteError(f"The head {group.modules[0]!r} reads {z.shape[1]} features, not {group.dim}.")
        states = [hidden_features(state) for state in (getattr(output, "hidden_states", None) or ()) if hidden]
        yield FeatureBatch(features, logits_of(output, model.config.num_labels), batch.get("labels"), states)


def hidden_features(state: Tensor) -> Tensor:
    """
    A hidden state as `(B, d)`: the mean over tokens of `(B, T, d)`, or the map of `(B, d, H, W)` or `(B, H, W, d)`.

    Maps are square where pictures are, so two equal axes that are not the last two tell that the channels are last.
    """
    if state.ndim < 3:
        return state.flatten(1)
    channels_last = state.ndim == 3 or (state.ndim == 4 and state.shape[1] == state.shape[2] != state.shape[3])
    return pooled(state, -1 if channels_last else 1)


class FeatureSample:
    """
    A uniform sample of a stream, of bounded size: reservoir sampling, which gives each image the same chance.

    Args:
        size (`int`): The most images to keep.
        seed (`int`): Seed of the choice.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self.n = 0
        self._features: list[Tensor] = []
        self._predictions = torch.empty(0, dtype=torch.long)
        self._labels: Tensor | None = None

    def update(self, batch: FeatureBatch) -> None:
        """See a batch."""
        count = len(batch.logits)
        # Row i of the stream goes to slot i while there is room, then to slot j, uniform in [0, i], if that is one.
        rows = torch.arange(self.n, self.n + count)
        drawn = (torch.rand(count, generator=self.generator, dtype=torch.float64) * (rows + 1)).long()
        slots = torch.where(rows < self.size, rows, drawn)
        kept = (slots < self.size).nonzero().flatten()
        self.n += count
        if not len(kept):
            return
        # Of several rows for one slot the last wins, as if they had come one by one.
        last = {int(slots[row]): int(row) for row in kept}
        slot, row = torch.tensor(list(last)), torch.tensor(list(last.values()))
        row_there = row.to(batch.logits.device)
        self._features = self._features or [z.new_empty(0, z.shape[1]).cpu() for z in batch.features]
        needed = min(self.size, self.n)
        for group, z in enumerate(batch.features):
            self._features[group] = _put(self._features[group], needed, slot, z[row_there].cpu())
        self._predictions = _put(self._predictions, needed, slot, batch.logits.argmax(dim=1)[row_there].cpu())
        if batch.labels is not None:
            labels = torch.empty(0, dtype=torch.long) if self._labels is None else self._labels
            self._labels = _put(labels, needed, slot, batch.labels.cpu()[row])

    @property
    def features(self) -> list[Tensor]:
        """One tensor `(n, d_g)` for each group."""
        return self._features

    @property
    def predictions(self) -> Tensor:
        """The head's class for each image, `(n,)`."""
        return self._predictions

    @property
    def labels(self) -> Tensor | None:
        """The label of each image, `(n,)`, where the stream had labels."""
        return self._labels


def _put(store: Tensor, size: int, slots: Tensor, values: Tensor) -> Tensor:
    if len(store) < size:
        store = torch.cat([store, store.new_empty(size - len(store), *store.shape[1:])])
    store[slots] = values
    return store


def site_modules(model: nn.Module, groups: Sequence[SiteGroup]) -> list[list[nn.Module]]:
    """The modules of each group of sites."""
    return [[model.get_submodule(path) for path in group.modules] for group in groups]


def apply_sites(
    modules: Sequence[Iterable[nn.Module]], groups: Sequence[SiteGroup], features: Sequence[Tensor]
) -> Tensor:
    """
    What each site makes of features `(n, d_g)`, one tensor for each group, without the backbone: `(S, n, C)` for S
    sites.

    Hooks on the sites do not run.
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
    The weights \(a_s\) with which the logits are made of the sites' outputs, \(\sum_s a_s g_s(z)\), or None if they
    are not.

    One site has the weight 1, two heads whose logits are averaged 1/2 each. They let the head be tried on features
    alone.
    """
    outputs = site_outputs(model, groups, batch.features).cpu().double()  # (S, n, C)
    logits = batch.logits.cpu().double()
    count = len(outputs)
    if outputs.shape[1:] != logits.shape or not (torch.isfinite(outputs).all() and torch.isfinite(logits).all()):
        return None
    candidates = [torch.full((count,), 1 / count, dtype=torch.float64)]
    if count > 1 and logits.numel() >= 4 * count:  # of fewer logits than that, some weights always make a sum
        candidates.append(torch.linalg.lstsq(outputs.flatten(1).T, logits.flatten()[:, None]).solution[:, 0])
    exact = batch.logits.dtype in (torch.float32, torch.float64)
    allowed = (1e-3 if exact else 5e-2) * logits.abs().max().clamp_min(1e-6)
    for weights in candidates:
        if (torch.einsum("s,snc->nc", weights, outputs) - logits).abs().max() <= allowed:
            return weights
    return None


def model_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its labels, where the model is and in its precision."""
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name != "labels"
    }


def refused_batch(
    model: PreTrainedModel, number: int, batch: Mapping[str, Tensor], error: Exception
) -> ForgetSetError:
    """The error for a batch that the model cannot take."""
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
    return ForgetSetError(
        f"Batch {number} of the images ({shapes}) does not go through {type(model).__name__}: {error}"
    )


# What a model raises on inputs that it cannot take.
MODEL_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
