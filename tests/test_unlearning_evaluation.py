"""An evaluation: a column for each model, numbers that agree with those of the parts, and a report that comes back."""

import copy
import json
import re
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from hf_esc import erase
from hf_esc.data import load_images
from hf_esc.errors import DataError, ForgetSetError, LabelError, ModelError, ProbeError
from hf_esc.evaluation import Accuracies, evaluate_accuracies, report_text
from hf_esc.evaluation.accuracy import model_classifier
from hf_esc.evaluation.knowledge_retention import CurvePoint, knowledge_retention, retention_curve
from hf_esc.evaluation.membership import membership_inference
from hf_esc.evaluation.model_features import model_features
from hf_esc.evaluation.probes import PROBES
from hf_esc.evaluation.report import ModelResult, Retention, UnlearningReport
from hf_esc.evaluation.report_check import report_sha256
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.evaluation.zrf import zero_retrain_forgetting
from hf_esc.loading import load_processor, random_network

from .tiny import tiny

pytestmark = pytest.mark.slow

TROUSER, BAG = 1, 8
QUICK = {"seeds": (0,), "device": "cpu", "batch_size": 200}


@pytest.fixture(scope="module")
def data(clothes):
    """600 images to train and 200 to test."""
    return load_images(clothes)


@pytest.fixture(scope="module")
def erased(resnet, data):
    return erase(resnet, data.forget_set([TROUSER]))


@pytest.fixture(scope="module")
def retrain(resnet):
    """In place of a retrained model: one whose head never says trouser, on other features."""
    model = copy.deepcopy(resnet)
    with torch.no_grad():
        model.classifier[1].bias[TROUSER] = -1e4
        model.classifier[1].weight[TROUSER] = 0
    return model


@pytest.fixture(scope="module")
def report(erased, retrain, data):
    return evaluate_unlearning(
        erased, data, references={"retrain": retrain}, probes=PROBES, curve=True, **QUICK | {"seeds": (0, 1)}
    )


@pytest.fixture
def images():
    """How many images each pass of a ResNet was of: a list that grows."""
    counts: list[int] = []

    def hook(module, args):
        if type(module).__name__ == "ResNetEmbeddings":
            counts.append(len(args[0]))

    handle = register_module_forward_pre_hook(hook)
    yield counts
    handle.remove()


# What stands in it


def test_it_says_what_was_evaluated(report, data):
    assert list(report.models) == ["model", "original", "retrain", "random"]
    assert (report.forget, report.forget_labels) == (["Trouser"], [TROUSER])
    assert report.num_forget_train == data.train["label"].count(TROUSER)
    assert report.num_forget_test == data.test["label"].count(TROUSER)
    assert (report.dataset, report.method, report.seeds) == (data.name, ["esc"], [0, 1])
    assert set(report.versions) == {"hf_esc", "torch", "transformers"}
    for result in report.models.values():
        assert list(result.retention) == list(PROBES)
        assert {name: retention.runs for name, retention in result.retention.items()} == {
            "paper": 2,
            "converged": 1,
            "mlp": 2,
            "knn": 1,
            "one_vs_rest": 1,
        }


def test_without_a_retrained_model_there_is_no_such_column(resnet, erased, data):
    assert list(evaluate_unlearning(erased, data, **QUICK).models) == ["model", "original", "random"]
    # Of a model that is not erased, nobody knows the original.
    alone = evaluate_unlearning(resnet, data, [BAG], probes=["knn"], **QUICK)
    assert list(alone.models) == ["model", "random"]
    assert list(alone.models["model"].retention) == ["paper", "converged", "knn"]
    assert (alone.forget, alone.method) == (["Bag"], [])
    assert alone.recovery_rate("paper") is None
    assert alone.models["model"].curve is None


def test_references_of_any_name_follow(erased, resnet, retrain, data):
    references = {"mine": resnet, "retrain": retrain, "original": retrain}
    found = evaluate_unlearning(erased, data, references=references, **QUICK).models
    assert list(found) == ["model", "original", "retrain", "mine", "random"]
    assert list(references) == ["mine", "retrain", "original"]
    assert found["original"] == found["retrain"] != found["mine"]  # the one that was given counts


