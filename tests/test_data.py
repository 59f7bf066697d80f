"""Any data set of images goes through, or the column, the split or the image at fault is named."""

import warnings

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.features import Array3D
from PIL import Image as Pillow
from transformers import ViTImageProcessor

from hf_esc.data import image_batches, load_images
from hf_esc.data.batches import ready_batches
from hf_esc.data.columns import class_indices, find_image_column, find_label_column
from hf_esc.data.image_data import TEST_SPLITS
from hf_esc.data.labels import UNCLEAR
from hf_esc.errors import DataError, ForgetSetError, ImageError, LabelError

from .pictures import encoded, labelled, picture

PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})
NAMES = ["cat", "dog", "bird"]
CLASSES = ClassLabel(names=NAMES)


class Config:
    """The part of a model's configuration that is read."""

    def __init__(self, names):
        self.id2label = dict(enumerate(names))
        self.num_labels = len(names)


# Columns.


@pytest.mark.parametrize(
    ("features", "image", "label"),
    [
        ({"image": Image(), "label": CLASSES}, "image", "label"),
        ({"img": Image(), "label": CLASSES}, "img", "label"),  # CIFAR-10
        ({"img": Image(), "fine_label": CLASSES, "coarse_label": CLASSES}, "img", "fine_label"),  # CIFAR-100
        ({"scan": Image(), "diagnosis": CLASSES, "label": Value("string")}, "scan", "diagnosis"),  # by type
        ({"image": Value("binary"), "labels": Value("int64"), "id": Value("int64")}, "image", "labels"),  # by name
    ],
)
def test_columns_are_found(features, image, label):
    assert find_image_column(Features(features)) == image
    assert find_label_column(Features(features)) == label


def test_coarse_labels_are_never_what_a_label_means():
    features = Features({"image": Image(), "coarse_label": CLASSES})
    with pytest.raises(DataError, match=r"No column that holds labels .*'image', 'coarse_label'.*--label-column"):
        find_label_column(features)
    assert find_label_column(features, "coarse_label") == "coarse_label"


def test_two_candidates_are_an_error_that_names_the_option():
    features = Features({"front": Image(), "back": Image(), "label": CLASSES, "shop": CLASSES})
    with pytest.raises(
        DataError, match=r"2 columns could hold the images: 'front', 'back'.*`image_column`.*`--image-column`"
    ):
        find_image_column(features)
    with pytest.raises(
        DataError, match=r"2 columns could hold the labels: 'label', 'shop'.*`label_column`.*`--label-column`"
    ):
        find_label_column(features)
    assert (find_image_column(features, "back"), find_label_column(features, "shop")) == ("back", "shop")


def test_a_named_column_has_to_be_there_and_to_hold_labels():
    features = Features({"image": Image(), "label": CLASSES, "box": Array3D((1, 2, 3), "int64")})
    with pytest.raises(DataError, match=r"no column 'photo' \(`image_column`\). The columns are 'image', 'label'"):
        find_image_column(features, "photo")
    with pytest.raises(DataError, match="no column 'Label'"):
        find_label_column(features, "Label")
    for column in ("image", "box"):
        with pytest.raises(DataError, match=f"'{column}' holds .* not one label per image"):
            find_label_column(features, column)


# Data sets.


