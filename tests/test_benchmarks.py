"""The benchmark runs what is missing and nothing else, says what failed, and its path for the paper's data works."""

import copy
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers import ViTImageProcessor as Processor

from hf_esc.data import load_images
from hf_esc.errors import DivergenceError
from hf_esc.loading import load_classifier, load_processor
from hf_esc.modeling.fingerprints import weights_sha256

from .tiny import tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import knowledge_retention  # noqa: E402
import methods  # noqa: E402
import paper  # noqa: E402
import report_unlearning  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import tune  # noqa: E402

pytestmark = pytest.mark.slow

FAST = {"num_train_epochs": 1, "learning_rate": 1e-3}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, as features are kept in `build/`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """What was unlearnt, in order."""
    seen, real = [], methods.forget

    def counted(method, *args, **kwargs):
        seen.append(method)
        return real(method, *args, **kwargs)

    monkeypatch.setattr(run, "forget", counted)
    monkeypatch.setattr(tune, "forget", counted)
    return seen


def experiment(clothes: str, *wanted: dict, **changes) -> run.Experiment:
    values = {"requests": [["Trouser"]], "seeds": [0], "probes": ["converged"]} | changes
    return run.Experiment("A test", "embedded/resnet", list(wanted), data=clothes, **values)


def rows_after(made: run.Experiment, folder: Path, **arguments) -> dict:
    file = folder / "results.json"
    run.run_experiment("a-test", made, run.Arguments(**arguments), file, folder / "tuning.json")
    return results.read(file)["rows"]


def test_a_row_is_run_once_and_again_where_its_settings_have_changed(clothes, here, calls):
    esc, delete = {"method": "esc"}, {"method": "delete", "settings": FAST}
    first = rows_after(experiment(clothes, {"method": "original"}, esc, delete), here)
    assert list(first) == ["original/Trouser/seed=0", "esc/Trouser/seed=0", "delete/Trouser/seed=0"]
    assert calls == ["esc", "delete"]
    assert rows_after(experiment(clothes, esc, delete), here) == first
    assert calls == ["esc", "delete"]
    second = rows_after(experiment(clothes, esc, {"method": "delete", "settings": FAST | {"temperature": 2.0}}), here)
    assert calls == ["esc", "delete", "delete"]
    assert second["esc/Trouser/seed=0"] == first["esc/Trouser/seed=0"]
    assert second["delete/Trouser/seed=0"]["settings"]["temperature"] == 2.0
    rows_after(experiment(clothes, esc), here, again=["esc"])
    assert calls[-1] == "esc"


def test_a_row_whose_converged_probe_was_stopped_early_is_run_again(clothes, here, calls):
    made = experiment(clothes, {"method": "esc"})
    [(name, row)] = rows_after(made, here).items()
    assert row["probes"]["converged"]["gradient"] <= 1e-3
    old = {"C": 100.0, "converged": True, "iterations": 441}
    for probes in ({}, {"converged": old}):
        before = {key: value for key, value in row.items() if key != "probes"} | ({"probes": probes} if probes else {})
        assert report_unlearning.mark([before, row]) != report_unlearning.mark([row]) == ""
        assert "the converged probes of ESC were stopped early" in report_unlearning.mark([before, row])
        results.write(here / "results.json", {"rows": {name: before}})
        assert rows_after(made, here)[name]["retention"] == row["retention"]
    assert calls == ["esc"] * 3
    constant = row | {"probes": {"converged": {"C": 100.0, "converged": True, "constant": True}}}
    assert report_unlearning.mark([constant]) == report_unlearning.mark([{"label": "esc", "error": "none"}]) == ""


