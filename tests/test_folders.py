"""Folders of pictures as people have them: what is read of them, and what is left out with a word."""

import warnings

import pytest
from datasets.data_files import SPLIT_KEYWORDS

from hf_esc.data import load_images
from hf_esc.data.folders import SPLIT_WORDS
from hf_esc.data.image_data import load_pictures
from hf_esc.errors import DataError, ModelError
from hf_esc.loading import load_classifier

from .pictures import labelled, picture
from .test_data import NAMES


def test_the_words_of_splits_are_those_of_datasets():
    assert {str(split): tuple(words) for split, words in SPLIT_KEYWORDS.items()} == SPLIT_WORDS


def as_pictures(root, tree: dict[str, int]):
    """A folder with so many pictures in each folder inside."""
    for path, number in tree.items():
        (root / path).mkdir(parents=True)
        for row in range(number):
            picture(row).save(root / path / f"{row}.png")
    return str(root)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "VAL"), ("train", "Eval"), ("train", "test")],
)
@pytest.mark.parametrize("within", ["", "archive/", "photos [2024] (a)/"])
def test_folders_called_like_splits_are_splits_in_every_spelling(tmp_path, train, test, within):
    tree = {f"{within}{train}/cat": 3, f"{within}{train}/dog": 2, f"{within}{test}/cat": 1, f"{within}{test}/dog": 1}
    data = load_images(
        as_pictures(tmp_path, tree | {f"{within}.ipynb_checkpoints": 0, f"{within}{train}/__MACOSX": 1})
    )
    assert (data.train["label"], data.label_names) == ([0] * 3 + [1] * 2, ["cat", "dog"])
    assert data.test["label"] == [0, 1]


def test_a_class_can_be_called_like_a_split(tmp_path):
    data = load_images(as_pictures(tmp_path, {"car": 2, "plane": 1, "train": 3}))
    assert (data.label_names, data.train["label"]) == (["car", "plane", "train"], [0, 0, 1, 2, 2, 2])
    within = load_images(
        as_pictures(tmp_path / "2", {"train/car": 2, "train/train": 3, "test/car": 1, "test/train": 1})
    )
    assert (within.label_names, within.train["label"], within.test["label"]) == (
        ["car", "train"],
        [0, 0, 1, 1, 1],
        [0, 1],
    )


def test_a_split_without_folders_for_its_classes_is_left_out_with_a_word(tmp_path):
    with pytest.warns(UserWarning, match="no folder for each class"):
        data = load_images(as_pictures(tmp_path, {"train/cat": 2, "train/dog": 2, "test": 4}))
    assert (len(data.train), data.test) == (4, None)


def test_pictures_without_labels_are_in_their_splits(tmp_path):
    root = as_pictures(tmp_path, {"train": 3, "test": 2, "eval": 1})
    assert len(load_pictures(root)) == 3
    with pytest.raises(DataError, match="No column that holds labels"):
        load_images(root)


def test_what_lies_beside_pictures_changes_nothing(tmp_path):
    root = as_pictures(tmp_path, {"Car": 2, "Plane": 1, "Train": 3})
    (tmp_path / "README.txt").write_text("pictures")
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    assert load_images(root).label_names == ["Car", "Plane", "Train"]


def test_folders_of_tables_are_left_to_datasets(tmp_path):
    for split, rows in (("train", [0, 1, 2]), ("test", [1])):
        (tmp_path / split / "part-0").mkdir(parents=True)
        labelled(rows, NAMES).to_parquet(tmp_path / split / "part-0" / "0.parquet")
    data = load_images(str(tmp_path))
    assert (len(data.train), len(data.test)) == (3, 1)


def test_folders_that_datasets_would_take_for_training_are_refused(tmp_path):
    as_pictures(tmp_path / "table", {"Train/cat": 1, "Test/cat": 1})
    (tmp_path / "table" / "Train" / "metadata.csv").write_text("file_name,label\ncat/0.png,3\n")
    with pytest.raises(DataError, match="Write the folder's name in small letters"):
        load_images(str(tmp_path / "table"))


