"""Probes are what they say, give the same answer for the same seed, and refuse what cannot be learnt from."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_esc.data import load_images
from hf_esc.errors import NonFiniteError, ProbeError
from hf_esc.evaluation.model_features import model_features
from hf_esc.evaluation.probes import PROBES, train_probe
from hf_esc.loading import load_processor


@pytest.fixture(scope="module")
def seen(resnet, clothes):
    """What the embedded ResNet makes of real images: 600 to train, 200 to test, d = 128, ten classes."""
    return model_features(resnet, load_images(clothes), load_processor(resnet))


def blobs(seed: int, images: int = 200, dimensions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    return torch.randn(images, dimensions, generator=generator) + labels[:, None], labels


def crossed(seed: int, images: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Four clouds at the corners of a square, opposite ones of one class: no line tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(2, (images, 2), generator=generator)
    return 2.0 * corners + 0.2 * torch.randn(images, 2, generator=generator), corners.sum(dim=1) % 2


def trained(name: str, train, *, num_labels: int = 3, **kwargs):
    """One against the others where the probe is for two classes."""
    features, labels = train
    if name == "one_vs_rest":
        labels, num_labels = (labels == 1).long(), 2
    return train_probe(name, features, labels, num_labels=num_labels, device="cpu", **kwargs)


# Laws


@pytest.mark.parametrize("name", PROBES)
def test_the_same_seed_gives_the_same_answer_whatever_was_drawn_before(name):
    test = blobs(1)[0]
    torch.manual_seed(1)
    one = trained(name, blobs(0), seed=5)
    torch.manual_seed(2)
    other = trained(name, blobs(0), seed=5)
    assert torch.equal(one.predict(test), other.predict(test))
    assert one.settings == other.settings


@pytest.mark.parametrize("name", PROBES)
def test_the_seed_matters_where_there_is_any_randomness(name):
    answers = [trained(name, blobs(0), seed=seed).predict(blobs(1, 2000)[0]) for seed in (0, 1)]
    assert torch.equal(*answers) is (name not in ("paper", "mlp"))


@pytest.mark.parametrize("name", PROBES)
def test_a_prediction_is_of_one_image_alone_and_one_of_the_classes(name):
    probe = trained(name, blobs(0))
    test = blobs(1)[0]
    answer = probe.predict(test)
    assert answer.shape == (200,)
    assert set(answer.tolist()) <= {0, 1, 2}
    assert torch.equal(torch.cat([probe.predict(part) for part in test.split(7)]), answer)


@pytest.mark.parametrize("name", PROBES)
def test_training_changes_neither_features_nor_labels(name):
    features, labels = blobs(0)
    copies = features.clone(), labels.clone()
    trained(name, (features, labels)).predict(features)
    assert torch.equal(features, copies[0])
    assert torch.equal(labels, copies[1])


@pytest.mark.parametrize("name", PROBES)
def test_features_that_come_with_a_gradient_are_features(name):
    features, labels = blobs(0)
    expected = trained(name, (features, labels)).predict(features)
    live = features.clone().requires_grad_()
    assert torch.equal(trained(name, (live, labels)).predict(live), expected)
    assert live.grad is None


@pytest.mark.parametrize("name", [name for name in PROBES if name != "paper"])
def test_the_scale_of_a_feature_does_not_matter(name):
    (train, labels), test = blobs(0), blobs(1)[0]
    factor, shift = torch.tensor([1024.0, 1 / 1024, 1.0]), torch.tensor([0.0, 0.0, 16.0])
    plain = trained(name, (train, labels)).predict(test)
    scaled = trained(name, (train * factor + shift, labels)).predict(test * factor + shift)
    assert (plain == scaled).float().mean() > 0.98


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, -3e-5])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "paper"])
def test_a_feature_that_never_varied_says_nothing(name, value):
    (train, labels), test = blobs(0), blobs(1)[0]

    def beside(features, constant: float):
        return torch.cat([features, torch.full((len(features), 1), constant)], dim=1)

    expected = trained(name, (beside(train, 0.0), labels)).predict(beside(test, 0.0))
    probe = trained(name, (beside(train, value), labels))
    for there in (value, 0.0, 1e6):
        assert torch.equal(probe.predict(beside(test, there)), expected)


# The paper's protocol, written out


def by_hand(z, y, test, *, num_labels: int, seed: int) -> torch.Tensor:
    """Logits on test features, with the gradient of the cross-entropy as a formula, in float64."""
    generator = torch.Generator().manual_seed(seed)
    deviation = math.sqrt(2 / (z.shape[1] + num_labels))
    weight = torch.empty(num_labels, z.shape[1]).normal_(0, deviation, generator=generator).double()
    bias = torch.zeros(num_labels, dtype=torch.float64)
    z, truth = z.double(), torch.eye(num_labels, dtype=torch.float64)[y]
    for _ in range(10):
        order = torch.randperm(len(z), generator=generator)
        for start in range(0, len(z), 64):
            rows = order[start : start + 64]
            error = (z[rows] @ weight.T + bias).softmax(dim=1) - truth[rows]
            weight -= 1e-3 * error.T @ z[rows] / len(rows)
            bias -= 1e-3 * error.mean(dim=0)
    return test.double() @ weight.T + bias


@pytest.mark.parametrize("seed", [0, 3])
def test_the_paper_s_probe_is_its_protocol(seen, seed):
    train, everything = seen.train, torch.cat([seen.train.features, seen.test.features])
    probe = train_probe("paper", train.features, train.labels, num_labels=10, seed=seed, device="cpu")
    logits = by_hand(train.features, train.labels, everything, num_labels=10, seed=seed)
    first, second = logits.topk(2).values.T
    clear = first - second > 1e-4  # float32 may decide the others either way
    assert clear.double().mean() > 0.99
    assert torch.equal(probe.predict(everything)[clear], logits.argmax(dim=1)[clear])
    assert probe.settings == {
        "optimizer": "SGD",
        "learning_rate": 1e-3,
        "epochs": 10,
        "batch_size": 64,
        "seed": seed,
    }


# scikit-learn's


def pipeline(**kwargs):
    return make_pipeline(StandardScaler(), LogisticRegression(C=100, max_iter=100_000, tol=1e-10, **kwargs))


def test_the_converged_probe_is_scikit_learn_s_pipeline(seen):
    train, test = seen.train, seen.test
    probe = train_probe("converged", train.features, train.labels, num_labels=10, device="cpu")
    reference = pipeline().fit(train.features.double().numpy(), train.labels.numpy())
    both = torch.cat([train.features, test.features])
    expected = torch.as_tensor(reference.predict(both.double().numpy()))
    assert (probe.predict(both) == expected).double().mean() > 0.995
    assert set(probe.settings) == {"C", "converged", "gradient", "evaluations"}
    assert (probe.settings["C"], probe.settings["converged"]) == (100, True)
    assert 5 < probe.settings["evaluations"] < 20_000
    assert torch.equal(probe.predict(train.features), train.labels)  # separable: 600 points in 128 dimensions


def test_the_strength_of_the_penalty_is_that_of_the_pipeline():
    (train, labels), test = blobs(0, 60, 20), blobs(1, 2000, 20)[0]
    answer = trained("converged", (train, labels)).predict(test)
    for strength, low, high in ((100, 0.995, 1), (0.1, 0, 0.97)):
        reference = pipeline().set_params(logisticregression__C=strength).fit(train.double().numpy(), labels.numpy())
        same = (answer == torch.as_tensor(reference.predict(test.double().numpy()))).double().mean()
        assert low <= same <= high


def test_one_vs_rest_counts_both_sides_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(1000) % 20 == 0).long()
    features = torch.randn(1000, 2, generator=generator) + 2 * labels[:, None]
    found = {
        name: train_probe(name, features, labels, num_labels=2, device="cpu") for name in ("converged", "one_vs_rest")
    }
    reference = pipeline(class_weight="balanced").fit(features.numpy(), labels.numpy())
    answer = found["one_vs_rest"].predict(features)
    assert (answer == torch.as_tensor(reference.predict(features.numpy()))).double().mean() > 0.998
    assert found["one_vs_rest"].settings["class_weight"] == "balanced"
    recall = {name: probe.predict(features)[labels == 1].double().mean() for name, probe in found.items()}
    assert recall["one_vs_rest"] > 0.85 > 0.75 > recall["converged"]


def test_a_label_may_be_beyond_those_that_were_trained():
    features, labels = blobs(0)
    for name in ("paper", "converged", "mlp", "knn"):
        answer = train_probe(name, features, 2 * labels, num_labels=7, device="cpu").predict(features)
        assert set(answer.tolist()) <= ({0, 2, 4} if name != "paper" else set(range(7)))


# Curved borders


@pytest.mark.parametrize("name", ["mlp", "knn"])
def test_what_no_line_tells_apart_the_others_do(name):
    train, test = crossed(0), crossed(1)
    right = trained(name, train, num_labels=2).predict(test[0]) == test[1]
    assert right.double().mean() > 0.98
    linear = trained("converged", train, num_labels=2).predict(test[0]) == test[1]
    assert linear.double().mean() < 0.8


def test_knn_asks_ten_neighbours_or_all_there_are():
    line = torch.arange(20.0)[:, None]
    labels = (torch.arange(20) >= 14).long()
    probe = train_probe("knn", line, labels, num_labels=2, device="cpu")
    # The ten neighbours of 19 are 10 to 19, six of which are ones; of 18.4 the same; of 16 are 11 or 12 on.
    assert probe.predict(torch.tensor([[19.0], [9.6], [0.0]])).tolist() == [1, 0, 0]
    assert probe.settings == {"neighbours": 10}
    few = train_probe("knn", line[11:17], labels[11:17], num_labels=2, device="cpu")
    assert few.settings == {"neighbours": 6}


# What is refused

FEATURES, LABELS = blobs(0, 30)
NAN, INFINITE = FEATURES.clone(), FEATURES.clone()
NAN[3, 1], INFINITE[[4, 5], 0] = torch.nan, torch.inf
REFUSED = {
    "NaN": (NAN, LABELS, NonFiniteError, "1 of the 30 training features are not finite"),
    "infinite": (INFINITE, LABELS, NonFiniteError, "2 of the 30 training features are not finite"),
    "one class": (FEATURES, LABELS * 0 + 1, ProbeError, "two classes or more, and all of these have one label"),
    "label beyond": (FEATURES, LABELS + 1, ProbeError, "range from 1 to 3, and there are 3 classes"),
    "label below": (FEATURES, LABELS - 1, ProbeError, "range from -1 to 1"),
    "fewer labels": (FEATURES, LABELS[1:], ProbeError, r"30 training features and labels of the shape \(29,\)"),
    "one-hot labels": (FEATURES, torch.eye(3)[LABELS], ProbeError, "each feature needs one class index"),
    "scores": (FEATURES, LABELS.float(), ProbeError, r"\(torch.float32\): each feature needs one class index"),
    "maps": (FEATURES[:, :, None], LABELS, ProbeError, r"should be \(N, d\) .+ not \(30, 3, 1\)"),
    "nothing": (FEATURES[:0], LABELS[:0], ProbeError, r"N of 1 or more, not \(0, 3\)"),
}


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_learnt_from_is_refused(name, what):
    features, labels, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        train_probe(name, features, labels, num_labels=3, device="cpu")


def test_a_probe_that_is_not_there_is_refused():
    with pytest.raises(ProbeError, match=r"no probe 'svm'\. There are: paper, converged, mlp, knn, one_vs_rest"):
        train_probe("svm", FEATURES, LABELS, num_labels=3)
