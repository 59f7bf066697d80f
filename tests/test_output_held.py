"""An output is held by one run, a file is written whole or not at all, and no command shows a traceback of a disk."""

import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors import SafetensorError

from hf_esc.cli import main
from hf_esc.errors import OutputError
from hf_esc.saving import claimed, write_file


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with (
        claimed(tmp_path / "run"),
        pytest.raises(OutputError, match="Another run is writing"),
        claimed(tmp_path / "run"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    with claimed(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "file").exists()


def test_a_disk_error_anywhere_and_ctrl_c_at_any_moment_end_a_command_without_a_traceback(hf_esc, monkeypatch):
    cases = {
        OSError(28, "No space left on device"): (2, "Error: Something cannot be read or written: .*No space left"),
        SafetensorError("I/O error"): (2, "Error: Something cannot be read or written: I/O error"),
        KeyboardInterrupt(): (130, "Aborted"),
    }
    for error, (code, says) in cases.items():
        monkeypatch.setattr("hf_esc.cli.app", Mock(side_effect=error))
        ended, out, err = hf_esc("verify", "anything")
        assert (ended, out) == (code, "")
        assert re.match(says, err)
    monkeypatch.setattr("hf_esc.cli.app", Mock(side_effect=ConnectionError("the Hub is gone")))
    with pytest.raises(ConnectionError):
        main()


@pytest.mark.slow  # for what the command imports
def test_two_trainings_do_not_write_to_one_folder(hf_esc, tmp_path):
    words = (
        "--model",
        "embedded/resnet",
        "--dataset",
        "embedded",
        "--forget",
        "Bag",
        "--output_dir",
        tmp_path / "run",
    )
    with claimed(tmp_path / "run"):
        code, _, err = hf_esc("train", *words, "--use_cpu")
    assert code == 2
    assert "Another run is writing to" in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    file, link = tmp_path / "served" / "report.json", tmp_path / "report.json"
    link.symlink_to(file)
    for text in ("old", "new"):
        write_file(link, text)
        assert file.read_text() == text
    assert link.is_symlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match=r"cannot be written: .*No space left"):
            write_file(link, "newer")
    assert [path.name for path in file.parent.iterdir()] == ["report.json"]
    assert file.read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "told")
    assert os.read(reader, 99) == b"told"
    os.close(reader)