def test_a_report_says_which_of_its_parts_have_such_probes():
    old, new = {"converged": True, "iterations": 3}, {"converged": True, "gradient": 1e-4}
    point, hidden = {"labelled": 1, "forget_test": 50.0}, {"forget_test": 50.0}

    def model(settings: dict) -> dict:
        return {
            "retention": {"paper": {"settings": {}}, "converged": {"settings": settings}},
            "curve": [point | ({"any_test": None} if "gradient" in settings else {})],
            "attacks": {"hidden_layers": hidden | {"settings": settings if "gradient" in settings else {}}},
        }

    assert results.parts_stopped_early(model(old)) == ["retention", "curve", "attacks"]
    assert results.parts_stopped_early(model(new)) == []
    assert results.parts_stopped_early(model(new) | {"curve": None, "attacks": None}) == []
    known = {"models": {"model": model(old), "retrain": model(old)}, "retrain": {"seconds": 1}}
    short = {"models": {"model": model(new) | {"curve": None, "attacks": None}}}
    assert knowledge_retention.is_early(known, retrained=False, short=True)
    merged = knowledge_retention.with_the_rest_of(short, known)
    assert results.parts_stopped_early(merged["models"]["model"]) == ["curve", "attacks"]
    assert results.parts_stopped_early(merged["models"]["retrain"]) == ["retention", "curve", "attacks"]
    assert not knowledge_retention.is_early(merged, retrained=False, short=True)
    assert knowledge_retention.is_early(merged, retrained=False, short=False)
    assert knowledge_retention.is_early(merged, retrained=True, short=True)
    assert merged["retrain"] == known["retrain"]


def test_in_turn_says_first_what_is_taken_for_any_of_the_classes(monkeypatch):
    def row(request: list[str], **shares: float) -> dict:
        found = {"forget_test": 1.0, "retain_test": 90.0} | shares
        return {
            "label": "esc",
            "request": request,
            "accuracies": found,
            "retention": {"paper": found, "converged": found | {key: 40.0 for key in shares if key == "any_test"}},
            "probes": {"converged": {"gradient": 0.0}},
        }

    rows = [row(["Trouser"]), row(["Trouser", "Bag"], any_test=3.0)]
    monkeypatch.setattr(report_unlearning, "rows_of", lambda experiment: rows)
    assert report_unlearning.in_turn().splitlines()[2] == (
        "| ESC | 1.0 / 90.0 | 3.0 / 1.0 / 90.0 | 3.0 / 1.0 / 90.0 | 40.0 / 1.0 / 90.0 |"
    )


def test_rows_are_of_their_images_and_of_the_way_these_are_read(clothes, here, calls, fashion, tmp_path):
    made = experiment(clothes, {"method": "esc"})
    first = run.key_of(run.Subject(made, "", "cpu"), {}, [])
    shutil.copytree(clothes, tmp_path / "moved")
    moved = experiment(str(tmp_path / "moved"), {"method": "esc"})
    assert run.key_of(run.Subject(moved, "", "cpu"), {}, []) == first  # the same images elsewhere
    fashion.train.select(range(600, 1200)).to_parquet(tmp_path / "moved" / "train.parquet")
    assert run.key_of(run.Subject(moved, "", "cpu"), {}, []) != first
    load_classifier("embedded/resnet", device="cpu").save_pretrained(tmp_path / "resnet")
    processor = load_processor(load_classifier("embedded/resnet", device="cpu"))
    processor.image_mean = [0.5] * 3
    processor.save_pretrained(tmp_path / "resnet")
    other = dataclasses.replace(made, model=str(tmp_path / "resnet"))
    assert run.Subject(other, "", "cpu").fingerprint[0] == run.Subject(made, "", "cpu").fingerprint[0]
    assert run.key_of(run.Subject(other, "", "cpu"), {}, []) != first


def test_the_row_of_another_reference_is_made_anew(clothes, here, tmp_path):
    made, folder = experiment(clothes, {"method": "retrain"}), tmp_path / "resnet-Trouser" / "final"
    assert results.read(here / "results.json") == {}
    run.run_experiment("a-test", made, run.Arguments(), here / "results.json", here / "tuning.json")
    assert results.read(here / "results.json") == {}  # there is no reference
    model = load_classifier("embedded/resnet", device="cpu")
    for bias in (0.0, 0.0, -1e3):
        with torch.no_grad():
            model.classifier[1].bias[1] += bias
        model.save_pretrained(folder)
        (folder / "training.json").write_text('{"seconds": 1}')
        [row] = rows_after(made, here, retrain=str(tmp_path)).values()
        assert row["weights_sha256"] == weights_sha256(model)
        assert (row["accuracies"]["forget_test"] == 0) == (bias < 0)
    # It stays where there is none to compare with, and is of no use beside rows of other probes or images.
    assert rows_after(made, here) == {"retrain/Trouser/seed=0": row}
    assert rows_after(dataclasses.replace(made, probes=["paper"]), here)["retrain/Trouser/seed=0"] == row | {
        "stale": True
    }
    # With the probes of before it is one again, and so it is where it alone is asked for anew.
    assert not rows_after(made, here)["retrain/Trouser/seed=0"]["stale"]
    assert not rows_after(made, here, again=["retrain"])["retrain/Trouser/seed=0"]["stale"]


