"""Fisher forgetting: noise on the weights, less of it where the retain images depend on a weight."""

# Shapes: N retain images, B of them at a time, C classes.

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.labelled_images import LabelledImages
from ..errors import DivergenceError, ForgetSetError, ModelError, OptionError
from ..features.sites import evaluating, find_sites
from ..features.stream import model_inputs
from ..ledger.record import WEIGHTS, ledger_record
from ..modeling.fingerprints import weights_sha256
from ..modeling.outputs import logits_of
from .checks import (
    check_known,
    copy_of,
    logits_of_all,
    not_finite,
    read_sets,
    unchanged_predictions,
    warn_of_unchanged,
)


def fisher_forgetting(
    model: PreTrainedModel,
    forget_set: Any,
    retain_set: Any,
    *,
    alpha: float = 1e-7,
    floor: float = 1e-3,
    zero_head_rows: bool = False,
    num_images: int | None = None,
    scenario: str = "classes",
    seed: int = 42,
    batch_size: int = 8,
    processing_class: Any = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_memory: int = 1024,
) -> PreTrainedModel:
    r"""
    Add noise to each weight: the less the loss of the retain images depends on a weight, the more noise it gets.

    \[\theta' = \theta + \sqrt{\alpha / \max(F, \text{floor})}\;\varepsilon, \quad \varepsilon \sim \mathcal{N}(0, 1),
    \qquad F = \mathbb{E}_{x \in D_r} \sum_y p_y \big(\nabla_\theta \mathrm{CE}(f(x), y)\big)^2\]

    with the model's own probabilities p, in eval mode. The gradient of each image is squared by itself, as the square
    of a batch's mean gradient is another quantity. This takes C backward passes for every image.

    Source: Golatkar et al., arXiv 1911.04933. Data: retain; the forget images are looked at. Reference settings: alpha
    from 1e-8 to 1e-5, mostly 1e-7.

    Args:
        model (`PreTrainedModel`): An image classifier; it is not changed.
        forget_set, retain_set: Images with labels, as for
            [`UnlearningTrainer`][hf_esc.unlearning.trainer.UnlearningTrainer].
        alpha (`float`, defaults to 1e-7): Strength of the noise.
        floor (`float`, defaults to 1e-3): The least F. A weight that nothing depends on would get unbounded noise
            otherwise.
        zero_head_rows (`bool`, defaults to `False`): Also set the weights and the bias of the forgotten classes in the
            head to zero, as the paper's authors do. That hides a class from the head alone, and only in images for
            which another class has a logit above 0.
        num_images (`int`, *optional*): Number of retain images to look at, drawn with `seed`. All by default.
        scenario (`str`, defaults to `"classes"`): As in
            [`UnlearningArguments`][hf_esc.unlearning.training_args.UnlearningArguments].
        seed (`int`, defaults to 42): The seed of the noise and of the draw of images.
        batch_size (`int`, defaults to 8): Images whose gradients are in memory at once, each as large as the model.
        processing_class (*optional*): The image processor; that of `model` by default.
        image_column, label_column (`str`, *optional*): Columns of data sets.
        image_memory (`int`, defaults to 1024): The most MiB of preprocessed images in memory.

    Returns:
        `PreTrainedModel`: A copy of the same architecture, with a record in its ledger.

    Raises:
        ForgetSetError: As [`UnlearningTrainer`][hf_esc.unlearning.trainer.UnlearningTrainer] does.
        ModelError: As there, or if the head has no row for each class.
        OptionError: If a value is out of its range.
        DivergenceError: If gradients, or what the noise leaves, are not finite.

    Warns:
        IncompleteErasureWarning: If more than 10 % of the forget images of a class are right after it.
    """
    numbers = {"alpha": alpha, "floor": floor, "batch_size": batch_size, "num_images": num_images}
    _check_options(numbers, scenario, zero_head_rows=zero_head_rows)
    options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "memory": image_memory}
    student = copy_of(model).eval()
    if retain_set is None:
        raise ForgetSetError("Fisher forgetting looks at retain images and needs a `retain_set`.")
    forget, retain, processor = read_sets(model, forget_set, retain_set, processing_class, scenario, **options)
    assert retain is not None
    labels = forget.labels.unique().tolist()
    generator = torch.Generator().manual_seed(seed)
    if num_images is not None and num_images < len(retain):
        retain = retain.part(torch.randperm(len(retain), generator=generator)[:num_images].sort().values)
    before = logits_of_all(model, forget).argmax(dim=1)
    check_known(before, forget.labels, scenario)
    information = fisher_information(student, retain, batch_size=batch_size)
    _add_noise(student, information, alpha, floor, generator)
    if zero_head_rows:
        with torch.no_grad():
            for rows in _head_rows(student, forget):
                rows[labels] = 0
    after = logits_of_all(student, forget)
    if what := not_finite(student, after):
        raise DivergenceError(f"Fisher forgetting left nothing of use: {what}. Take a smaller `alpha` than {alpha}.")
    unchanged = unchanged_predictions(before, after.argmax(dim=1), forget.labels, by_label=scenario == "classes")
    record = ledger_record(
        model.config,
        "fisher",
        {
            "scenario": scenario,
            "alpha": alpha,
            "floor": floor,
            "zero_head_rows": zero_head_rows,
            "num_retain_images": len(retain),
            "seed": seed,
            "data": "retain",
            "base_sha256": weights_sha256(model),
            "weights_sha256": weights_sha256(student),
        },
        kind=WEIGHTS,
        labels=labels if scenario == "classes" else [],
        num_images=len(forget),
        unchanged=unchanged,
        unchanged_of=len(forget),
        processor=processor,
    )
    student.config.erasures = [*getattr(model.config, "erasures", []), record]
    warn_of_unchanged(model.config, record, advice="Take a larger `alpha`, or another method.")
    return student


