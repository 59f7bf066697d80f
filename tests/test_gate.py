"""The gate's operating curve: in force, it is what the remapped model does; a report says it of remaps alone."""

import json
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc import ESCModel, erase
from hf_esc.data import image_batches, load_images
from hf_esc.erasure.remap import remap
from hf_esc.errors import DataError
from hf_esc.evaluation import report_text
from hf_esc.evaluation.gate import THRESHOLDS, GateCurve, gate_curves
from hf_esc.evaluation.model_features import ModelFeatures, SplitFeatures, model_features
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.evaluation.report_check import report_sha256
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.loading import load_processor, random_network
from hf_esc.modeling.remap_factor import RemapFactor

pytestmark = pytest.mark.slow

TROUSER, SANDAL, SHIRT, BAG = 1, 5, 6, 8
QUICK = {"seeds": (0,), "device": "cpu", "batch_size": 200}
TITLE = "the gate of the remap of"


@pytest.fixture(scope="module")
def data(clothes):
    """600 images to train and 200 to test."""
    return load_images(clothes)


def remapped(model, data, labels, gone=(), **options) -> ESCModel:
    rest = data.select(data.train, [*labels, *gone], keep=False)
    return remap(model, data.forget_set(labels), rest, bank_size=100, **options)


@pytest.fixture(scope="module")
def models(resnet, data):
    """Remapped models by what stands between the features and the head."""
    after_esc = remapped(erase(resnet, data.forget_set([SANDAL])), data, [TROUSER], [SANDAL])
    argmax = remapped(resnet, data, [TROUSER])
    return {
        "argmax": argmax,
        "threshold": remapped(resnet, data, [TROUSER], threshold=0.02),
        "several labels": remapped(resnet, data, [SHIRT, BAG]),
        "after ESC": after_esc,
        "before ESC": erase(argmax, data.forget_set([SANDAL])),
        "two remaps after ESC": remapped(after_esc, data, [SHIRT, BAG], [TROUSER, SANDAL], threshold=0.1),
    }


@pytest.fixture(scope="module")
def bare(resnet, data):
    """What all of them have with the projection off."""
    return model_features(resnet, data, load_processor(resnet), batch_size=200)


@pytest.fixture(scope="module")
def curves(models, bare):
    return {name: gate_curves(model.projections[0].factors, bare, gone(model)) for name, model in models.items()}


@pytest.fixture(scope="module")
def reports(models, data):
    names = ("argmax", "two remaps after ESC")
    return {name: evaluate_unlearning(models[name], data, **QUICK) for name in names}


def gone(model) -> set[int]:
    return {label for record in model.config.erasures for label in record["label_ids"]}


def remaps(model) -> list[RemapFactor]:
    return [factor for factor in model.projections[0].factors if factor.kind == "remap"]


@dataclass(frozen=True)
class Seen:
    """Of each image: its label, whether the head was right, and by remap whether it was changed on the way there."""

    labels: torch.Tensor
    right: torch.Tensor
    changed: list[torch.Tensor]


@torch.no_grad()
def seen(model, data, split) -> Seen:
    changed: list[list[torch.Tensor]] = [[] for _ in remaps(model)]
    hooks = [
        factor.register_forward_hook(lambda _, args, out, place=place: place.append((out != args[0]).any(dim=1)))
        for factor, place in zip(remaps(model), changed, strict=True)
    ]
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    labels, right = [], []
    for batch in image_batches(split, load_processor(model), batch_size=200, **columns):
        labels.append(batch["labels"])
        right.append(model(batch["pixel_values"]).logits.argmax(dim=1) == batch["labels"])
    for hook in hooks:
        hook.remove()
    return Seen(torch.cat(labels), torch.cat(right), [torch.cat(place) for place in changed])


def share(rows: torch.Tensor):
    return pytest.approx(100 * rows.double().mean().item())


def in_force(curve: GateCurve):
    [point] = [point for point in curve.points if point.in_force]
    return point


