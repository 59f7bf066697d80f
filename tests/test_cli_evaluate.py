"""`hf-esc evaluate`: a table with references beside each number, or the same as JSON; bad input is exit code 2."""

import json
import re

import pytest

from hf_esc import erase
from hf_esc.data import load_images
from hf_esc.evaluation import report_text
from hf_esc.evaluation.attacks import MEANINGS
from hf_esc.evaluation.probes import PROBES
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.loading import load_processor

from .tiny import tiny

pytestmark = pytest.mark.slow

PAPER, CONVERGED = "KR, the paper's probe", "KR, a converged linear probe"


@pytest.fixture(scope="module")
def erased(tmp_path_factory, resnet, clothes) -> str:
    """A folder with the embedded ResNet after ESC."""
    folder = tmp_path_factory.mktemp("erased")
    erase(resnet, load_images(clothes).forget_set([1])).save_pretrained(folder)
    load_processor(resnet).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def evaluate(hf_esc, erased, clothes):
    """`hf-esc evaluate` of the erased model with further arguments, quick where these do not say otherwise."""

    def command(*arguments, model=erased):
        quick = () if "--seeds" in arguments else ("--seeds", 1)
        return hf_esc("evaluate", model, "--dataset", clothes, "--batch-size", 200, *quick, *arguments)

    return command


def test_by_default_it_prints_a_table_with_references_and_both_probes(hf_esc, erased, clothes):
    code, out, _ = hf_esc("evaluate", erased, "--dataset", clothes)
    assert code == 0
    title, seeds, _, columns, *rest = out.splitlines()
    assert "the mean of 3 seeds" in seeds
    assert title == f"{erased} on {clothes}, forgotten: Trouser"
    assert columns.split() == ["in", "%", "model", "original", "random"]
    headings = [line for line in rest if line.startswith("KR")]
    assert [line.startswith(probe) for line, probe in zip(headings, (PAPER, CONVERGED), strict=True)] == [True, True]
    assert "ZRF" in out
    assert "membership inference" in out
    assert "attacks" not in out


def test_json_is_the_report_and_nothing_else(evaluate):
    code, out, _ = evaluate("--json", "--seeds", 2)
    assert code == 0
    report = UnlearningReport.from_json(out)
    assert list(report.models) == ["model", "original", "random"]
    assert (report.forget, report.seeds) == (["Trouser"], [0, 1])
    assert list(report.models["model"].retention) == ["paper", "converged"]
    assert report.models["model"].retention["paper"].runs == 2
    model, original = (report.models[name].accuracies for name in ("model", "original"))
    assert model.forget_test < 10 < 90 < original.forget_test
    assert report.models["model"].curve is None
    _, table, _ = evaluate("--seeds", 2)
    assert table.endswith(report_text.table(report) + "\n")


def test_output_is_the_report_in_a_file_beside_the_table(evaluate, tmp_path):
    file = tmp_path / "report.json"
    code, out, _ = evaluate("--output", file, "--curve")
    assert code == 0
    report = UnlearningReport.from_json(file.read_text())
    assert report_text.table(report) in out
    assert report.models["model"].curve
    assert list(tmp_path.iterdir()) == [file]
    code, out, _ = evaluate("--output", file, "--json")
    assert (code, json.loads(out)) == (0, json.loads(file.read_text()))


def test_a_reference_is_the_retrained_model(evaluate):
    code, out, _ = evaluate("--reference", "embedded/resnet", "--json")
    assert code == 0
    report = UnlearningReport.from_json(out)
    assert list(report.models) == ["model", "original", "retrain", "random"]
    assert report.models["retrain"] == report.models["original"]  # the same model, for once


def test_other_classes_than_those_of_the_ledger_may_be_asked_for(evaluate):
    code, out, _ = evaluate("--forget", "Bag,Trouser", "--json", model="embedded/resnet")
    assert code == 0
    report = UnlearningReport.from_json(out)
    assert (report.forget, list(report.models)) == (["Trouser", "Bag"], ["model", "random"])


def test_features_are_kept_where_they_are_asked_for(evaluate, tmp_path):
    folder = tmp_path / "features"
    first = evaluate("--feature-dir", folder, "--json")
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(times) == {f"{name}-{part}.safetensors" for name in ("model", "original", "random") for part in PARTS}
    assert evaluate("--feature-dir", folder, "--json")[:2] == first[:2]
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == times


PARTS = ("train", "test")