def save_parquet(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return str(folder)


def test_the_embedded_data_set(fashion):
    assert (len(fashion.train), len(fashion.test)) == (7000, 2000)
    assert (fashion.image_column, fashion.label_column, fashion.num_labels) == ("image", "label", 10)
    assert fashion.label_names[1] == "Trouser"
    assert np.bincount(fashion.train["label"]).tolist() == [700] * 10


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk", "folders"])
def test_a_folder_of_each_kind(tmp_path, kind):
    train, test = labelled([0, 1, 2, 1], NAMES), labelled([2, 0], NAMES)
    if kind == "parquet":
        save_parquet(tmp_path, train=train, test=test)
    elif kind == "save_to_disk":
        DatasetDict(train=train, test=test).save_to_disk(tmp_path)
    else:
        for split_name, split in (("train", train), ("test", test)):
            for number, row in enumerate(split):
                folder = tmp_path / split_name / NAMES[row["label"]]
                folder.mkdir(parents=True, exist_ok=True)
                row["image"].save(folder / f"{number}.png")
    data = load_images(str(tmp_path))
    by_name = [data.label_names[label] for label in data.train["label"]]
    assert sorted(by_name) == ["bird", "cat", "dog", "dog"]
    assert sorted(data.label_names) == sorted(NAMES)
    assert (data.name, len(data.test), data.num_labels) == (str(tmp_path), 2, 3)
    # Each picture is with its own label: its colour tells.
    for row, name in zip(data.train, by_name, strict=True):
        assert np.asarray(row["image"]).mean((0, 1)).argmax() == NAMES.index(name)


@pytest.mark.parametrize("split", TEST_SPLITS)
def test_test_images_alone_are_not_taken_for_training_images(tmp_path, split):
    with pytest.raises(DataError, match=f"has no `train` split, only '{split}'"):
        load_images(saved(tmp_path, **{split: labelled([0, 1], NAMES)}))


def test_one_split_is_for_training_and_one_saved_alone_too(tmp_path):
    labelled([0, 1], NAMES).save_to_disk(tmp_path / "disk")
    for folder in (save_parquet(tmp_path / "all", data=labelled([0, 1], NAMES)), str(tmp_path / "disk")):
        data = load_images(folder)
        assert (len(data.train), data.test) == (2, None)


def test_the_test_split_may_be_called_validation(tmp_path):
    data = load_images(save_parquet(tmp_path, train=labelled([0, 1], NAMES), validation=labelled([2], NAMES)))
    assert data.test["label"] == [2]


def test_labels_that_are_strings_become_classes_in_both_splits(tmp_path):
    train = labelled([1, 0, 2]).remove_columns("label").add_column("label", ["dog", "cat", "bird"])
    test = labelled([2, 1]).remove_columns("label").add_column("label", ["bird", "dog"])
    data = load_images(save_parquet(tmp_path / "good", train=train, test=test))
    assert data.label_names == ["bird", "cat", "dog"]
    assert (data.train["label"], data.test["label"]) == ([2, 1, 0], [0, 2])
    with pytest.raises(DataError, match=r"test split .* has labels that the training split has not"):
        load_images(save_parquet(tmp_path / "bad", train=train.select([0]), test=test))


def test_numbers_are_no_names(tmp_path):
    plain = load_images(save_parquet(tmp_path / "plain", train=labelled([0, 3, 1])))
    digits = load_images(save_parquet(tmp_path / "digits", train=labelled([0, 3, 1], ["0", "1", "2", "3"])))
    for data in (plain, digits):
        assert (data.label_names, data.num_labels) == (None, 4)


def test_what_is_no_labelled_data_set_is_an_error(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in (str(tmp_path / "nowhere"), str(empty)):
        with pytest.raises(DataError, match=f"{name}' cannot be loaded: .* It should be `embedded`, a folder"):
            load_images(name)
    with pytest.raises(DataError, match="has no `train` split, only 'validation', 'test'"):
        load_images(save_parquet(tmp_path / "no_train", test=labelled([0], NAMES), validation=labelled([0], NAMES)))
    with pytest.raises(DataError, match=r"no_rows' cannot be loaded|no_rows' is empty"):
        load_images(save_parquet(tmp_path / "no_rows", train=labelled([0], NAMES).select([])))
    with pytest.raises(DataError, match="No column that holds images was found among 'a'"):
        load_images(save_parquet(tmp_path / "table", train=Dataset.from_dict({"a": [1]})))


def test_select_takes_the_images_of_some_classes_or_all_others_in_order(fashion):
    labels = np.asarray(fashion.train["label"])
    for keep in (True, False):
        chosen = fashion.select(fashion.train, [1, 8], keep=keep)
        expected = [label for label in labels.tolist() if (label in (1, 8)) == keep]
        assert chosen["label"] == expected
    assert fashion.select(fashion.train, [])["label"] == []


def test_requested_labels_are_the_data_sets_and_its_classes_are_matched_by_name(tmp_path):
    data = load_images(save_parquet(tmp_path / "named", train=labelled([0, 1, 2], NAMES)))
    model = Config(["bird", "cat", "dog", "fish"])
    assert data.labels_in(model) == [1, 2, 0]
    assert [data.labels_from(model, [label]) for label in range(4)] == [[2], [0], [1], []]  # and back
    assert data.labels_from(model, [3, 0, 1]) == [0, 2]
    assert data.resolve("dog", model) == [1]
    assert data.resolve(["cat,bird"], model) == [0, 2]
    for number in (2, "2", "#2", "cat,2"):  # the data set's "bird" or the model's "dog"?
        with pytest.raises(LabelError, match="Class 2 is 'bird' in the data set and another one in the model"):
            data.resolve(number, model)
    assert data.resolve("cat,2", Config(NAMES)) == [0, 2]
    with pytest.raises(LabelError, match="no label 'fish'"):
        data.resolve("fish", model)  # the data set has none of it
    with pytest.raises(LabelError, match="All 3 classes of the model are to be forgotten"):
        data.resolve("cat,dog,bird", Config(NAMES))
    assert data.resolve("cat,dog,bird", model) == [0, 1, 2]  # fish is left
    # Without names of its own, a data set is asked for by the model's.
    plain = load_images(save_parquet(tmp_path / "plain", train=labelled([0, 1, 2])))
    assert plain.resolve("dog", Config(NAMES)) == [1]
    with pytest.raises(LabelError, match=r"data set has 3 classes .* and the model 4"):
        plain.resolve("dog", model)


def numbered_folders(tmp_path, names):
    """A data set as `imagefolder` reads folders called by numbers: sorted as text."""
    names = sorted(names)
    return load_images(saved(tmp_path, train=labelled(range(len(names)), names)))


def test_folders_called_by_numbers_are_asked_for_by_their_names(tmp_path):
    numbers = list(map(str, range(12)))
    data = numbered_folders(tmp_path / "all", numbers)
    assert data.label_names[2] == "10"
    for number in numbers:
        [label] = data.resolve(number, Config(numbers))
        assert (data.label_names[label], data.labels_in(Config(numbers))[label]) == (number, int(number))
    # Both sides in the same odd order: the number of a class is another one's name, and each has its own writing.
    with pytest.raises(LabelError, match="Write '#2' for the first or '#10' for the second"):
        data.resolve("10", Config(data.label_names))
    assert data.resolve("#2", Config(data.label_names)) == [2]
    part = numbered_folders(tmp_path / "part", ["0", "1", "2"])
    assert (part.resolve("2", Config(numbers)), part.labels_in(Config(numbers))) == ([2], [0, 1, 2])
    with pytest.raises(LabelError, match="numbers in another order: class 2 is called '10'"):
        data.resolve("2", Config([f"LABEL_{number}" for number in numbers]))


def test_a_class_that_several_of_the_model_could_be_is_left_out_and_the_others_are_not(tmp_path):
    model = Config(["cat", "crane", "dog", "crane"])
    data = load_images(saved(tmp_path, train=labelled([0, 1, 0, 2], ["dog", "crane", "cat"])))
    assert data.resolve("cat", model) == [2]
    with pytest.raises(LabelError, match=r"'crane' could be any of the classes \[1, 3\].*Rename one side"):
        data.resolve("crane", model)
    with pytest.raises(LabelError, match="'crane' could be any of"):
        data.labels_in(model)  # its images would be counted as wrong answers
    with pytest.warns(UserWarning, match="Several classes of the model are called 'crane'"):
        clear = data.without_unclear(model)
    assert (clear.train["label"], clear.labels_in(model)) == ([0, 0, 2], [2, UNCLEAR, 0])
    assert clear.without_unclear(model) is clear


def test_every_forgotten_class_has_images_and_one_class_is_left(tmp_path):
    data = load_images(save_parquet(tmp_path / "named", train=labelled([0, 1], NAMES)))
    assert data.forget_set([0, 1])["label"] == [0, 1]
    with pytest.raises(ForgetSetError, match=r"forget set is empty for \['bird'\]"):
        data.forget_set([0, 2])
    erased = Config(NAMES)
    erased.erasures = [{"label_ids": [0]}, {"label_ids": [1]}]
    with pytest.raises(LabelError, match="All 3 classes"):
        data.resolve("bird", erased)


# Batches.


def rows(*images: dict) -> Dataset:
    return Dataset.from_dict({"image": list(images)}, features=Features({"image": Image()}))


def pixels(dataset, **kwargs) -> torch.Tensor:
    batches = image_batches(dataset, kwargs.pop("processor", PROCESSOR), image_column="image", **kwargs)
    return torch.cat([batch["pixel_values"] for batch in batches])


def test_batches_are_what_the_processor_gives_in_order():
    dataset = labelled([0, 1, 2, 1, 0], NAMES)
    expected = PROCESSOR(images=dataset["image"][:], return_tensors="pt")["pixel_values"]
    for source in (dataset, dataset.to_iterable_dataset()):
        batches = list(image_batches(source, PROCESSOR, image_column="image", label_column="label", batch_size=2))
        assert [len(batch["pixel_values"]) for batch in batches] == [2, 2, 1]
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), expected)
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 2, 1, 0]
    assert "labels" not in next(image_batches(dataset, PROCESSOR, image_column="image"))


