"""Attacks get back what there is to get, say so beside the original's number, and leave models and draws alone."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from datasets import ClassLabel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers.utils import logging

from hf_esc import erase
from hf_esc.all_cnn.modeling_all_cnn import AllCNNLayer
from hf_esc.data import ImageData, image_batches, load_images
from hf_esc.errors import ProbeError
from hf_esc.evaluation import Accuracies, evaluate_accuracies, report_text
from hf_esc.evaluation.accuracy import model_classifier
from hf_esc.evaluation.attacks import ATTACKS, MEANINGS, few_shot, finetune, hidden_layers, nearest_neighbours, strip
from hf_esc.evaluation.knowledge_retention import knowledge_retention, retention_of
from hf_esc.evaluation.membership import MembershipInference
from hf_esc.evaluation.model_features import ModelFeatures, SplitFeatures, model_features
from hf_esc.evaluation.probes import PROBES, train_probe
from hf_esc.evaluation.report import ModelResult, UnlearningReport
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.features.stream import hidden_features
from hf_esc.loading import load_classifier, load_processor, random_network

from .pictures import NAMES, labelled
from .tiny import batches, quietly, tiny

pytestmark = pytest.mark.slow

TROUSER, COAT, BAG = 1, 4, 8
CAT, DOG, BIRD, FISH = range(4)
QUICK = {"seeds": (0,), "device": "cpu", "batch_size": 200}


@pytest.fixture(scope="module")
def data(clothes):
    """600 images to train and 200 to test."""
    return load_images(clothes)


@pytest.fixture(scope="module")
def few(data):
    """160 images to train and 80 to test, of ten classes."""
    return replace(data, train=data.train.select(range(160)), test=data.test.select(range(80)))


@pytest.fixture(scope="module")
def processor(resnet):
    return load_processor(resnet)


@pytest.fixture(scope="module")
def erased(resnet, data):
    return erase(resnet, data.forget_set([TROUSER]))


@pytest.fixture(scope="module")
def twice(erased, data):
    """Trousers were erased first, and bags after them."""
    return erase(erased, data.forget_set([BAG]))


@pytest.fixture(scope="module")
def other(resnet):
    """Another original: one whose head never says trouser."""
    model = copy.deepcopy(resnet)
    with torch.no_grad():
        model.classifier[1].bias[TROUSER] = -1e4
        model.classifier[1].weight[TROUSER] = 0
    return model


@pytest.fixture(scope="module")
def report(erased, data):
    """All attacks but the one that takes long."""
    return evaluate_unlearning(erased, data, attacks=[name for name in ATTACKS if name != "finetune"], **QUICK)


@pytest.fixture(scope="module")
def all_cnn():
    return load_classifier("embedded/all-cnn", device="cpu")


@pytest.fixture(scope="module")
def coloured() -> ImageData:
    """Coloured noise of four classes, 24 pictures to train and 12 to test."""
    train, test = labelled([0, 1, 2, 3] * 6, NAMES), labelled([3, 2, 1, 0] * 3, NAMES)
    return ImageData("coloured", train, test, "image", "label", list(NAMES), 4)


@pytest.fixture(scope="module")
def small(coloured, all_cnn):
    """A small random network after ESC of cats, and of birds after them, and its image processor."""
    model, processor = tiny(), load_processor(all_cnn)
    for label in (CAT, BIRD):
        model = quietly(model, coloured.forget_set([label]), processing_class=processor, rank=1)
    return model, processor


@pytest.fixture(scope="module")
def whole(small, coloured):
    """All attacks, on a small network."""
    model, processor = small
    return evaluate_unlearning(model, coloured, [CAT], attacks=ATTACKS, processing_class=processor, **QUICK)


@pytest.fixture(scope="module")
def seen(erased, few, processor):
    """What the erased model makes of the few images, hidden states included."""
    return model_features(erased, few, processor, batch_size=200, hidden=True)


@pytest.fixture
def passes():
    """What went through a ResNet or an All-CNN, and whether it was training: a list that grows."""
    found: list[tuple[bool, torch.Tensor]] = []

    def hook(module, args, kwargs=None):
        if type(module).__name__ in ("ResNetEmbeddings", "AllCNNLayer") and args[0].shape[1] in (1, 3):
            found.append((module.training, args[0].detach().clone()))

    handle = register_module_forward_pre_hook(hook)
    yield found
    handle.remove()


@pytest.fixture
def answers():
    """The logits of every pass of a classifier, and whether it was training: a list that grows."""
    found: list[tuple[bool, torch.Tensor]] = []

    def hook(module, args, output):
        if hasattr(output, "logits") and not hasattr(module, "projections"):
            found.append((module.training, output.logits.detach().clone()))

    handle = register_module_forward_hook(hook)
    yield found
    handle.remove()


def part_of(split: SplitFeatures, label: int = TROUSER):
    return split.features, split.labels, split.labels == label


def gone(features: ModelFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    return features.train.labels == TROUSER, features.test.labels == TROUSER


def pictures(data: ImageData, split, processor, labels=None, *, keep: bool = True) -> list[bytes]:
    """The preprocessed pictures of a split, those of some classes or all, each as its bytes."""
    split = split if labels is None else data.select(split, labels, keep=keep)
    found = image_batches(split, processor, image_column=data.image_column, batch_size=500)
    return [picture.numpy().tobytes() for batch in found for picture in batch["pixel_values"]]


def trained_on(passes) -> list[bytes]:
    return [picture.numpy().tobytes() for training, batch in passes if training for picture in batch]


def looked_at(passes) -> list[bytes]:
    return [picture.numpy().tobytes() for training, batch in passes if not training for picture in batch]


# Taking the projection off


def test_a_stripped_model_is_its_original_and_another_is_what_it_is(report):
    models = report.models
    for name, whose in (("model", "original"), ("original", "original"), ("random", "random")):
        found, head = models[name].attacks["strip"], models[whose].accuracies
        assert (found.forget_test, found.retain_test) == (head.forget_test, head.retain_test), name
    assert models["model"].accuracies.forget_test < 10 < 90 < models["model"].attacks["strip"].forget_test


def test_it_is_stripped_whatever_original_is_given_and_so_is_an_erased_reference(erased, other, twice, few, passes):
    plain = evaluate_unlearning(erased, few, attacks=["strip"], **QUICK).models
    rows = [len(batch) for _, batch in passes]
    assert sum(rows) < 3 * 240 + 10  # the original is the stripped model: no pass of its own
    references = {"original": other, "mine": twice}
    found = evaluate_unlearning(erased, few, references=references, attacks=["strip"], **QUICK).models
    assert found["model"].attacks == plain["model"].attacks
    assert found["original"].attacks["strip"].forget_test == 0
    assert found["mine"].attacks["strip"] == plain["model"].attacks["strip"]  # the same original inside
    assert found["mine"].accuracies != plain["original"].accuracies
    assert all(projection.enabled for projection in (*erased.projections, *twice.projections))


def test_strip_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    said = torch.tensor([0, 1, 1, 1, 1, 1, 2, 0])
    split = SplitFeatures(torch.zeros(8, 2), nn.functional.one_hot(said, 3).float(), labels)
    found = strip(ModelFeatures(split, split), labels == 0)
    assert (found.forget_test, found.retain_test, found.spread) == (25, 75, None)
    with pytest.raises(ProbeError, match="test images of the forgotten classes and of others"):
        strip(ModelFeatures(split, split), labels == 7)


# Hidden layers


def test_hidden_layers_are_the_original_s_number_for_number(report, resnet, seen, few, processor):
    assert report.models["model"].attacks["hidden_layers"] == report.models["original"].attacks["hidden_layers"]
    original = model_features(resnet, few, processor, batch_size=200, hidden=True)
    for mine, its in ((seen.train, original.train), (seen.test, original.test)):
        for one, two in zip(mine.hidden, its.hidden, strict=True):
            assert torch.equal(one, two)
    assert not torch.allclose(seen.test.features, original.test.features)


def test_each_hidden_state_has_its_numbers_and_the_one_that_shows_most_counts(report):
    for name, result in report.models.items():
        found = result.attacks["hidden_layers"]
        layers = found.settings["layers"]
        assert len(layers) == 4, name
        assert [found.forget_test, found.retain_test] == layers[found.settings["layer"]] == max(layers)


def test_a_layer_is_a_converged_probe_on_the_mean_over_the_map(resnet, seen, few, processor):
    states = []
    for split in (few.train, few.test):
        [batch] = image_batches(split, processor, image_column="image", batch_size=500)
        with torch.no_grad():
            maps = resnet(batch["pixel_values"], output_hidden_states=True).hidden_states[1]
        states.append(maps.mean(dim=(2, 3)))
    expected = knowledge_retention(
        states[0], seen.train.labels, states[1], seen.test.labels, [TROUSER], probe="converged"
    ).accuracies
    found = hidden_layers(seen, *gone(seen)).settings["layers"][1]
    assert found == pytest.approx([expected.forget_test, expected.retain_test])
    for state, mine in zip(states, (seen.train.hidden[1], seen.test.hidden[1]), strict=True):
        assert torch.allclose(state, mine, atol=1e-5)


def test_of_layers_that_show_the_same_the_one_that_tells_the_others_apart_counts():
    labels = torch.arange(90) % 3
    where = nn.functional.one_hot(labels, 3).float()
    draws = torch.Generator().manual_seed(0)
    nothing = torch.randn(90, 3, generator=draws)
    states = (nothing, where[:, :1], where, nothing.flip(1))  # the second shows class 0 alone, the third shows all
    split = SplitFeatures(nothing, where, labels, states)
    found = hidden_layers(ModelFeatures(split, split), labels == 0, labels == 0)
    assert found.settings["layer"] == 2
    assert (found.forget_test, found.retain_test) == (100, 100)
    assert found.settings["layers"][1] == [100, 50]
    assert [min(layer) < 90 for layer in found.settings["layers"]] == [True, True, False, True]


def test_a_model_that_gives_no_hidden_states_has_no_such_number(seen):
    plain = ModelFeatures(*(replace(split, hidden=()) for split in (seen.train, seen.test)))
    assert hidden_layers(plain, *gone(plain)) is None


def test_classes_that_are_dropped_are_dropped_from_hidden_states_too(seen):
    rows = seen.train.labels != BAG
    found = seen.train.without([BAG])
    assert len(found.hidden) == 4
    for one, two in zip(found.hidden, seen.train.hidden, strict=True):
        assert torch.equal(one, two[rows])


def test_features_on_disk_get_hidden_states_when_they_are_asked_for(erased, few, tmp_path, passes):
    attacks = ["strip", "hidden_layers"]
    expected = evaluate_unlearning(erased, few, attacks=attacks, **QUICK)
    evaluate_unlearning(erased, few, feature_dir=tmp_path, **QUICK)
    assert evaluate_unlearning(erased, few, attacks=attacks, feature_dir=tmp_path, **QUICK) == expected
    passes.clear()
    assert evaluate_unlearning(erased, few, attacks=attacks, feature_dir=tmp_path, **QUICK) == expected
    without = evaluate_unlearning(erased, few, feature_dir=tmp_path, **QUICK)
    assert without.models["model"].accuracies == expected.models["model"].accuracies
    assert sum(len(batch) for _, batch in passes) < 20  # looks at where the head is, on one picture each


# Hidden states as features


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 5), ()),
        ((2, 7, 5), (1,)),
        ((2, 5, 5), (1,)),  # tokens first, always
        ((2, 5, 4, 4), (2, 3)),
        ((2, 5, 4, 6), (2, 3)),
        ((2, 4, 4, 5), (1, 2)),
        ((2, 1, 1, 5), (1, 2)),
        ((2, 5, 1, 1), (2, 3)),
        ((2, 4, 4, 4), (2, 3)),  # nobody knows: channels come first
    ],
)
def test_a_hidden_state_is_the_mean_over_its_positions(shape, axes):
    state = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hidden_features(state), state.mean(dim=axes) if axes else state)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
def test_an_order_of_positions_does_not_matter(images, dimensions, side):
    draws = torch.Generator().manual_seed(0)
    state = torch.randn(images, side * side, dimensions, generator=draws)
    shuffled = state[:, torch.randperm(side * side, generator=draws)]
    assert torch.allclose(hidden_features(state), hidden_features(shuffled), atol=1e-5)
    maps = shuffled.transpose(1, 2).reshape(images, dimensions, side, side)
    assert torch.allclose(hidden_features(maps), hidden_features(state), atol=1e-5)


# Hidden states of the All-CNN


@pytest.fixture(scope="module")
def batch(few, all_cnn):
    split = few.test.select(range(12))
    [found] = image_batches(split, load_processor(all_cnn), image_column="image", batch_size=12)
    return found["pixel_values"]


@torch.no_grad()
def test_the_all_cnn_gives_a_map_for_each_convolution_and_the_last_is_what_its_head_reads(all_cnn, batch):
    found = all_cnn(batch, output_hidden_states=True)
    convolutions = [module for module in all_cnn.modules() if isinstance(module, nn.Conv2d)]
    assert len(found.hidden_states) == len(convolutions) == 8
    assert [state.shape[1] for state in found.hidden_states] == [module.out_channels for module in convolutions]
    assert all(state.min() >= 0 for state in found.hidden_states)  # after the ReLU
    assert torch.equal(all_cnn.classifier(found.hidden_states[-1].mean(dim=(2, 3))), found.logits)
    layers = [module for module in all_cnn.layers if isinstance(module, AllCNNLayer)]
    for layer, before, after in zip(layers[1:], found.hidden_states, found.hidden_states[1:], strict=False):
        assert torch.equal(layer(before), after)


@torch.no_grad()
def test_asking_for_hidden_states_changes_no_logit_and_the_configuration_may_ask(all_cnn, batch):
    plain = all_cnn(batch)
    assert plain.hidden_states is None
    assert torch.equal(all_cnn(batch, output_hidden_states=True).logits, plain.logits)
    asking = copy.deepcopy(all_cnn)
    asking.config.output_hidden_states = True
    assert len(asking(batch).hidden_states) == 8
    assert asking(batch, output_hidden_states=False).hidden_states is None


@torch.no_grad()
def test_an_erased_all_cnn_passes_them_on(all_cnn, batch):
    model = quietly(all_cnn, batches(batch[:6]))
    found = model(batch, output_hidden_states=True)
    for one, two in zip(found.hidden_states, all_cnn(batch, output_hidden_states=True).hidden_states, strict=True):
        assert torch.equal(one, two)
    assert model(batch).hidden_states is None


# Neighbours


def test_nearest_neighbours_are_the_probe_of_that_name(seen):
    parts = part_of(seen.train), part_of(seen.test)
    expected = retention_of(*parts, probe="knn")
    found = nearest_neighbours(*parts)
    assert (found.forget_test, found.retain_test) == (
        expected.accuracies.forget_test,
        expected.accuracies.retain_test,
    )
    assert (found.settings, found.spread) == ({"neighbours": 10}, None)


# A few images


def clouds(seed: int, images: int, centres: list[list[float]], noise: float = 0.1):
    """Images of each class around its centre; the first class is the forgotten one."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % len(centres)
    where = torch.tensor(centres)[labels]
    features = where + noise * torch.randn(where.shape, generator=draws)
    return features, labels, labels == 0


