"""What was done to the weights stays known: to erasures in front of the head, to reports, to cards and to the Hub."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_esc import ESCModel, erase, remap
from hf_esc.data import ImageData
from hf_esc.data.labels import erased_labels
from hf_esc.errors import HubError, IncompleteErasureWarning, LabelError
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.hub.card import BEGIN, EDITED_TEMPLATE, card_text
from hf_esc.hub.redaction import redacted_config
from hf_esc.hub.verification import verify
from hf_esc.unlearning import fisher_forgetting
from hf_esc.unlearning.checks import unchanged_predictions

from . import test_card
from .esc_t import trained as trained_mask
from .hub import card_errors
from .pictures import NAMES, labelled
from .pushing import tiny_vit
from .test_card import section
from .tiny import quietly
from .unlearning import forget_set, learnt, made, pictures, retain_set, trained

RUN = {"learning_rate": 0.05, "num_train_epochs": 4}


@pytest.fixture(scope="module")
def edited():
    """DELETE of class 1; another class of it is forgotten in front of the head."""
    return trained("delete", **RUN).model


def in_front(model, method: str, label: int = 2) -> ESCModel:
    forget = [pictures(label, 24)]
    if method == "esc-t":
        return trained_mask(model, forget).erased_model
    if method == "remap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteErasureWarning)
            return remap(model, forget, retain_set()[::2], bank_size=8)
    return quietly(model, forget, rank=1)


@pytest.mark.parametrize("method", ["esc", "esc-t", "remap"])
def test_records_of_edited_weights_stand_before_those_of_what_is_in_front(edited, method, tmp_path):
    before = copy.deepcopy(edited.config.erasures)
    erased = in_front(edited, method)
    erased.save_pretrained(tmp_path)
    loaded = ESCModel.from_pretrained(tmp_path)
    for config in (erased.config, loaded.config):
        assert config.erasures[:-1] == before
        assert [record["method"] for record in config.erasures] == ["delete", method]
        assert erased_labels(config) == {1, 2}
        assert not hasattr(config.base_config, "erasures")
    assert edited.config.erasures == before
    checks = {check.name: check for check in verify(tmp_path)}
    assert {name for name, check in checks.items() if check.passed is False} == set()
    assert checks["ledger"].detail == "1 records of the same weights"
    assert "edited (delete)" in checks["base"].detail


def test_a_second_run_keeps_the_record_of_the_first(edited):
    again = trained("delete", edited, [pictures(2, 24)], **RUN).model
    assert [record["label_ids"] for record in again.config.erasures] == [[1], [2]]
    with pytest.raises(LabelError, match="All 4 classes of the model"):
        trained("delete", again, [pictures(0, 4), pictures(3, 4)])
    with pytest.raises(LabelError, match="All 4 classes of the model"):
        erase(again, [pictures(0, 4), pictures(3, 4)], rank=1)


@pytest.mark.parametrize("scenario", ["classes", "images"])
def test_images_to_keep_of_a_class_that_was_forgotten_before_are_refused(edited, scenario):
    """They would bring it back, or stand in the bank of a remap for what is forgotten now."""
    kept = [pictures(label, 8) for label in (0, 1, 3)]
    with pytest.raises(LabelError, match="which was forgotten before"):
        made("finetune", edited, [pictures(2, 8)], kept, scenario=scenario)
    with pytest.raises(LabelError, match="which was forgotten before"):
        fisher_forgetting(edited, [pictures(2, 8)], kept, scenario=scenario)
    with pytest.raises(LabelError, match="which was forgotten before"):
        remap(edited, [pictures(2, 8)], kept)


def test_labels_that_are_mostly_none_of_the_model_s_are_no_proof_of_forgetting():
    """Where the head is wrong about them before, that it is after says nothing."""
    wrong = pictures(0, 30) | {"labels": torch.full((30,), 1)}
    with pytest.warns(IncompleteErasureWarning, match="cannot be seen: only"):
        made("delete", learnt(), [wrong, pictures(1, 2)], learning_rate=1e-9, num_train_epochs=1).train()


def test_a_report_leaves_out_what_was_forgotten_before():
    model = tiny_vit()
    data = labelled([0, 1, 2, 3] * 12, NAMES)
    data = ImageData("pictures", data, data.select(range(24)), "image", "label", NAMES, 4)
    ones = data.select(data.train, [1]).remove_columns("label")
    erased = quietly(model, ones, rank=1, processing_class=model.image_processor)
    edited = copy.deepcopy(model)
    edited.config.erasures = [{"method": "delete", "labels": ["dog"], "label_ids": [1]}]
    both = quietly(edited, ones, rank=1, processing_class=model.image_processor)
    assert erased_labels(erased.config) == set()
    report = evaluate_unlearning(both, data, forget_labels=[2], seeds=[0], processing_class=model.image_processor)
    assert (report.forget, report.left_out, report.method) == (["bird"], ["dog"], ["delete", "esc"])
    report = evaluate_unlearning(edited, data, seeds=[0], processing_class=model.image_processor)
    assert (report.forget, report.left_out, report.projection_sha256) == (["dog"], [], None)
    assert report.weights_sha256 is not None


# The card


def card(model, **options) -> str:
    return card_text(model.config, repo_id="me/no-shade", **options)


def test_the_card_of_edited_weights_says_what_was_done_and_claims_no_projection(edited):
    text = card(edited)
    assert card_errors(text) == []
    found = section(text)
    row = next(line for line in found.splitlines() if "DELETE" in line)
    for word in ("shade 1", "learning_rate 0.05", "num_train_epochs 4", "data forget", "temperature 1.0", "seed 42"):
        assert word.replace("_", r"\_") in row
    assert "no proof that it is gone" in found
    assert "a probe of the features may still read it" in found
    assert "Not evaluated" in found
    for wrong in ("projection", "ESCModel", "bit for bit", "import hf_esc", "trust_remote_code"):
        assert wrong not in found
    assert "**Loading it so runs no code of hf_esc, and checks nothing**" in found
    assert "hf-esc verify" in found
    metadata, _ = test_card.parts(text)
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"] == ["machine-unlearning"]


def test_the_card_of_images_calls_no_right_answer_a_failure():
    sets = [pictures(label, 4) for label in range(4)]
    model = trained("finetune", forget=sets, retain=[pictures(0, 4, seed=1)], scenario="images", num_train_epochs=1)
    found = section(card(model.model))
    assert "some of its training images" in found
    assert "An answer that stays right is no failure" in found
    assert "incomplete" not in found


def test_the_card_says_where_an_erasure_is_incomplete():
    model = trained("delete", learning_rate=1e-9, num_train_epochs=1).model
    assert "**The erasure is incomplete**" in section(card(model))


def test_the_numbers_of_a_report_or_of_the_trainer_stand_on_it(edited):
    found = section(card(edited, report=replace(test_card.report(), forget=["shade 1"])))
    assert "a converged linear probe gets" in found
    assert "not measured" not in found
    found = section(card(edited, accuracies={"eval_retain": 81.25}))
    assert "| eval\\_retain | 81.2 |" in found
    assert "without any reference beside them" in found


def test_the_card_of_both_says_both_and_that_the_weights_are_no_longer_the_originals(edited):
    found = section(card(in_front(edited, "esc"), untouched=False))
    assert "| DELETE |" in found
    assert "| ESC |" in found
    assert "The weights inside were edited too" in found


def test_names_are_taken_out_of_a_plain_configuration_too(edited):
    config = redacted_config(edited.config)
    assert config.id2label[1] == "redacted-1"
    assert config.erasures[0]["labels"] == ["redacted-1"]
    text = card_text(config, redacted=True)
    assert "shade 1" not in text
    assert "name what was to be forgotten" not in text
    assert redacted_config(in_front(edited, "esc").config).base_config.id2label[1] == "redacted-1"
    assert EDITED_TEMPLATE.is_file()


def test_the_trainer_writes_the_card_with_its_accuracies(tmp_path):
    sets = {"retain": retain_set(), "forget": forget_set()}
    trainer = trained("delete", eval_dataset=sets, output_dir=str(tmp_path), **RUN)
    trainer.create_model_card()
    assert "Not evaluated" in section((tmp_path / "README.md").read_text())
    found = trainer.evaluate()
    trainer.create_model_card(license="mit", tags="mine")
    text = (tmp_path / "README.md").read_text()
    assert f"| eval\\_retain | {found['eval_retain_accuracy']:.1f} |" in text
    assert test_card.parts(text)[0]["license"] == "mit"
    assert text.count(BEGIN) == 1
    with pytest.raises(TypeError, match="dataset"):
        trainer.create_model_card(dataset="x")


# The Hub

PUSHED = """
from hf_esc.modeling.fingerprints import weights_sha256
from tests import test_card
from tests.unlearning import trained
from tests.pictures import labelled, NAMES
from tests.pushing import tiny_vit
trainer = trained(
    "delete", tiny_vit(), labelled([1] * 6, NAMES), scenario="images", output_dir=output, push_to_hub=True,
    hub_model_id=repo_id, num_train_epochs=1,
)
trainer.push_to_hub()
code, out, err = command("push", output, repo_id + "-command")
assert code == 0, err
report = test_card.report(
    projection_sha256=None, weights_sha256=weights_sha256(trainer.model), method=["delete"], left_out=[]
)
hf_esc.hub.push.push(trainer.model, repo_id + "-report", report=report)
answer = [code, out]
"""


def test_the_trainer_and_the_command_push_a_plain_model_with_its_card(hub, client, tmp_path):
    client(PUSHED, output=tmp_path / "out", repo_id="me/edited")
    for name in ("me/edited", "me/edited-command", "me/edited-report"):
        files = hub.repo(name).files
        text = files["README.md"].decode()
        assert card_errors(text) == []
        assert "| DELETE |" in section(text)
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)
        assert not {file for file in files if file.endswith((".bin", ".py"))}
        assert str(tmp_path) not in text + files["config.json"].decode()
        assert ("evaluation.json" in files) is ("converged linear probe" in text) is (name == "me/edited-report")
    assert hub.repo("me/edited").files["model.safetensors"] == hub.repo("me/edited-command").files["model.safetensors"]


def test_a_model_from_which_nothing_was_forgotten_is_not_pushed(tmp_path, hf_esc):
    from hf_esc.hub.push import push

    with pytest.raises(HubError, match="no ledger of erasures"):
        push(learnt(), "me/nothing")
    tiny_vit().save_pretrained(tmp_path)
    code, _, err = hf_esc("push", tmp_path, "me/nothing")
    assert code == 2
    assert "from which nothing was erased" in err


def test_a_report_of_other_weights_is_refused(edited):
    from hf_esc.hub.push import push

    with pytest.raises(HubError, match="evaluation is of another model"):
        push(edited, "me/other", report=test_card.report(projection_sha256=None, weights_sha256="0" * 64))


def test_it_loads_with_its_ledger(edited, tmp_path):
    edited.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.erasures == edited.config.erasures
    checks = {check.name: check.passed for check in verify(tmp_path)}
    assert [name for name, passed in checks.items() if passed is not True] == ["base", "image processor", "evaluation"]
    # A ledger of an earlier release has no fingerprint.
    loaded.config.erasures = [
        {name: value for name, value in record.items() if name != "weights_sha256"}
        for record in edited.config.erasures
    ]
    loaded.save_pretrained(tmp_path / "early")
    check = verify(tmp_path / "early")[-1]
    assert (check.name, check.passed) == ("weights", False)  # nothing was checked, and that is no success
    assert "the ledger has no fingerprint of them after their edit" in check.detail
    # A ledger that names a projection, and none is there: somebody took it off.
    loaded.config.erasures = [*loaded.config.erasures, {"method": "esc", "labels": ["shade 2"], "label_ids": [2]}]
    loaded.save_pretrained(tmp_path / "stripped")
    [check] = verify(tmp_path / "stripped")
    assert check.passed is False
    assert all(torch.equal(value, edited.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_card_without_an_evaluation_promises_no_numbers(edited):
    erased = in_front(edited, "esc")
    for model in (edited, erased):
        found = section(card(model))
        assert "Not evaluated" in found
        assert not any(words in found for words in ("with numbers", "numbers below"))
        assert "--original MODEL" in found
    # Numbers of a mean can be below the bar; those of an erasure that is not whole are said to be in the table.
    left = card(trained("delete", learning_rate=1e-9, num_train_epochs=1).model)
    assert "as the table below shows." in section(left)


def test_the_card_of_images_names_no_class_and_a_command_that_can_work():
    sets = [pictures(label, 4) for label in range(4)]
    edited = trained("finetune", forget=sets, retain=[pictures(0, 4, seed=1)], scenario="images", num_train_epochs=1)
    erased = erase(learnt(), sets, rank=1, scenario="images")
    for model in (edited.model, erased):
        found = section(card(model))
        assert "--forget-indices ROWS" in found
        assert "does not say which images they were" in found
        assert "the class" not in found
        assert "hidden from the head" not in found


def test_what_an_earlier_edit_left_is_not_claimed_after_a_later_one(edited):
    again = trained("delete", edited, [pictures(2, 24)], **RUN).model
    words = "What an earlier line left was not looked at again"
    assert words in section(card(again))
    assert words not in section(card(edited))
    assert words not in section(card(in_front(edited, "esc")))  # a projection comes after it and edits nothing
    assert words not in section(card(again, report=replace(test_card.report(), forget=["shade 1"])))


def test_what_a_training_has_taught_counts_as_left():
    before, after, labels = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 1, 2, 0]), torch.tensor([1, 1, 2, 2])
    found = unchanged_predictions(before, after, labels, by_label=True)
    assert (found.share, found.by_label, found.right_before) == (0.75, {1: 1.0, 2: 0.5}, 0.5)
    # Of single images only what was right before can be left.
    assert unchanged_predictions(before, after, labels, by_label=False).share == 0.5


def test_a_class_that_the_ledger_names_is_said_to_be_erased_before(edited):
    with pytest.warns(IncompleteErasureWarning, match="The ledger says that shade 1 was erased before"):
        erase(edited, [pictures(1, 24)], rank=1)
    blank = copy.deepcopy(edited)
    blank.config.erasures = []
    with pytest.warns(IncompleteErasureWarning, match="Were they erased before, or are the labels"):
        erase(blank, [pictures(1, 24)], rank=1)