def test_worker_processes_change_nothing():
    dataset = labelled([0, 1, 2, 1, 0], NAMES)
    assert torch.equal(pixels(dataset, batch_size=2, num_workers=1), pixels(dataset))


def test_every_mode_and_size_goes_through_as_rgb():
    base = picture(0, size=(12, 20))
    sixteen_bit = Pillow.fromarray(np.full((9, 7), 100, dtype=np.uint16))
    modes = ("RGB", "RGBA", "L", "LA", "P", "1")
    images = [*(base.convert(mode) for mode in modes), picture(1, size=(5, 40)), sixteen_bit]
    batch = pixels(rows(*map(encoded, images), encoded(base.convert("CMYK"), "TIFF")))
    assert batch.shape == (9, 3, 8, 8)
    rgb, rgba, grey, grey_alpha = batch[:4]
    assert torch.equal(rgb, rgba)  # a channel of no weight
    assert torch.equal(grey, grey_alpha)
    assert torch.equal(grey[0], grey[2])
    # As `pipeline("image-classification")` reads them.
    expected = PROCESSOR(images=[sixteen_bit.convert("RGB")], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch[7:8], expected)


def test_more_than_eight_bits_are_read_as_pipeline_does_with_a_word():
    deep = Pillow.fromarray(np.full((9, 7), 60000, dtype=np.uint16))
    with pytest.warns(UserWarning, match=r"Image 1 has values up to 60000 \(mode I;16\)") as said:
        pixels(rows(encoded(picture()), encoded(deep), encoded(deep)))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(rows(encoded(Pillow.fromarray(np.full((9, 7), 255, dtype=np.uint16)))))