def test_five_images_are_enough_for_classes_that_are_apart():
    centres = [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]
    found = few_shot(clouds(0, 60, centres), clouds(1, 90, centres))
    assert (found.forget_test, found.retain_test, found.spread) == (100, 100, 0)
    assert found.settings == {"shots": 5, "draws": 10, "seed": 0}


def test_a_class_that_looks_as_another_is_a_matter_of_chance():
    centres = [[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]]
    found = few_shot(clouds(0, 300, centres), clouds(1, 900, centres), draws=40)
    assert 35 < found.forget_test < 65
    assert 60 < found.retain_test < 90  # half of the one, all of the other
    assert found.spread > 5


def test_few_images_by_hand():
    # Both training images of a class are taken: the means are 1 for class 0, and 5 for class 3.
    train = (torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 3, 3]))
    test = (torch.tensor([[0.0], [2.9], [3.1], [9.0], [2.0], [4.0]]), torch.tensor([0, 0, 0, 3, 3, 3]))
    found = few_shot((*train, train[1] == 0), (*test, test[1] == 0), shots=2, draws=3)
    assert (found.forget_test, found.retain_test) == pytest.approx((100 * 2 / 3, 100 * 2 / 3))
    swapped = few_shot((*train, train[1] == 3), (*test, test[1] == 3), shots=2, draws=3)
    assert (swapped.forget_test, swapped.retain_test) == pytest.approx((100 * 2 / 3, 100 * 2 / 3))
    more = (torch.tensor([[0.0], [9.0], [2.0], [4.5]]), torch.tensor([0, 3, 3, 3]))
    uneven = few_shot((*train, train[1] == 0), (*more, more[1] == 0), shots=2)
    assert (uneven.forget_test, uneven.retain_test) == pytest.approx((100, 100 * 2 / 3))


