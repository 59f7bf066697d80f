"""Writes a folder whole or not at all, so that a killed run leaves no folder that looks finished."""

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
_MODEL_FILES = {"config.json", "preprocessor_config.json", "training_args.bin", "evaluation.json"}
# Those that a new one is written with, and code of ours that travels beside it.
_WRITTEN = re.compile(
    r"(preprocessor_)?config\.json|training_args\.bin|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
_CODE = Path(__file__).with_name("modeling")
# Class references in an `auto_map` (those to another repository have `--`), and imports as transformers finds them.
_NAMED, _IMPORTED = re.compile(r'"(\w+)\.\w+"'), re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)
# What a disk says. Other errors of the operating system, such as a lost connection, are not about the folder.
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOTDIR}
_OF_DISK |= {errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EXDEV}
_is_last = "config.json".__eq__  # of the names of a model's files, in their order of writing
# A file in each temporary folder, which its process locks while it lives.
_LOCK = ".lock"
_locked: dict[Path, IO[str]] = {}
# A folder into which the files of a model are written, in the folder that they are to be in or, with its name, beside.
_HIDDEN = ".unfinished-"


def check_output(folder: Path, *, overwrite: bool, early: bool = True) -> tuple | None:
    """
    Check that a result can be written to `folder`: before the work, or (`early=False`) just before it is written.

    Returns:
        What is there, for [`write_folder`]: it tells whether somebody else has written there since.

    Raises:
        OutputError: If `folder` is a file or a mount point, if it cannot be made, if it is not empty and `overwrite`
            is not set, or if it holds something other than a model, or a file that could be lost.
    """
    _restore(folder)
    if folder.is_dir() and os.path.ismount(folder):
        raise OutputError(f"The output {folder} is a mount point, which cannot be replaced. Name a folder in it.")
    check_place(folder, within=folder.resolve().parent)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not overwrite:
        raise OutputError(f"The output folder {folder} is not empty. Pass --overwrite to replace the model in it.")
    if not _of_model(folder):
        raise OutputError(
            f"The output folder {folder} holds something that is no model, which --overwrite leaves alone."
        )
    if early:
        _refuse_loss(folder)
    return _state(folder.resolve())


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

    Those of the same prefix that killed runs left in `parent` are removed. One with an old model in it stays until a
    new one has taken its place.

    Args:
        parent (`str` or `Path`, *optional*): Where; the system's folder for temporary files by default.
        prefix (`str`): What its name begins with.
    """
    parent = Path(parent if parent is not None else tempfile.gettempdir())
    for left in parent.glob(f"{glob.escape(prefix)}*/{_LOCK}"):
        replaced = not (left.parent / "old").exists() or not (left.parent / "new").exists()
        if replaced and (lock := _lock(left)) is not None:
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
    opened = None
    try:
        if fcntl is not None:
            opened = file.open("r+")
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if opened is not None:
            opened.close()
        return None
    return opened


def _is_alive(hidden: Path) -> bool:
    """Whether the process that made a temporary folder is still at work, as far as locks tell."""
    with _lock(hidden / _LOCK) or nullcontext() as lock:
        return lock is None and (hidden / _LOCK).exists()


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def write_folder(folder: Path, *, overwrite: bool, since: tuple | None = ()) -> Iterator[Path]:
    """
    Give a hidden folder beside `folder` to write into. It replaces `folder` if the context ends without an error.

    A link stays a link, and the folder that it points to is replaced. Until the new folder is in place, the old one is
    there, or is put back: by an error at once, and after a kill by the next run.

    Args:
        folder (`Path`): The folder.
        overwrite (`bool`): Whether a model may be there.
        since (*optional*): What [`check_output`] found before the work. By default, what is there now.

    Raises:
        OutputError: As in [`check_output`]; if it cannot be written, as on a full disk; or if somebody else wrote it
            meanwhile.
    """
    found = check_output(folder, overwrite=overwrite, early=False)
    seen = found if since == () else since
    meanwhile = OutputError(f"Somebody else has written to {folder} meanwhile. Look at it, or name another folder.")
    if found != seen:
        raise meanwhile
    target = folder.resolve()
    with reported(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = make_own_folder(target.parent, f".{target.name}{_HIDDEN}")
    fresh, old = hidden / "new", hidden / "old"
    try:
        with reported(folder):
            fresh.mkdir()
            yield fresh
            if _state(target) != seen:
                raise meanwhile
            _refuse_loss(target, fresh)
            if target.exists():
                # Files that are not part of a model, such as notes or `.git`, belong to the user and stay.
                for name in {*os.listdir(target)} - _of_model(target) - {*os.listdir(fresh)}:
                    _link(target / name, fresh / name)
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
            (hidden / _LOCK).unlink(missing_ok=True)  # so that no run removes it
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def write_into(folder: Path) -> Iterator[Path]:
    """
    Give a hidden folder to write a model into. Its files move to `folder` if the context ends without an error.

    What else is in `folder`, such as checkpoints, stays. A model that is there goes aside, its configuration first,
    and the new configuration comes last, so that a ledger never stands beside weights that are not its own. Until then
    the old model is put back: by an error at once, and after a kill by the next run.

    Raises:
        OutputError: If the files cannot be written, as on a full disk, or if one that is no model's would be lost.
    """
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        restore_into(folder, early=False)
        hidden = make_own_folder(folder, _HIDDEN)
        fresh, aside = hidden / "new", hidden / "aside"
        try:
            fresh.mkdir()
            yield fresh
            _refuse_loss(folder, fresh)
            aside.mkdir()
            for name in sorted(_of_model(folder), key=_is_last, reverse=True):
                os.replace(folder / name, aside / name)
            placed = sorted({*os.listdir(fresh)} - {*os.listdir(folder)})
            (hidden / "placed").write_text(json.dumps({"names": placed}), encoding="utf-8")
            aside.rename(hidden / "old")  # from here on, what is placed in the folder is new
            for name in sorted(os.listdir(fresh), key=_is_last):
                os.replace(fresh / name, folder / name)
        finally:
            _put_back(folder, hidden)
            remove_own_folder(hidden)


def write_file(file: Path, text: str) -> None:
    """
    Write a file whole or not at all: what was there stays until all of the new one is written, and its mode after.

    Raises:
        OutputError: If it cannot be written, as on a full disk.
    """
    target = file.resolve()  # a link stays
    with reported(file):
        if file.exists() and not file.is_file():  # a pipe or a terminal, say
            file.write_text(text, encoding="utf-8")
            return
        with own_folder(target.parent, f".{target.name}{_HIDDEN}") as hidden:
            fresh = hidden / "new"
            fresh.write_text(text, encoding="utf-8")
            if target.exists():
                shutil.copymode(target, fresh)
            fresh.replace(target)


def restore_into(folder: Path, *, early: bool = True) -> None:
    """
    Put an old model back that a run was about to replace in its folder when it was killed.

    Raises:
        OutputError: Before the work (`early`), if a file that is no model's has a name that models are written with.
    """
    for hidden in folder.glob(f"{_HIDDEN}*"):
        if any((hidden / name).is_dir() for name in ("aside", "old")) and not _is_alive(hidden):
            _put_back(folder, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    if early:
        _refuse_loss(folder)


def _put_back(folder: Path, hidden: Path) -> None:
    """The old model's files, all of them or those that had gone aside; where the new model is whole, nothing."""
    if (folder / "config.json").exists():  # it goes first and comes last
        return
    if (hidden / "old").is_dir():
        for name in _read(hidden / "placed").get("names", ()):
            if not (hidden / "new" / name).exists():
                (folder / name).unlink(missing_ok=True)
    for item in sorted([*hidden.glob("aside/*"), *hidden.glob("old/*")], key=lambda item: _is_last(item.name)):
        os.replace(item, folder / item.name)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """
    Hold a folder for one run, until the context ends or the process does.

    Raises:
        OutputError: If another run holds it, or if it cannot be made.
    """
    made = not folder.is_dir()
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if held is not None:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"Another run is writing to {folder}. Wait until it has ended, or name another folder."
                ) from None
            except OSError:
                pass  # this file system has no locks
        yield
    finally:
        if held is not None:
            os.close(held)
        if made and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def reported(folder: Path, *, left: str = "What was there before is as it was.") -> Iterator[None]:
    """What the file system says, as an [`OutputError`] that also says what is left in the folder."""
    try:
        yield
    except HfEscError:
        raise
    except Exception as error:
        if not is_of_disk(error):
            raise
        raise OutputError(
            f"The output {folder} cannot be written: {error}. {left} Mend the cause, or name another folder, and run "
            "again."
        ) from error


