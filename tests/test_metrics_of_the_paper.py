"""The evaluate modules say what the functions behind them say, and their cards and pages what the modules say."""

import ast
import doctest
import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import evaluate
import numpy as np
import pytest
import torch
import yaml

from hf_esc.errors import MetricError, NonFiniteError
from hf_esc.evaluation.accuracy import harmonic_mean
from hf_esc.evaluation.membership import attack_losses
from hf_esc.evaluation.zrf import zero_retrain_forgetting

ROOT = Path(__file__).parents[1]
# The answers of the pages to what they show first, by hand: in the order of the text fields.
PAGES = {
    "hm_score": {"forget": 50.0, "retain": 50.0, "hm": 50.0},
    # 10 to 10, of which the losses of 5 to 9 are on both sides: 10 of 100 pairs are lost, and 5 tied.
    "mia_score": {"auc": 87.5, "tpr_at_1_fpr": None, "members": 10, "nonmembers": 10, "drawn": 10},
    "zrf_score": {"base": 2, "images": 2},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("metrics"))


@pytest.fixture
def load(cache, monkeypatch):
    """`evaluate.load` in the checkout."""
    monkeypatch.chdir(ROOT)
    return lambda name: evaluate.load(f"metrics/{name}", cache_dir=cache)


@pytest.fixture
def mia(load):
    return load("mia_score")


@pytest.fixture
def zrf(load):
    return load("zrf_score")


# What is the same for each


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_in_the_docstring(load, name):
    module = sys.modules[type(load(name)).__module__]
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted >= 2


@pytest.mark.parametrize("name", PAGES)
def test_the_example_on_the_card(load, name):
    card = (ROOT / "metrics" / name / "README.md").read_text()
    code, answer = re.search(r"```python\n(.+)\n# ([({].+[)}])\n```", card, re.S).groups()
    *statements, last = ast.parse(code).body
    names: dict = {}
    exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
    assert eval(compile(ast.Expression(last.value), "README.md", "eval"), names) == ast.literal_eval(answer)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_opens_and_answers(monkeypatch, name):
    monkeypatch.chdir(ROOT / "metrics" / name)
    gradio = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runpy.run_path("app.py")
    gradio.Interface.return_value.launch.assert_not_called()
    (function, inputs, _), options = gradio.Interface.call_args
    shown = [call.args[0] for call in gradio.Text.call_args_list]
    shown += [call.kwargs["value"] for call in gradio.Radio.call_args_list]
    assert len(inputs) == len(shown)
    answer = function(*shown)
    assert {key: answer[key] for key in PAGES[name]} == PAGES[name]
    assert options["title"].lower().replace(" ", "_") == name


@pytest.mark.parametrize("name", PAGES)
def test_the_card_is_that_of_a_space_of_evaluate(name):
    folder = ROOT / "metrics" / name
    front, text = (folder / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    card = yaml.safe_load(front)
    assert (card["title"].lower().replace(" ", "_"), card["sdk"]) == (name, "gradio")
    assert card["tags"] == ["evaluate", "metric"]
    assert (folder / card["app_file"]).is_file()
    assert text.startswith(f"\n# {card['title']}\n")
    needed = (folder / "requirements.txt").read_text().split()
    assert [line.split(">=")[0] for line in needed] == ["evaluate", "gradio", "hf_esc"]


# hm_score


def test_hm_score_is_the_harmonic_mean(load):
    metric = load("hm_score")
    given = {"predictions": [0, 1, 1, 2, 0, 2], "references": [0, 0, 1, 1, 2, 2]}
    answer = metric.compute(**given, forget_labels=[0, 1])
    assert answer == {"forget": 50, "retain": 50, "hm": harmonic_mean(50, 50)}
    for forget in (torch.tensor([0, 1]), np.array([0, 1]), (1, 0)):
        assert metric.compute(**given, forget_labels=forget) == answer
    of_one = metric.compute(predictions=[0, 1, 1], references=[0, 0, 1], forget_labels=0)
    assert (of_one["forget"], of_one["retain"]) == (50, 100)
    for predictions, references in (([0.5, 1], [0, 1]), ([0, 1], [0.5, 1])):
        with pytest.raises(ValueError, match=r"are class indices, and some are \[0.5\]"):
            metric.compute(predictions=predictions, references=references, forget_labels=[0])
    with pytest.raises(ValueError, match=r"whole numbers, such as \[0\], and not 'cat'"):
        metric.compute(predictions=[0, 1], references=[0, 1], forget_labels="cat")
    with pytest.raises(ValueError, match="0 of the first and 2 of the second"):
        metric.compute(predictions=[1, 1], references=[1, 1], forget_labels=[0])


# mia_score


MEMBERS = torch.empty(130, dtype=torch.float64).exponential_(1, generator=torch.Generator().manual_seed(0))
NONMEMBERS = torch.empty(110, dtype=torch.float64).exponential_(0.5, generator=torch.Generator().manual_seed(1))
LOSSES = torch.cat([MEMBERS, NONMEMBERS])
IS_MEMBER = torch.tensor([1] * 130 + [0] * 110)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, lambda tensor: tensor])
def test_mia_score_is_the_attack_on_the_losses(mia, kind, seed):
    expected = asdict(attack_losses(MEMBERS, NONMEMBERS, seed=seed))
    assert mia.compute(predictions=kind(LOSSES), references=kind(IS_MEMBER), seed=seed) == expected
    order = torch.cat([torch.arange(130, 240), torch.arange(130)])  # who comes first of the sides is no matter
    assert mia.compute(predictions=kind(LOSSES[order]), references=kind(IS_MEMBER[order]), seed=seed) == expected
    assert expected["tpr_at_1_fpr"] is not None


