"""What erase() turns down: what is no forget set, a rank that would not erase, features that are not finite."""

import datasets
import pytest
import torch
from datasets import DatasetDict
from transformers import ViTImageProcessor

from hf_esc import erase
from hf_esc.errors import DataError, ForgetSetError, LabelError, ModelError, NonFiniteError, RankError

from .pictures import NAMES, labelled
from .tiny import batches, images, quietly, tiny

PROCESSOR = ViTImageProcessor(size={"height": 16, "width": 16})


def _never():
    raise AssertionError("No image should have been looked at.")
    yield


@pytest.mark.parametrize(
    "bad", [{"p": 0}, {"p": 100}, {"p": -1}, {"p": "x"}, {"rank": 0}, {"rank": -2}, {"rank": 1.5}, {"rank": "all"}]
)
def test_a_rank_that_no_model_has_is_refused_before_the_first_image(bad):
    with pytest.raises(RankError):
        erase(tiny(), _never(), **bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"p": 1.5}, "`p=1.5` of 8 feature directions rounds down to rank 0, which erases nothing. Use `p=12.50`"),
        ({"rank": 8}, "`rank=8` of 8 feature directions leaves no feature. Use a rank from 1 to 7"),
        ({"rank": 6}, "Rank 6 was asked for, and the forget features span 5 directions"),
    ],
)
def test_a_rank_that_erases_nothing_or_all_or_is_beyond_the_images_is_refused(bad, message):
    with pytest.raises(RankError, match=message):
        erase(tiny(), batches(images(5)), **bad)


def test_a_second_request_for_more_than_is_left_is_refused():
    first = quietly(tiny(), batches(images(4)), rank=3)
    with pytest.raises(RankError, match="3 of 8 directions are erased already, and `rank=5`"):
        erase(first, batches(images(40, 1)), rank=5)
    with pytest.raises(RankError, match="Rank 2 was asked for, and the forget features span 1"):
        erase(first, batches(images(4)), rank=2)


@pytest.mark.parametrize("empty", [[], iter(()), labelled([0], NAMES).select([])], ids=["list", "iterator", "Dataset"])
def test_an_empty_forget_set_is_refused(empty):
    with pytest.raises(ForgetSetError, match="The forget set is empty"):
        erase(tiny(), empty, rank=1, processing_class=PROCESSOR)


def test_several_splits_are_refused():
    one = labelled([0], NAMES)
    for splits in (
        DatasetDict(train=one, test=one),
        datasets.IterableDatasetDict(train=one.to_iterable_dataset(), test=one),
    ):
        with pytest.raises(ForgetSetError, match=r"this has \['train', 'test'\]. Choose one"):
            erase(tiny(), splits, rank=1)


@pytest.mark.parametrize(
    "no_batches", [images(4), {"pixel_values": images(4)}, [images(4)], "folder", [labelled([0])[0]], 3, None]
)
def test_what_is_no_forget_set_is_refused(no_batches):
    with pytest.raises(ForgetSetError, match="orget set is a"):
        erase(tiny(), no_batches, rank=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_and_the_batch_is_named(value):
    bad = images(6, 1)
    bad[4, 0, 3, 3] = value
    with pytest.raises(
        NonFiniteError, match=r"Batch 1 of the forget set: 1 of the 6 features .* row 4, feature 14 of"
    ):
        erase(tiny(), batches(images(10), bad), rank=1)


def test_a_first_image_that_is_not_finite_is_no_fault_of_the_head():
    bad = images(4)
    bad[0, 1, 2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="batch 0"):
        erase(tiny(), batches(bad), rank=1)


def test_a_batch_of_another_shape_is_named():
    with pytest.raises(
        ForgetSetError, match=r"Batch 1 of the images \(pixel_values \(4, 2, 16, 16\)\) does not go through"
    ):
        erase(tiny(), batches(images(4), images(4)[:, :2]), rank=1)


def test_classes_one_by_one_need_labels():
    with pytest.raises(ForgetSetError, match="`per_class` needs labels, and batch 0"):
        erase(tiny(), batches(images(4)), rank=1, per_class=True)


def test_pictures_need_a_processor():
    with pytest.raises(ModelError, match=r"No image processor was found .* Pass `processing_class=`"):
        erase(tiny(), labelled([0] * 4, NAMES), rank=1)


def test_label_columns_that_cannot_be_matched_are_refused():
    four = labelled([0, 1, 2, 1], NAMES)
    text = four.remove_columns("label").add_column("label", ["cat"] * 4)
    beyond = labelled([0, 1, 2, 9])
    two = four.add_column("shop", four["label"]).cast_column("shop", four.features["label"])
    for forget_set, message in (
        (text, "holds text .*Turn it into a ClassLabel"),
        (beyond, "labels from 0 to 9, beyond the 4 classes"),
        (two, "2 columns could hold the labels: 'label', 'shop'"),
    ):
        with pytest.raises((DataError, LabelError), match=message):
            erase(tiny(), forget_set, rank=1, processing_class=PROCESSOR)


def test_the_same_images_again_have_nothing_left_to_erase():
    first = quietly(tiny(), batches(images(3)), rank=3)
    with pytest.raises(RankError, match="erased already"):
        erase(first, batches(images(3)), rank=1)


@pytest.mark.parametrize("row", [0, 3])
def test_nan_in_the_first_batch_is_named(row):
    bad = images(6)
    bad[row] = torch.nan
    with pytest.raises(NonFiniteError, match=r"[Bb]atch 0"):
        erase(tiny(), batches(bad), rank=1)


def test_a_batch_without_images_says_nothing_and_one_that_does_not_fit_is_named():
    padded = quietly(tiny(), batches(images(8)[:0], images(8)), rank=1)
    whole = quietly(tiny(), batches(images(8)), rank=1)
    assert torch.equal(padded.projections[0].factors[0].basis, whole.projections[0].factors[0].basis)
    for first, message in (
        ({"pixel_values": images(4)[:, :1]}, r"Batch 0 of the images \(pixel_values"),
        ({"pixels": images(4)}, "Batch 0 of the images"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "holds no images"),
        ({}, "holds no images"),
    ):
        with pytest.raises(ForgetSetError, match=message):
            erase(tiny(), [first], rank=1)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([torch.tensor([0, 1, 2, 7])], LabelError),
        ([torch.tensor([0, 1, 2, -1])], LabelError),
        ([torch.rand(4)], ForgetSetError),
        ([torch.zeros(3, dtype=torch.long)], ForgetSetError),
        ([torch.zeros(4, len(NAMES), dtype=torch.long)], ForgetSetError),
        ([None, torch.zeros(4, dtype=torch.long)], ForgetSetError),
        ([torch.zeros(4, dtype=torch.long), None], ForgetSetError),
    ],
)
def test_labels_of_ready_batches_are_class_indices_in_all_batches_or_none(labels, error):
    forget_set = [{"pixel_values": images(4)} | ({"labels": x} if x is not None else {}) for x in labels]
    with pytest.raises(error, match=rf"[Bb]atch {len(labels) - 1}"):
        erase(tiny(), forget_set, rank=1)


def test_a_stream_without_images_and_tensors_in_a_column_are_refused():
    with pytest.raises(ForgetSetError, match="empty"):
        erase(tiny(), datasets.IterableDataset.from_generator(lambda: iter(())), rank=1, processing_class=PROCESSOR)
    rows = datasets.Dataset.from_dict({"pixel_values": images(2).tolist()})
    with pytest.raises(DataError, match="not images"):
        erase(tiny(), rows, rank=1, processing_class=PROCESSOR)