def test_the_heads_accuracies_are_those_of_evaluate_accuracies(report, erased, resnet, retrain, data):
    models = {"model": erased, "original": resnet, "retrain": retrain, "random": random_network(erased)}
    expected = evaluate_accuracies(
        {name: model_classifier(model) for name, model in models.items()},
        data,
        [TROUSER],
        mapping=data.labels_in(erased.config),
        processor=load_processor(erased),
    )
    for name, accuracies in expected.items():
        assert asdict(report.models[name].accuracies) == pytest.approx(asdict(accuracies)), name
    assert report.models["original"].accuracies.forget_train > 90
    assert report.models["model"].accuracies.forget_train < 10
    assert report.models["retrain"].accuracies.forget_train == 0


def test_every_number_is_that_of_its_function(report, erased, data):
    seen = model_features(erased, data, load_processor(erased), batch_size=200)
    given = (seen.train.features, seen.train.labels, seen.test.features, seen.test.labels, [TROUSER])
    found = report.models["model"]
    for probe in PROBES:
        runs = [knowledge_retention(*given, probe=probe, seed=seed, device="cpu").accuracies for seed in (0, 1)]
        for key, value in found.retention[probe].mean.items():
            one, other = (getattr(run, key) for run in runs)
            if key in ("any_train", "any_test"):  # one class was forgotten
                assert value is one is other is None
                continue
            assert value == pytest.approx((one + other) / 2)
            assert found.retention[probe].spread[key] == pytest.approx(abs(one - other) / 2)
    assert found.retention["converged"].settings["converged"] is True
    assert "seed" not in found.retention["paper"].settings
    assert found.retention["paper"].spread["retain_test"] > 0
    assert found.curve == retention_curve(*given, seeds=(0, 1), device="cpu")
    train, test = (split.labels == TROUSER for split in (seen.train, seen.test))
    sides = seen.train.logits[train], seen.train.labels[train], seen.test.logits[test], seen.test.labels[test]
    attacked = [membership_inference(*sides, seed=seed) for seed in (0, 1)]
    accuracies, spreads = ([getattr(run, key) for run in attacked] for key in ("accuracy", "spread"))
    assert found.membership.accuracy == pytest.approx(statistics.fmean(accuracies))
    variance = statistics.pvariance(accuracies) + statistics.fmean(spread**2 for spread in spreads)
    assert found.membership.spread**2 == pytest.approx(variance)
    assert replace(found.membership, accuracy=0, spread=0) == replace(attacked[0], accuracy=0, spread=0)
    network = model_features(random_network(erased), data, load_processor(erased), batch_size=200)
    assert found.zrf == zero_retrain_forgetting(seen.train.logits[train], network.train.logits[train])
    assert report.models["random"].zrf.zrf == 1


def test_the_original_is_the_model_without_its_projection(report, erased, resnet, data):
    alone = evaluate_unlearning(resnet, data, [TROUSER], probes=PROBES, curve=True, **QUICK | {"seeds": (0, 1)})
    assert report.models["original"] == alone.models["model"]
    with erased.disable_projection():
        off = evaluate_unlearning(erased, data, **QUICK)
    assert off.models["model"] == off.models["original"]
    assert evaluate_unlearning(erased, data, **QUICK).models["model"] != off.models["model"]  # and it is on again


def test_the_random_network_is_the_same_each_time_and_the_caller_s_draws_are_left_alone(erased, resnet):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = random_network(erased)
    assert torch.equal(torch.rand(3), expected)
    other = random_network(resnet)
    assert type(one) is type(resnet)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    weight = "classifier.1.weight"
    assert not torch.equal(one.state_dict()[weight], resnet.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], random_network(resnet, seed=1).state_dict()[weight])


