"""Differences are 0 for what did not change, and by hand for what did."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_esc.errors import MetricError, NonFiniteError
from hf_esc.evaluation.differences import average_gap, class_similarity, weight_differences

from .tiny import batches, images, quietly, tiny

finite = st.floats(-1e6, 1e6)
metrics = st.dictionaries(st.sampled_from("abcd"), finite, min_size=1)

# The gap to Retrain

NAMES = ("D_f", "D_r", "D_t", "MIA")
RETRAIN = dict(zip(NAMES, (95.58, 100, 95.23, 74.64), strict=True))
# Table 5: https://huggingface.co/papers/2504.02199
PAPER = {
    "Finetune": ((99.85, 100, 95.08, 87.73), 4.38),
    "RL": ((94.52, 99.97, 93.66, 27.99), 12.33),
    "SCRUB": ((99.99, 100, 95.41, 86.41), 4.09),
    "BadT": ((100, 100, 95.27, 60.33), 4.69),
    "SalUn": ((100, 99.99, 95.18, 63.61), 3.88),
    "NG": ((96.57, 96.59, 89.67, 79.26), 3.65),
    "ESC": ((100, 100, 95.07, 73.43), 1.45),
    "ESC-T": ((99.86, 97.78, 92.73, 76.74), 2.77),
}


@pytest.mark.parametrize("method", PAPER)
def test_the_average_gaps_of_the_paper(method):
    values, expected = PAPER[method]
    assert average_gap(dict(zip(NAMES, values, strict=True)), RETRAIN) == pytest.approx(expected, abs=0.0051)


@given(metrics, st.integers(0, 999))
def test_the_gap_is_a_distance(values, seed):
    other = {name: value + seed for name, value in reversed(values.items())}
    assert average_gap(values, values) == 0
    assert average_gap(values, other) == average_gap(other, values) == pytest.approx(seed)
    mixed = {name: value + (-1) ** number * seed for number, (name, value) in enumerate(values.items())}
    assert average_gap(values, mixed) == pytest.approx(seed)  # what is above and below does not cancel


@pytest.mark.parametrize(
    ("values", "reference", "message"),
    [
        ({}, {}, "one or more"),
        ({"a": 1}, {"a": 1, "b": 2}, r"only in the reference: \['b'\]"),
        ({"a": 1, "c": 2}, {"a": 1}, r"Only in the values: \['c'\]"),
        ({"a": float("nan")}, {"a": 1}, r"\['a'\] are no finite numbers"),
        ({"a": 1}, {"a": float("inf")}, r"\['a'\] are no finite numbers"),
        ({"a": 1, "b": None}, {"a": 1, "b": 2}, r"\['b'\] are no finite numbers"),
    ],
)
def test_metrics_that_do_not_compare_are_refused(values, reference, message):
    with pytest.raises(MetricError, match=message):
        average_gap(values, reference)


# Weights


def changed(model: nn.Module, factor: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(factor)
    return other


def test_an_erased_model_has_the_weights_of_the_original():
    original = tiny()
    erased = quietly(original, batches(images(40)), rank=2)
    for model, other in ((erased, original), (original, erased), (erased, erased)):
        found = weight_differences(model, other)
        assert [difference.name for difference in found] == [name for name, _ in original.named_parameters()]
        assert {(difference.norm, difference.relative) for difference in found} == {(0.0, 0.0)}


@given(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]))
def test_weights_times_a_factor_are_so_far_away(factor):
    original = tiny()
    for difference in weight_differences(changed(original, factor), original):
        size = dict(original.named_parameters())[difference.name].detach().norm().item()
        assert difference.relative == (pytest.approx(abs(factor - 1)) if size else 0)
        assert difference.norm == pytest.approx(abs(factor - 1) * size)


def test_weight_differences_by_hand():
    original, model = (nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1)) for _ in range(2))
    with torch.no_grad():
        for net, values in (
            (original, (3.0, 4.0, 0.0, 2.0, 0.0, 5.0, 0.0)),
            (model, (3.0, 1.0, 0.0, 2.0, 2.0, 5.0, 0)),
        ):
            net[0].weight.copy_(torch.tensor([values[:2]]))
            for tensor, value in zip(list(net.parameters())[1:], values[2:], strict=True):
                tensor.fill_(value)
        model[1].running_mean.fill_(9)  # a buffer is no weight
    assert [(found.name, found.norm, found.relative) for found in weight_differences(model, original)] == [
        ("0.weight", 3.0, 0.6),
        ("0.bias", 0.0, 0.0),
        ("1.weight", 0.0, 0.0),
        ("1.bias", 2.0, None),  # from 0
        ("2.weight", 0.0, 0.0),
        ("2.bias", 0.0, 0.0),
    ]


def test_one_step_of_training_is_seen_in_the_layer_that_took_it():
    original = tiny()
    model = copy.deepcopy(original)
    name, weight = list(model.named_parameters())[-2]
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    moved = [found.name for found in weight_differences(model, original) if found.relative != 0]
    assert moved == [name]


def test_other_precision_is_compared_in_float64():
    original = nn.Linear(50, 50)
    half = copy.deepcopy(original).bfloat16()
    exact = (half.weight.double() - original.weight.double()).norm() / original.weight.double().norm()
    found = weight_differences(half, original)[0].relative
    assert found == pytest.approx(exact.item(), rel=1e-12)
    assert 1e-4 < found < 1e-2


def test_models_that_do_not_compare_are_refused():
    with pytest.raises(MetricError, match=r"Only in the model: 1\.bias, 1\.weight; only in the original: none"):
        weight_differences(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(MetricError, match=r"2 parameters .* weight \(3, 2\) for \(4, 2\)"):
        weight_differences(nn.Linear(2, 3), nn.Linear(2, 4))
    with pytest.raises(NonFiniteError, match="'weight' of the model"):
        weight_differences(changed(nn.Linear(2, 3), float("nan")), nn.Linear(2, 3))
    with pytest.raises(NonFiniteError, match="'weight' of the original"):
        weight_differences(nn.Linear(2, 3), changed(nn.Linear(2, 3), float("inf")))


# Classes


def features(n: int, d: int, c: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 6), st.integers(0, 999))
def test_similarities_are_cosines(n, d, c, seed):
    z, labels = features(n, d, c, seed)
    similarity = class_similarity(z, labels, c)
    there = torch.isin(torch.arange(c), labels)
    assert similarity.shape == (c, c)
    assert torch.equal(~similarity.isnan(), there[:, None] & there[None])
    kept = similarity[there][:, there]
    torch.testing.assert_close(kept, kept.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(kept.diag(), torch.ones(len(kept), dtype=torch.float64), rtol=0, atol=1e-12)
    assert kept.abs().max() <= 1
    means = torch.stack([z[labels == label].mean(dim=0) for label in range(c) if there[label]])
    expected = nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    torch.testing.assert_close(kept, expected, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 999), st.floats(1e-3, 1e3))
def test_similarities_know_no_scale_no_rotation_and_no_order(seed, scale):
    z, labels = features(40, 5, 4, seed)
    similarity = class_similarity(z, labels, 4)
    rotation = torch.linalg.qr(features(5, 5, 2, seed + 1)[0]).Q
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    for other in ((scale * z @ rotation, labels), (z[order], labels[order])):
        torch.testing.assert_close(class_similarity(*other, 4), similarity, rtol=1e-8, atol=1e-8)


def test_similarities_by_hand():
    z = torch.tensor([[2.0, 0.0], [4.0, 0.0], [1.0, 1.0], [-3.0, 0.0], [1.0, 2.0], [-1.0, -2.0]])
    similarity = class_similarity(z, torch.tensor([0, 0, 1, 3, 4, 4]), 5)
    root = math.sqrt(0.5)
    nan = float("nan")  # class 2 has no images, and the mean of class 4 is 0
    expected = [[1, root, nan, -1, nan], [root, 1, nan, -root, nan], [nan] * 5, [-1, -root, nan, 1, nan], [nan] * 5]
    torch.testing.assert_close(similarity, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_nothing_is_centred():
    z, labels = features(200, 3, 4, 0)
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    assert class_similarity(z + 100, labels, 4)[off_diagonal].min() > 0.99
    assert class_similarity(z, labels, 4)[off_diagonal].min() < 0.5


Z, LABELS = features(6, 3, 2, 0)
REFUSED = {
    "no features": ((Z[:0], LABELS[:0], 2), r"\(0, 3\)"),
    "one feature": ((Z[0], LABELS, 2), r"\(3,\)"),
    "fewer labels": ((Z, LABELS[:5], 2), r"\(6, 3\) and \(5,\)"),
    "scores": ((Z, LABELS.float(), 2), "torch.float32"),
    "a label too high": ((Z, LABELS + 1, 2), "range from 1 to 2, and there are 2 classes"),
    "a label below 0": ((Z, LABELS - 1, 2), "range from -1 to 0"),
    "NaN": ((Z.where(Z.max() > Z, float("nan")), LABELS, 2), "1 of the 6 features are not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_features_that_have_no_similarity_are_refused(case):
    arguments, message = REFUSED[case]
    with pytest.raises(NonFiniteError if "finite" in message else MetricError, match=message):
        class_similarity(*arguments)