def test_a_run_that_is_killed_goes_on_with_the_row_that_is_missing(clothes, here, calls, monkeypatch):
    made = experiment(clothes, {"method": "esc"}, {"method": "remap"}, seeds=[0, 1])
    real = run.Subject.row
    monkeypatch.setattr(run.Subject, "row", lambda self, *a: _killed() if len(calls) == 3 else real(self, *a))
    with pytest.raises(KeyboardInterrupt):
        rows_after(made, here)
    monkeypatch.setattr(run.Subject, "row", real)
    assert calls == ["esc", "esc", "remap"]
    assert len(rows_after(made, here)) == 4
    assert calls == ["esc", "esc", "remap", "remap", "remap"]


def _killed():
    raise KeyboardInterrupt


def test_the_numbers_of_a_row_are_those_of_the_model_itself(clothes, here):
    row = rows_after(experiment(clothes, {"method": "original"}, details=["weights", "similarity"]), here)[
        "original/Trouser/seed=0"
    ]
    data = load_images(clothes)
    subject = run.Subject(experiment(clothes), "", "cpu")
    right, labels = [], torch.tensor(data.test["label"])
    for batch in data.batches(data.test, subject.processor, batch_size=50):
        with torch.no_grad():
            right.append(subject.original(pixel_values=batch["pixel_values"]).logits.argmax(1) == batch["labels"])
    gone, found = labels == 1, torch.cat(right).double()
    assert row["accuracies"]["forget_test"] == pytest.approx(100 * found[gone].mean().item())
    assert row["accuracies"]["retain_test"] == pytest.approx(100 * found[~gone].mean().item())
    assert set(row["weights"].values()) == {0}
    assert [row["similarity"][c][c] for c in range(10)] == pytest.approx([1] * 10, abs=1e-3)


def test_requests_in_turn_are_made_of_the_model_that_has_forgotten_those_before(clothes, here, calls):
    made = experiment(clothes, {"method": "esc"}, requests=[["Trouser"], ["Bag"]], in_turn=True)
    rows = rows_after(made, here)
    assert [row["request"] for row in rows.values()] == [["Trouser"], ["Trouser", "Bag"]]
    assert calls == ["esc", "esc"]
    both = rows["esc/Trouser+Bag/seed=0"]["accuracies"]
    assert both["forget_test"] < 50
    rows_after(dataclasses.replace(made, probes=["paper", "converged"]), here)
    assert calls == ["esc"] * 4


def test_a_random_part_of_the_images_is_forgotten_without_labels(clothes, here):
    made = experiment(clothes, {"method": "esc"}, {"method": "delete", "settings": FAST}, requests=[], fraction=0.1)
    rows = rows_after(made, here)
    for row in rows.values():
        assert row["accuracies"]["forget_test"] is None
        assert row["accuracies"]["forget_train"] is not None
    assert rows["delete/random/seed=0"]["settings"]["scenario"] == "images"


def test_what_fails_is_a_row_that_says_why(clothes, here):
    diverging = FAST | {"learning_rate": 1e30, "max_grad_norm": 0.0}
    made = experiment(clothes, {"method": "random-label", "settings": diverging}, {"method": "esc"})
    rows = rows_after(made, here)
    assert rows["random-label/Trouser/seed=0"]["error"].startswith(DivergenceError.__name__)
    assert "accuracies" in rows["esc/Trouser/seed=0"]


def test_a_method_that_is_not_tuned_yet_is_told_how_to_be(clothes, here, capsys):
    rows = rows_after(experiment(clothes, {"method": "delete", "tuned": True}, {"method": "esc"}), here)
    assert list(rows) == ["esc/Trouser/seed=0"]  # and the others are run
    assert "delete is not tuned for embedded/resnet: run `python benchmarks/tune.py --model" in capsys.readouterr().err
    made = experiment(clothes, {"method": "lau", "tuned": True}, requests=[], fraction=0.1)
    run.run_experiment("a-test", made, run.Arguments(), here / "none.json", here / "tuning.json")
    assert "tune.py --model embedded/resnet --fraction 0.1 --retrain DIR --methods lau" in capsys.readouterr().err


