"""What probes read of an erased class: little at first sight, and all of it when they are trained to the end."""

import copy
import itertools
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc import erase
from hf_esc.data import image_batches
from hf_esc.errors import NonFiniteError, ProbeError
from hf_esc.evaluation import Accuracies
from hf_esc.evaluation.knowledge_retention import (
    PROBES,
    KnowledgeRetention,
    knowledge_retention,
    retention_curve,
    retention_of,
)
from hf_esc.evaluation.model_features import ModelFeatures, model_features
from hf_esc.loading import load_processor

pytestmark = pytest.mark.slow

TROUSER = 1
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def seen(resnet, fashion) -> dict[str, ModelFeatures]:
    """Features of 4,000 training and 1,000 test images, of the embedded ResNet and of it without trousers."""
    data = replace(fashion, train=fashion.train.select(range(4000)), test=fashion.test.select(range(1000)))
    processor = load_processor(resnet)
    erased = erase(resnet, data.forget_set([TROUSER]))
    return {
        name: model_features(model, data, processor, batch_size=200)
        for name, model in {"original": resnet, "erased": erased}.items()
    }


def four(features: ModelFeatures) -> tuple[torch.Tensor, ...]:
    return features.train.features, features.train.labels, features.test.features, features.test.labels


def few(features: ModelFeatures, images: int = 400) -> tuple[torch.Tensor, ...]:
    return tuple(part[:images] for part in four(features))


# Clouds at three points, and test images that lie with another class: two of class 0 with 1 and one of 2 with 1.
POINTS = torch.eye(3)
TRAIN_LABELS = torch.arange(3).repeat(12)
TEST_LABELS, WHERE = torch.tensor([0] * 8 + [1] * 4 + [2] * 4), torch.tensor([0] * 6 + [1] * 6 + [2] * 3 + [1])
HAND = (POINTS[TRAIN_LABELS], TRAIN_LABELS, POINTS[WHERE], TEST_LABELS)


# Laws


def test_the_paper_s_protocol_is_the_same_with_the_backbone_in_every_step(resnet, fashion):
    """Done literally: a new head on the erased model itself, and each image through the frozen backbone ten times."""
    data = replace(fashion, train=fashion.train.select(range(256)), test=fashion.test.select(range(200)))
    processor = load_processor(resnet)
    erased = erase(resnet, data.forget_set([TROUSER]), rank=1)
    cached = knowledge_retention(*four(model_features(erased, data, processor)), [TROUSER], seed=3, **CPU).accuracies

    columns = {"image_column": data.image_column, "label_column": data.label_column}
    splits = []
    for split in (data.train, data.test):
        [batch] = image_batches(split, processor, batch_size=len(split), **columns)
        splits.append((batch["pixel_values"], batch["labels"]))
    pixels, labels = splits[0]
    generator = torch.Generator().manual_seed(3)
    model = copy.deepcopy(erased).requires_grad_(False)
    head = model.model.classifier[1]
    torch.nn.init.xavier_normal_(head.weight, generator=generator)
    torch.nn.init.zeros_(head.bias)
    head.requires_grad_(True)
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    for _ in range(10):
        for rows in torch.randperm(len(pixels), generator=generator).split(64):
            optimizer.zero_grad()
            model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
            optimizer.step()
    shares = []
    for inputs, truth in splits:
        right = torch.cat([model(pixel_values=part).logits.argmax(dim=1) for part in inputs.split(64)]) == truth
        parts = truth == TROUSER, truth != TROUSER
        shares += [100 * int(right[part].sum()) / int(part.sum()) for part in parts]
    assert shares == [cached.forget_train, cached.retain_train, cached.forget_test, cached.retain_test]


@pytest.mark.parametrize("probe", PROBES)
def test_what_was_forgotten_need_not_be_classes_and_is_the_same_where_it_is(seen, probe):
    train, labels, test, test_labels = few(seen["erased"])
    forget = torch.tensor([TROUSER, 8])
    assert knowledge_retention(train, labels, test, test_labels, [8, TROUSER, 8], probe=probe, **CPU) == retention_of(
        (train, labels, torch.isin(labels, forget)),
        (test, test_labels, torch.isin(test_labels, forget)),
        probe=probe,
        **CPU,
    )


@given(st.permutations(range(16)))
def test_the_order_of_test_images_does_not_matter(order):
    train, labels, test, test_labels = HAND
    order = torch.tensor(order)
    found = knowledge_retention(train, labels, test[order], test_labels[order], [0], probe="knn", **CPU)
    assert found == knowledge_retention(*HAND, [0], probe="knn", **CPU)


