"""Folders of pictures as people have them: which pictures are for training and which for testing."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import DataError, warn

# The words of `datasets`.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# Files that say by themselves what is in a folder. `datasets` reads them.
_TABLES = {".parquet", ".arrow", ".tar"}
# Images that neither Pillow nor `datasets` read.
_NOT_READ = {".heic", ".heif", ".avif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".dcm"}


def how_to_load(folder: Path) -> dict[str, Any] | None:
    """
    The arguments of `load_dataset("imagefolder", …)` for a folder: the pictures of each split, with labels or not.

    `datasets` knows a split by a folder's name in small letters alone. It takes the pictures in `Training/` and
    `Testing/` for one split, and a class called `train` for a split. Here a folder called by any of its words, in any
    spelling, is a split if it holds a folder for each class. If none does, and there are others, all are classes.

    Returns:
        `dict` of arguments, or None where `datasets` decides: no folder is called like a split, or files such
        as `metadata.csv` or `*.parquet` say what is in them.

    Raises:
        DataError: If `datasets` decides, and would take folders called like splits for training images.
    """
    _say_what_cannot_be_read(folder)
    inside, passed = _folders(folder), [folder]
    while len(inside) == 1 and _split_of(inside[0]) is None:  # an archive that was unpacked into a folder of its own
        inside = _folders(folder := inside[0])
        passed.append(folder)
    named = {path: split for path in inside if (split := _split_of(path)) is not None}
    if not named:
        return None
    beside = [path for path in inside if path not in named]
    with_classes = {path: split for path, split in named.items() if _folders(path)}
    looked_at = [*passed, *named, *(inner for path in with_classes for inner in _folders(path))]
    if any(_is_table(path) for parent in looked_at for path in parent.iterdir()):
        strange = [path.name for path in named if path.name not in _SPLITS]
        if strange and (len(named) > 1 or len(named) == len(inside)):
            raise DataError(
                f"{folder} holds {', '.join(strange)}. In this spelling it is not taken for a split, and test images "
                "would be taken for training images. Write the folder's name in small letters."
            )
        return None
    if not with_classes:
        if len(named) < len(inside):
            # A class is called like a split.
            return {"data_files": {"train": [_pattern(path) for path in inside]}, "drop_labels": False}
        return {"data_files": _by_split({path: [path] for path in named}, named), "drop_labels": True}
    for path in named.keys() - with_classes.keys():
        warn(f"{path} holds no folder for each class. Its images have no labels and are left out.")
    splits = ", ".join(path.name for path in named)
    for path in beside:
        if any(map(_is_image, _files(path))):
            warn(f"{path} is called like no split, and stands beside {splits}. It is left out.")
    return {"data_files": _by_split({path: _folders(path) for path in with_classes}, named), "drop_labels": False}


def _by_split(folders: dict[Path, list[Path]], splits: dict[Path, str]) -> dict[str, list[str]]:
    patterns: dict[str, list[str]] = {}
    for path, inner in folders.items():
        patterns.setdefault(splits[path], []).extend(map(_pattern, inner))
    return patterns


def _say_what_cannot_be_read(folder: Path) -> None:
    """
    Warn of folders whose files are no images that can be read, beside folders of images: a class would be missing.

    Where a folder holds images too, warn of files that only look like images, such as `.heic`.
    """
    read: dict[Path, int] = {}
    others: dict[Path, list[str]] = {}
    for path in _files(folder):
        if _is_image(path):
            read[path.parent] = read.get(path.parent, 0) + 1
        else:
            others.setdefault(path.parent, []).append(path.suffix.lower())
    beside_images = {parent.parent for parent in read}
    for parent, kinds in sorted(others.items()):
        known = sorted({kind for kind in kinds if kind in _NOT_READ})
        if parent not in read and parent != folder and parent.parent in beside_images:
            named = ", ".join(sorted(set(kinds)))
            warn(f"{parent} holds no image that can be read, only {named}. It makes no class. Convert its images.")
        elif known:
            count = sum(kind in _NOT_READ for kind in kinds)
            warn(f"{count} files in {parent} are left out, as {', '.join(known)} cannot be read. Convert them.")


def _files(folder: Path) -> Iterable[Path]:
    """All files in a folder, but for hidden ones and those of programs."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in files if not name.startswith((".", "__")))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ImageFolder.EXTENSIONS


def _is_table(path: Path) -> bool:
    return (path.suffix.lower() in _TABLES or path.stem == "metadata") and path.is_file()


def _folders(folder: Path) -> list[Path]:
    """The folders inside, but for those that programs leave behind, such as `.ipynb_checkpoints` and `__MACOSX`."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _split_of(folder: Path) -> str | None:
    return _SPLITS.get(folder.name.lower())


def _pattern(folder: Path) -> str:
    return glob.escape(str(folder)) + "/**"
