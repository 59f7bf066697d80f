"""Writes a folder whole or not at all, so that a killed run leaves no folder that looks finished."""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import HfEscError, OutputError

try:
    import fcntl
except ImportError:  # on Windows: what killed runs left stays there
    fcntl = None  # type: ignore[assignment]

# What a saved model consists of, by the names that transformers gives. All else in a folder is the user's.
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
# An evaluation is of the model that it was made with.
_MODEL_FILES = {"config.json", "preprocessor_config.json", "evaluation.json"}
# What a disk says. Other errors of the operating system, such as a lost connection, are not about the folder.
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOTDIR}
_OF_DISK |= {errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EXDEV}
# A file in each temporary folder, which its process locks while it lives.
_LOCK = ".lock"
_locked: dict[Path, IO[str]] = {}


def check_output(folder: Path, *, overwrite: bool) -> None:
    """
    Check before the work that its result can be written to `folder`.

    Raises:
        OutputError: If `folder` is a file or a mount point, if it cannot be made, if it is not empty and `overwrite`
            is not set, or if it holds something other than a model.
    """
    _restore(folder)
    if folder.is_dir() and os.path.ismount(folder):
        raise OutputError(f"The output {folder} is a mount point, which cannot be replaced. Name a folder in it.")
    check_place(folder, within=folder.resolve().parent)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"The output folder {folder} is not empty. Pass --overwrite to replace the model in it.")
    if not _holds_model(folder):
        raise OutputError(
            f"The output folder {folder} holds something that is no model, which --overwrite leaves alone."
        )


def check_place(folder: Path, *, within: Path | None = None) -> None:
    """
    Check before the work that something can be written to `folder`, whatever is in it.

    Args:
        folder (`Path`): The output.
        within (`Path`, *optional*): The folder in which files will be made, if not in `folder` itself.

    Raises:
        OutputError: If `folder` is a file or a link to nothing, or the disk takes no file there.
    """
    if folder.is_symlink() and not folder.exists():
        raise OutputError(f"The output {folder} is a link to {folder.readlink()}, which is not there. Name a folder.")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output {folder} is a file. Name a folder.")
    place = (within or folder).absolute()
    parent = next(parent for parent in (place, *place.parents) if parent.exists())
    try:
        # A right to write is no proof: a disk can be full, or hold no files at all, as /proc.
        os.rmdir(tempfile.mkdtemp(dir=parent, prefix=".hf_esc-"))
    except OSError as error:
        raise OutputError(
            f"The output {folder} cannot be made: {parent} is no folder that can be written to ({error.strerror})."
        ) from error


def make_own_folder(parent: str | Path | None, prefix: str) -> Path:
    """
    Make a temporary folder that is known to be in use while this process lives.

    Those of the same prefix that killed runs left in `parent` are removed, but for one that holds a user's old model.

    Args:
        parent (`str` or `Path`, *optional*): Where; the system's folder for temporary files by default.
        prefix (`str`): What its name begins with.
    """
    parent = Path(parent if parent is not None else tempfile.gettempdir())
    for left in parent.glob(f"{glob.escape(prefix)}*/{_LOCK}"):
        if not (left.parent / "old").exists() and (lock := _lock(left)) is not None:
            shutil.rmtree(left.parent, ignore_errors=True)
            lock.close()
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    (folder / f"{_LOCK}-new").touch()
    if (lock := _lock(folder / f"{_LOCK}-new")) is not None:
        _locked[folder] = lock
        (folder / f"{_LOCK}-new").rename(folder / _LOCK)  # nobody sees it before it is locked
    return folder