def test_few_images_are_the_mean_over_draws_each_of_so_many_images_of_each_class():
    # A class of one image in ten that is far off: it is drawn or not, and with it the class is lost or not.
    features = torch.tensor([*[[0.0]] * 9, [100.0], *[[8.0]] * 10])
    labels = torch.tensor([0] * 10 + [1] * 10)
    train, test = (features, labels, labels == 0), (features[[0, 1, 12]], labels[[0, 1, 12]], labels[[0, 1, 12]] == 0)
    draws = 500
    found = few_shot(train, test, shots=1, draws=draws)
    assert 86 < found.forget_test < 94  # 90 % of the draws; two images of it would lose it in 20 %
    lost = 1 - found.forget_test / 100
    assert found.spread == pytest.approx(100 * (lost * (1 - lost)) ** 0.5)
    assert found.forget_test * draws / 100 == pytest.approx(round(found.forget_test * draws / 100))
    assert few_shot(train, test, shots=10).forget_test == 0  # with all ten the mean is at 10, and the other's at 8
    assert few_shot(train, test, shots=99, seed=5).forget_test == 0  # a class with fewer: all it has


def test_the_same_seed_draws_the_same_images_and_nobody_else_s_draws_are_moved():
    centres = [[0.0, 0.0], [0.3, 0.0], [0.0, 0.3]]
    parts = clouds(0, 90, centres, 0.5), clouds(1, 300, centres, 0.5)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = few_shot(*parts, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert few_shot(*parts, seed=3) == one
    other = few_shot(*parts, seed=4)
    assert (other.forget_test, other.retain_test) != (one.forget_test, one.retain_test)


@given(st.integers(0, 99), st.integers(1, 6))
def test_what_classes_are_called_and_where_they_lie_does_not_matter(seed, shots):
    centres = [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]]
    train, test = clouds(seed, 60, centres, 0.5), clouds(seed + 1, 90, centres, 0.5)
    found = few_shot(train, test, shots=shots, draws=3)
    names, shift = torch.tensor([4, 7, 11]), torch.tensor([2.0, -3.0])  # in the same order: the same draws
    moved = [(features + shift, names[labels], forgotten) for features, labels, forgotten in (train, test)]
    again = few_shot(*moved, shots=shots, draws=3)
    assert again.forget_test == pytest.approx(found.forget_test, abs=1.2)  # of 30 images, one on the edge in a draw
    assert again.retain_test == pytest.approx(found.retain_test, abs=1.2)