def test_the_seed_is_that_of_the_probe(seen):
    given = few(seen["original"])
    runs = [knowledge_retention(*given, [TROUSER], seed=seed, **CPU) for seed in (0, 1, 0)]
    assert runs[0] == runs[2] != runs[1]
    assert [run.settings["seed"] for run in runs] == [0, 1, 0]
    assert runs[0].probe == "paper"


# Several classes


def test_two_forgotten_classes_that_look_alike_are_read_as_either():
    """A probe confuses them with each other and with no other class: half are right, and nothing is hidden."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    features = torch.randn(900, 4, generator=generator) + 9 * (labels == 2)[:, None]
    found = knowledge_retention(features, labels, features, labels, [0, 1], probe="converged", **CPU).accuracies
    assert found.forget_test < 65
    assert (found.any_train, found.any_test) == (100, 100)
    curve = retention_curve(features, labels, features, labels, [0, 1], counts=[5, None], **CPU)
    assert [point.any_test for point in curve] == [100, 100]
    alone = knowledge_retention(features, labels, features, labels, [2], probe="converged", **CPU).accuracies
    assert alone.any_test is None


# Numbers


@pytest.mark.parametrize("probe", ["knn", "converged", "mlp"])
def test_the_shares_by_hand(probe):
    found = knowledge_retention(*HAND, [0], probe=probe, **CPU)
    assert found.accuracies == Accuracies(100.0, 100.0, 75.0, 87.5, 0.0, pytest.approx(2 * 25 * 87.5 / 112.5))
    assert found.probe == probe


def test_one_vs_rest_counts_forgotten_or_not():
    """A retain image that is taken for another retain class is right, and a forget image taken for one is wrong."""
    found = knowledge_retention(*HAND, [0], probe="one_vs_rest", **CPU)
    assert found.accuracies == Accuracies(100.0, 100.0, 75.0, 100.0, 0.0, pytest.approx(2 * 25 * 100 / 125))
    # Of classes 0 and 1, all lie among the two. The one image of class 2 that does too is a quarter.
    found = knowledge_retention(*HAND, [0, 1], probe="one_vs_rest", **CPU)
    assert (found.accuracies.forget_test, found.accuracies.retain_test) == (100.0, 75.0)


def test_as_a_dictionary_it_is_flat():
    found = knowledge_retention(*HAND, [0], probe="knn", **CPU)
    values = found.to_dict()
    settings = values.pop("settings")
    assert (values.pop("probe"), settings) == ("knn", {"neighbours": 10})
    assert Accuracies(**values) == found.accuracies
    settings["neighbours"] = 0
    assert found.settings == {"neighbours": 10}


def test_the_paper_s_probe_reads_far_less_of_an_erased_class(seen):
    found = {
        name: statistics.fmean(
            knowledge_retention(*four(features), [TROUSER], seed=seed, **CPU).accuracies.forget_test
            for seed in (0, 1, 2)
        )
        for name, features in seen.items()
    }
    assert found["original"] > 80
    assert found["erased"] < found["original"] / 3


def test_a_converged_probe_reads_it_as_before(seen):
    found = {
        name: knowledge_retention(*four(features), [TROUSER], probe="converged", **CPU)
        for name, features in seen.items()
    }
    assert all(run.settings["converged"] for run in found.values())
    original, erased = (found[name].accuracies for name in ("original", "erased"))
    assert original.forget_test > 90
    assert erased.forget_test == pytest.approx(original.forget_test, abs=4)
    assert erased.retain_test == pytest.approx(original.retain_test, abs=2)


def test_without_forget_test_images_there_is_no_hm(seen):
    train, labels, test, test_labels = few(seen["erased"])
    gone = torch.zeros(len(labels), dtype=torch.bool)
    gone[::7] = True  # images of every class
    nothing = torch.zeros(len(test_labels), dtype=torch.bool)
    run = retention_of((train, labels, gone), (test, test_labels, nothing), probe="converged", **CPU)
    assert isinstance(run, KnowledgeRetention)
    accuracies = run.accuracies
    assert (accuracies.forget_test, accuracies.hm_train, accuracies.hm_test) == (None, None, None)
    assert accuracies.forget_train == accuracies.retain_train == 100
    assert 70 < accuracies.retain_test < 100


# The curve


def test_more_labelled_images_read_more_and_the_last_point_is_all_of_them(seen):
    given = few(seen["erased"], 800)
    points = retention_curve(*given, [TROUSER], counts=(1, 3, 10, 10_000, None), **CPU)
    assert [point.labelled for point in points] == [1, 3, 10, int((given[1] == TROUSER).sum())]
    heights = [point.forget_test for point in points]
    assert all(later > earlier - 2.5 for earlier, later in itertools.pairwise(heights))
    assert heights[0] < heights[-1] - 20
    full = knowledge_retention(*given, [TROUSER], probe="converged", **CPU).accuracies
    # In another order of the images, whose sums are rounded otherwise.
    assert points[-1].forget_test == pytest.approx(full.forget_test, abs=1.5)
    assert points[-1].retain_test == pytest.approx(full.retain_test, abs=0.5)
    assert points[-1].spread == 0
    # All retain images are there at every point.
    assert all(point.retain_test == pytest.approx(full.retain_test, abs=2) for point in points)


@pytest.mark.parametrize("probe", ["converged", "paper"])
def test_a_point_is_the_mean_over_seeds_and_their_spread(seen, probe):
    options = {"counts": (1, None), "probe": probe, **CPU}
    given = few(seen["erased"])
    alone = [retention_curve(*given, [TROUSER], seeds=[seed], **options) for seed in (0, 1, 2)]
    together = retention_curve(*given, [TROUSER], seeds=[0, 1, 2], **options)
    for index, point in enumerate(together):
        runs = [points[index] for points in alone]
        assert point.forget_test == pytest.approx(statistics.fmean(run.forget_test for run in runs))
        assert point.retain_test == pytest.approx(statistics.fmean(run.retain_test for run in runs))
        assert point.spread == pytest.approx(statistics.pstdev(run.forget_test for run in runs))
        assert {run.spread for run in runs} == {0}
    assert together[0].spread > 0


def test_each_of_several_classes_has_so_many_labels():
    """With one image of each that lies apart, either class is read; had one none, it would not be."""
    train, labels, test, test_labels = HAND
    (point,) = retention_curve(train, labels, test, test_labels, [0, 2], counts=(1,), seeds=[0], **CPU)
    assert point.forget_test == pytest.approx(100 * 9 / 12)
    assert point.retain_test == 100


# What is refused

NAN, HUGE = HAND[0].clone(), HAND[2].clone()
NAN[[3, 4], 1], HUGE[0, 0] = torch.nan, -torch.inf
REFUSED = {
    "fewer training labels": ({"train_labels": HAND[1][1:]}, ProbeError, r"36 training features .+ \(35,\)"),
    "fewer test labels": ({"test_labels": HAND[3][1:]}, ProbeError, r"16 test features .+ \(15,\)"),
    "scores for labels": ({"test_labels": HAND[3].double()}, ProbeError, r"\(torch.float64\)"),
    "NaN": ({"train_features": NAN}, NonFiniteError, "2 of the 36 training features are not finite"),
    "infinite": ({"test_features": HUGE}, NonFiniteError, "1 of the 16 test features are not finite"),
    "forget label without test images": (
        {"test_labels": HAND[3].clamp_min(1)},
        ProbeError,
        r"forget labels \[0\] have no test image",
    ),
    "forget label without training images": (
        {"forget_labels": [0, 5]},
        ProbeError,
        r"forget labels \[5\] have no training image",
    ),
    "no forget label": ({"forget_labels": []}, ProbeError, "`forget_labels` is empty"),
    "one class": ({"train_labels": HAND[1] * 0}, ProbeError, "All training images have forget labels"),
    "one class in the test": ({"test_labels": HAND[3] * 0}, ProbeError, "All test images have forget labels"),
    "nothing to keep": ({"forget_labels": [0, 1, 2]}, ProbeError, "All training images have forget labels"),
    "other width": ({"test_features": HAND[2][:, :2]}, ProbeError, "have 3 dimensions and test features 2"),
    "no width": ({"train_features": HAND[0][:, 0]}, ProbeError, r"training features should be \(N, d\)"),
    "no test images": (
        {"test_features": HAND[2][:0], "test_labels": HAND[3][:0]},
        ProbeError,
        r"test features should be \(N, d\) with N of 1 or more",
    ),
    "no such probe": ({"probe": "svm"}, ProbeError, "no probe 'svm'"),
}
NAMES = ("train_features", "train_labels", "test_features", "test_labels", "forget_labels")


@pytest.mark.parametrize("function", [knowledge_retention, retention_curve])
@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused(function, what):
    changed, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        function(**{**dict(zip(NAMES, (*HAND, [0]), strict=True)), **CPU, **changed})
