"""
Erased folders that an earlier commit wrote load, classify, are evaluated and are erased from as before.

`erased_before/` holds small classifiers of the ten classes of Fashion-MNIST, which have forgotten Trouser, and one of
them Bag too. `answers.safetensors` beside them holds the pixel values of 32 test images and the logits that each
classifier then gave.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from hf_esc import erase
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.hub.verification import verify
from hf_esc.loading import load_classifier, load_processor

FOLDER = Path(__file__).parent / "erased_before"
NAMES = ["esc", "esc-t", "remap", "delete", "esc-then-esc"]
TROUSER, SANDAL, BAG = 1, 5, 8


@pytest.fixture(scope="module")
def answers() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "answers.safetensors")


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name):
    """Nothing may change it."""
    return load_classifier(FOLDER / name, device="cpu")


@pytest.fixture(scope="module")
def few(fashion):
    """300 training and 300 test images of all classes."""
    return dataclasses.replace(fashion, train=fashion.train.select(range(300)), test=fashion.test.select(range(300)))


@torch.no_grad()
def logits(model, data, images) -> torch.Tensor:
    """(N, 10), of images of a split."""
    batches = data.batches(images, load_processor(model), batch_size=100)
    return torch.cat([model(pixel_values=batch["pixel_values"]).logits for batch in batches])


def test_every_folder_has_its_answers(answers):
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == sorted(NAMES)
    assert set(answers) == {"images", *NAMES}


def test_a_folder_loads_to_the_logits_that_it_was_saved_with(name, model, answers):
    auto = AutoModelForImageClassification.from_pretrained(FOLDER / name)
    assert type(auto) is type(model)
    for loaded in (model, auto):
        with torch.no_grad():
            found = loaded(pixel_values=answers["images"]).logits
        torch.testing.assert_close(found, answers[name], rtol=1e-5, atol=1e-5)


def test_the_pipeline_reads_an_image_as_the_model_does(name, model, few):
    images = few.test.select(range(4))
    expected = logits(model, few, images).softmax(1)
    classify = pipeline("image-classification", model=str(FOLDER / name), top_k=10)
    for answer, scores in zip(classify([row["image"] for row in images]), expected, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert found == pytest.approx(
            {model.config.id2label[label]: score for label, score in enumerate(scores.tolist())}, abs=1e-5
        )


def test_the_ledger_is_borne_out_by_the_weights_and_what_it_cannot_show_is_said(name):
    # The folders are kept without the code that travels beside a checkpoint, and nothing shows edited weights.
    checks = verify(FOLDER / name)
    assert [check.name for check in checks if check.passed is False] == ["weights" if name == "delete" else "code"]
    unseen = ["ledger's text", "settings", "labels", "image processor"]
    told = {check.name: check.detail for check in checks if check.passed is None}
    assert list(told) == ([] if name == "delete" else ["base", *unseen])
    assert all("no fingerprint" in told[each] for each in unseen if told)


def test_a_folder_can_be_evaluated(name, model, few):
    report = evaluate_unlearning(model, few, seeds=[0])
    assert report.forget_labels == ([TROUSER, BAG] if name == "esc-then-esc" else [TROUSER])
    found = report.models["model"]
    right = logits(model, few, few.test).argmax(1) == torch.tensor(few.test["label"])
    gone = torch.isin(torch.tensor(few.test["label"]), torch.tensor(report.forget_labels))
    assert found.accuracies.forget_test == pytest.approx(100 * right[gone].double().mean().item())
    assert found.accuracies.retain_test == pytest.approx(100 * right[~gone].double().mean().item())
    assert not right[torch.tensor(few.test["label"]) == TROUSER].any()
    assert {"paper", "converged"} <= set(found.retention)


def test_a_folder_can_be_erased_from_again(name, model, few):
    before = logits(model, few, few.test)
    again = erase(model, few.forget_set([SANDAL]), rank=1)
    assert [record["label_ids"] for record in again.config.erasures[:-1]] == [
        record["label_ids"] for record in model.config.erasures
    ]
    assert again.config.erasures[-1]["label_ids"] == [SANDAL]
    after = logits(again, few, few.test)
    of = torch.tensor(few.test["label"])
    assert (after.argmax(1) == SANDAL)[of == SANDAL].double().mean() < 0.1
    assert not (after.argmax(1) == TROUSER)[of == TROUSER].any()
    assert torch.equal(logits(model, few, few.test), before)