def test_rows_that_were_forgotten_have_no_test_images(erased, data):
    rows = list(range(0, 600, 20))
    found = evaluate_unlearning(erased, data, forget_indices=rows, curve=True, **QUICK)
    assert (found.forget, found.forget_labels, found.num_forget_train, found.num_forget_test) == ([], [], 30, 0)
    for name, result in found.models.items():
        for values in (result.accuracies.__dict__, *(kept.mean for kept in result.retention.values())):
            assert (values["forget_test"], values["hm_train"], values["hm_test"]) == (None, None, None)
            assert None not in (values["forget_train"], values["retain_train"], values["retain_test"])
        assert result.curve is None
        assert (result.membership.members, result.membership.nonmembers) == (30, 200), name
        assert result.zrf.images == 30
    seen = model_features(erased, data, load_processor(erased), batch_size=200)
    right = seen.train.right()[rows].double().mean().item()
    assert found.models["model"].accuracies.forget_train == pytest.approx(100 * right)
    assert UnlearningReport.from_json(found.to_json()) == found
    assert "original" in report_text.table(found)


# Features that are kept


def test_a_second_run_computes_no_features(erased, data, tmp_path, images, report):
    first = evaluate_unlearning(erased, data, feature_dir=tmp_path / "new", **QUICK)
    assert sum(images) >= 3 * 800
    assert len(list((tmp_path / "new").iterdir())) == 6
    images.clear()
    second = evaluate_unlearning(erased, data, feature_dir=str(tmp_path / "new"), **QUICK)
    assert sum(images) < 10  # a look at where the head is, on one picture, at most
    assert second == first
    assert first.models["model"].accuracies == report.models["model"].accuracies


def test_features_of_another_model_or_other_images_or_cut_off_are_computed_anew(
    erased, resnet, data, tmp_path, images
):
    data = replace(data, train=data.train.select(range(200)), test=data.test.select(range(80)))
    evaluate_unlearning(erased, data, feature_dir=tmp_path, **QUICK)
    other = erase(resnet, data.forget_set([BAG]))
    expected = evaluate_unlearning(other, data, **QUICK)
    assert evaluate_unlearning(other, data, feature_dir=tmp_path, **QUICK).models == expected.models
    turned = replace(data, train=data.train.select(range(199, -1, -1)))
    images.clear()
    evaluate_unlearning(other, turned, feature_dir=tmp_path, **QUICK)
    assert 3 * 200 <= sum(images) < 3 * 200 + 10  # the test images are those of before
    evaluate_unlearning(other, data, feature_dir=tmp_path, **QUICK)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    images.clear()
    assert evaluate_unlearning(other, data, feature_dir=tmp_path, **QUICK).models == expected.models
    assert sum(images) >= 3 * 280


# Rates, by hand


def by_hand(forget_test: int = 20, **columns: tuple[float, float, float]) -> UnlearningReport:
    """Of each column, D_f of the head, and of a probe D_f and D_ft."""

    def result(head: float, train: float, test: float) -> ModelResult:
        mean = {
            "forget_train": train,
            "retain_train": 90.0,
            "forget_test": test if forget_test else None,
            "retain_test": 80.0,
            "hm_train": None,
            "hm_test": None,
        }
        spread = dict.fromkeys(mean, 0.0)
        return ModelResult(Accuracies(head, 90.0, head, 80.0, None, None), {"paper": Retention(mean, spread, 1, {})})

    models = {name: result(*values) for name, values in columns.items()}
    return UnlearningReport("a model", "some data", ["cat"], [0], 50, forget_test, ["esc"], [0], models)


THREE = {"model": (0.0, 30.0, 40.0), "original": (80.0, 60.0, 90.0), "retrain": (0.0, 10.0, 20.0)}


def test_the_recovery_rate_by_hand():
    found = by_hand(**THREE)
    assert found.recovery_rate("paper") == pytest.approx(100 * 30 / 80)
    assert found.recovery_rate("paper", "original") == pytest.approx(75)
    assert by_hand(model=THREE["model"]).recovery_rate("paper") is None
    assert by_hand(**THREE | {"original": (0.0, 60.0, 90.0)}).recovery_rate("paper") is None


