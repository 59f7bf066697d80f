"""Accuracies are counted as by hand, and HM is the paper's."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from transformers import ViTImageProcessor

from hf_esc.data import ImageData, image_batches
from hf_esc.evaluation import Accuracies, evaluate_accuracies, harmonic_mean
from hf_esc.evaluation.accuracy import accuracies_of, model_classifier, share_of, shares_of
from hf_esc.loading import load_processor

from .pictures import encoded

percent = st.floats(0, 100)


@given(percent, percent)
def test_hm_is_a_mean_that_rises_with_forgetting_and_with_keeping(forget, retain):
    hm = harmonic_mean(forget, retain)
    low, high = sorted((100 - forget, retain))
    assert low - 1e-9 <= hm <= min(high, 2 * low) + 1e-9  # the smaller of the two bounds it
    assert hm == pytest.approx(harmonic_mean(100 - retain, 100 - forget))  # symmetric
    assert harmonic_mean(forget / 2, retain) >= hm - 1e-9
    assert harmonic_mean(forget, retain / 2) <= hm + 1e-9


def test_hm_at_the_ends():
    assert [harmonic_mean(*pair) for pair in ((0, 100), (100, 100), (0, 0), (100, 0))] == [100, 0, 0, 0]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_a_share_and_that_of_the_rest_add_up_to_the_whole(images):
    right, part = (torch.tensor([image[side] for image in images], dtype=torch.bool) for side in (0, 1))
    shares = share_of(right, part), share_of(right, ~part)
    assert [share is None for share in shares] == [not part.any(), not (~part).any()]
    counted = sum((share or 0) * int(side.sum()) for share, side in zip(shares, (part, ~part), strict=True))
    assert counted == pytest.approx(100 * int(right.sum()))


def test_a_share_is_rounded_once():
    """7 of 25 are 28 %, where 100 times the mean is 28.000000000000004."""
    right = torch.arange(25) < 7
    assert share_of(right, torch.ones(25, dtype=torch.bool)) == 28.0


@given(st.tuples(*[st.none() | percent] * 4))
def test_hm_is_there_where_both_of_its_shares_are_and_classes_were_forgotten(shares):
    train, test = (*shares[:2], 7.0), (*shares[2:], 8.0)
    found = accuracies_of(train, test)
    for hm, pair in ((found.hm_train, shares[:2]), (found.hm_test, shares[2:])):
        assert hm == (None if None in pair else harmonic_mean(*pair))
    assert (found.any_train, found.any_test) == (7, 8)
    assert accuracies_of(train, test, of_images=True) == Accuracies(*shares, None, None)


def test_who_takes_one_forgotten_class_for_another_still_tells_them_from_the_rest():
    labels, answers = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 1, 0, 2, 2, 0])
    assert shares_of(answers, labels, labels < 2) == (0.0, 50.0, 75.0)
    assert shares_of(answers, labels, labels == 0) == (0.0, 25.0, None)
    assert shares_of(answers, labels, labels < 2, labels > 2) == (0.0, None, 75.0)


# (D_f, D_r) and HM of Table 1: https://huggingface.co/papers/2504.02199
PAPER = {
    "CIFAR-10, original": (98.42, 98.29, 3.11),
    "CIFAR-10, original, test": (85.90, 86.57, 24.25),
    "CIFAR-10, Retrain": (0.00, 96.93, 98.44),
    "CIFAR-10, SCRUB, KR test": (65.53, 81.85, 48.51),
    "CIFAR-10, LAU": (0.15, 92.84, 96.22),
    "CIFAR-10, ESC": (9.46, 96.52, 93.43),
    "CIFAR-10, ESC, KR": (8.53, 97.45, 94.36),
    "CIFAR-100, Retrain, KR": (54.66, 82.03, 58.40),
    "CIFAR-100, ESC": (0.80, 89.46, 94.08),
    "CIFAR-100, ESC-T, test": (0.09, 76.73, 86.80),
    "Tiny-ImageNet, original": (96.72, 96.47, 6.34),
    "Tiny-ImageNet, ESC": (0.10, 96.36, 98.10),
    "Tiny-ImageNet, ESC-T, KR": (1.36, 94.53, 96.54),
}


@pytest.mark.parametrize("row", PAPER)
def test_hm_of_the_paper(row):
    forget, retain, expected = PAPER[row]
    assert harmonic_mean(forget, retain) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("pair", [(-0.1, 50), (50, 100.1), (float("nan"), 50), (50, float("nan"))])
def test_what_is_no_percentage_is_refused(pair):
    with pytest.raises(ValueError, match="in % from 0 to 100"):
        harmonic_mean(*pair)


# One image is one pixel whose value numbers it, so that a classifier can be a table.

PROCESSOR = ViTImageProcessor(do_resize=False, do_normalize=False, do_rescale=False)
FEATURES = Features({"image": Image(), "label": Value("int64")})


def table_of_pixels(first: int, labels: list[int]) -> Dataset:
    images = [encoded(Pillow.new("L", (1, 1), first + number)) for number in range(len(labels))]
    return Dataset.from_dict({"image": images, "label": labels}, features=FEATURES)


def data(test: bool = True) -> ImageData:
    train = table_of_pixels(0, [0, 0, 0, 0, 1, 1, 1, 2])
    return ImageData("pixels", train, table_of_pixels(8, [0, 0, 1, 1, 1]) if test else None, "image", "label", None, 3)


def classifier(predictions: list[int]):
    return lambda inputs: torch.eye(4)[torch.tensor(predictions)[inputs["pixel_values"][:, 0, 0, 0].long()]]


# The model's classes are (2, 0, 1) for the data set's (0, 1, 2).
MAPPING = [2, 0, 1]
TRAIN, TEST = [2, 2, 2, 1, 0, 0, 1, 1], [2, 0, 0, 2, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accuracies_by_hand(batch_size):
    measured = evaluate_accuracies(
        {"table": classifier(TRAIN + TEST), "always 2": classifier([2] * 13)},
        data(),
        [0],
        mapping=MAPPING,
        processor=PROCESSOR,
        batch_size=batch_size,
    )
    # Of class 0, 3 of 4 in training and 1 of 2 in the test; of the others, 3 of 4 and 1 of 3.
    assert measured["table"] == Accuracies(
        forget_train=75.0,
        retain_train=75.0,
        forget_test=50.0,
        retain_test=pytest.approx(100 / 3),
        hm_train=pytest.approx(37.5),
        hm_test=pytest.approx(40.0),
    )
    assert measured["always 2"] == Accuracies(100.0, 0.0, 100.0, 0.0, 0.0, 0.0)


def test_several_classes_are_forgotten_together():
    (measured,) = evaluate_accuracies(
        {"": classifier(TRAIN + TEST)}, data(), [2, 0], mapping=MAPPING, processor=PROCESSOR
    ).values()
    assert (measured.forget_train, measured.retain_train) == (80.0, pytest.approx(200 / 3))


def test_classes_that_are_left_out_count_as_neither():
    run = {"": classifier(TRAIN + TEST)}
    (measured,) = evaluate_accuracies(run, data(), [0], leave_out=[2], mapping=MAPPING, processor=PROCESSOR).values()
    assert (measured.forget_train, measured.retain_train) == (75.0, pytest.approx(200 / 3))


def test_what_is_not_there_is_none():
    run = {"": classifier(TRAIN + TEST)}
    (no_test,) = evaluate_accuracies(run, data(test=False), [0], mapping=MAPPING, processor=PROCESSOR).values()
    assert (no_test.forget_test, no_test.retain_test, no_test.hm_test) == (None, None, None)
    (nothing,) = evaluate_accuracies(run, data(), [], mapping=MAPPING, processor=PROCESSOR).values()
    assert (nothing.forget_train, nothing.retain_train, nothing.hm_train) == (None, 75.0, None)
    (no_retain,) = evaluate_accuracies(run, data(), [0, 1, 2], mapping=MAPPING, processor=PROCESSOR).values()
    assert (no_retain.forget_train, no_retain.retain_train, no_retain.hm_train) == (75.0, None, None)
    (not_in_test,) = evaluate_accuracies(run, data(), [2], mapping=MAPPING, processor=PROCESSOR).values()
    assert (not_in_test.forget_train, not_in_test.forget_test, not_in_test.hm_test) == (100.0, None, None)


def test_a_model_is_a_classifier(resnet, fashion):
    batch = next(image_batches(fashion.test, load_processor(resnet), image_column="image", batch_size=4))
    logits = model_classifier(resnet)(batch)
    with torch.no_grad():
        assert torch.equal(logits, resnet(**batch).logits)


def test_the_embedded_model_knows_its_test_images(resnet, fashion):
    few = ImageData("few", fashion.test.select(range(200)), None, "image", "label", fashion.label_names, 10)
    (measured,) = evaluate_accuracies(
        {"": model_classifier(resnet)}, few, [], mapping=few.labels_in(resnet.config), processor=load_processor(resnet)
    ).values()
    assert measured.retain_train > 85


LIGHT = """
sys.path.insert(0, root)
for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
    del sys.modules[name]  # it would be there again
from hf_esc.evaluation import harmonic_mean
assert not any(name.split(".")[0] == "sklearn" for name in sys.modules)
"""
WITHOUT_WORDS = """
sys.path.insert(0, root)
import hf_esc.evaluation.report
assert "hf_esc.evaluation.report_text" not in sys.modules
import hf_esc.evaluation
for name in hf_esc.evaluation.__all__:
    assert getattr(hf_esc.evaluation, name).__name__ == name
"""


@pytest.mark.parametrize("code", [LIGHT, WITHOUT_WORDS], ids=["light", "without words"])
def test_what_is_light_imports_nothing_heavy_and_a_report_none_of_its_words(elsewhere, code):
    elsewhere(code, root=Path(__file__).parents[1])
