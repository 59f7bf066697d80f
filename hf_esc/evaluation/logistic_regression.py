"""Multinomial logistic regression that is minimised until its gradient says that it is at the minimum."""

# Shapes: N features of d dimensions, C classes.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

# The relative gradient at which the minimum is reached, see `fit_logistic_regression`.
TOLERANCE = 1e-3
_MOST_EVALUATIONS = 20_000
_MOST_STEPS = 10  # of Newton's method
# Added to each variance, so that directions without any do not divide by zero.
_RIDGE = 1e-3
# A classifier whose loss is below that of the class frequencies by less than this fraction has learnt nothing: means
# of classes that are equal in exact arithmetic differ by rounding, which lowers the loss by far less than this. One
# image of its own class among a million lowers it by far more.
_NOTHING = 1e-6


@dataclass(frozen=True)
class LogisticRegressionFit:
    r"""
    What [`fit_logistic_regression`] found.

    Args:
        weight (`torch.Tensor` of shape `(C, d)`): \(W\), float64.
        bias (`torch.Tensor` of shape `(C,)`): \(b\), float64.
        gradient (`float`): The relative gradient at these weights.
        evaluations (`int`): How often the objective was computed.
        converged (`bool`): Whether `gradient` is at most the tolerance.
        constant (`bool`): Whether the minimum is no better than the class frequencies: the features tell the classes
            apart in no linear way. What such a classifier says depends on rounding and on the order of the classes.
    """

    weight: Tensor
    bias: Tensor
    gradient: float
    evaluations: int
    converged: bool
    constant: bool


def fit_logistic_regression(
    x: Tensor, y: Tensor, num_labels: int, *, strength: float, balanced: bool = False
) -> LogisticRegressionFit:
    r"""
    Minimise the regularised cross-entropy

    \[F(W, b) = \sum_i a_i \,\ell(W x_i + b, y_i) + \frac{\lambda}{2} \lVert W \rVert_F^2, \quad
    \lambda = \frac{1}{\text{strength} \cdot N},\]

    where \(a_i = 1/N\), or with `balanced` \(a_i = 1 / (C N_{y_i})\). The bias is not penalised. This is the objective
    of scikit-learn's `LogisticRegression(C=strength)`. For two classes that has a single vector \(w = W_1 - W_0\), and
    the penalty \(\frac{\lambda}{2} \lVert w \rVert^2\), which is \(\lambda \lVert W \rVert_F^2\) at the minimum; it is
    so here.

    The minimum is reached when \(\lVert \nabla F \rVert \le 10^{-3} \lambda \lVert W \rVert_F\). \(F\) is strongly
    convex in \(W\) with the constant \(\lambda\), so \(W\) is then within about a thousandth of its own length of the
    only minimum, whatever the number of features, the frequencies of classes and the order of rows. A tolerance on
    \(\nabla F\) alone does not give that: a class with one of 50,000 images hardly moves the mean loss.

    L-BFGS (of scipy) runs in the coordinates in which the features are uncorrelated, where it needs a fraction of the
    steps. Newton steps finish what its line search cannot resolve.

    Args:
        x (`torch.Tensor` of shape `(N, d)`): Features of about the same scale. Computed in float64 on their device.
        y (`torch.LongTensor` of shape `(N,)`): Classes from 0 to `num_labels - 1`, each with one feature at least.
        num_labels (`int`): C.
        strength (`float`): The inverse of the penalty, as `C` of scikit-learn.
        balanced (`bool`, defaults to `False`): Whether all classes count the same, whatever their number of features.

    Returns:
        [`LogisticRegressionFit`]
    """
    device = x.device if x.device.type != "mps" else torch.device("cpu")  # which has no float64
    x, y = x.detach().to(device, torch.float64), y.to(device)
    counts = torch.bincount(y, minlength=num_labels).double()
    each = 1 / (num_labels * counts) if balanced else torch.full_like(counts, 1 / len(y))
    objective = _Objective(x, y, each, 2 / (strength * len(y)) if num_labels == 2 else 1 / (strength * len(y)))

    def stop(_) -> None:
        if objective.gradient <= TOLERANCE:
            raise StopIteration

    shares = each * counts
    without = -(shares * shares.log()).sum().item()  # the loss of the class frequencies
    start = np.zeros((num_labels, x.shape[1] + 1))
    start[:, -1] = shares.log().cpu()
    objective(start)
    # By strong convexity, no weights lower the loss by more than this.
    constant = objective.size**2 / (2 * objective.penalty) < _NOTHING * without
    options = {"maxiter": _MOST_EVALUATIONS, "maxfun": _MOST_EVALUATIONS, "maxcor": 20, "gtol": 0, "ftol": 0}
    weights = start.flatten()
    if not constant:
        weights = minimize(objective, weights, jac=True, method="L-BFGS-B", callback=stop, options=options).x
        weights = _newton(objective, weights)
    loss, _ = objective(weights)
    converged = constant or objective.gradient <= TOLERANCE
    return LogisticRegressionFit(
        *objective.weights(weights),
        gradient=objective.gradient,
        evaluations=objective.evaluations,
        converged=converged,
        constant=converged and without - loss < _NOTHING * without,
    )


