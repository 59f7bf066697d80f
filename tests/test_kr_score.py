"""`kr_score` is knowledge retention, whatever features come as, at once or in batches; what is wrong is refused."""

import ast
import doctest
import re
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import evaluate
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.errors import NonFiniteError, ProbeError
from hf_esc.evaluation.knowledge_retention import knowledge_retention
from hf_esc.evaluation.probes import PROBES

FOLDER = Path(__file__).parents[1] / "metrics" / "kr_score"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("metrics"))


@pytest.fixture
def metric(cache):
    return evaluate.load("kr_score", cache_dir=cache)


def drawn(seed: int, images: int, dimensions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three classes that overlap, all three there."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (images,), generator=generator)
    labels[:3] = torch.arange(3)[:images]
    return torch.randn(images, dimensions, generator=generator) + 0.7 * labels[:, None], labels


TRAIN, TEST = drawn(0, 60), drawn(1, 40)


def arguments(train=TRAIN, test=TEST, forget=(1,), **options) -> dict:
    features = {"train_features": train[0], "train_labels": train[1], "predictions": test[0], "references": test[1]}
    return {**features, "forget_labels": list(forget), **options}


# Laws


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("probe", PROBES)
def test_it_is_knowledge_retention(metric, probe, seed):
    options = {"probe": probe, "seed": seed, "device": "cpu"}
    answer = metric.compute(**arguments(forget=(0, 2), **options))
    assert answer == knowledge_retention(*TRAIN, *TEST, [0, 2], **options).to_dict()
    assert list(answer) == [
        *("forget_train", "retain_train", "forget_test", "retain_test", "hm_train", "hm_test"),
        *("any_train", "any_test"),
        *("probe", "settings"),
    ]


def test_the_default_is_the_paper_s_probe_and_seed_0(metric):
    answer = metric.compute(**arguments())
    assert answer == metric.compute(**arguments(probe="paper", seed=0))
    assert answer["settings"]["seed"] == 0
    assert answer != metric.compute(**arguments(seed=1))


KINDS = {
    "numpy": torch.Tensor.numpy,
    "float64": lambda values: values.numpy().astype(float) if values.is_floating_point() else values.numpy(),
    "not writeable": lambda values: np.broadcast_to(values.numpy(), values.shape),
    "int32 labels": lambda values: values if values.is_floating_point() else values.int(),
    "lists": torch.Tensor.tolist,
    "rows that are arrays": lambda values: list(values.numpy()),
    "rows that are tensors": lambda values: list(values),
    "of a graph": lambda values: values.clone().requires_grad_() if values.is_floating_point() else values,
    "not contiguous": lambda values: torch.stack([values, values], dim=-1)[..., 0],
}


@pytest.mark.parametrize("probe", ["paper", "knn"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_does_not_matter_what_features_and_labels_come_as(metric, kind, probe):
    expected = knowledge_retention(*TRAIN, *TEST, [1], probe=probe).to_dict()
    train, test = ([KINDS[kind](values) for values in split] for split in (TRAIN, TEST))
    assert metric.compute(**arguments(train, test, probe=probe)) == expected


@pytest.mark.parametrize("forget", [[1], (1, 1), np.array([1]), torch.tensor([1]), 1], ids=repr)
def test_it_does_not_matter_what_the_forget_labels_come_as(metric, forget):
    expected = knowledge_retention(*TRAIN, *TEST, [1], probe="knn").to_dict()
    assert metric.compute(**{**arguments(probe="knn"), "forget_labels": forget}) == expected


def test_half_precision_is_read_as_the_float32_that_it_is(metric):
    train, test = ((features.bfloat16(), labels) for features, labels in (TRAIN, TEST))
    expected = knowledge_retention(train[0].float(), train[1], test[0].float(), test[1], [1], probe="knn")
    assert metric.compute(**arguments(train, test, probe="knn")) == expected.to_dict()


def stored(metric) -> dict:
    """What was added to a metric, as Arrow has it."""
    metric._finalize()
    table = metric.data.data.table
    # Tables of the same rows are equal however they are cut.
    return {"schema": table.schema, "columns": [column.combine_chunks() for column in table.columns]}


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from(["numpy", "float64", "lists", "rows that are tensors", "not contiguous"]),
)
def test_batches_are_stored_as_evaluate_stores_them(cache, batches, dimensions, kind):
    ours, stock = (evaluate.load("kr_score", cache_dir=cache, keep_in_memory=True) for _ in range(2))
    features, labels = drawn(len(batches), sum(batches), dimensions)
    for part, classes in zip(features.split(batches), labels.split(batches), strict=True):
        batch = {"predictions": KINDS[kind](part), "references": KINDS[kind](classes)}
        ours.add_batch(**batch)
        evaluate.Metric.add_batch(stock, **batch)
    assert stored(ours) == stored(stock)


def test_a_batch_that_is_written_in_parts_is_stored_as_evaluate_stores_it(cache):
    ours, stock = (evaluate.load("kr_score", cache_dir=cache, keep_in_memory=True) for _ in range(2))
    features, labels = drawn(0, 20_001, 2)
    ours.add_batch(predictions=features.numpy(), references=labels.numpy())
    evaluate.Metric.add_batch(stock, predictions=features.numpy(), references=labels.numpy())
    assert stored(ours) == stored(stock)


@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_and_single_images_are_as_all_at_once(cache, in_memory):
    metric = evaluate.load("kr_score", cache_dir=cache, keep_in_memory=in_memory)
    rest = arguments(probe="knn")
    features, labels = rest.pop("predictions"), rest.pop("references")
    expected = metric.compute(predictions=features, references=labels, **rest)
    metric.add_batch(predictions=features[:7], references=labels[:7])
    metric.add(prediction=features[7].numpy(), reference=int(labels[7]))
    metric.add(prediction=features[8].tolist(), reference=labels[8])
    metric.add_batch(predictions=features[9:].numpy(), references=labels[9:].tolist())
    assert metric.compute(**rest) == expected


def test_processes_add_their_parts(cache):
    rest = arguments(probe="knn")
    features, labels = rest.pop("predictions"), rest.pop("references")

    def part(rank: int):
        kwargs = {"num_process": 2, "process_id": rank, "experiment_id": "two", "cache_dir": cache}
        metric = evaluate.load("kr_score", **kwargs)
        metric.add_batch(predictions=features[rank::2], references=labels[rank::2])
        return metric.compute(**rest)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(part, range(2)))
    assert answers == [knowledge_retention(*TRAIN, *TEST, [1], probe="knn").to_dict(), None]


# Numbers


def test_features_that_hold_a_class_and_features_that_do_not(metric):
    """Of three classes on three axes, the probe reads each; without the first axis, class 0 is the origin."""
    labels = torch.arange(3).repeat(20)
    kept = torch.eye(3)[labels]
    hidden = kept * torch.tensor([0.0, 1.0, 1.0])
    mixed = torch.where((labels == 0)[:, None], torch.eye(3)[(torch.arange(60) // 3) % 2 + 1], kept)
    found = {
        name: metric.compute(**arguments((z, labels), (z, labels), (0,), probe="converged"))
        for name, z in {"kept": kept, "hidden": hidden, "mixed": mixed}.items()
    }
    assert [found[name]["forget_test"] for name in found] == [100, 100, 0]
    assert [found[name]["hm_test"] for name in found] == [0, 0, 100]


def test_the_examples_in_its_docstring():
    metric = evaluate.load("kr_score")
    results = doctest.testmod(sys.modules[type(metric).__module__])
    assert (results.failed, results.attempted > 4) == (0, True)


# By hand: of the test images of class 0, the second lies with class 1. All else is right.
GOLDEN = {"forget_train": 100.0, "retain_train": 100.0, "forget_test": 50.0, "retain_test": 100.0}
GOLDEN |= {"hm_train": 0.0, "hm_test": pytest.approx(2 * 50 * 100 / 150), "probe": "knn"}
GOLDEN |= {"any_train": None, "any_test": None}


def test_the_example_on_its_card():
    code, answer = re.search(r"```python\n(.+)\n# (\(.+\))\n```", (FOLDER / "README.md").read_text(), re.S).groups()
    *statements, last = ast.parse(code).body
    names: dict = {}
    exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
    assert eval(compile(ast.Expression(last.value), "README.md", "eval"), names) == ast.literal_eval(answer)
    assert names["result"] == {**GOLDEN, "settings": {"neighbours": 10}}


# The Space


def test_the_space_opens_and_answers(monkeypatch):
    monkeypatch.chdir(FOLDER)
    gradio = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app = runpy.run_path("app.py")
    gradio.Interface.return_value.launch.assert_not_called()
    (function, inputs, _), _ = gradio.Interface.call_args
    assert len(inputs) == 5
    (train,), (test,), (forget,) = (call.args for call in gradio.Textbox.call_args_list)
    assert app["PROBES"] == list(PROBES)
    assert function(train, test, forget, "knn", 0) == {**GOLDEN, "settings": {"neighbours": 10}}


def test_the_card_is_that_of_a_space_of_evaluate():
    front, text = (FOLDER / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    card = yaml.safe_load(front)
    assert (card["title"], card["sdk"], card["tags"]) == ("KR score", "gradio", ["evaluate", "metric"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", card["sdk_version"])
    assert (FOLDER / card["app_file"]).is_file()
    assert text.startswith("\n# KR score\n")
    for probe in PROBES:
        assert f'`"{probe}"`' in text
    needed = (FOLDER / "requirements.txt").read_text().split()
    assert [line.split(">=")[0] for line in needed] == ["evaluate", "gradio", "hf_esc"]


def test_what_it_says_of_itself(metric):
    assert (metric.name, metric.module_type, metric.info.format) == ("kr_score", "metric", "numpy")
    assert "forget_labels" in metric.inputs_description
    assert metric.compute.__doc__.endswith(metric.inputs_description)


# What is refused

FEATURES, LABELS = TEST
NAN, HUGE = FEATURES.clone(), FEATURES.double().numpy()
NAN[3, 1] = float("nan")
HUGE[3, 1] = 1e300
NO_1 = LABELS.where(LABELS != 1, 0)
REFUSED = {
    "fewer labels": (
        {"references": LABELS[:-1]},
        r"40 test features and labels of the shape \(39,\)",
    ),
    "fewer features": ({"predictions": FEATURES[:-1]}, r"39 test features and labels of the shape \(40,\)"),
    "fewer training labels": (
        {"train_labels": TRAIN[1][:-1]},
        r"60 training features and labels of the shape \(59,\)",
    ),
    "NaN": ({"predictions": NAN}, "1 of the 40 test features are not finite"),
    "NaN in training": ({"train_features": torch.full((60, 3), torch.nan)}, "60 of the 60 training features"),
    "no float32": ({"predictions": HUGE}, "1 of the 40 test features are not finite"),
    "no forget class in the test": ({"references": NO_1}, r"forget labels \[1\] have no test image"),
    "no forget class in training": ({"forget_labels": [1, 7]}, r"forget labels \[7\] have no training image"),
    "one class": ({"references": LABELS * 0 + 1}, "All test images have forget labels"),
    "one class in training": ({"train_labels": TRAIN[1] * 0 + 1}, "All training images have forget labels"),
    "no forget labels": ({"forget_labels": []}, "`forget_labels` is empty"),
    "forget label by name": ({"forget_labels": ["cat"]}, "whole numbers, such as .0., and not"),
    "forget label that is no index": ({"forget_labels": [0.9]}, r"whole numbers, such as \[0\], and not \[0.9\]"),
    "unknown probe": ({"probe": "svm"}, "no probe 'svm'. There are: paper, converged, mlp, knn, one_vs_rest"),
    "classes for features": ({"predictions": LABELS}, r"test features should be \(N, d\) .+ not \(40,\)"),
    "images for features": ({"predictions": torch.ones(40, 3, 2, 2)}, r"should be \(N, d\) .+ not \(40, 3, 2, 2\)"),
    "no features": ({"predictions": torch.ones(0, 3), "references": LABELS[:0]}, r"N of 1 or more, not \(0, 3\)"),
    "rows of two lengths": ({"predictions": [[1.0, 2.0], [1.0]] * 20}, "test features should be an array of numbers"),
    "other dimensions": ({"predictions": FEATURES[:, :2]}, "have 3 dimensions and test features 2"),
    "scores for labels": ({"references": LABELS.double()}, r"\(torch.float64\): each feature needs one class index"),
    "names for labels": ({"references": ["cat"] * 40}, "test labels should be an array of numbers"),
    "negative labels": ({"train_labels": TRAIN[1].where(TRAIN[1] != 2, -1)}, "Labels range from -1 to 1"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said_and_nothing_of_it_stays(cache, what):
    changed, message = REFUSED[what]
    # On disk, evaluate waits a second for the lock of a computation that failed.
    metric = evaluate.load("kr_score", cache_dir=cache, keep_in_memory=what != "unknown probe")
    with pytest.raises(NonFiniteError if "not finite" in message or "NaN" in what else ProbeError, match=message):
        metric.compute(**{**arguments(probe="knn"), **changed})
    expected = knowledge_retention(*TRAIN, *TEST, [1], probe="knn").to_dict()
    assert metric.compute(**arguments(probe="knn")) == expected


def test_batches_of_different_dimensions_are_refused(metric):
    metric.add_batch(predictions=FEATURES[:20], references=LABELS[:20])
    metric.add_batch(predictions=FEATURES[20:, :2], references=LABELS[20:])
    rest = {name: value for name, value in arguments().items() if name not in ("predictions", "references")}
    with pytest.raises(ProbeError, match="test features should be an array of numbers"):
        metric.compute(**rest)


def test_an_argument_that_is_missing_is_named(metric):
    given = arguments()
    del given["train_labels"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'train_labels'"):
        metric.compute(**given)