def is_of_disk(error: Exception) -> bool:
    """Whether a disk is what an error is about: it is full, say, or nobody may write there."""
    # safetensors has an error of its own for a full disk, which is not the file system's.
    return (isinstance(error, OSError) and error.errno in _OF_DISK) or type(error).__name__ == "SafetensorError"


def _of_model(folder: Path) -> set[str]:
    """The names of the files of the model in a folder; none if it holds no model. Code is its own if it reaches it."""
    if "model_type" not in _read(folder / "config.json"):
        return set()
    files = {item.name for item in folder.iterdir() if not item.is_dir()}
    found = {name for name in files if name in _MODEL_FILES or _WEIGHTS.fullmatch(name)}
    maps = [_read(folder / name).get("auto_map") for name in ("config.json", "preprocessor_config.json")]
    modules = _NAMED.findall(json.dumps(maps))
    while modules:
        name = f"{modules.pop()}.py"
        if name in files - found:
            found.add(name)
            modules += _IMPORTED.findall((folder / name).read_text(encoding="utf-8", errors="replace"))
    return found


def _refuse_loss(folder: Path, fresh: Path | None = None) -> None:
    """Refuse to write `fresh`, or any model before the work, over files of other content that are no old model's."""
    kept = sorted({*os.listdir(folder)} - _of_model(folder)) if folder.is_dir() else []
    lost = [name for name in kept if fresh is None and _WRITTEN.fullmatch(name)]
    for name in set(kept) - {"__init__.py", *lost}:
        mine, new = folder / name, (fresh or _CODE) / name
        if new.is_file() and not (mine.is_file() and mine.read_bytes() == new.read_bytes()):
            lost.append(name)
    if lost:
        raise OutputError(
            f"The output folder {folder} holds {', '.join(sorted(lost))}, which is of no model there, and an "
            "erased model has a file of this name. Move yours away, or name another folder."
        )


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


def _restore(folder: Path) -> None:
    """Put an old folder back that a run was about to replace when it was killed."""
    target = folder.resolve()  # a link stays, and what it points to may be gone
    if target.exists() or not target.parent.is_dir():
        return
    for old in target.parent.glob(f".{glob.escape(target.name)}{_HIDDEN}*/old"):
        if _is_alive(old.parent):  # it is just about to put the new one there
            continue
        old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)
        return