def remove_own_folder(folder: Path) -> None:
    """Remove a folder that `make_own_folder` made."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _locked:
        _locked.pop(folder).close()


@contextmanager
def own_folder(parent: str | Path | None, prefix: str) -> Iterator[Path]:
    """A folder of `make_own_folder` that is removed when the context ends."""
    folder = make_own_folder(parent, prefix)
    try:
        yield folder
    finally:
        remove_own_folder(folder)


def _lock(file: Path) -> IO[str] | None:
    """The file, open and locked. None if a process that lives has locked it, or there are no locks here."""
    if fcntl is None:
        return None
    try:
        opened = file.open("r+")
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        opened.close()
        return None
    return opened


def _holds_model(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


@contextmanager
def write_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """
    Give a hidden folder beside `folder` to write into. It replaces `folder` if the context ends without an error.

    A link stays a link, and the folder that it points to is replaced. Until the new folder is in place, the old one is
    there, or is put back: by an error at once, and after a kill by the next run.

    Raises:
        OutputError: As in [`check_output`]; if it cannot be written, as on a full disk; or if somebody else wrote it
            meanwhile.
    """
    check_output(folder, overwrite=overwrite)
    target = folder.resolve()
    seen = _state(target)
    with reported(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = make_own_folder(target.parent, _hidden_prefix(target))
    fresh, old = hidden / "new", hidden / "old"
    try:
        with reported(folder):
            fresh.mkdir()
            yield fresh
            if _state(target) != seen:
                raise OutputError(
                    f"Somebody else has written to {folder} meanwhile. Look at it, or name another folder."
                )
            if target.exists():
                # Files that are not part of a model, such as notes or `.git`, belong to the user and stay.
                for item in target.iterdir():
                    if not _of_model(item) and not (fresh / item.name).exists():
                        _link(item, fresh / item.name)
                target.rename(old)
            if target.exists():
                raise OutputError(f"Somebody else has made {folder} meanwhile. What was there before is in {old}.")
            fresh.rename(target)
    finally:
        placed = not fresh.exists()
        if old.exists() and not placed and not target.exists():
            old.rename(target)
        # What was there stays where it is if there is no place to put it back to.
        if placed or not old.exists():
            remove_own_folder(hidden)
        else:
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def write_into(folder: Path) -> Iterator[Path]:
    """
    Give a hidden folder to write a model into. Its files move to `folder` if the context ends without an error.

    What else is in `folder`, such as checkpoints, stays. A model that is there is replaced: its configuration goes
    first and the new one comes last, so that a ledger never stands beside weights that are not its own.

    Raises:
        OutputError: If the files cannot be written, as on a full disk.
    """
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with own_folder(folder, ".unfinished-") as hidden:
            (hidden / "new").mkdir()
            yield hidden / "new"
            fresh = sorted((hidden / "new").iterdir(), key=lambda item: item.name == "config.json")
            (folder / "config.json").unlink(missing_ok=True)
            for stale in folder.iterdir():
                if _WEIGHTS.fullmatch(stale.name) or stale.name == "evaluation.json":
                    stale.unlink()
            for item in fresh:
                os.replace(item, folder / item.name)


@contextmanager
def reported(folder: Path, *, left: str = "Nothing of it is there.") -> Iterator[None]:
    """What the file system says, as an [`OutputError`] that also says what is left in the folder."""
    try:
        yield
    except HfEscError:
        raise
    except Exception as error:
        # safetensors has an error of its own for a full disk, which is not the file system's.
        of_disk = isinstance(error, OSError) and error.errno in _OF_DISK
        if not of_disk and type(error).__name__ != "SafetensorError":
            raise
        raise OutputError(
            f"The output {folder} cannot be written: {error}. {left} Mend the cause, or name another folder, and run "
            "again."
        ) from error


def _of_model(item: Path) -> bool:
    return item.name in _MODEL_FILES or _WEIGHTS.fullmatch(item.name) is not None


def _link(item: Path, to: Path) -> None:
    """The same files in a second place, without a copy of their bytes where the file system can do that."""

    def link(source: str, destination: str) -> None:
        try:
            os.link(source, destination, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, destination, follow_symlinks=False)

    if item.is_dir() and not item.is_symlink():
        shutil.copytree(item, to, symlinks=True, copy_function=link)
    else:
        link(str(item), str(to))


def _state(folder: Path) -> tuple | None:
    """Changes when somebody replaces a folder or the model in it; None if there is none, or nothing in it."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    config = folder / "config.json"
    return folder.stat().st_ino, (config.stat().st_ino, config.stat().st_mtime_ns) if config.exists() else None


def _hidden_prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"


def _restore(folder: Path) -> None:
    """Put an old folder back that a run was about to replace when it was killed."""
    target = folder.resolve()  # a link stays, and what it points to may be gone
    if target.exists() or not target.parent.is_dir():
        return
    for old in target.parent.glob(f"{glob.escape(_hidden_prefix(target))}*/old"):
        old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)
        return