def test_images_of_unequal_sizes_are_named_and_one_by_one_they_pass():
    keeps_shape = ViTImageProcessor(size={"shortest_edge": 8})
    unequal = rows(*(encoded(picture(0, size=size)) for size in ((16, 16), (16, 32), (16, 16))))
    with pytest.raises(ImageError, match=r"different sizes, such as .*8, 8.* and .*16, 8.* \(images 0 and 1\)"):
        pixels(unequal, processor=keeps_shape)
    batches = image_batches(unequal, keeps_shape, image_column="image", batch_size=1)
    assert [batch["pixel_values"].shape[2:] for batch in batches] == [(8, 8), (16, 8), (8, 8)]


def test_a_grey_model_gets_grey_images():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    images = [picture(0), picture(0).convert("L"), picture(0).convert("RGBA")]
    batch = pixels(rows(*map(encoded, images)), processor=processor, num_channels=1)
    assert batch.shape == (3, 1, 8, 8)
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0], batch[2])


@pytest.mark.parametrize("streamed", [False, True], ids=["Dataset", "IterableDataset"])
def test_an_image_that_cannot_be_read_is_named_by_number_and_file(streamed):
    good = encoded(picture())
    broken = {"bytes": good["bytes"][:60], "path": "trouser/17.png"}
    dataset = rows(good, good, good, broken, good)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    with pytest.raises(ImageError, match=r"Image 3 \(trouser/17.png\) cannot be read: "):
        pixels(dataset, batch_size=2)