def test_a_setting_that_a_method_does_not_have_is_refused(clothes, here):
    with pytest.raises(ValueError, match="temperatur"):
        rows_after(experiment(clothes, {"method": "delete", "settings": {"temperatur": 2}}), here)


def test_the_committed_experiments_name_methods_and_settings_that_there_are():
    files = sorted((BENCHMARKS / "experiments").glob("*.json"))
    assert files
    for file in files:
        made = run.Experiment(**json.loads(file.read_text()))
        for method in made.methods:
            if method["method"] not in run.REFERENCES:
                assert set(method.get("settings", {})) <= methods.known_settings(method["method"])


def test_the_rate_of_a_method_is_the_best_of_seven_trials_on_images_that_it_has_not_seen(clothes, here, calls):
    data = load_images(clothes)
    train, held = (data.train.select(rows) for rows in tune.split(data))
    assert len(train) + len(held) == len(data.train)
    assert not {cell["bytes"] for cell in _raw(train)} & {cell["bytes"] for cell in _raw(held)}
    subject = run.Subject(experiment(clothes), "", "cpu")
    file = here / "tuning.json"
    tune.tune(subject.original, data, tune.of_classes(subject.original, data, ["Trouser"]), ["lau"], file)
    entry = results.read(file)["lau"]
    assert len(entry["trials"]) == len(calls) == 7
    assert entry["best"] == tune.best(entry["trials"])
    assert max(trial["hm"] for trial in entry["trials"]) == next(
        trial["hm"] for trial in entry["trials"] if trial["value"] == entry["best"]
    )
    tune.tune(subject.original, data, tune.of_classes(subject.original, data, ["Trouser"]), ["lau"], file)
    assert len(calls) == 7


def test_trials_of_another_class_model_or_length_are_not_taken_for_these(clothes, here, calls, monkeypatch):
    monkeypatch.setattr(tune, "COARSE", (1e-3,))
    data, file = load_images(clothes), here / "tuning.json"
    subject = run.Subject(experiment(clothes), "", "cpu")
    tune.tune(subject.original, data, tune.of_classes(subject.original, data, ["Trouser"]), ["bad-teacher"], file)
    before = file.read_text()
    other = copy.deepcopy(subject.original)
    with torch.no_grad():
        other.classifier[1].bias += 1
    for what, model, label in (("forget", subject.original, "Bag"), ("weights", other, "Trouser")):
        with pytest.raises(SystemExit, match=f"trials of bad-teacher with other {what}"):
            tune.tune(model, data, tune.of_classes(model, data, [label]), ["bad-teacher"], file)
    results.write(file, json.loads(before) | {"finetune": json.loads(before)["bad-teacher"]})
    with pytest.raises(SystemExit, match="trials of finetune with other shorter"):
        tune.tune(
            subject.original, data, tune.of_classes(subject.original, data, ["Trouser"]), ["finetune"], file, epochs=2
        )


def test_a_shorter_trial_is_one_of_a_method_that_trains_for_long_on_retain_images():
    assert {name: tune.shorter(name, 2) for name in methods.METHODS if tune.shorter(name, 2)} == {
        "fisher": {"num_images": 100},
        **{name: {"num_train_epochs": 2} for name in ("neg-grad-plus", "salun", "finetune", "l1-sparse", "retrain")},
    }
    assert not any(tune.shorter(name, None) for name in methods.METHODS)


def _files(images) -> set:
    return {cell["bytes"] for cell in _raw(images)}


def _raw(images):
    return images.cast_column("image", Image(decode=False))["image"]


def test_all_that_diverged_has_no_best_rate():
    bad = {"value": 9.0, "error": "DivergenceError"}
    assert tune.best([bad]) is None
    assert tune.best([{"value": 1.0, "hm": 3.0}, {"value": 0.1, "hm": 3.0}, {"value": 2.0, "hm": 1.0}, bad]) == 0.1
    assert tune.best([{"value": 1.0, "gap": 3.0}, {"value": 2.0, "gap": 1.0}, bad]) == 2.0