@pytest.mark.parametrize(
    "name", ["argmax", "threshold", "several labels", "after ESC", "before ESC", "two remaps after ESC"]
)
def test_the_gate_in_force_is_what_the_model_does(models, curves, data, name):
    model = models[name]
    assert [curve.labels for curve in curves[name]] == [factor.labels for factor in remaps(model)]
    for title, split in (("train", data.train), ("test", data.test)):
        found = seen(model, data, split)
        retain = ~torch.isin(found.labels, torch.tensor(sorted(gone(model))))
        for curve, rows in zip(curves[name], found.changed, strict=True):
            forget = torch.isin(found.labels, torch.tensor(curve.labels))
            point = asdict(in_force(curve))
            assert point[f"recall_{title}"] == share(rows[forget])
            assert point[f"false_alarms_{title}"] == share(rows[retain])
            if title == "test":
                assert point["retain_test"] == share(found.right[retain])
    assert in_force(curves[name][-1]).recall_train > 50


def gates_alone(point) -> dict:
    """Not what follows from the bank."""
    return {key: value for key, value in asdict(point).items() if key not in ("in_force", "retain_test")}


def test_another_threshold_says_what_a_model_with_it_does(curves):
    [argmax], [low] = curves["argmax"], curves["threshold"]
    assert [point.threshold for point in argmax.points] == [None, *THRESHOLDS]
    assert in_force(argmax).threshold is None
    assert [point.threshold for point in low.points] == [None, 0.5, 0.3, 0.1, 0.03, 0.02, 0.01]
    assert in_force(low).threshold == 0.02
    # The gate is the head, whatever the bank and the ranks are.
    others = [gates_alone(point) for point in low.points if not point.in_force]
    assert [gates_alone(point) for point in argmax.points] == others
    assert in_force(low).recall_train >= in_force(argmax).recall_train


