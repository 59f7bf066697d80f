"""`verify` covers the folder: no change of a field that changes what is computed passes; what is absent is told."""

import copy
import functools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_esc import ESCModel
from hf_esc.hub.redaction import redacted_config
from hf_esc.hub.verification import verify
from hf_esc.ledger.fingerprints import record_sha256, sealed

from .pictures import picture
from .pushing import erased_vit, report_of, tiny_vit
from .test_verification import all_cnn, twice
from .unlearning import trained

FILES = ("config.json", "preprocessor_config.json")
# What a setting may be changed to, beside what follows from its own value.
OTHERS = ["relu", "gelu_new", "sigmoid", "x", 3, 0.25, True, None, [0.1, 0.2, 0.3]]


def fields(values, place=()) -> Iterator[tuple]:
    """The place of each field in nested values, from the outermost on."""
    for key in values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        yield (*place, key)
        yield from fields(values[key], (*place, key))


def damages(folder: Path, seed: int) -> list[tuple[str, dict]]:
    """Each file with one field taken out, or changed in one way that goes with its value, in an order of the seed."""
    rng, made = random.Random(seed), []
    for name in FILES:
        whole = json.loads((folder / name).read_text())
        # One name of a class is as good as another; records have a test of their own.
        places = [place for place in fields(whole) if place[0] != "erasures" and place[-1] not in ("2", "3")]
        for place in places:
            *inside, key = place
            value = functools.reduce(lambda held, name: held[name], place, whole)
            ways = ["out", "other"]
            if isinstance(value, bool):
                ways.append(not value)
            elif isinstance(value, int | float):
                ways += [value + 1, 2 * value, -value]
            elif isinstance(value, list):
                ways.append(value[::-1])
            for way in ways:
                values = copy.deepcopy(whole)
                inner = functools.reduce(lambda held, name: held[name], inside, values)
                if way == "out":
                    del inner[key]
                else:
                    inner[key] = rng.choice([one for one in OTHERS if one != value]) if way == "other" else way
                made.append((name, values))
    rng.shuffle(made)
    return made


