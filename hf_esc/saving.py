"""Writes a folder whole or not at all, so that a killed run leaves no folder that looks finished."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

_WEIGHTS = {".safetensors", ".bin"}
_MODEL_FILES = {
    "config.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
}


def check_output(folder: Path, *, overwrite: bool) -> None:
    """
    Check before the work that its result can be written to `folder`.

    Raises:
        OutputError: If `folder` is a file, if it cannot be made, if it is not empty and `overwrite` is not set, or if
            it holds something other than a model.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output {folder} is a file. Name a folder.")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"The output {folder} cannot be made: {parent} is no folder that can be written to.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"The output folder {folder} is not empty. Pass --overwrite to replace the model in it.")
    if not _holds_model(folder):
        raise OutputError(
            f"The output folder {folder} holds something that is no model, which --overwrite leaves alone."
        )


def _copy(item: Path, target: Path) -> None:
    if item.is_dir():
        shutil.copytree(item, target, symlinks=True)
    else:
        shutil.copy2(item, target, follow_symlinks=False)


def _holds_model(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


@contextmanager
def write_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """
    Give a hidden folder beside `folder` to write into. It replaces `folder` if the context ends without an error.

    Raises:
        OutputError: As in [`check_output`].
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.unfinished-")
    except OSError as error:
        raise OutputError(f"The output {folder} cannot be made: {error}.") from error
    with hidden as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            # Files that are not part of a model, such as notes or `.git`, belong to the user and stay.
            for item in folder.iterdir():
                if item.name not in _MODEL_FILES and item.suffix not in _WEIGHTS and not (fresh / item.name).exists():
                    _copy(item, fresh / item.name)
            folder.rename(old)
        fresh.rename(folder)