def _newton(objective: _Objective, weights: np.ndarray) -> np.ndarray:
    """
    Newton steps by conjugate gradients, while they halve the gradient.

    The line search of L-BFGS compares losses, and near the minimum these differ by less than float64 resolves. The
    gradient is still exact there.
    """
    _, slope = objective(weights)
    for _ in range(_MOST_STEPS):
        if objective.gradient <= TOLERANCE:
            break
        size, n = objective.size, len(weights)
        curvature = LinearOperator((n, n), matvec=objective.curvature(weights), dtype=np.float64)
        step, _ = cg(curvature, -slope, rtol=1e-4, maxiter=1000)
        _, further = objective(weights + step)
        if not objective.size < size / 2:
            break
        weights, slope = weights + step, further
    return weights


class _Objective:
    """
    The objective and its gradient, for scipy, in coordinates V with W = V A.T, A = U diag(s)^-1/2, where U and s are
    eigenvectors and eigenvalues of the second moment of the features. Keeps the length of the last call's
    gradient, and the relative gradient.
    """

    def __init__(self, x: Tensor, y: Tensor, each: Tensor, penalty: float):
        self.y, self.a, self.penalty = y, each[y], penalty
        values, self.vectors = torch.linalg.eigh(x.T @ x / len(x))
        self.scale = (values.clamp_min(0) + _RIDGE).sqrt()
        self.x = x @ (self.vectors / self.scale)
        self.shape = (len(each), x.shape[1] + 1)
        self.rows = torch.arange(len(x), device=x.device)
        self.size = self.gradient = math.inf
        self.evaluations = 0

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        self.evaluations += 1
        own, bias = self._split(flat)
        logits = torch.addmm(bias, self.x, own.T)
        normaliser = logits.logsumexp(dim=1)
        loss = (self.a * (normaliser - logits[self.rows, self.y])).sum()
        error = (logits - normaliser[:, None]).exp_()
        error[self.rows, self.y] -= 1
        error *= self.a[:, None]
        weight = own / self.scale  # in the eigenvectors' coordinates, which leave lengths as they are
        of_weight = error.T @ self.x + self.penalty * weight / self.scale
        of_bias = error.sum(dim=0)
        length = self.penalty * weight.norm().item()
        self.size = ((of_weight * self.scale).square().sum() + of_bias.square().sum()).sqrt().item()
        self.gradient = self.size / length if length > 0 else math.inf
        loss = loss + self.penalty / 2 * weight.square().sum()
        return loss.item(), torch.cat([of_weight, of_bias[:, None]], dim=1).flatten().cpu().numpy()

    def curvature(self, flat: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The product of the Hessian at these weights with a vector."""
        own, bias = self._split(flat)
        p = torch.addmm(bias, self.x, own.T).softmax(dim=1)

        def product(vector: np.ndarray) -> np.ndarray:
            direction, shift = self._split(vector)
            change = p * torch.addmm(shift, self.x, direction.T)
            change -= p * change.sum(dim=1, keepdim=True)
            change *= self.a[:, None]
            of_weight = change.T @ self.x + self.penalty * direction / self.scale**2
            return torch.cat([of_weight, change.sum(dim=0)[:, None]], dim=1).flatten().cpu().numpy()

        return product

    def weights(self, flat: np.ndarray) -> tuple[Tensor, Tensor]:
        own, bias = self._split(flat)
        return (own / self.scale) @ self.vectors.T, bias

    def _split(self, flat: np.ndarray) -> tuple[Tensor, Tensor]:
        both = torch.as_tensor(flat, device=self.x.device).view(self.shape)
        return both[:, :-1], both[:, -1]
