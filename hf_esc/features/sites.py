"""
Finds where a classifier's head reads its features, for any architecture, by tracing one forward pass.

A *site* is the module of the head that turns features into logits, such as `classifier`. Sites that read the very same
tensor form a group, and each group gets one projection.
"""

# Shapes: B images, d feature dimensions, C classes.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..errors import NonFiniteError, SiteError
from ..modeling.outputs import logits_of


@dataclass(frozen=True)
class SiteGroup:
    """
    The modules of the head that read one feature tensor.

    Args:
        modules (`tuple[str, ...]`): Their paths in the model.
        dim (`int`): Feature dimensions d.
        axis (`int`, defaults to -1): The axis along which the features lie: 1 for convolutions, else the last.
        position (`int`, *optional*): If the head reads several positions of an image, such as tokens, and only one
            makes the logits, this position. None if all of them make the logits; their mean is then the feature.
    """

    modules: tuple[str, ...]
    dim: int
    axis: int = -1
    position: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entry of this group in `ESCConfig.sites`."""
        return asdict(self) | {"modules": list(self.modules)}

    @classmethod
    def from_dict(cls, site: Mapping[str, Any]) -> SiteGroup:
        """The group of an entry in `ESCConfig.sites`."""
        return cls(**{**site, "modules": tuple(site["modules"])})


def find_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[SiteGroup]:
    """
    Find where `model` reads the features that its logits are made of.

    One forward pass marks the output of every innermost module that owns a weight matrix. A walk back from the logits
    stops at the first marks. The result is then tested: features of zero must give the same logits for any image, and
    unchanged features must give the original logits.

    Args:
        model (`PreTrainedModel`): An image classifier. It is left as it was.
        inputs (`Mapping[str, torch.Tensor]`): One batch. Only its first image is used.

    Returns:
        `list[SiteGroup]`: At least one group, in the order of the forward pass.

    Raises:
        SiteError: If no head that reads features is found.
        NonFiniteError: If the logits of the image are not finite.
    """
    if not isinstance(model, PreTrainedModel):
        raise SiteError(
            f"This {type(model).__name__} is no image classifier of transformers. Pass the classifier inside it, such "
            "as `model.module` or `model._orig_mod`."
        )
    num_labels = model.config.num_labels
    inputs = {name: value[:1] for name, value in inputs.items() if name not in ("labels", "return_dict")}
    name = type(model).__name__
    with evaluating(model):
        logits, calls = _trace(model, inputs, num_labels)
        paths, bare = _heads(logits)
        if logits.ndim != 2 or logits.shape[-1] != num_labels:
            raise SiteError(
                f"{name} gives logits of shape {tuple(logits.shape)}. An image classifier with its labels should give "
                f"(B, {num_labels})."
            )
        if not paths or bare:
            why = (
                "a weight matrix that is not in a module of its own acts on the logits"
                if paths
                else "no module with a weight leads to the logits"
            )
            raise SiteError(f"{name} has no classification head that reads features: {why}.")
        groups: dict[tuple, list[str]] = {}
        for path in calls:  # in the order of the forward pass
            if path in paths:
                groups.setdefault(_same_tensor(calls[path][0][0]), []).append(path)
        found = []
        for members in groups.values():
            module, (features, output) = model.get_submodule(members[0]), calls[members[0]][0]
            axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
            if any(len(calls[path]) > 1 for path in members):
                raise SiteError(f"{name} runs its head {members[0]!r} several times in a forward pass.")
            if output.shape[axis] != num_labels:
                raise SiteError(
                    f"{name}'s logits come from {members[0]!r} with {output.shape[axis]} outputs, and the model has "
                    f"{num_labels} labels. It has no classification head."
                )
            found.append(SiteGroup(tuple(members), features.shape[axis], axis))
        _try(model, found, inputs, logits, num_labels)
        positions = [_position(model, found, index, inputs, logits) for index in range(len(found))]
    return [replace(group, position=position) for group, position in zip(found, positions, strict=True)]


def _trace(model: nn.Module, inputs: dict[str, Tensor], num_labels: int | None):
    """Run one forward pass. Returns the logits with their graph, and (first input, output) of each marked call."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    anchor = torch.ones((), requires_grad=True)

    def hook(path: str):
        def mark(module, args, kwargs, output):
            values = [*args, *kwargs.values()]
            tensors = [value for value in values if isinstance(value, Tensor)]
            if not tensors or not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            calls.setdefault(path, []).append((tensors[0], output))
            return _Mark.apply(output, anchor, path)

        return mark

    owners = {
        path: module
        for path, module in model.named_modules()
        if any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))
    }
    # Only the innermost owners count: a vision transformer owns its position embedding, but it is not a head.
    outer = {path.rpartition(".")[0] for path in owners if path}
    for path in list(outer):
        outer.update(".".join(path.split(".")[:depth]) for depth in range(path.count(".") + 1))
    marked = [(path, module) for path, module in owners.items() if path not in outer]
    handles = [module.register_forward_hook(hook(path), with_kwargs=True) for path, module in marked]
    # Parameters outside of the marked modules appear in the graph only if they require gradients.
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    frozen = [parameter for parameter in frozen if parameter.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            logits = logits_of(model(**inputs), num_labels)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        for container, key, tensor in graph_tensors(model):
            container[key] = tensor.detach()  # otherwise the model's caches would keep this graph alive
    return logits, calls


class _Mark(torch.autograd.Function):
    """The identity. Its node in the graph holds the path of the module whose output it marks."""

    @staticmethod
    def forward(ctx, output: Tensor, anchor: Tensor, path: str) -> Tensor:
        ctx.path = path
        return output.clone()  # some models write into views of the output

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


def _heads(logits: Tensor) -> tuple[set[str], bool]:
    """The paths of the last marks before the logits, and whether a weight matrix acts after them."""
    paths: set[str] = set()
    bare = False
    stack, seen = [logits.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (path := getattr(node, "path", None)) is not None:
            paths.add(path)
            continue
        # Vectors may act after the marks, such as scales and shifts of the logits: they do not read features.
        bare = bare or getattr(node, "variable", torch.empty(0)).ndim >= 2
        stack.extend(parent for parent, _ in node.next_functions)
    return paths, bare


def graph_tensors(model: nn.Module) -> Iterator[tuple[dict, Any, Tensor]]:
    """Tensors with a graph that modules cache beside their parameters, such as attention biases, and their places."""
    for module in model.modules():
        for container in (vars(module), *(value for value in vars(module).values() if type(value) is dict)):
            for key, value in list(container.items()):
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    yield container, key, value


def _same_tensor(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


@torch.no_grad()
def _try(model, groups: list[SiteGroup], inputs: dict[str, Tensor], logits: Tensor, num_labels: int | None) -> None:
    name = type(model).__name__
    other = {key: _another(value) if key == _main_input(model, inputs) else value for key, value in inputs.items()}

    def run(batch: dict[str, Tensor], edit) -> Tensor:
        with edited_features(model, groups, lambda _, features: edit(features)):
            return logits_of(model(**batch), num_labels)

    if not torch.isfinite(logits).all():
        raise NonFiniteError(
            f"{name} gives logits that are not finite for the first image, in batch 0. Look for NaN in its weights or "
            "in the image, or an overflow in half precision."
        )
    blank, other_blank = run(inputs, torch.zeros_like), run(other, torch.zeros_like)
    if not torch.equal(blank, other_blank):
        raise SiteError(
            f"{name} does not only read images through the head that was found: with features of zero, its logits "
            "still differ between images."
        )
    if not torch.allclose(run(inputs, torch.clone), logits, rtol=1e-4, atol=1e-5):
        raise SiteError(f"{name} gives other logits if its features are passed on unchanged.")


def _main_input(model, inputs: dict[str, Tensor]) -> str:
    return model.main_input_name if model.main_input_name in inputs else next(iter(inputs))


def _another(images: Tensor) -> Tensor:
    """Other inputs of the same shape: noise in place of pixels, or the same tokens in another order."""
    if not images.is_floating_point():
        return images.flip(-1).roll(1, dims=-1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(images.device, images.dtype) + 1


@torch.no_grad()
def _position(model, groups: list[SiteGroup], index: int, inputs: dict[str, Tensor], logits: Tensor) -> int | None:
    """The first or the last of several positions, if the logits depend only on that one. Otherwise None."""
    axis = groups[index].axis
    several = False

    def keep(position: int):
        def edit(number: int, features: Tensor) -> Tensor | None:
            nonlocal several
            if number != index or features.ndim == 2:
                return None
            rows = features.movedim(axis, -1).flatten(1, -2)
            several = rows.shape[1] > 1
            kept = torch.zeros_like(rows)
            kept[:, position] = rows[:, position]
            shape = features.movedim(axis, -1).shape
            return kept.view(shape).movedim(-1, axis)

        return edit

    for position in (0, -1):
        with edited_features(model, groups, keep(position)):
            alone = logits_of(model(**inputs), model.config.num_labels)
        if several and torch.allclose(alone, logits, rtol=1e-4, atol=1e-5):
            return position
        if not several:
            break
    return None


@contextmanager
def edited_features(model: nn.Module, groups: list[SiteGroup], edit) -> Iterator[None]:
    """Within the context, each site of group i reads `edit(i, features)`, or its own features if that is None."""

    def hook(number: int):
        def pre_hook(module, args):
            edited = edit(number, args[0])
            return None if edited is None else (edited, *args[1:])

        return pre_hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(hook(number))
        for number, group in enumerate(groups)
        for path in group.modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode within the context, and restore each module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
