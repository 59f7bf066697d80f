"""An output folder is written whole or not at all."""

import json

import pytest

from hf_esc.errors import OutputError
from hf_esc.saving import check_output, write_folder


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