def made(seed: int, labels) -> tuple[RemapFactor, ModelFeatures]:
    """A factor and features of four classes, by chance."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    factor = RemapFactor(5, 3, labels, 4)
    factor.weight, factor.bias, factor.bank = 3 * normal(4, 5), normal(4), normal(3, 5).half()
    factor.directions, factor.ranks = normal(len(labels), 5), normal(len(labels), 2).sort().values
    splits = [SplitFeatures(normal(40, 5), torch.zeros(40, 4), torch.arange(40) % 4) for _ in range(2)]
    return factor, ModelFeatures(*splits)


@given(seed=st.integers(0, 10**6), labels=st.sampled_from([[0], [2], [0, 3]]), data=st.data())
def test_recall_and_false_alarms_fall_as_the_threshold_rises(seed, labels, data):
    factor, features = made(seed, labels)
    thresholds = data.draw(st.lists(st.floats(0.001, 0.999), min_size=2, max_size=5))
    factor.threshold = data.draw(st.sampled_from([None, *thresholds]))
    [curve] = gate_curves([factor], features, labels, thresholds=thresholds)
    assert [point.threshold for point in curve.points] == [None, *sorted(set(thresholds), reverse=True)]
    assert in_force(curve).threshold == factor.threshold
    for key in ("recall_train", "recall_test", "false_alarms_train", "false_alarms_test"):
        shares = [getattr(point, key) for point in curve.points[1:]]
        assert shares == sorted(shares)


def test_by_hand():
    """Two features of which the first is the logit of the forgotten class, and zero is the other's."""
    factor = RemapFactor(2, 2, [0], 2)
    factor.weight, factor.bias = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2)
    factor.bank = torch.tensor([[-4.0, 0.0], [-3.0, 0.0]], dtype=torch.float16)
    factor.directions, factor.ranks = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])
    # With these, the forgotten class has a probability of 0.88, 0.73, 0.27 and 0.12.
    logits = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    split = SplitFeatures(logits, torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    [curve] = gate_curves([factor], ModelFeatures(split, split), [0], thresholds=[0.2, 0.8])
    points = [
        (p.threshold, p.in_force, p.recall_train, p.recall_test, p.false_alarms_train, p.false_alarms_test)
        for p in curve.points
    ]
    assert points == [
        (None, True, 50, 50, 50, 50),
        (0.8, False, 50, 50, 0, 0),
        (0.2, False, 100, 100, 50, 50),
    ]
    # The false alarm of the argmax is said to be of the other class once it is remapped, as the bank is.
    assert [point.retain_test for point in curve.points] == [100, 50, 100]
    assert factor.threshold is None


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_named(wrong):
    factor, features = made(0, [0])
    with pytest.raises(ValueError, match=rf"between 0 and 1, not \[{wrong}\]"):
        gate_curves([factor], features, [0], thresholds=[0.5, wrong])


def test_of_no_images_there_is_no_curve():
    factor, features = made(0, [0])
    for change in (
        lambda split: split.without([0]),
        lambda split: split.without([1, 2, 3]),
    ):
        assert gate_curves([factor], replace(features, test=change(features.test)), [0]) == []
        assert gate_curves([factor], replace(features, train=change(features.train)), [0]) == []
    assert gate_curves([factor], features, [0, 1, 2, 3]) == []


def test_an_offloaded_model_has_the_same_curves(models, curves, bare, tmp_path):
    model = models["two remaps after ESC"]
    model.save_pretrained(tmp_path / "model")
    offloaded = ESCModel.from_pretrained(
        tmp_path / "model",
        device_map={"model": "cpu", "projections": "disk"},
        offload_folder=tmp_path / "offload",
        offload_buffers=True,
    )
    factors = offloaded.projections[0].factors
    assert factors[1].bank.is_meta
    assert gate_curves(list(factors), bare, gone(model)) == curves["two remaps after ESC"]


# In the report.


def test_a_report_has_the_curve_of_each_remap(reports, curves):
    for name, report in reports.items():
        assert report.gates == curves[name]
        for gate in report.gates:
            assert in_force(gate).retain_test == pytest.approx(report.models["model"].accuracies.retain_test)


def test_a_part_of_the_forgotten_classes_has_the_gates_that_are_of_them(models, data):
    report = evaluate_unlearning(models["two remaps after ESC"], data, [BAG], **QUICK)
    assert report.left_out == ["Trouser", "Sandal", "Shirt"]
    [curve] = report.gates
    assert curve.labels == [SHIRT, BAG]
    assert in_force(curve).retain_test == pytest.approx(report.models["model"].accuracies.retain_test)
    assert f"{TITLE} class 6, Bag:" in report_text.table(report)


def test_another_original_changes_no_gate(models, reports, resnet, data):
    # The features that enter the gate are the model's own, whatever stands beside it.
    other = random_network(resnet)
    found = evaluate_unlearning(models["argmax"], data, references={"original": other}, **QUICK)
    assert found.gates == reports["argmax"].gates


def test_where_rows_were_forgotten_erased_classes_are_still_not_retained(models, curves, data):
    name = "two remaps after ESC"
    assert evaluate_unlearning(models[name], data, forget_indices=range(50), **QUICK).gates == curves[name]


@pytest.mark.parametrize("case", ["ESC", "the projection is off"])
def test_without_a_remap_in_force_there_is_none(resnet, models, data, case):
    if case == "ESC":
        report = evaluate_unlearning(erase(resnet, data.forget_set([TROUSER])), data, **QUICK)
    else:
        with models["argmax"].disable_projection():
            report = evaluate_unlearning(models["argmax"], data, **QUICK)
    assert report.gates is None
    assert report.to_dict()["gates"] is None
    words = (report_text.table(report) + report_text.markdown(report)).lower()
    assert not any(part in words for part in ("the gate", "argmax", "what is not found"))


@pytest.mark.parametrize("name", ["argmax", "two remaps after ESC"])
def test_it_comes_back_from_json(reports, name):
    report = reports[name]
    again = UnlearningReport.from_json(report.to_json())
    assert again == report
    assert again.gates[0].points[0] == report.gates[0].points[0]
    assert json.loads(report.to_json())["gates"] == [asdict(curve) for curve in report.gates]


@pytest.mark.parametrize(
    "change",
    [
        lambda gate: gate.pop("labels"),
        lambda gate: gate.update(labels=["Trouser"]),
        lambda gate: gate.update(more=1),
        lambda gate: gate.update(points=[1]),
        lambda gate: gate["points"][0].pop("recall_test"),
        lambda gate: gate["points"][0].update(recall_test="100"),
        lambda gate: gate["points"][0].update(retain_test=None),
        lambda gate: gate["points"][1].update(threshold="high"),
    ],
)
def test_what_is_no_gate_is_refused(reports, change):
    values = json.loads(reports["argmax"].to_json())
    change(values["gates"][0])
    values["sha256"] = report_sha256(values)
    with pytest.raises(DataError, match="no report of hf_esc"):
        UnlearningReport.from_json(json.dumps(values))


def numbers(point) -> list[str]:
    shares = (point.recall_train, point.recall_test, point.false_alarms_train, point.false_alarms_test)
    return [f"{share:.2f}" for share in (*shares, point.retain_test)]


def test_the_table_has_a_section_for_each_gate(reports):
    table = report_text.table(reports["two remaps after ESC"])
    first, second = (part for part in table.split("\n\n") if part.startswith(TITLE))
    assert first.startswith(f"{TITLE} Trouser: ")
    assert second.startswith(f"{TITLE} Shirt, Bag: ")
    for part, curve in zip((first, second), reports["two remaps after ESC"].gates, strict=True):
        _, header, *rows = part.splitlines()
        assert " ".join(header.split()) == "found, train found, test alarms, train alarms, test head, D_rt"
        assert len(header) == len(rows[0]) == 26 + 5 * 15
        for row, point in zip(rows, curve.points, strict=False):
            title = "argmax" if point.threshold is None else f"threshold {point.threshold}"
            assert row[:26].strip() == (f"{title} (in force)" if point.in_force else title)
            assert row[26:].split() == numbers(point)
    assert table.count("(in force)") == 2
    assert table.count("What is not found passes as it is") == 1


def test_in_markdown_it_is_a_table_of_its_own_behind_the_others(reports):
    parts = report_text.markdown(reports["two remaps after ESC"]).split("\n\n")
    assert [len({line.count("|") for line in part.splitlines()}) for part in parts] == [1] * 5
    _, title, first, other, second = parts
    assert "The gate of the remap of Trouser, in %." in title
    assert "The gate of the remap of Shirt, Bag, in %." in other
    for part, curve in zip((first, second), reports["two remaps after ESC"].gates, strict=True):
        header, line, *rows = part.splitlines()
        assert header.split("|")[2:-1] == [
            f" {title} " for title in ("found, train", "found, test", "alarms, train", "alarms, test", "head, D_rt")
        ]
        assert set(line) == set("|- ")
        assert [row.split("|")[2:-1] for row in rows] == [
            [f" {number} " for number in numbers(point)] for point in curve.points
        ]


def test_no_name_of_a_class_breaks_the_markdown(reports):
    report = replace(reports["argmax"], forget=["a|b\n# <c>"])
    assert report_text.markdown(report).count("\n# ") == 0
    assert "a\\|b" in report_text.markdown(report)


def test_the_command_prints_it_of_a_remapped_model(hf_esc, models, reports, clothes, tmp_path):
    models["argmax"].save_pretrained(tmp_path / "model")
    load_processor(models["argmax"]).save_pretrained(tmp_path / "model")
    command = ("evaluate", tmp_path / "model", "--dataset", clothes, "--batch-size", 200, "--seeds", 1)
    code, out, _ = hf_esc(*command)
    assert code == 0
    wanted = report_text.table(reports["argmax"])
    assert out.rstrip().endswith(wanted[wanted.index(TITLE) :])
