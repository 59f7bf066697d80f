"""Probes: classifiers trained on frozen features, to see what can be read from them."""

# Shapes: N features of d dimensions, C classes, H hidden units.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NonFiniteError, ProbeError
from ..loading import default_device
from .logistic_regression import fit_logistic_regression

ProbeName = Literal["paper", "converged", "mlp", "knn", "one_vs_rest"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)


@dataclass(frozen=True)
class Probe:
    """
    A trained probe.

    Args:
        predict (`Callable`): A function from features `(N, d)` to classes `(N,)`.
        settings (`dict`): What the probe was trained with. A logistic regression also has `converged` (False if it
            stopped before the minimum), the relative `gradient` where it stopped, `evaluations` of its objective, and
            `constant`, True where it has learnt nothing but how frequent the classes are.
    """

    predict: Callable[[Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


def train_probe(
    name: ProbeName,
    features: Tensor,
    labels: Tensor,
    *,
    num_labels: int,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Probe:
    """
    Train a probe on features.

    - `paper`: the ESC paper's protocol. A new linear head with Xavier-normal weights and zero bias is trained by SGD
      with a learning rate of 1e-3, no momentum and no decay, for 10 epochs of batches of 64; the last epoch counts. It
      is not trained to the end: it tells how *readily* a class is read, not whether it can be.
    - `converged`: standardised features, multinomial logistic regression with a fixed L2 strength (C = 100; without a
      penalty, separable features have no finite minimum), minimised as [`fit_logistic_regression`] says.
    - `mlp`: standardised features, one hidden layer of 512 units, Adam, 30 epochs.
    - `knn`: the 10 nearest neighbours among standardised features.
    - `one_vs_rest`: `converged` on two classes that the caller makes, weighted so that both count the same.

    Args:
        name (`str`): One of the above.
        features (`torch.Tensor` of shape `(N, d)`): Training features.
        labels (`torch.LongTensor` of shape `(N,)`): Classes from 0 to `num_labels - 1`.
        num_labels (`int`): C.
        seed (`int`): Seed of weights and batches; `converged`, `one_vs_rest` and `knn` have no randomness.
        device (*optional*): Where the probe is trained; by default an accelerator if there is one. `knn` is
            scikit-learn's and runs on the CPU.

    Returns:
        [`Probe`]

    Raises:
        ProbeError: If there is no such probe, or features and labels do not fit each other or hold one class only.
        NonFiniteError: If a feature is NaN or infinite.
    """
    check_features(features, labels, "training")
    if name not in PROBES:
        raise ProbeError(f"There is no probe {name!r}. There are: {', '.join(PROBES)}.")
    if len(labels.unique()) < 2:
        raise ProbeError("A probe needs training features of two classes or more, and all of these have one label.")
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ProbeError(f"Labels range from {labels.min()} to {labels.max()}, and there are {num_labels} classes.")
    device = torch.device(device) if device is not None else default_device()
    z, y = features.detach().to(device, torch.float32), labels.to(device)
    if name == "paper":
        return _paper(z, y, num_labels, seed)
    if name == "mlp":
        return _mlp(z, y, num_labels, seed)
    if name == "knn":
        return _knn(z, y)
    return _logistic_regression(z, y, balanced=name == "one_vs_rest")


def check_features(features: Tensor, labels: Tensor, what: str) -> None:
    """Raise unless features `(N, d)` are finite and have one whole-numbered label each."""
    if features.ndim != 2 or not len(features):
        raise ProbeError(f"The {what} features should be (N, d) with N of 1 or more, not {tuple(features.shape)}.")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ProbeError(
            f"There are {len(features)} {what} features and labels of the shape {tuple(labels.shape)} "
            f"({labels.dtype}): each feature needs one class index."
        )
    if bad := int((~torch.isfinite(features)).any(dim=1).sum()):
        raise NonFiniteError(f"{bad} of the {len(features)} {what} features are not finite.")


def _paper(z: Tensor, y: Tensor, num_labels: int, seed: int) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    head = _linear(z.shape[1], num_labels, generator).to(z.device)
    settings = {"optimizer": "SGD", "learning_rate": 1e-3, "epochs": 10, "batch_size": 64, "seed": seed}
    _train(head, torch.optim.SGD(head.parameters(), lr=1e-3), z, y, 10, 64, generator)
    return Probe(_argmax(head, z), settings)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Xavier-normal weights and zero bias."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)  # `nn.Linear` would draw from the global generator
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _mlp(z: Tensor, y: Tensor, num_labels: int, seed: int) -> Probe:
    scale, generator = _Standardiser(z), torch.Generator().manual_seed(seed)
    first, last = (_linear(*shape, generator) for shape in ((z.shape[1], 512), (512, num_labels)))
    layers = nn.Sequential(first, nn.ReLU(), last).to(z.device)
    settings = {"hidden": 512, "optimizer": "Adam", "learning_rate": 1e-3, "epochs": 30, "batch_size": 256}
    _train(layers, torch.optim.Adam(layers.parameters(), lr=1e-3), scale(z), y, 30, 256, generator)
    return Probe(_argmax(nn.Sequential(scale, layers), z), settings | {"seed": seed})


def _knn(z: Tensor, y: Tensor) -> Probe:
    scale, neighbours = _Standardiser(z), min(10, len(z))
    classifier = KNeighborsClassifier(n_neighbors=neighbours).fit(scale(z).cpu().numpy(), y.cpu().numpy())

    def predict(features: Tensor) -> Tensor:
        return torch.as_tensor(classifier.predict(scale(features.detach().to(z)).cpu().numpy()))

    return Probe(predict, {"neighbours": neighbours})


def _logistic_regression(z: Tensor, y: Tensor, *, balanced: bool) -> Probe:
    scale = _Standardiser(z.to("cpu" if z.device.type == "mps" else z.device, torch.float64))  # mps has no float64
    classes, codes = y.to(scale.mean.device).unique(return_inverse=True)
    fit = fit_logistic_regression(scale(z.to(scale.mean)), codes, len(classes), strength=100, balanced=balanced)
    settings: dict[str, Any] = {"C": 100.0, "converged": fit.converged, "evaluations": fit.evaluations}
    settings |= (
        {"constant": True} if fit.constant else {"gradient": fit.gradient if math.isfinite(fit.gradient) else None}
    )
    settings |= {"class_weight": "balanced"} if balanced else {}
    head = nn.utils.skip_init(nn.Linear, z.shape[1], len(classes), dtype=torch.float64, device=scale.mean.device)
    head.load_state_dict({"weight": fit.weight, "bias": fit.bias})
    answer = _argmax(nn.Sequential(scale, head), scale.mean)
    return Probe(lambda features: classes.cpu()[answer(features)], settings)


class _Standardiser(nn.Module):
    """Shift and scale each dimension to mean 0 and variance 1. A dimension that does not vary becomes 0."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.mean = z.mean(dim=0)
        deviation = z.std(dim=0, correction=0)
        # In float32, rounding leaves a constant dimension a small deviation.
        constant = deviation <= 1e-6 * z.abs().amax(dim=0).clamp_min(torch.finfo(z.dtype).tiny)
        self.factor = torch.where(constant, 0, 1 / deviation.where(~constant, torch.ones_like(deviation)))

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) * self.factor


def _train(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    z: Tensor,
    y: Tensor,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Minimise the cross-entropy. Each epoch draws a new permutation and takes its batches from it."""
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(z), generator=generator).to(z.device).split(batch_size):
                optimizer.zero_grad()
                functional.cross_entropy(head(z[rows]), y[rows]).backward()
                optimizer.step()


def _argmax(head: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The class with the largest output of a head, which computes on the device and in the precision of `like`."""

    @torch.no_grad()
    def predict(features: Tensor) -> Tensor:
        return torch.cat([head(part.to(like)).argmax(dim=1).cpu() for part in features.detach().split(8192)])

    return predict