def test_the_excess_knowledge_by_hand():
    found = by_hand(**THREE)
    assert found.excess_knowledge("paper") == pytest.approx((40 - 20) / (90 - 20))
    assert [found.excess_knowledge("paper", name) for name in ("original", "retrain")] == [1, 0]
    assert by_hand(**THREE | {"model": (0.0, 0.0, 6.0)}).excess_knowledge("paper") == pytest.approx(-14 / 70)
    assert by_hand(0, **THREE).excess_knowledge("paper") == pytest.approx((30 - 10) / (60 - 10))  # no test images
    for gone in ("original", "retrain"):
        assert by_hand(**{name: THREE[name] for name in THREE if name != gone}).excess_knowledge("paper") is None
    near = by_hand(**THREE | {"original": (80.0, 60.0, 20.5)})
    assert near.excess_knowledge("paper") is None
    less = by_hand(model=(0.0, 0.0, 60.0), original=(90.0, 90.0, 95.0), retrain=(0.0, 0.0, 97.0))
    assert less.excess_knowledge("paper") is None  # more is read from a model that never saw the class


def test_excess_knowledge_of_several_classes_is_of_any_of_them():
    found = by_hand(**THREE)
    for column, share in (("model", 75.0), ("original", 95.0), ("retrain", 55.0)):
        found.models[column].retention["paper"].mean["any_test"] = share
    assert found.excess_knowledge("paper") == pytest.approx((75 - 55) / (95 - 55))


# The report


def test_it_comes_back_from_json(report):
    text = report.to_json()
    assert UnlearningReport.from_json(text) == report
    values = json.loads(text)
    assert values == report.to_dict()
    assert values["recovery_rate"] == {probe: report.recovery_rate(probe) for probe in PROBES}
    assert values["excess_knowledge"] == {probe: report.excess_knowledge(probe) for probe in PROBES}
    again = UnlearningReport.from_json(text).models["model"]
    assert isinstance(again.curve[0], CurvePoint)
    assert again.membership.auc == report.models["model"].membership.auc


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(schema=1),
        lambda values: values.pop("schema"),
        lambda values: values.pop("recovery_rate"),
        lambda values: values.pop("forget"),
        lambda values: values.update(more=1),
        lambda values: values["models"]["model"].pop("zrf"),
        lambda values: values["models"]["model"]["accuracies"].pop("hm_test"),
        lambda values: values.update(models=[1]),
    ],
)
def test_what_is_no_report_is_refused(change):
    values = by_hand(**THREE).to_dict()
    UnlearningReport.from_json(json.dumps(values))
    change(values)
    values["sha256"] = report_sha256(values)
    with pytest.raises(DataError, match="no report of hf_esc"):
        UnlearningReport.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"text"'])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(DataError, match="no report of hf_esc"):
        UnlearningReport.from_json(text)


def sections(table: str) -> dict[str, dict[str, list[str]]]:
    """The numbers of a table: by the title of a section, by the title of a row."""
    head, *parts = table.split("\n\n")
    found = {"": {"columns": head.split()[2:]}}
    for part in parts:
        title, *rows = part.splitlines()
        cut = 15 * len(found[""]["columns"])
        found[title] = {" ".join(row[:-cut].split()): row[-cut:].split() for row in rows}
    return found