def answer(folder: Path):
    """What a folder computes of a picture: names of classes, and logits. None where it does not load."""
    try:
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        inputs = AutoImageProcessor.from_pretrained(folder)(images=picture(1, 3, (21, 18)), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        return [model.config.id2label[label] for label in range(len(logits))], logits.numpy()
    except Exception:  # transformers raises what comes of it
        return None


def edited(folder: Path) -> None:
    trainer = trained("delete", num_train_epochs=1, processing_class=tiny_vit().image_processor)
    trainer.model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


KINDS = {"in front of the head": lambda folder: erased_vit().save_pretrained(folder), "in the weights": edited}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    KINDS[request.param](folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def failed(folder: Path) -> list[str]:
    return [check.name for check in verify(folder) if check.passed is False]


def told(folder: Path) -> dict[str, str]:
    """What could not be checked, and why."""
    return {check.name: check.detail for check in verify(folder) if check.passed is None}


@pytest.mark.parametrize("count", [30, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_change_of_a_field_that_changes_what_is_computed_passes(folder, copied, count):
    names, logits = answer(folder)
    assert failed(folder) == []
    harmful = 0
    for name, values in damages(folder, seed=0)[:count]:
        (copied / name).write_text(json.dumps(values))
        found = answer(copied)
        if found is None or found[0] != names or not np.allclose(found[1], logits, atol=1e-6):
            harmful += 1
            assert failed(copied), (name, values)
        shutil.copy(folder / name, copied / name)
    assert harmful > 8


def test_no_change_of_the_code_passes(folder, copied):
    for file in sorted(copied.glob("*.py")):
        text = file.read_text()
        for change in (text + "\n", text.replace("return", "return None or", 1), ""):
            file.write_text(change)
            assert change == text or failed(copied) == ["code"], file
        file.unlink()
        assert failed(copied) == ["code"]
        file.write_text(text)
    assert failed(copied) == []


def test_code_that_nothing_imports_is_the_users_until_a_file_of_ours_does(copied):
    # Nothing of ours imports it, so nothing runs it before a file of ours was changed.
    (copied / "more.py").write_text("print('hello')")
    assert failed(copied) == []
    for file in copied.glob("*.py"):
        if file.name != "more.py":
            file.write_text(file.read_text() + "\nfrom .more import hello\n")
            assert failed(copied) == ["code"]


def text_at(name: str, text: str):
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


# What users and tools leave beside a checkpoint, and how it is listed.
LEFT_THERE = {
    "a script": (text_at("infer.py", "print('hello')"), "infer.py"),
    "code in a hidden folder": (text_at(".ipynb_checkpoints/x.py", "1"), ".ipynb_checkpoints/x.py"),
    "code in a folder": (text_at("sub/modeling_esc.py", "print('hello')"), "sub/modeling_esc.py"),
    "a configuration in a folder": (text_at("runs/config.json", '{"auto_map": {"x": "evil.E"}}'), "runs/config.json"),
    "an adapter in a folder": (text_at("runs/adapter_config.json", "{}"), "runs/adapter_config.json"),
    "a folder called like JSON": (lambda folder: (folder / "x.json").mkdir(), None),
    "a folder called like code": (lambda folder: (folder / "x.py").mkdir(), None),
    "a link to nothing": (lambda folder: (folder / "y.json").symlink_to("nowhere"), None),
}


def test_what_is_left_beside_it_and_never_loaded_is_no_mismatch(copied):
    for leave, _ in LEFT_THERE.values():
        leave(copied)
    assert failed(copied) == []
    assert set(told(copied)["other files"].removeprefix("not looked at: ").split(", ")) == {
        name for _, name in LEFT_THERE.values() if name
    }


def test_checkpoints_of_a_training_and_ends_of_lines_are_no_mismatch(tmp_path):
    all_cnn().save_pretrained(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "checkpoint-2")
    for file in tmp_path.glob("*.py"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert failed(tmp_path) == []
    assert "checkpoint-2/config.json" in told(tmp_path)["other files"]


def test_no_change_of_a_record_passes(folder):
    [record] = json.loads((folder / "config.json").read_text())["erasures"]
    assert record_sha256(record, None) == record["record_sha256"]
    for place in fields(record):
        if place[0] in ("projection_sha256", "base_sha256", "record_sha256", "kind"):
            continue  # the weights tell
        other = copy.deepcopy(record)
        functools.reduce(lambda held, name: held[name], place[:-1], other)[place[-1]] = "other"
        assert record_sha256(other, None) != record["record_sha256"], place
    assert record_sha256(record, "another before it") != record["record_sha256"]


RECORDS = {
    "a number": {"num_images": 17},
    "a number that is none": {"num_images": "<img src=x>"},
    "a fraction above one": {"unchanged": 250},
    "another name": {"labels": ["cat"]},
    "another date": {"date": "2020-01-01"},
    "other versions": {"versions": {"hf_esc": "0.0.1"}},
    "complete": {"complete": None},
    "no fingerprint of itself": {"record_sha256": None},
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_ledger_that_says_something_else_is_a_mismatch(copied, what):
    config = json.loads((copied / "config.json").read_text())
    config["erasures"][0] |= RECORDS[what]
    (copied / "config.json").write_text(json.dumps(config))
    assert failed(copied)[0] in ("ledger", "ledger's text")


BESIDE = {
    "another image processor, which goes first": (
        "processor_config.json",
        {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}},
    ),
    "an adapter": ("adapter_config.json", {"peft_type": "LORA"}),
    "code of a pipeline": ("notes.json", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}),
}


@pytest.mark.parametrize("what", BESIDE)
def test_a_file_beside_that_changes_what_is_computed_is_a_mismatch(copied, what):
    name, values = BESIDE[what]
    (copied / name).write_text(json.dumps(values))
    assert failed(copied)


def test_what_is_absent_or_not_looked_at_is_told(copied):
    assert set(told(copied)) == {"base", "evaluation"}
    assert told(copied)["evaluation"] == "absent: there is no evaluation.json"
    (copied / "preprocessor_config.json").unlink()
    (copied / "README.md").write_text("# Mine")
    assert failed(copied) == []
    assert told(copied)["image processor"] == "absent: there is no preprocessor_config.json"
    assert told(copied)["other files"] == "not looked at: README.md"


def test_what_an_older_record_does_not_show_is_told(copied):
    config = json.loads((copied / "config.json").read_text())
    for name in ("settings_sha256", "labels_sha256", "processor_sha256", "record_sha256"):
        del config["erasures"][0][name]
    (copied / "config.json").write_text(json.dumps(config))
    assert failed(copied) == []
    unseen = {"ledger's text", "settings", "labels", "image processor"}
    assert set(told(copied)) == {"base", "evaluation"} | unseen
    assert all("no fingerprint" in told(copied)[name] for name in unseen)


def test_the_evaluation_beside_it_is_checked(tmp_path):
    model = erased_vit()
    model.save_pretrained(tmp_path)
    file = tmp_path / "evaluation.json"
    file.write_text(report_of(model).to_json())
    assert (failed(tmp_path), "evaluation" in told(tmp_path)) == ([], False)
    for wrong in (
        report_of(model, weights_sha256="0" * 64).to_json(),
        report_of(model, forget=["cat"], forget_labels=[0]).to_json(),
        file.read_text().replace('"num_forget_train": 120', '"num_forget_train": 121'),
        "{",
    ):
        file.write_text(wrong)
        assert failed(tmp_path) == ["evaluation"]


def test_a_redacted_model_verifies_and_its_fingerprints_do_not_tell_the_name(tmp_path):
    model = erased_vit()
    before = model.config.erasures[0]
    model.config = redacted_config(model.config)
    after = model.config.erasures[0]
    assert [before[key] != after[key] for key in ("labels", "labels_sha256", "record_sha256")] == [True] * 3
    model.save_pretrained(tmp_path)
    assert failed(tmp_path) == []


def test_a_record_that_was_taken_out_shows_in_the_next():
    first, second = twice().config.erasures
    assert sealed([first, second]) == [first, second]
    assert sealed([second])[0]["record_sha256"] != second["record_sha256"]


def test_what_is_loaded_and_saved_again_still_verifies(folder, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    if not isinstance(model, ESCModel):
        AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert failed(tmp_path) == []