def test_a_folder_that_is_called_like_no_split_beside_splits_is_left_out_with_a_word(tmp_path):
    root = as_pictures(tmp_path, {"train/cat": 2, "train/dog": 2, "holdout/cat": 1, "holdout/dog": 1, "notes": 0})
    with pytest.warns(UserWarning, match="holdout is called like no split, and stands beside train") as said:
        data = load_images(root)
    assert (len(data.train), data.test, len(said)) == (4, None, 1)


@pytest.mark.parametrize("within", ["", "train/"])
def test_files_that_cannot_be_read_are_said(tmp_path, within):
    root = as_pictures(tmp_path, {f"{within}cat": 2, f"{within}dog": 2, f"{within}owl": 0})
    (tmp_path / within / "owl" / "1.HEIC").touch()
    (tmp_path / within / "dog" / "1.avif").touch()
    (tmp_path / within / "dog" / "Thumbs.db").touch()
    (tmp_path / within / "README.md").touch()
    with pytest.warns(UserWarning, match="Convert") as said:
        data = load_images(root)
    assert data.label_names == ["cat", "dog"]
    messages = sorted(str(warning.message).replace(f"{tmp_path}/{within}", "") for warning in said)
    assert messages == [
        "1 files in dog are left out, as .avif cannot be read. Convert them.",
        "owl holds no image that can be read, only .heic. It makes no class. Convert its images.",
    ]


def test_what_is_no_picture_is_passed_over_without_a_word(tmp_path):
    root = as_pictures(tmp_path, {"train/cat": 1, "train/dog": 1, "train/.ipynb_checkpoints": 1, "docs/a": 0})
    for file in ("train/cat/notes.txt", "docs/a/paper.pdf", "LICENSE"):
        (tmp_path / file).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images(root).label_names == ["cat", "dog"]


def test_of_several_configurations_one_is_named(tmp_path):
    as_pictures(tmp_path, {f"{size}/train/{name}": 1 for size in ("small", "large") for name in ("cat", "dog")})
    as_pictures(tmp_path, {"small/train/owl": 1})
    configs = "".join(f"- config_name: {size}\n  data_dir: {size}\n" for size in ("small", "large"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(DataError, match=r"several configurations, 'small', 'large'. Name one with `dataset_config`"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), dataset_config="small").label_names == ["cat", "dog", "owl"]
    with pytest.raises(DataError, match="medium"):
        load_images(str(tmp_path), dataset_config="medium")


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("{}/phtos", "There is no folder '{}/phtos'. Near it: '{}/photos'."),
        ("{}/phtos/train", "There is no folder '{}/phtos'. Near it: '{}/photos'."),
        ("./phtos", "There is no folder 'phtos'. Near it: 'photos'."),
        ("phtos", "There is no folder 'phtos'. Near it: 'photos'."),
        ("photos/tran", "There is no folder 'photos/tran'. Near it: 'photos/train'."),
        ("./no such", "There is no folder 'no such'."),
    ],
)
@pytest.mark.parametrize("what", ["data", "model"])
def test_a_mistyped_folder_is_no_matter_of_the_hub(tmp_path, monkeypatch, what, written, answer):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name, answer = (text.replace("{}", str(tmp_path)) for text in (written, answer))
    with pytest.raises((DataError, ModelError)) as error:
        (load_images if what == "data" else load_classifier)(name)
    assert f": {answer}" in str(error.value)
    assert "onnect" not in str(error.value)
    assert "On the Hub" not in str(error.value)


@pytest.mark.parametrize("load", [load_images, load_classifier])
def test_what_could_be_on_the_hub_is_said_to_be_in_neither_place(load):
    with pytest.raises((DataError, ModelError), match=r"There is no folder 'nobody/nothing'. On the Hub: "):
        load("nobody/nothing")