def test_the_table_has_a_column_for_each_model_and_a_section_for_each_probe(report):
    found = sections(report_text.table(report))
    assert found[""]["columns"] == ["model", "original", "retrain", "random"]
    head = found["the head"]
    assert head["D_f forget, train"] == [f"{r.accuracies.forget_train:.2f}" for r in report.models.values()]
    assert head["HM_t test"] == [f"{r.accuracies.hm_test:.2f}" for r in report.models.values()]
    titles = {
        "paper": "KR, the paper's probe (ten epochs, not trained to the end)",
        "converged": "KR, a converged linear probe",
        "knn": "KR, nearest neighbours",
    }
    for probe, title in titles.items():
        rows = found[title]
        kept = [result.retention[probe].mean for result in report.models.values()]
        assert rows["D_ft forget, test"] == [f"{mean['forget_test']:.2f}" for mean in kept]
        assert rows["D_rt retain, test"] == [f"{mean['retain_test']:.2f}" for mean in kept]
        assert rows["recovery rate"] == [f"{report.recovery_rate(probe, name):.2f}" for name in report.models]
    [zrf] = [rows["ZRF"] for title, rows in found.items() if title.startswith("ZRF")]
    assert zrf == [f"{result.zrf.zrf:.3f}" for result in report.models.values()]
    [auc] = [rows["AUC"] for title, rows in found.items() if title.startswith("membership")]
    assert auc == [f"{result.membership.auc:.2f}" for result in report.models.values()]
    [curve] = [rows for title, rows in found.items() if "by labelled forget images" in title]
    assert list(curve) == [str(point.labelled) for point in report.models["model"].curve]
    assert curve["1"] == [f"{result.curve[0].forget_test:.2f}" for result in report.models.values()]
    assert "not converged" not in report_text.table(report)


def test_the_table_says_where_a_probe_did_not_converge_and_what_is_not_there():
    found = by_hand(**THREE)
    rows = sections(report_text.table(found))["KR, the paper's probe (ten epochs, not trained to the end)"]
    assert rows["HM train"] == ["-"] * 3
    assert rows["excess knowledge"] == [f"{100 * 20 / 70:.2f}", "100.00", "0.00"]
    found.models["retrain"].retention["paper"].settings["converged"] = False
    assert "(not converged: more can be read than this)" in report_text.table(found)


def test_results_for_a_card_are_the_model_s_and_say_which_probe(report):
    results = {result.metric_name: result for result in report_text.eval_results(report)}
    names = ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t")
    parts = ["head", *(f"KR ({probe})" for probe in PROBES)]
    assert list(results) == [f"{part} {name} (%)" for part in parts for name in names]
    found = report.models["model"]
    assert results["head D_rt (%)"].metric_value == round(found.accuracies.retain_test, 2)
    assert results["KR (converged) D_ft (%)"].metric_value == round(
        found.retention["converged"].mean["forget_test"], 2
    )
    for name, result in results.items():
        assert result.metric_type == ("accuracy" if name.startswith("head") else "kr_score")
        # A path is nobody's business.
        assert (result.task_type, result.dataset_name) == ("image-classification", Path(report.dataset).name)
    assert not [
        result for result in report_text.eval_results(by_hand(0, **THREE)) if re.search("KR.*(HM|D_ft)", str(result))
    ]


# What is refused


def test_a_reference_with_other_classes_is_refused(erased, data):
    with pytest.raises(ModelError, match="reference 'retrain' has 4 classes, and the model has 10"):
        evaluate_unlearning(erased, data, references={"retrain": tiny()}, **QUICK)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"probes": ["paper", "svm"]}, ProbeError, r"no probe \['svm'\]. There are: paper, converged"),
        ({"forget_labels": [1], "forget_indices": [3]}, LabelError, "classes or rows .+ not both"),
        ({"forget_labels": []}, LabelError, "It does not say; name them"),
        ({"forget_indices": []}, ForgetSetError, "name at least one of the 600 training images"),
        ({"forget_indices": [600]}, ForgetSetError, "no row 600: rows of the 600 training images go up to 599"),
        ({"forget_indices": [-1]}, ForgetSetError, "no row -1"),
        ({"forget_indices": [3, 3]}, ForgetSetError, "Row 3 is named more than once"),
        ({"forget_indices": range(600)}, ForgetSetError, "leaves nothing to keep"),
    ],
)
def test_bad_input_is_refused_before_any_work(erased, data, images, options, error, message):
    with pytest.raises(error, match=message):
        evaluate_unlearning(erased, data, **QUICK | options)
    assert images == []


def test_who_does_not_say_what_was_forgotten_is_asked(resnet, data):
    with pytest.raises(LabelError, match="Which classes should the model have forgotten"):
        evaluate_unlearning(resnet, data, **QUICK)


