"""The converged probe is at its minimum, whatever the frequencies of classes, and says so where it is not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from hf_esc.evaluation import logistic_regression
from hf_esc.evaluation.knowledge_retention import knowledge_retention, retention_curve
from hf_esc.evaluation.logistic_regression import TOLERANCE, fit_logistic_regression
from hf_esc.evaluation.probes import train_probe

STRENGTH = 100


def problem(seed: int, sizes: list[int], d: int, *, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of classes of these sizes, with means that differ by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    mixed = torch.randn(d, d, generator=generator, dtype=torch.float64)
    means = spread * torch.randn(len(sizes), d, generator=generator, dtype=torch.float64)
    x = (torch.randn(len(y), d, generator=generator, dtype=torch.float64) + means[y]) @ mixed
    return (x - x.mean(dim=0)) / x.std(dim=0), y


def gradient(x, y, weight, bias, *, balanced: bool = False) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The gradient of the objective by automatic differentiation, and the strength of its penalty."""
    classes = len(bias)
    penalty = (2 if classes == 2 else 1) / (STRENGTH * len(y))
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    counts = torch.bincount(y).double()
    each = (1 / (classes * counts) if balanced else torch.full_like(counts, 1 / len(y)))[y]
    loss = (each * torch.nn.functional.cross_entropy(x @ w.T + b, y, reduction="none")).sum()
    (loss + penalty / 2 * w.square().sum()).backward()
    return w.grad, b.grad, penalty


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    d=st.integers(1, 12),
    spread=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    balanced=st.booleans(),
)
def test_the_gradient_is_small_against_the_penalty_s(seed, sizes, d, spread, balanced):
    x, y = problem(seed, sizes if sum(sizes) > 2 else [2, 2], d, spread=spread)
    fit = fit_logistic_regression(x, y, int(y.max()) + 1, strength=STRENGTH, balanced=balanced)
    of_weight, of_bias, penalty = gradient(x, y, fit.weight, fit.bias, balanced=balanced)
    assert fit.converged
    if not fit.constant:
        size = math.hypot(of_weight.norm(), of_bias.norm())
        assert size <= 1.01 * TOLERANCE * penalty * fit.weight.norm()
        assert size / (penalty * fit.weight.norm()) == pytest.approx(fit.gradient, rel=1e-3)


def test_a_class_of_one_image_among_thousands_is_read_as_at_the_minimum():
    """scikit-learn's tolerance is on the gradient of the mean loss, which this class hardly moves."""
    generator = torch.Generator().manual_seed(1)
    means = torch.zeros(3, 32)
    means[1, 16:], means[2, :3] = 1.5, 4.0
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([3000, 3000, 1]))
    x = means[y] + torch.randn(len(y), 32, generator=generator)
    x[-1] = means[2]
    test = means[2] + torch.randn(2000, 32, generator=generator)
    probe = train_probe("converged", x, y, num_labels=3, device="cpu")
    assert probe.settings["converged"]
    standard, at = (x - x.mean(dim=0)) / x.std(dim=0), (test - x.mean(dim=0)) / x.std(dim=0)

    def read(tol: float) -> float:
        model = LogisticRegression(C=STRENGTH, max_iter=50_000, tol=tol).fit(standard.double().numpy(), y.numpy())
        return float((model.predict(at.double().numpy()) == 2).mean())

    assert (probe.predict(test) == 2).double().mean().item() == pytest.approx(read(1e-12), abs=0.005)
    assert abs(read(1e-4) - read(1e-12)) > 0.05, "the looser tolerance would do"


def test_the_minimum_is_that_of_scikit_learn():
    for sizes in ([30, 20, 10, 1], [40, 5]):
        x, y = problem(0, sizes, 6)
        for weight in (None, "balanced"):
            fit = fit_logistic_regression(x, y, len(sizes), strength=STRENGTH, balanced=weight is not None)
            model = LogisticRegression(C=STRENGTH, max_iter=100_000, tol=1e-12, class_weight=weight)
            model.fit(x.numpy(), y.numpy())
            expected = torch.as_tensor(model.coef_)
            own = fit.weight if len(sizes) > 2 else fit.weight[1:] - fit.weight[:1]
            assert (own - own.mean(dim=0) * (len(sizes) > 2) - expected).norm() <= 3e-3 * expected.norm()


def test_the_order_of_rows_does_not_matter():
    x, y = problem(3, [400, 300, 2], 10, spread=0.5)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    one, other = (fit_logistic_regression(x[rows], y[rows], 3, strength=STRENGTH) for rows in (..., order))
    assert (one.weight - other.weight).norm() <= 2 * TOLERANCE * one.weight.norm()


def test_where_losses_no_longer_differ_the_gradient_still_leads_to_the_minimum():
    """Weak signals in many rows, as after a good erasure: a line search alone gives up here."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (50_000,), generator=generator)
    x = torch.randn(50_000, 16, generator=generator) + 0.02 * y[:, None]
    assert fit_logistic_regression(x, y, 10, strength=STRENGTH).converged


def test_a_solver_that_gets_stuck_says_so(monkeypatch):
    """Nothing limits it here: float64 has no step left that lowers the objective."""
    x, y = problem(3, [40, 30, 2], 10)
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-18)
    fit = fit_logistic_regression(x, y, 3, strength=STRENGTH)
    assert not fit.converged
    assert 1e-18 < fit.gradient < TOLERANCE
    assert fit.evaluations < 5000
    for name in ("converged", "one_vs_rest"):
        found = train_probe(name, x, (y == 1).long(), num_labels=2, device="cpu").settings
        assert found["converged"] is False
        assert found["gradient"] > 1e-18


@pytest.mark.parametrize("name", ["converged", "one_vs_rest"])
def test_where_class_means_are_equal_a_linear_probe_is_constant_and_has_no_accuracy(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    features = torch.randn(900, 8, generator=generator, dtype=torch.float64)
    for label in range(3):
        features[labels == label] -= features[labels == label].mean(dim=0)
    for precision in (torch.float64, torch.float32):
        z = features.to(precision)
        found = knowledge_retention(z, labels, z, labels, [1], probe=name, device="cpu")
        assert found.settings["constant"] is True
        assert set(vars(found.accuracies).values()) == {None}
    curve = retention_curve(features, labels, features, labels, [1], counts=[20, None], device="cpu")
    assert [point.forget_test is None for point in curve] == [False, True]


def test_what_tells_one_image_of_many_apart_is_not_constant():
    x = torch.zeros(5000, 1)
    x[7] = 1
    probe = train_probe("converged", x, (x[:, 0] > 0).long(), num_labels=2, device="cpu")
    assert "constant" not in probe.settings
    assert probe.predict(x)[7] == 1


def test_the_curve_ends_in_the_probe_itself():
    x, y = problem(5, [60, 50, 40], 6, spread=0.5)
    test, truth = problem(5, [200, 200, 200], 6, spread=0.5)
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    x, y = x[shuffled], y[shuffled]
    whole = knowledge_retention(x, y, test, truth, [1], probe="converged", device="cpu").accuracies
    last = retention_curve(x, y, test, truth, [1], counts=[5, None], device="cpu")[-1]
    assert (last.forget_test, last.retain_test, last.spread) == (whole.forget_test, whole.retain_test, 0)