# Fine-tuning


def test_fine_tuning_leaves_the_model_and_everybody_s_draws_alone(erased, few, processor):
    model = copy.deepcopy(erased).train()
    model.model.classifier.eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    for projected in (True, False):
        finetune(model, few, processor, [TROUSER], steps=2, projected=projected)
        assert all(projection.enabled for projection in model.projections)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == flags
    after = model.state_dict()
    assert list(after) == list(weights)
    for name, tensor in weights.items():
        assert torch.equal(after[name], tensor), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_seed_trains_the_same_whatever_was_drawn_before(all_cnn, few, answers):
    model = tiny(few.label_names, dropout=0.5)
    processor = load_processor(all_cnn)
    runs = []
    for before, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(before)
        answers.clear()
        result = finetune(model, few, processor, [TROUSER], steps=2, seed=seed)
        runs.append((result, torch.cat([logits for training, logits in answers if training])))
    (one, logits), (same, same_logits), (_, others) = runs
    assert one == same
    assert torch.equal(logits, same_logits)
    assert not torch.equal(logits, others)


def test_it_is_trained_on_retain_images_alone_in_epochs_until_the_steps_are_done(erased, few, processor, passes):
    retain = pictures(few, few.train, processor, [TROUSER], keep=False)
    forget = set(pictures(few, few.train, processor, [TROUSER]))
    assert len(forget) > 5
    finetune(erased, few, processor, [TROUSER], steps=7, batch_size=64)
    found = trained_on(passes)
    epoch = len(retain)
    assert 128 < epoch < 192  # three batches
    assert len(found) == 2 * epoch + 64
    assert sorted(found[:epoch]) == sorted(found[epoch : 2 * epoch]) == sorted(retain)
    assert found[:epoch] != found[epoch : 2 * epoch] != retain
    assert not forget & set(found)
    assert looked_at(passes) == pictures(few, few.test, processor)
    passes.clear()
    finetune(erased, few, processor, [TROUSER], steps=2, batch_size=16)
    assert len(trained_on(passes)) == 32