# --probes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", list(PROBES)),
        ("knn", ["paper", "converged", "knn"]),
        ("one-vs-rest, mlp", ["paper", "converged", "mlp", "one_vs_rest"]),
    ],
)
def test_further_probes(evaluate, value, expected):
    code, out, _ = evaluate("--probes", value, "--json")
    assert code == 0
    report = UnlearningReport.from_json(out)
    assert [list(result.retention) for result in report.models.values()] == [expected] * 3


def test_none_is_the_head_alone(evaluate, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a probe was trained")

    _, full, _ = evaluate("--json")
    monkeypatch.setattr("hf_esc.evaluation.unlearning.evaluate_unlearning", never)
    code, out, _ = evaluate("--probes", "none", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"model", "dataset", "forget", "accuracies"}
    models = json.loads(full)["models"]
    assert list(found["accuracies"]) == ["original", "erased"]
    for name, column in {"original": "original", "erased": "model"}.items():
        assert found["accuracies"][name] == pytest.approx(models[column]["accuracies"])
    code, out, _ = evaluate("--probes", "none")
    assert (code, "KR" in out, "random" in out) == (0, False, False)
    assert f"{models['model']['accuracies']['retain_test']:.2f}" in out


# --attacks


def test_attacks_are_a_section_of_the_table_and_in_the_json(evaluate):
    code, out, _ = evaluate("--attacks", "few-shot, knn")
    assert code == 0
    _, section = out.split("\nattacks: ")
    title, *rows = section.splitlines()
    assert "all there is to get" in title
    assert [row.split()[0] for row in rows[:2]] == ["knn", "few_shot"]
    assert rows[2:] == [f"  {attack}: {MEANINGS[attack]}" for attack in ("knn", "few_shot")]
    code, out, _ = evaluate("--attacks", "few-shot, knn", "--json")
    assert code == 0
    models = UnlearningReport.from_json(out).models
    assert [list(result.attacks) for result in models.values()] == [["knn", "few_shot"]] * 3
    for attack, row in zip(("knn", "few_shot"), rows, strict=False):
        found = [result.attacks[attack] for result in models.values()]
        assert re.split(" {2,}", row)[1:] == [f"{one.forget_test:.1f} / {one.retain_test:.1f}" for one in found]


# Bad input


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A classifier of four classes."""
    folder = tmp_path_factory.mktemp("other")
    tiny().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--probes", "nonsense"), "There is no probe 'nonsense'. There are: paper, converged, mlp, knn, one_vs_rest"),
        (("--probes", ""), "There is no probe ''"),
        (("--probes", "none,knn"), "There is no probe 'none'"),
        (("--probes", "paper,svm", "--json"), "There is no probe 'svm'"),
        (
            ("--attacks", "nonsense"),
            "no attack 'nonsense'. There are: strip, hidden_layers, knn, few_shot, finetune, `all` and `none`.",
        ),
        (("--attacks", ""), "There is no attack ''"),
        (("--attacks", "none,knn"), "There is no attack 'none'"),
        (("--attacks", "knn,converged", "--json"), "There is no attack 'converged'"),
        (("--output", "{tmp}/nowhere/report.json"), "is no folder"),
        (("--reference", "nowhere/at all"), "No image classifier"),
        (("--reference", "{other}"), "'retrain' has 4 classes, and the model has 10"),
        (("--seeds", "0"), "--seeds"),
        (("--forget", "Hat"), "no label 'Hat'"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_message(evaluate, other, tmp_path, arguments, words):
    code, out, err = evaluate(*(argument.format(tmp=tmp_path, other=other) for argument in arguments))
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_say_what_it_forgot_is_exit_code_2(evaluate):
    for probes in ("paper", "none"):
        code, out, err = evaluate("--probes", probes, model="embedded/resnet")
        assert (code, out) == (2, "")
        assert "Name it with `--forget LABEL`, `--forget-fraction FRACTION` or" in err


def test_options_of_probes_do_not_go_with_none_of_them(hf_esc, clothes, tmp_path):
    output, reference = ("--output", tmp_path / "report.json"), ("--reference", "embedded/resnet")
    for option in (("--curve",), output, reference, ("--attacks", "all"), ("--attacks", "strip")):
        code, out, err = hf_esc("evaluate", "embedded/resnet", "--dataset", clothes, "--probes", "none", *option)
        assert (code, out) == (2, "")
        assert "looks at the head alone" in err
    code, _, err = hf_esc("evaluate", "embedded/resnet", "--dataset", clothes, "--output", tmp_path)
    assert code == 2
    assert "is a folder" in err
