"""Folders of pictures as people have them: which pictures are for training and which for testing."""

import glob
from pathlib import Path

from ..errors import DataError, warn

# The words of `datasets`.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# Files that say by themselves what is in a folder. `datasets` reads them.
_TABLES = {".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".tar", ".zip", ".gz", ".xml", ".txt"}


def picture_files(folder: Path) -> dict[str, list[str]] | None:
    """
    The patterns of the pictures of each split, for `load_dataset("imagefolder", data_files=…)`.

    `datasets` knows a split by a folder's name in small letters alone. It takes the pictures in `Training/` and
    `Testing/` for one split, and a class called `train` for a split. Here a folder called by any of its words, in any
    spelling, is a split if it holds a folder for each class. If no such folder does, all are classes.

    Returns:
        `dict` of patterns by split, or None where `datasets` decides: no folder is called like a split, or files such
        as `metadata.csv` say what is in them.

    Raises:
        DataError: If two folders are called like one split, or one with a capital holds something else than folders
            of pictures, which `datasets` would take for training images.
    """
    inside = _folders(folder)
    while len(inside) == 1 and _split_of(inside[0]) is None:  # an archive that was unpacked into a folder of its own
        inside = _folders(folder := inside[0])
    named = {path: split for path in inside if (split := _split_of(path)) is not None}
    if not named:
        return None
    if any(path.suffix.lower() in _TABLES for parent in (folder, *named) for path in parent.iterdir()):
        if strange := [path.name for path in named if path.name not in _SPLITS]:
            raise DataError(
                f"{folder} holds {', '.join(strange)}. In this spelling it is not taken for a split, and test images "
                "would be taken for training images. Write the folder's name in small letters."
            )
        return None
    with_classes = {path: split for path, split in named.items() if _folders(path)}
    if not with_classes:
        return {"train": [_pattern(path) for path in inside]}
    if len(set(with_classes.values())) < len(with_classes):
        raise DataError(
            f"{folder} holds {', '.join(path.name for path in with_classes)}, of which two are called like one split. "
            "Rename one of them."
        )
    for path in named.keys() - with_classes.keys():
        warn(f"{path} holds no folder for each class. Its images have no labels and are left out.")
    return {split: [_pattern(path / inner.name) for inner in _folders(path)] for path, split in with_classes.items()}


def _folders(folder: Path) -> list[Path]:
    """The folders inside, but for those that programs leave behind, such as `.ipynb_checkpoints` and `__MACOSX`."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _split_of(folder: Path) -> str | None:
    return _SPLITS.get(folder.name.lower())


def _pattern(folder: Path) -> str:
    return glob.escape(str(folder)) + "/**"