def test_fine_tuning_by_hand(resnet, few, processor, answers):
    steps, rate, size = 3, 1e-2, 48
    found = finetune(resnet, few, processor, [TROUSER], steps=steps, learning_rate=rate, batch_size=size, seed=4)
    tested = torch.cat([logits for training, logits in answers if not training])
    model = copy.deepcopy(resnet).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    retain = few.select(few.train, [TROUSER], keep=False)
    rows = torch.randperm(len(retain), generator=torch.Generator().manual_seed(4))
    columns = {"image_column": "image", "label_column": "label"}
    [train] = image_batches(retain.select(rows.tolist()), processor, batch_size=len(rows), **columns)
    [test] = image_batches(few.test, processor, batch_size=500, **columns)
    for step in range(steps):
        chosen = slice(step * size, (step + 1) * size)
        optimizer.zero_grad()
        logits = model(train["pixel_values"][chosen]).logits
        nn.functional.cross_entropy(logits, train["labels"][chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        expected = model.eval()(test["pixel_values"]).logits
    assert torch.allclose(tested, expected, atol=1e-3)
    right, forgotten = expected.argmax(dim=1) == test["labels"], test["labels"] == TROUSER
    assert found.forget_test == pytest.approx(100 * right[forgotten].double().mean().item())
    assert found.retain_test == pytest.approx(100 * right[~forgotten].double().mean().item())
    assert found.settings == {
        "optimizer": "SGD",
        "learning_rate": rate,
        "momentum": 0.9,
        "batch_size": size,
        "steps": steps,
        "seed": 4,
    }


def test_the_original_inside_of_an_erased_model_is_trained_as_the_original(erased, resnet, few, processor, answers):
    inside = finetune(erased, few, processor, [TROUSER], steps=3, projected=False)
    found = [logits for _, logits in answers]
    answers.clear()
    assert finetune(resnet, few, processor, [TROUSER], steps=3) == inside
    for one, two in zip(found, (logits for _, logits in answers), strict=True):
        assert torch.equal(one, two)
    projected = finetune(erased, few, processor, [TROUSER], steps=3)
    assert projected.forget_test < 50 < inside.forget_test


def test_left_out_classes_are_as_if_they_were_not_there(resnet, few, processor, passes):
    bags = set(pictures(few, few.train, processor, [BAG]))
    found = finetune(resnet, few, processor, [TROUSER], left_out=[BAG], steps=4)
    assert bags
    assert not bags & set(trained_on(passes))
    train, test = (few.select(split, [BAG], keep=False) for split in (few.train, few.test))
    assert finetune(resnet, replace(few, train=train, test=test), processor, [TROUSER], steps=4) == found
    assert finetune(resnet, few, processor, [TROUSER], steps=4) != found


def renumbered(data: ImageData) -> ImageData:
    """The same images whose classes are numbered from behind."""
    names = data.label_names[::-1]

    def turned(split):
        labels = [len(names) - 1 - label for label in split["label"]]
        turned = split.remove_columns("label").add_column("label", labels)
        return turned.cast_column("label", ClassLabel(names=names))

    return replace(data, train=turned(data.train), test=turned(data.test), label_names=names)


def test_how_a_data_set_numbers_its_classes_does_not_matter(resnet, erased, few, processor, passes):
    other = renumbered(few)
    runs = []
    for data in (few, other):
        passes.clear()
        found = finetune(resnet, data, processor, [TROUSER], left_out=[COAT], steps=3)
        runs.append((found, trained_on(passes)))
    assert runs[0] == runs[1]
    attacks = ["strip", "knn", "few_shot"]
    one, two = (evaluate_unlearning(erased, data, attacks=attacks, **QUICK) for data in (few, other))
    assert one.models == two.models
    assert evaluate_unlearning(erased, other, [8], attacks=attacks, **QUICK) == two


def test_a_model_in_half_precision_is_trained_in_full(resnet, few, processor, passes):
    model = copy.deepcopy(resnet).to(torch.bfloat16)
    finetune(model, few, processor, [TROUSER], steps=1)
    assert {batch.dtype for _, batch in passes} == {torch.float32}
    assert next(model.parameters()).dtype == torch.bfloat16


def test_without_an_image_of_another_class_there_is_nothing_to_train_on(resnet, few, processor, passes):
    with pytest.raises(ProbeError, match="no image of another class to fine-tune on"):
        finetune(resnet, replace(few, train=few.forget_set([TROUSER])), processor, [TROUSER], steps=1)
    rest = [label for label in range(10) if label != TROUSER]
    with pytest.raises(ProbeError, match="no image of another class to fine-tune on"):
        finetune(resnet, few, processor, [TROUSER], left_out=rest, steps=1)
    assert passes == []


def test_it_trains_without_a_progress_bar_too(resnet, few, processor):
    expected = finetune(resnet, few, processor, [TROUSER], steps=2)
    logging.disable_progress_bar()
    try:
        assert finetune(resnet, few, processor, [TROUSER], steps=2) == expected
    finally:
        logging.enable_progress_bar()


def test_all_weights_are_trained_those_too_that_the_caller_had_frozen(resnet, few, processor, answers):
    frozen = copy.deepcopy(resnet)
    frozen.resnet.requires_grad_(False)
    finetune(resnet, few, processor, [TROUSER], steps=3)
    expected = [logits for _, logits in answers]
    answers.clear()
    finetune(frozen, few, processor, [TROUSER], steps=3)
    for one, two in zip(expected, (logits for _, logits in answers), strict=True):
        assert torch.equal(one, two)
    assert not any(parameter.requires_grad for parameter in frozen.resnet.parameters())


def test_a_projection_that_the_caller_switched_off_stays_off_in_training(erased, resnet, few, processor):
    with erased.disable_projection():
        found = finetune(erased, few, processor, [TROUSER], steps=3)
    assert found == finetune(resnet, few, processor, [TROUSER], steps=3)


# In an evaluation


def test_all_attacks_are_in_every_column_but_a_random_network_is_not_trained(whole, report):
    for name, result in whole.models.items():
        assert list(result.attacks) == list(ATTACKS)
        assert [attack for attack, found in result.attacks.items() if found is None] == (
            ["finetune"] if name == "random" else []
        )
    for result in (*whole.models.values(), *report.models.values()):
        for attack, found in result.attacks.items():
            if found is not None:
                assert found.meaning == MEANINGS[attack]
                assert 0 <= found.forget_test <= 100
                assert (found.spread is not None) is (attack == "few_shot")
    assert whole.models["model"].attacks["finetune"].settings["steps"] == 100
    assert list(report.models["model"].attacks) == ["strip", "hidden_layers", "knn", "few_shot"]


def test_attacks_are_those_of_their_functions_with_the_first_seed(erased, few, seen):
    options = QUICK | {"seeds": (3, 0), "probes": ["knn"]}
    report = evaluate_unlearning(erased, few, attacks=["few_shot", "knn"], **options)
    found = report.models["model"]
    parts = part_of(seen.train), part_of(seen.test)
    assert list(found.attacks) == ["knn", "few_shot"]  # in their order, not the caller's
    assert found.attacks["few_shot"] == few_shot(*parts, seed=3) != few_shot(*parts, seed=0)
    assert found.attacks["knn"] == nearest_neighbours(*parts)
    assert found.attacks["knn"].forget_test == found.retention["knn"].mean["forget_test"]
    assert evaluate_unlearning(erased, few, **QUICK).models["model"].attacks is None


def test_it_comes_back_from_json_with_its_attacks(whole):
    again = UnlearningReport.from_json(whole.to_json())
    assert again == whole
    assert again.models["random"].attacks["finetune"] is None
    assert again.models["model"].attacks["few_shot"].spread == whole.models["model"].attacks["few_shot"].spread


def test_the_table_has_a_row_for_each_attack_and_says_who_could_make_it(whole):
    [title, *rows] = report_text.table(whole).split("\n\n")[-1].splitlines()
    assert title.startswith("attacks: ")
    numbers, meanings = rows[: len(ATTACKS)], rows[len(ATTACKS) :]
    for attack, row in zip(ATTACKS, numbers, strict=True):
        found = [result.attacks[attack] for result in whole.models.values()]
        cells = ["-" if one is None else f"{one.forget_test:.1f} / {one.retain_test:.1f}" for one in found]
        assert re.split(" {2,}", row) == [attack, *cells]
    assert meanings == [f"  {attack}: {meaning}" for attack, meaning in MEANINGS.items()]
    assert list(MEANINGS) == list(ATTACKS)
    plain = replace(whole, models={name: replace(r, attacks=None) for name, r in whole.models.items()})
    assert "attacks" not in report_text.table(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["strip", "bribe"]}, r"no attack \['bribe'\]. There are: strip, hidden_layers, knn, few_shot"),
        ({"attacks": ["strip"], "forget_indices": [3]}, "Of images of all classes there is none to get back"),
    ],
)
def test_attacks_that_cannot_be_are_refused_before_any_work(erased, few, passes, options, message):
    with pytest.raises(ProbeError, match=message):
        evaluate_unlearning(erased, few, **QUICK | options)
    assert passes == []


