"""Write a folder whole or not at all: a killed run leaves none that looks finished."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError


def check_output(folder: Path, *, overwrite: bool) -> None:
    """
    Say before the work what would go wrong after it.

    Raises:
        OutputError: If `folder` is a file, or holds something and is not to be overwritten or holds no model.
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
    if not (folder / "config.json").is_file():
        raise OutputError(
            f"The output folder {folder} holds something that is no model, which --overwrite leaves alone."
        )


@contextmanager
def write_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """
    A hidden folder beside `folder` to write into, which takes the place of `folder` when the context ends without
    error.

    Raises:
        OutputError: As [`check_output`].
    """
    check_output(folder, overwrite=overwrite)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.unfinished-") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
