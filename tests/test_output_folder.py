"""An output folder is written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from hf_esc import saving
from hf_esc.data import load_images
from hf_esc.errors import OutputError
from hf_esc.saving import (
    check_output,
    check_place,
    make_own_folder,
    own_folder,
    restore_into,
    write_folder,
    write_into,
)


def fail_within(target, content: str) -> None:
    with write_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text(json.dumps({"model_type": content}))
        raise ZeroDivisionError


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a" / "model"
    with pytest.raises(ZeroDivisionError):
        fail_within(target, "half")
    assert list((tmp_path / "a").iterdir()) == []
    for content in ("old", "new"):
        with write_folder(target, overwrite=True) as folder:
            (folder / "config.json").write_text(json.dumps({"model_type": content}))
    with pytest.raises(ZeroDivisionError):
        fail_within(target, "half")
    assert json.loads((target / "config.json").read_text()) == {"model_type": "new"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    with pytest.raises(OutputError, match="not empty"), write_folder(target, overwrite=False):
        pass


@pytest.mark.parametrize("write", [lambda folder: write_folder(folder, overwrite=True), write_into])
def test_files_that_no_model_consists_of_are_the_users(tmp_path, write):
    target = tmp_path / "model"
    model_in(target)
    mine = ["my-sae.safetensors", "features.bin", "model-notes.bin", "adapter_model.safetensors", "pytorch_model.txt"]
    stale = [
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "evaluation.json",
    ]
    for name in mine + stale:
        (target / name).write_text(name)
    with write(target) as folder:
        model_in(folder, "new")
        (folder / "notes.txt").unlink()
    assert {path.name for path in target.iterdir()} == {*mine, "config.json", "model.safetensors", "notes.txt"}


def test_an_error_that_is_not_of_the_disk_is_what_it_is(tmp_path):
    def lost() -> None:
        with write_folder(tmp_path / "model", overwrite=False):
            raise ConnectionError("the Hub is gone")

    with pytest.raises(ConnectionError, match="the Hub is gone"):
        lost()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_is_said_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "model", tmp_path / "file" / "a" / "model"):
        with pytest.raises(OutputError, match=r"cannot be made: .*file is no folder"):
            check_output(folder, overwrite=True)
    check_output(tmp_path / "a" / "b" / "model", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_overwriting_takes_the_model_alone_and_leaves_what_is_the_users(tmp_path):
    target = tmp_path / "model"
    (target / ".git").mkdir(parents=True)
    (target / ".git" / "HEAD").write_text("ref")
    contents = {"config.json": '{"model_type": "vit"}', "model-00001-of-00002.safetensors": "", "notes": "n"}
    for name, content in contents.items():
        (target / name).write_text(content)
    with write_folder(target, overwrite=True) as folder:
        (folder / "config.json").write_text('{"model_type": "esc"}')
    assert {path.name for path in target.iterdir()} == {".git", "config.json", "notes"}
    assert (target / ".git" / "HEAD").read_text() == "ref"
    (target / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="no model, which --overwrite leaves alone"):
        check_output(target, overwrite=True)


def model_in(folder, name: str = "old", **entries) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": name, **entries}))
    (folder / "model.safetensors").write_text(name)
    (folder / "notes.txt").write_text("mine")


def which(folder) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


@pytest.mark.parametrize("at", ["before the old one moves", "between the two moves", "after the new one stands"])
def test_an_interruption_at_any_step_of_the_replacement_leaves_one_whole_model(tmp_path, monkeypatch, at):
    target = tmp_path / "model"
    model_in(target)
    rename, calls = Path.rename, []

    def interrupted(self, to):
        calls.append(to)
        if at == "before the old one moves" and len(calls) == 1:
            raise KeyboardInterrupt
        if at == "between the two moves" and len(calls) == 2:
            raise KeyboardInterrupt
        result = rename(self, to)
        if at == "after the new one stands" and len(calls) == 2:
            raise KeyboardInterrupt
        return result

    def replace() -> None:
        with write_folder(target, overwrite=True) as folder:
            model_in(folder, "new")
            (folder / "notes.txt").unlink()
            monkeypatch.setattr(Path, "rename", interrupted)

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert which(target) == ("new" if at.startswith("after") else "old")
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model", "m[1]", "link"])
def test_the_old_folder_of_a_run_that_was_killed_between_the_two_moves_comes_back(tmp_path, name):
    target = tmp_path / name
    if name == "link":
        target.symlink_to("model")
    hidden = tmp_path / f".{'model' if name == 'link' else name}.unfinished-x"
    model_in(hidden / "old")
    (hidden / "new").mkdir()
    with pytest.raises(OutputError, match="not empty"):
        check_output(target, overwrite=False)
    assert which(target) == "old"
    assert not hidden.exists()


def test_if_somebody_takes_the_place_the_old_folder_stays_and_is_named(tmp_path, monkeypatch):
    target = tmp_path / "model"
    model_in(target)
    rename = Path.rename

    def taken(self, to):
        rename(self, to)
        model_in(target, "of somebody else")

    def replace() -> None:
        with write_folder(target, overwrite=True) as folder:
            model_in(folder, "new")
            monkeypatch.setattr(Path, "rename", taken)

    with pytest.raises(OutputError, match="What was there before is in") as error:
        replace()
    assert which(target) == "of somebody else"
    monkeypatch.setattr(Path, "rename", rename)
    for folder in tmp_path.glob(".model.unfinished-*"):
        killed(folder)
    with write_folder(target, overwrite=True) as folder:
        model_in(folder, "newer")
    assert which(Path(str(error.value).rpartition(" is in ")[2].rstrip("."))) == "old"


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    model_in(tmp_path / "served")
    link = tmp_path / "link"
    link.symlink_to("served")
    with write_folder(link, overwrite=True) as folder:
        model_in(folder, "new")
    assert link.is_symlink()
    assert which(tmp_path / "served") == "new"
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OutputError, match="is a link to nowhere"):
        check_output(tmp_path / "gone", overwrite=True)


def test_of_two_runs_to_one_folder_the_later_one_is_told(tmp_path):
    for overwrite in (False, True):
        target = tmp_path / f"model-{overwrite}"
        if overwrite:
            model_in(target)

        def late(target=target, overwrite=overwrite) -> None:
            with write_folder(target, overwrite=overwrite) as mine:
                model_in(mine, "late")
                with write_folder(target, overwrite=overwrite) as other:
                    model_in(other, "early")

        with pytest.raises(OutputError, match="Somebody else has written"):
            late()
        assert which(target) == "early"


def test_a_mount_point_and_a_full_disk_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(OutputError, match="mount point"):
        check_output(Path("/"), overwrite=True)

    def full() -> None:
        with write_folder(tmp_path / "model", overwrite=False):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
        full()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["an error", "a kill"])
@pytest.mark.parametrize("at", range(8))
def test_a_model_in_a_folder_that_stays_is_the_old_or_the_new_whatever_ends_the_write(tmp_path, monkeypatch, kind, at):
    """An error puts the old one back at once, and after a kill the next run does: no step is left to the dead."""
    model_in(tmp_path, auto_map={"AutoModel": "modeling_old.Old"})
    (tmp_path / "modeling_old.py").write_text("its code")
    (tmp_path / "checkpoint-3").mkdir()
    done = []

    def step(real):
        def failing(*args, **kwargs):
            done.append(args)
            if len(done) - 1 == at or (kind == "a kill" and len(done) > at):
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return failing

    def write() -> None:
        with write_into(tmp_path) as folder:
            model_in(folder, "new")
            (folder / "notes.txt").unlink()
            monkeypatch.setattr(os, "replace", step(os.replace))
            monkeypatch.setattr(Path, "rename", step(Path.rename))

    steps = 6  # three files of the old one go, one folder gets its name, two files of the new one come
    with pytest.raises(KeyboardInterrupt) if at < steps else contextlib.nullcontext():
        write()
    monkeypatch.undo()
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    assert not config.exists() or weights.read_text() == which(tmp_path)
    if kind == "a kill":
        for hidden in tmp_path.glob(".unfinished-*"):
            killed(hidden)
        restore_into(tmp_path)
    assert which(tmp_path) == weights.read_text() == ("old" if at < steps else "new")
    assert (tmp_path / "modeling_old.py").exists() == (at < steps)
    assert (tmp_path / "checkpoint-3").is_dir()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".unfinished-*"))


def test_a_folder_that_somebody_wrote_since_the_work_began_is_not_replaced(tmp_path):
    target = tmp_path / "model"
    model_in(target)
    found = check_output(target, overwrite=True)
    with write_folder(target, overwrite=True) as folder:  # another run, begun later and done earlier
        model_in(folder, "of somebody else")
    with (
        pytest.raises(OutputError, match="Somebody else has written"),
        write_folder(target, overwrite=True, since=found),
    ):
        pass
    assert which(target) == "of somebody else"


def killed(folder: Path) -> Path:
    """The folder, as if the process that made it had been killed: its lock goes, and nothing else."""
    if folder in saving._locked:
        saving._locked.pop(folder).close()
    return folder


@pytest.mark.parametrize("write", [lambda folder: write_folder(folder, overwrite=True), write_into])
def test_what_killed_runs_left_goes_with_the_next_and_what_others_write_stays(tmp_path, write):
    target = tmp_path / "model"
    model_in(target)
    parent, prefix = (target, ".unfinished-") if write is write_into else (tmp_path, ".model.unfinished-")
    dead, alive, with_old, replaced = (make_own_folder(parent, prefix) for _ in range(4))
    other = killed(make_own_folder(parent, ".another.unfinished-"))
    for folder in (dead, alive, with_old):
        model_in(folder / "new")
    for folder in (with_old, replaced):
        model_in(folder / "old")
    for folder in (dead, with_old, replaced):
        killed(folder)
    with write(target) as folder:
        model_in(folder, "new")
        assert not dead.exists()
        assert not replaced.exists()  # the new model stands in its place
        with write(tmp_path / "second") as second:
            model_in(second)
        assert folder.exists()
    assert which(target) == "new"
    assert alive.exists()
    # Somebody's model; in a folder whose new model is whole, the old one is no longer wanted.
    assert with_old.exists() == (write is not write_into)
    assert other.exists()
    saving.remove_own_folder(alive)
    assert not alive.exists()


def test_a_folder_for_temporary_files_is_gone_when_its_run_is(tmp_path):
    left = [killed(make_own_folder(tmp_path, "hf_esc-")) for _ in range(3)]
    assert sum(folder.exists() for folder in left) == 1  # each takes the one before away
    with own_folder(tmp_path, "hf_esc-") as folder:
        (folder / "features.arrow").touch()
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["esc-t", "delete"])
def test_a_disk_that_is_full_while_a_checkpoint_is_written_is_said(hf_esc, clothes, tmp_path, method):
    resource = pytest.importorskip("resource")
    load_images(clothes)  # what `datasets` writes is written before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    options = ("--method", method, "--forget", "Trouser", "--max_steps", 1, "--save_steps", 1, "--no_evaluate")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        code, _, err = hf_esc(
            "train", "--model", "embedded/resnet", "--dataset", clothes, "--output_dir", tmp_path / "out", *options
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, "out cannot be written: " in err) == (2, True), err
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody can make a file")
def test_a_place_that_takes_no_files_is_said_before_the_work_whoever_asks(tmp_path, hf_esc):
    for check in (check_place, lambda folder: check_output(folder, overwrite=True)):
        with pytest.raises(OutputError, match="cannot be made: /proc is no folder that can be written to"):
            check(Path("/proc/model"))
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(OutputError, match="is a link to nowhere"):
        check_place(tmp_path / "gone")
    for folder in ("/proc/model", tmp_path / "gone"):
        for command in (
            ("erase", "nowhere", "--forget", "1", "--output", folder),
            ("train", "--model", "nowhere", "--forget", "1", "--output_dir", folder),
            ("evaluate", "nowhere", "--feature-dir", folder),
            ("evaluate", "nowhere", "--output", f"{folder}/report.json"),
        ):
            code, _, err = hf_esc(*command, "--dataset", "nowhere")
            assert (code, "Error: The " in err) == (2, True), command
            assert "cannot be" in err or "is a link to" in err, err