def test_test_images_there_must_be(erased, data):
    with pytest.raises(DataError, match="no test split"):
        evaluate_unlearning(erased, replace(data, test=None), **QUICK)
    with pytest.raises(ProbeError, match="no test image of the forgotten classes"):
        evaluate_unlearning(erased, replace(data, test=data.select(data.test, [TROUSER], keep=False)), **QUICK)


def test_classes_that_are_not_there_and_names_that_are_taken_are_refused(erased, resnet, data):
    for labels in ([99], [-1]):
        with pytest.raises(LabelError, match="There are no classes"):
            evaluate_unlearning(erased, data, labels, **QUICK)
    with pytest.raises(ModelError, match="the name of the model under test"):
        evaluate_unlearning(erased, data, [TROUSER], references={"model": resnet}, **QUICK)
    with pytest.raises(ProbeError, match="`seeds` is empty"):
        evaluate_unlearning(erased, data, [TROUSER], **(QUICK | {"seeds": ()}))


def test_features_on_disk_are_not_reused_when_the_projection_is_switched_off(erased, data, tmp_path):
    common = {"name": "model", "folder": tmp_path, "batch_size": 200}
    on = model_features(erased, data, load_processor(erased), **common)
    with erased.disable_projection():
        off = model_features(erased, data, load_processor(erased), **common)
    assert not torch.allclose(on.test.features, off.test.features)


def test_a_reference_in_another_order_is_refused(erased, resnet, data):
    rotated = copy.deepcopy(resnet)
    names = [rotated.config.id2label[i] for i in range(10)]
    names = names[3:] + names[:3]
    rotated.config.id2label = dict(enumerate(names))
    rotated.config.label2id = {name: i for i, name in enumerate(names)}
    with pytest.raises(ModelError, match="numbers its classes otherwise"):
        evaluate_unlearning(erased, data, references={"retrain": rotated}, **QUICK)


def test_a_reference_is_read_with_its_own_image_processor(erased, resnet, data):
    darker = copy.deepcopy(resnet)
    darker.image_processor = copy.deepcopy(load_processor(resnet))
    darker.image_processor.image_mean = [0.9, 0.9, 0.9]
    found = evaluate_unlearning(erased, data, references={"same": resnet, "darker": darker}, **QUICK).models
    assert found["same"].accuracies == found["original"].accuracies
    assert found["darker"].accuracies != found["original"].accuracies
    given = evaluate_unlearning(
        erased, data, references={"darker": darker}, processing_class=load_processor(resnet), **QUICK
    )
    assert given.models["darker"].accuracies == found["original"].accuracies


def test_of_several_classes_each_stands_on_its_own(resnet, data):
    """One that stays whole is half of a mean."""
    model = copy.deepcopy(resnet)
    with torch.no_grad():
        model.classifier[1].bias[TROUSER] = -1e4
    found = evaluate_unlearning(model, data, [TROUSER, BAG], references={"original": resnet}, **QUICK)
    (gone, stays), original = found.models["model"].by_class, found.models["original"].by_class
    assert (found.forget, gone) == (["Trouser", "Bag"], [0, 0])
    assert min(stays) > 90 > max(stays) / 2 > 40
    alone = evaluate_unlearning(resnet, data, [BAG], **QUICK)
    assert original[1] == alone.models["model"].by_class[0]
    accuracies = alone.models["model"].accuracies
    assert original[1] == pytest.approx([accuracies.forget_train, accuracies.forget_test])
    assert "  Bag, test" in report_text.table(found)
    assert "  Bag, test" not in report_text.table(alone)
    assert UnlearningReport.from_json(found.to_json()) == found
    for break_it in (lambda by: by.pop(), lambda by: by.append("x"), lambda by: by[0].pop(), lambda by: by.clear()):
        values = json.loads(found.to_json())
        break_it(values["models"]["model"]["by_class"])
        values["sha256"] = report_sha256(values)
        with pytest.raises(DataError, match="no report"):
            UnlearningReport.from_json(json.dumps(values))