# Classes that were erased and are not asked for


def test_a_class_that_was_erased_too_is_neither_forgotten_nor_retained(twice, resnet, few, processor):
    attacks = ["strip", "hidden_layers", "knn", "few_shot"]
    found = evaluate_unlearning(twice, few, [TROUSER], probes=["knn"], attacks=attacks, **QUICK)
    assert (found.forget, found.left_out) == (["Trouser"], ["Bag"])
    assert found.num_forget_test == few.test["label"].count(TROUSER)
    models = {"model": twice, "original": resnet, "random": random_network(twice)}
    for name, accuracies in evaluate_accuracies(
        {name: model_classifier(model) for name, model in models.items()},
        few,
        [TROUSER],
        leave_out=[BAG],
        mapping=few.labels_in(twice.config),
        processor=processor,
    ).items():
        mine = found.models[name].accuracies
        assert mine.__dict__ == pytest.approx(accuracies.__dict__), name
    whole = model_features(twice, few, processor, batch_size=200, hidden=True)
    rows = [split.labels != BAG for split in (whole.train, whole.test)]
    assert not all(row.all() for row in rows)
    left = [split.features[row] for split, row in zip((whole.train, whole.test), rows, strict=True)]
    labels = [split.labels[row] for split, row in zip((whole.train, whole.test), rows, strict=True)]
    for probe, retention in found.models["model"].retention.items():
        expected = knowledge_retention(left[0], labels[0], left[1], labels[1], [TROUSER], probe=probe, device="cpu")
        assert retention.mean == expected.accuracies.__dict__, probe
    sides = [(z, y, y == TROUSER) for z, y in zip(left, labels, strict=True)]
    result = found.models["model"].attacks
    assert result["few_shot"] == few_shot(*sides)
    assert result["strip"].retain_test == found.models["original"].accuracies.retain_test
    dropped = ModelFeatures(*(split.without([BAG]) for split in (whole.train, whole.test)))
    assert result["hidden_layers"] == hidden_layers(dropped, *gone(dropped))
    both = evaluate_unlearning(twice, few, **QUICK)
    assert (both.forget, both.left_out) == (["Trouser", "Bag"], [])
    assert UnlearningReport.from_json(found.to_json()) == found