def test_an_image_that_is_missing_is_named():
    with pytest.raises(ImageError, match=r"Image 1 cannot be read: .*missing"):
        pixels(rows(encoded(picture()), None))
    with pytest.raises(ImageError, match=r"Image 0 \(/nowhere/1.png\) cannot be read: FileNotFoundError"):
        pixels(rows({"bytes": None, "path": "/nowhere/1.png"}))


@pytest.mark.parametrize(
    "batch", [torch.zeros(2), [torch.zeros(2)], "pixel_values", {"image": picture()}, {"labels": [1]}, 7]
)
def test_ready_batches_are_dicts_of_tensors_and_anything_else_is_named_by_number(batch):
    good = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    assert list(ready_batches([good])) == [good]
    with pytest.raises(
        ForgetSetError, match=f"Batch 1 of the forget set is a {type(batch).__name__}.*'pixel_values':"
    ):
        list(ready_batches([good, batch]))


def saved(tmp_path, **splits):
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_splits_that_name_their_classes_otherwise_are_refused(tmp_path):
    name = saved(tmp_path, train=labelled([0, 1], ["a", "b"]), test=labelled([0, 1], ["b", "a"]))
    with pytest.raises(DataError, match="names its classes"):
        load_images(name)


@pytest.mark.parametrize("held_back", [-1, None, "no column"])
def test_a_test_split_whose_labels_are_held_back_is_left_out_with_a_word(tmp_path, held_back):
    rows = labelled([0, 1], NAMES)
    hidden = rows.remove_columns("label")
    if held_back != "no column":
        hidden = hidden.add_column("label", [held_back] * 2, feature=CLASSES)
    with pytest.warns(UserWarning, match="`test` split .* have no labels"):
        assert load_images(saved(tmp_path / "1", train=rows, test=hidden)).test is None
    with pytest.warns(UserWarning, match="`test` split .* have no labels"):
        data = load_images(saved(tmp_path / "2", train=rows, test=hidden, validation=labelled([2], NAMES)))
    assert data.test["label"] == [2]


def test_whole_numbers_with_a_point_are_class_indices(tmp_path):
    rows = labelled([0, 1, 1]).cast_column("label", Value("float64"))
    data = load_images(saved(tmp_path, train=rows, test=rows))
    assert (data.train["label"], data.test["label"], data.num_labels) == ([0, 1, 1], [0, 1, 1], 2)
    batch = next(image_batches(rows, PROCESSOR, image_column="image", label_column="label"))
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([0, 1, 1], torch.long)


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([0, None], Value("int64"), "without a label"),
        (["a", None], Value("string"), "without a label"),
        ([0.0, 1.7], Value("float64"), r"holds 1.7 \(row 1\), which is no class"),
        ([0.0, float("nan")], Value("float64"), "without a label"),
        ([0.0, float("inf")], Value("float64"), r"holds inf \(row 1\), which is no class"),
        ([0.0, -1e300], Value("float64"), r"\(row 1\), which is no class"),
        ([[0], [1]], List(Value("int64")), "No column that holds labels"),
        ([0, -2], Value("int64"), "none of|outside"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, values, feature, message):
    rows = labelled([0, 1]).remove_columns("label").add_column("label", values, feature=feature)
    with pytest.raises(DataError, match=message):
        load_images(saved(tmp_path, train=rows))


def test_a_number_of_more_than_64_bits_is_no_class():
    with pytest.raises(DataError, match=r"9223372036854775808\W.*which is no class"):
        class_indices(np.array([0, 2**63], dtype=np.uint64), "label")


def test_text_labels_of_either_kind_are_classes_and_numbers_in_order(tmp_path):
    rows = labelled([0, 1, 2]).remove_columns("label")
    rows = rows.add_column("label", ["10", "9", "2"], feature=Value("large_string"))
    assert load_images(saved(tmp_path, train=rows)).label_names == ["2", "9", "10"]