def _check_options(numbers: dict[str, float | None], scenario: str, *, zero_head_rows: bool) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"`{name}` is above 0, and it is {value}.")
    if scenario not in ("classes", "images"):
        raise OptionError(f"`scenario` is classes or images, not {scenario!r}.")
    if zero_head_rows and scenario == "images":
        raise OptionError("`zero_head_rows` forgets a class, and these are images of classes that stay.")


@torch.no_grad()
def _add_noise(
    model: PreTrainedModel, information: dict[str, Tensor], alpha: float, floor: float, generator: torch.Generator
) -> None:
    for name, weight in model.named_parameters():
        if name in information:
            scale = (alpha / information[name].clamp_min(floor)).sqrt()
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_((scale * noise).to(weight.dtype))


def fisher_information(model: PreTrainedModel, images: LabelledImages, *, batch_size: int = 8) -> dict[str, Tensor]:
    r"""
    The diagonal of the Fisher information, \(\mathbb{E}_x \sum_y p_y (\nabla_\theta \mathrm{CE}(f(x), y))^2\), of each
    weight that is trained, in its shape.

    The labels of the images are not read.

    Raises:
        DivergenceError: If a gradient is not finite.
    """
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value, dtype=torch.float64, device="cpu") for name, value in weights.items()}
    num_labels: Any = model.config.num_labels
    bar = logging.tqdm(total=len(images), desc="Fisher information", unit="image", leave=False)
    with evaluating(model):
        for batch in images.batches(batch_size):
            inputs = model_inputs(model, batch["inputs"])
            for label in range(num_labels):
                for gradients, probabilities in _gradients(model, weights, inputs, label):
                    for name, gradient in gradients.items():
                        # einsum sums over the images without a copy of every square.
                        rows = gradient.flatten(1).float()
                        total[name] += (
                            torch.einsum("b,bp,bp->p", probabilities, rows, rows)
                            .reshape(total[name].shape)
                            .double()
                            .cpu()
                        )
            bar.update(len(batch["labels"]))
    bar.close()
    for name, value in total.items():
        if not torch.isfinite(value).all():
            raise DivergenceError(f"The gradients of {name!r} are not finite, so its information is unknown.")
    return {name: (value / len(images)).float().to(weights[name].device) for name, value in total.items()}


def _gradients(
    model: PreTrainedModel, weights: dict[str, Tensor], inputs: dict[str, Tensor], label: int
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Each image's gradient for one class `(B, …)`, and its probability `(B,)`."""
    num_labels: Any = model.config.num_labels

    def loss(weights: dict[str, Tensor], image: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        output = functional_call(model, weights, kwargs={name: value[None] for name, value in image.items()})
        logs = functional.log_softmax(logits_of(output, num_labels).float(), dim=1)[0]
        return -logs[label], logs[label].exp().detach()

    each = grad(loss, has_aux=True)
    try:
        yield vmap(each, in_dims=(None, 0))(weights, inputs)
    except (RuntimeError, NotImplementedError):
        # `vmap` cannot run a model whose forward branches on values; such a model runs image by image.
        for image in range(len(next(iter(inputs.values())))):
            gradients, probability = each(weights, {name: value[image] for name, value in inputs.items()})
            yield {name: value[None] for name, value in gradients.items()}, probability[None]


def _head_rows(model: PreTrainedModel, images: LabelledImages) -> Iterator[Tensor]:
    """Weights and biases of the heads, a row for each class."""
    with evaluating(model):
        groups = find_sites(model, model_inputs(model, images.__getitems__([0])["inputs"]))
    for group in groups:
        for path in group.modules:
            module: nn.Module = model.get_submodule(path)
            for parameter in module.parameters():
                if parameter.shape[0] != model.config.num_labels:
                    raise ModelError(f"The head {path!r} has no row for each class, so none can be set to zero.")
                yield parameter


__all__ = ["fisher_forgetting", "fisher_information"]