def test_mia_score_in_batches_is_as_at_once_and_its_seed_is_0(mia):
    for rows in torch.arange(240).split(37):
        mia.add_batch(predictions=LOSSES[rows], references=IS_MEMBER[rows])
    assert mia.compute() == asdict(attack_losses(MEMBERS, NONMEMBERS, seed=0))


def test_mia_score_reads_losses_in_float64(mia):
    losses = [1 + 1e-12 * number for number in range(20)]
    assert mia.compute(predictions=losses, references=[1] * 10 + [0] * 10)["auc"] == 100


@pytest.mark.parametrize(
    ("losses", "references", "message"),
    [
        (LOSSES, IS_MEMBER + 1, "1 for members and 0 for non-members, and some are .2"),
        (LOSSES, IS_MEMBER * 0, r"10 members or more, .* \(0,\)"),
        (LOSSES[:135], IS_MEMBER[:135], r"10 non-members or more, .* \(5,\)"),
        (LOSSES.where(LOSSES < 5, torch.nan), IS_MEMBER, "losses of .*members are not finite"),
        (LOSSES[:-1], IS_MEMBER, "[Mm]ismatch"),
    ],
)
def test_mia_score_refuses_what_is_wrong(mia, losses, references, message):
    with pytest.raises((MetricError, NonFiniteError, ValueError), match=message):
        mia.compute(predictions=losses, references=references)
    assert mia.compute(predictions=LOSSES, references=IS_MEMBER)["members"] == 130


# zrf_score

LOGITS, RANDOM = (
    torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
)


@pytest.mark.parametrize("base", [2, "e"])
@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, lambda tensor: tensor])
def test_zrf_score_is_zero_retrain_forgetting(zrf, kind, base):
    expected = asdict(zero_retrain_forgetting(LOGITS, RANDOM, base=base))
    assert zrf.compute(predictions=kind(LOGITS), references=kind(RANDOM), base=base) == expected
    assert 0.4 < expected["zrf"] < 0.95


def test_zrf_score_in_batches_is_as_at_once_and_its_base_is_2(zrf):
    for rows in torch.arange(12).split(5):
        zrf.add_batch(predictions=LOGITS[rows], references=RANDOM[rows])
    assert zrf.compute() == asdict(zero_retrain_forgetting(LOGITS, RANDOM))


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ([[0.0, 1.0], [0.0]], [[0.0, 1.0], [0.0]], {}, "rows of {1, 2}"),
        ([[0.0, 1.0]], [[0.0, 1.0, 2.0]], {}, "rows of {2, 3}"),
        ([[0.0, np.nan]], [[0.0, 1.0]], {}, "1 of the 1 images of the model are not finite"),
        ([[0.0, 1.0]], [[0.0, 1.0]], {"base": 10}, 'should be 2 or "e", not 10'),
        ([[0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], {}, "[Mm]ismatch"),
    ],
)
def test_zrf_score_refuses_what_is_wrong(zrf, predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        zrf.compute(predictions=predictions, references=references, **options)
    assert zrf.compute(predictions=[[0.0, 1.0]], references=[[0.0, 1.0]])["zrf"] == 1