def test_fine_tuning_in_an_evaluation_leaves_it_out_too(whole, small, coloured, passes, answers):
    model, processor = small
    assert whole.left_out == [NAMES[BIRD]]
    settings = {"left_out": [BIRD], "seed": 0}
    plain = finetune(model, coloured, processor, [CAT], **settings)
    assert whole.models["model"].attacks["finetune"] == plain
    inside = finetune(model, coloured, processor, [CAT], projected=False, **settings)
    assert whole.models["original"].attacks["finetune"] == inside
    passes.clear()
    answers.clear()
    evaluate_unlearning(model, coloured, [CAT], attacks=["finetune"], processing_class=processor, **QUICK)
    steps = [logits for training, logits in answers if training]
    assert len(steps) == 200
    assert not torch.equal(steps[0], steps[100])  # the same images, with the projection and without it
    assert set(trained_on(passes)) == set(pictures(coloured, coloured.train, processor, [DOG, FISH]))


# What else an evaluation leaves alone, says and refuses


def test_each_module_is_in_its_own_mode_afterwards(erased, other, few):
    models = [copy.deepcopy(model).train() for model in (erased, other)]
    models[0].model.classifier.eval()
    models[1].resnet.embedder.eval()
    flags = [{name: module.training for name, module in model.named_modules()} for model in models]
    expected = evaluate_unlearning(erased, few, references={"retrain": other}, attacks=["strip"], **QUICK)
    found = evaluate_unlearning(models[0], few, references={"retrain": models[1]}, attacks=["strip"], **QUICK)
    assert [{name: module.training for name, module in model.named_modules()} for model in models] == flags
    assert found.models == expected.models


