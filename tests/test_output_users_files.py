"""What is in an output folder and no model's is the user's: it stays, or the run refuses."""

import json
import os
from pathlib import Path

import pytest

from hf_esc import saving
from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.errors import OutputError
from hf_esc.modeling.configuration_esc import AUTO_MAP, copy_code
from hf_esc.saving import check_output, restore_into, write_file, write_folder, write_into

CODE = Path(saving.__file__).with_name("modeling")
ESC = {"AutoConfig": "configuration_esc.ESCConfig", "AutoModel": ["modeling_esc.ESCModel", None]}


def overwritten(folder: Path):
    return write_folder(folder, overwrite=True)


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def model(kind: str, **entries) -> dict[str, str]:
    return {"config__json": json.dumps({"model_type": kind, **entries}), "model__safetensors": kind}


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


MINE = {
    "errors__py": "mine",
    "modeling_churn__py": "mine",
    "evaluation__json": "mine",
    "model__bin": "mine",
    "pytorch_model__bin": "mine",
}


@pytest.mark.parametrize("ends", ["well", "in an error", "in a kill"])
def test_where_no_model_is_nothing_is_moved_or_deleted(tmp_path, monkeypatch, ends):
    put(tmp_path, **MINE)
    (tmp_path / "checkpoint-3").mkdir()
    before, inodes = contents(tmp_path), {file.stat().st_ino for file in tmp_path.iterdir()}

    def failing(source, target, real=os.replace):
        if Path(target) == tmp_path / "config.json" or (ends == "in a kill" and Path(target).exists()):
            raise KeyboardInterrupt
        real(source, target)

    def write() -> None:
        with write_into(tmp_path) as fresh:
            put(fresh, **model("new"), outputs__py="new")
            if ends != "well":
                monkeypatch.setattr(os, "replace", failing)
            if ends == "in a kill":
                monkeypatch.setattr(saving, "_put_back", lambda *_: None)
                monkeypatch.setattr(saving, "remove_own_folder", lambda hidden: saving._locked.pop(hidden).close())

    if ends == "well":
        write()
        assert contents(tmp_path) == before | {"outputs.py": "new"} | {
            name.replace("__", "."): text for name, text in model("new").items()
        }
    else:
        with pytest.raises(KeyboardInterrupt):
            write()
        monkeypatch.undo()
        assert (tmp_path / "outputs.py").exists() == (ends == "in a kill")
        with write_into(tmp_path) as fresh:  # which is what an unfinished run left, and no reason to refuse
            assert contents(tmp_path) == before
            put(fresh, **model("newer"))
    assert inodes <= {file.stat().st_ino for file in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{}"),
        ("config.json", '["model_type"]'),
        ("config.json", "no JSON"),
        ("preprocessor_config.json", "{}"),
        ("training_args.bin", "mine"),
        ("model.safetensors", "mine"),
        ("model-00001-of-00002.safetensors", "mine"),
        ("modeling_esc.py", "mine"),
        ("errors.py", "mine"),
    ],
)
def test_a_file_that_a_new_model_would_write_over_is_named_before_the_work_and_stays(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=f"holds {name}, which is of no model"):
        restore_into(tmp_path)

    def write() -> None:
        with write_into(tmp_path) as fresh:
            put(fresh, **model("new"))
            (fresh / name).write_text("new")

    with pytest.raises(OutputError, match=f"holds {name}, which is of no model"):
        write()
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: content}


@pytest.mark.parametrize("write", [overwritten, write_into])
def test_code_goes_with_a_model_that_reaches_it_and_other_code_stays(tmp_path, write):
    target = tmp_path / "model"
    put(target, **model("esc", auto_map=ESC), **MINE, base_code__py="from .modeling_cnn import CNN\n")
    put(target, modeling_cnn__py="    from .layers import x\nfrom .gone import y", layers__py="", plots__py="")
    put(target, preprocessor_config__json='{"auto_map": {"AutoImageProcessor": "image_processing_own.Own"}}')
    put(target, image_processing_own__py="", configuration_esc__py="from .base_code import register_base")
    put(target, modeling_esc__py="import os\nfrom .outputs import x", outputs__py="from ..other import z")
    with write(target) as fresh:
        put(fresh, **model("new"), outputs__py="new")
    mine = {"errors.py", "modeling_churn.py", "plots.py"}
    assert set(contents(target)) == mine | {"config.json", "model.safetensors", "outputs.py"}
    assert contents(target)["outputs.py"] == "new"


def test_all_code_that_is_written_beside_an_erased_model_is_found_again(tmp_path):
    copy_code(tmp_path, AllCNNForImageClassification(AllCNNConfig(hidden_sizes=(4, 4))))
    put(tmp_path, **model("esc", auto_map=AUTO_MAP))
    written = set(contents(tmp_path))
    assert {"base_code.py", "modeling_all_cnn.py", "errors.py"} < written
    put(tmp_path, plots__py="mine")
    with write_into(tmp_path) as fresh:
        put(fresh, **model("new"))
    assert set(contents(tmp_path)) == {"config.json", "model.safetensors", "plots.py"}


@pytest.mark.parametrize("write", [overwritten, write_into])
def test_beside_a_model_a_users_own_code_is_not_written_over(tmp_path, write):
    target = tmp_path / "model"
    put(target, **model("vit", auto_map={"AutoModel": "someone/else--modeling_own.Own"}), modeling_own__py="mine")
    before = contents(target)

    def replace() -> None:
        with write(target) as fresh:
            put(fresh, **model("new"), modeling_own__py="new")

    with pytest.raises(OutputError, match=r"holds modeling_own\.py, which is of no model"):
        replace()
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    put(target, errors__py="mine")
    for check in (restore_into, lambda folder: check_output(folder, overwrite=True)):
        with pytest.raises(OutputError, match=r"holds errors\.py, which is of no model"):
            check(target)
    put(target, errors__py=(CODE / "errors.py").read_text())  # the same bytes: nothing is lost
    restore_into(target)
    check_output(target, overwrite=True)


def test_a_file_keeps_its_mode_and_its_neighbours(tmp_path):
    file, neighbour = tmp_path / "report.json", tmp_path / ".report.json.unfinished"
    neighbour.write_text("mine")
    write_file(file, "new")
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    for mode in (0o640, 0o600, 0o664):
        file.chmod(mode)
        write_file(file, f"{mode}")
        assert (file.stat().st_mode & 0o777, file.read_text()) == (mode, f"{mode}")
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", ".report.json.unfinished", "plain"}
    assert neighbour.read_text() == "mine"