def test_random_images_are_tuned_towards_retrain(clothes, here, calls, monkeypatch):
    monkeypatch.setattr(tune, "COARSE", (1e-3, 1e-1))
    data, file = load_images(clothes), here / "tuning.json"
    subject = run.Subject(experiment(clothes), "", "cpu")
    reference = copy.deepcopy(subject.original)
    with torch.no_grad():
        reference.classifier[1].weight.mul_(torch.rand(10, 1, generator=torch.Generator().manual_seed(0)))
    task = tune.of_images(subject.original, data, 0.1, reference)
    forgotten, (judged, held) = _files(task.forget), task.judged
    assert (len(forgotten), forgotten) == (60, _files(judged))
    assert not forgotten & _files(task.retain)
    assert _files(held) == _files(task.retain)  # which Retrain has learnt
    tune.tune(subject.original, data, task, ["neg-grad"], file)
    entry = results.read(file)["neg-grad"]
    assert entry["forget"] == 0.1
    for trial in entry["trials"]:
        distances = (abs(trial[key] - target) for key, target in zip(("forget", "retain"), task.target, strict=True))
        assert trial["gap"] == pytest.approx(sum(distances) / 2)
    assert entry["best"] == min(entry["trials"], key=lambda trial: trial["gap"])["value"]


# The paper's data and networks, on tiny stand-ins of the same shape

COLUMNS = {"cifar10-all-cnn": ("img", "label"), "cifar100-resnet18": ("img", "fine_label")}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, fashion):
    """For each committed setting: data with its columns, and a start with its kind of network, small."""
    made = {}
    for file in sorted((BENCHMARKS / "paper").glob("*.json")):
        folder = tmp_path_factory.mktemp(file.stem)
        image, label = COLUMNS.get(file.stem, ("image", "label"))
        names = [f"n{number:08d}" for number in range(10)]
        features = Features({image: Image(), label: ClassLabel(names=names)})
        for split, rows in (("train", fashion.train.select(range(160))), ("test", fashion.test.select(range(80)))):
            cells = rows.cast_column("image", Image(decode=False))
            columns = {image: cells["image"][:], label: cells["label"][:]}
            Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
        torch.manual_seed(0)
        small = {
            "cifar10-all-cnn": lambda: tiny(),
            "cifar100-resnet18": lambda: ResNetForImageClassification(
                ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=7)
            ),
            "tiny-imagenet-vit": lambda: ViTForImageClassification(
                ViTConfig(
                    image_size=28,
                    patch_size=7,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                    num_labels=7,
                )
            ),
        }[file.stem]()
        small.save_pretrained(folder / "start")
        Processor(size={"height": 28, "width": 28}).save_pretrained(folder / "start")
        made[file.stem] = (file, folder)
    return made


@pytest.mark.parametrize("name", ["cifar10-all-cnn", "cifar100-resnet18", "tiny-imagenet-vit"])
def test_a_setting_of_the_paper_runs_from_training_to_table_and_goes_on_where_it_stopped(name, stand_ins, here, calls):
    file, folder = stand_ins[name]
    setting = paper.Setting(**json.loads(file.read_text()))
    assert setting.reported["esc"]
    small = dataclasses.replace(
        setting,
        data=str(folder),
        start=str(folder / "start"),
        forget=["#1"],
        seeds=[0],
        training={"num_train_epochs": 5, "learning_rate": 1e-2, "disable_tqdm": True, "logging_strategy": "no"},
        without=[method for method in (*paper.FORGET_ONLY, *paper.WITH_RETAIN) if method != "lau"],
    )
    shown = paper.run_setting(name, small, here, "cpu")
    measured = results.read(here / name / "results.json")["rows"]
    assert {row["method"] for row in measured.values()} == {*run.REFERENCES, "esc", "esc-t", "remap", "lau"}
    line = next(line for line in shown.splitlines() if line.startswith("| esc |"))
    assert f"({setting.reported['esc'][0]:.2f})" in line
    assert len(line.split("|")) == len(shown.splitlines()[0].split("|"))
    count = len(calls)
    assert paper.run_setting(name, small, here, "cpu") == shown
    assert len(calls) == count