def test_it_says_which_random_network_it_made_and_nothing_of_one_that_was_given(report, erased, few):
    assert report.random_seed == 0
    given = evaluate_unlearning(erased, few, references={"random": random_network(erased, 5)}, **QUICK)
    assert given.random_seed is None
    assert UnlearningReport.from_json(given.to_json()).random_seed is None


def column(forget_train, retain_train, forget_test, retain_test, attack) -> ModelResult:
    shares = (forget_train, retain_train, forget_test, retain_test)
    found = MembershipInference(attack, 0.0, 50.0, None, 20, 20, {}) if attack is not None else None
    return ModelResult(Accuracies(*shares, None, None), {}, membership=found)


def by_hand(**columns: ModelResult) -> UnlearningReport:
    return UnlearningReport("a model", "some data", ["cat"], [0], 50, 20, ["esc"], [0], columns)


def test_the_average_gap_by_hand():
    model, retrain = column(10.0, 90.0, 20.0, 80.0, 60.0), column(0.0, 95.0, 0.0, 84.0, 50.0)
    assert by_hand(model=model, retrain=retrain).average_gap() == pytest.approx((10 + 5 + 20 + 4 + 10) / 5)
    assert by_hand(model=model, retrain=retrain).average_gap("retrain") == 0
    rows = by_hand(model=column(100.0, 90.0, None, 80.0, 60.0), retrain=column(95.0, 96.0, None, 84.0, 50.0))
    assert rows.average_gap() == pytest.approx((5 + 6 + 4 + 10) / 4)
    assert rows.to_dict()["average_gap"] == rows.average_gap()
    assert "Avg Gap" in report_text.table(rows)
    alone = by_hand(model=model)
    assert alone.average_gap() is None
    assert "Avg Gap" not in report_text.table(alone)
    assert by_hand(model=model, retrain=column(0.0, 95.0, 0.0, 84.0, None)).average_gap() is None


def test_a_forget_label_without_images_is_refused_before_any_pass(erased, few, passes):
    for split, what in (("train", "training"), ("test", "test")):
        less = replace(few, **{split: few.select(getattr(few, split), [BAG], keep=False)})
        with pytest.raises(ProbeError, match=f"no {what} image of the forgotten classes Bag: nothing can be said"):
            evaluate_unlearning(erased, less, [TROUSER, BAG], **QUICK)
    assert passes == []


# Probes


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_moves_nobody_else_s_draws(name):
    features, labels, _ = clouds(0, 60, [[0.0, 0.0], [1.0, 0.0]])
    state = torch.random.get_rng_state()
    train_probe(name, features, labels, num_labels=2, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("labels", [[0.9], ["1"], [None], [0, 1.0]])
def test_forget_labels_are_whole_numbers(labels):
    features, truth, _ = clouds(0, 30, [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    with pytest.raises(ProbeError, match="whole numbers"):
        knowledge_retention(features, truth, features, truth, labels)
