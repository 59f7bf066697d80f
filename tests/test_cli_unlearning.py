"""The methods that edit weights on the command line: `hf-esc erase --method NAME` and `hf-esc train --method NAME`."""

import copy
import dataclasses
import inspect
import json
import re
import shutil

import pytest
import torch
from datasets import DatasetDict, Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetForImageClassification, pipeline

from hf_esc.cli.report import _is_back
from hf_esc.data import load_images
from hf_esc.ledger.record import not_gone
from hf_esc.loading import load_classifier, load_processor
from hf_esc.methods import METHODS as TABLE
from hf_esc.modeling.fingerprints import weights_sha256
from hf_esc.unlearning import METHODS, DELETETrainer, UnlearningTrainer, fisher_forgetting
from hf_esc.unlearning.neg_grad import NegGradTrainer

from .tiny import tiny

pytestmark = pytest.mark.slow

FORGET = ("--forget", "Trouser")
SHORT = ("--max-steps", "2", "--per-device-train-batch-size", "8")
TRAIN = ("train", "--model", "embedded/resnet", *FORGET, "--evaluate", "False", "--json", "True")


@pytest.fixture(scope="module")
def few(tmp_path_factory, fashion) -> str:
    """A folder of 100 images to train, 40 to test."""
    folder = tmp_path_factory.mktemp("few")
    DatasetDict(train=fashion.train.select(range(100)), test=fashion.test.select(range(40))).save_to_disk(folder)
    return str(folder)


@pytest.fixture
def erase(hf_esc, few, tmp_path):
    """`hf-esc erase` of the embedded ResNet's trousers into `tmp_path / "out"`, without accuracies."""

    def command(method, *arguments, forget=FORGET):
        common = ("--dataset", few, *forget, "--output", tmp_path / "out", "--no-evaluate", "--allow-incomplete")
        return hf_esc("erase", "embedded/resnet", *common, "--method", method, *arguments)

    return command


def ledger(folder) -> list[dict]:
    return json.loads((folder / "config.json").read_text())["erasures"]


def counts(few) -> tuple[int, int]:
    data = load_images(few)
    forget = len(data.forget_set([1]))
    return forget, len(data.train) - forget


def test_the_settings_of_fisher_are_those_of_the_function():
    from hf_esc.cli.runners import _COMMON
    from hf_esc.cli.training import settings_of

    defaults = {name: p.default for name, p in inspect.signature(fisher_forgetting).parameters.items()}
    kind = settings_of(fisher_forgetting, without={*_COMMON, "seed"})
    ours = {field.name: field.default for field in dataclasses.fields(kind)}
    assert ours == {name: defaults[name] for name in ours}
    elsewhere = {"model", "forget_set", "retain_set", "scenario", "seed", "batch_size", "processing_class"}
    assert set(defaults) == {*ours, *elsewhere, "image_column", "label_column"}


# Every method, once


@pytest.mark.parametrize("method", [method.name for method in TABLE.values() if method.edits_weights])
def test_each_method_leaves_a_plain_checkpoint_with_its_image_processor(hf_esc, few, resnet, tmp_path, method):
    short = ("--num-images", "6", "--alpha", "1e-3") if method == "fisher" else (*SHORT, "--learning-rate", "0.01")
    arguments = ("--dataset", few, *FORGET, "--output", tmp_path / "out", "--method", method, "--json", *short)
    code, out, err = hf_esc("erase", "embedded/resnet", *arguments)
    result = json.loads(out)  # and nothing else
    assert code == (3 if result["complete"] is False else 0), err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    forget, retain = counts(few)
    assert (result["method"], result["forget"], result["num_forget"]) == (method, ["Trouser"], forget)
    uses = METHODS.get(method)
    expected = "retain" if uses is None else " + ".join(["forget"] * uses.uses_forget + ["retain"] * uses.uses_retain)
    if method == "scrub":  # an epoch begins with two steps on forget images, and there are no more
        expected = "forget"
    assert result["trained_on"] == expected
    kept = {"fisher": 6, "bad-teacher": round(0.3 * retain)}.get(method, retain)
    assert result.get("num_retain_images") == (kept if "retain" in expected else None)
    assert result.get("steps") == (None if method == "fisher" else 2)
    assert (result["scenario"], "features" in result) == ("classes", False)
    # Of the original's architecture, without anything in front of its head, and another network.
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is ResNetForImageClassification
    assert not any(info.values())
    assert [record["method"] for record in model.config.erasures] == [method]
    before, after = resnet.state_dict(), model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # What it says in a pipeline is what it says.
    data = load_images(few)
    picture = data.test.cast_column("image", Image())[0]["image"].convert("RGB")
    classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    [first, *_] = classify(picture)
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(dim=1)[0]
    assert first["label"] == model.config.id2label[int(probabilities.argmax())]
    assert first["score"] == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_for_people_it_says_which_images_were_trained_on(erase, few, tmp_path):
    forget, retain = counts(few)
    for (method, steps), words in {
        ("delete", 2): f"Erased Trouser from embedded/resnet: {forget} images, delete, 2 steps on them.",
        ("scrub", 2): f"{forget} images, scrub, 2 steps on them.",
        ("scrub", 3): f"{forget} images, scrub, 3 steps on them and {retain} retain images.",
        ("finetune", 2): f"{forget} images, finetune, 2 steps on {retain} retain images, and not on them.",
    }.items():
        code, out, _ = erase(method, *SHORT, "--max-steps", steps, "--overwrite")
        assert code == 0
        assert words in " ".join(out.split())
    code, out, _ = erase("fisher", "--num-images", 5, "--overwrite")
    assert f"{forget} images, noise on the weights that 5 retain images do not depend on." in out


def test_it_forgets(hf_esc, clothes, tmp_path):
    arguments = ("--dataset", clothes, *FORGET, "--output", tmp_path / "out", "--method", "delete", "--json")
    code, out, err = hf_esc("erase", "embedded/resnet", *arguments, "--learning-rate", "0.005", "--epochs", "10")
    assert (code, "Warning" in err) == (0, False)
    result = json.loads(out)
    assert result["complete"] is True
    assert result["before"]["forget_test"] > 90 > 10 > result["after"]["forget_test"]
    assert result["after"]["retain_test"] > result["before"]["retain_test"] - 10
    # What it has forgotten is in the ledger, so a look and a second request know.
    code, out, _ = hf_esc("evaluate", tmp_path / "out", "--dataset", clothes, "--probes", "none", "--json")
    measured = json.loads(out)
    assert (measured["forget"], measured["accuracies"]) == (["Trouser"], {"model": result["after"]})
    second = ("--dataset", clothes, "--forget", "Bag", "--output", tmp_path / "two", "--method", "finetune", "--json")
    code, out, _ = hf_esc("erase", tmp_path / "out", *second, *SHORT)
    labels, result_two = load_images(clothes).train["label"], json.loads(out)
    assert result_two["num_retain_images"] == sum(label not in (1, 8) for label in labels)
    # And the first class is looked at again: here a few steps on retain images alone do bring it back.
    [(name, columns)] = result_two["earlier"].items()
    shares = ("forget_train", "forget_test")
    assert (name, columns["before"]) == ("Trouser", {share: result["after"][share] for share in shares})
    assert max(columns["after"].values()) > 10
    assert (result_two["brought_back"], result_two["complete"]) == (["Trouser"], False)
    assert [record["method"] for record in ledger(tmp_path / "two")] == ["delete", "finetune"]


@pytest.fixture(scope="module")
def silent(tmp_path_factory, resnet) -> str:
    """The embedded ResNet with a head that never says Trouser, and a ledger that says so."""
    model = copy.deepcopy(resnet)
    with torch.no_grad():
        model.classifier[-1].bias[1] = -1e3
    model.config.erasures = [{"method": "lau", "labels": ["Trouser"], "label_ids": [1], "num_images": 700}]
    folder = tmp_path_factory.mktemp("silent")
    model.save_pretrained(folder)
    load_processor(resnet).save_pretrained(folder)
    return str(folder)


def bringing_back(self, *arguments, **options):
    """A training step that gives the class back to the head."""
    loss = UnlearningTrainer.training_step(self, *arguments, **options)
    with torch.no_grad():
        self.model.classifier[-1].bias[1] += 1e3
    return loss


@pytest.mark.parametrize("wish", [("--forget", "Bag"), ("--forget-indices", "0,1,2")], ids=["class", "images"])
def test_a_class_that_comes_back_is_said(hf_esc, silent, few, tmp_path, monkeypatch, wish):
    arguments = ("--dataset", few, *wish, "--method", "delete", *SHORT, "--learning-rate", "1e-6", "--overwrite")
    code, out, err = hf_esc("erase", silent, *arguments, "--output", tmp_path / "gone", "--allow-incomplete")
    assert code == 0, err
    assert (
        "which an earlier request erased (training / test images): 0.00 % / 0.00 % before, 0.00 % / 0.00 % after."
        in out
    )
    assert "BROUGHT BACK" not in out
    monkeypatch.setattr(DELETETrainer, "training_step", bringing_back)
    code, out, _ = hf_esc("erase", silent, *arguments, "--output", tmp_path / "back")
    assert code == 3
    assert "BROUGHT BACK: Trouser. What was done now has undone what an earlier request erased." in out
    code, out, _ = hf_esc("erase", silent, *arguments, "--output", tmp_path / "back", "--json")
    result = json.loads(out)
    assert (result["brought_back"], result["complete"]) == (["Trouser"], False)
    # The ledger knows, so that a push is refused.
    assert ledger(tmp_path / "back")[-1]["brought_back"] == ["Trouser"]
    assert not_gone(ledger(tmp_path / "back")) == ["Trouser"]
    after = result["earlier"]["Trouser"]["after"]
    assert after["forget_train"] > 90
    # `train` says the same; without evaluation nothing is known.
    settings = ("--model", silent, "--method", "delete", "--dataset", few, "--output_dir", tmp_path / "run", *SHORT)
    code, out, err = hf_esc("train", *settings, *wish, "--json", "True")
    assert code == 3, err
    assert json.loads(out)["brought_back"] == ["Trouser"]
    assert ledger(tmp_path / "run")[-1]["brought_back"] == ["Trouser"]
    code, out, _ = hf_esc("erase", silent, *arguments, "--output", tmp_path / "back", "--json", "--no-evaluate")
    assert (json.loads(out)["earlier"], json.loads(out)["brought_back"]) == (None, None)


def test_evaluate_puts_the_original_beside_an_edited_model(hf_esc, silent, clothes):
    common = ("evaluate", silent, "--dataset", clothes, "--seeds", "1", "--batch-size", "200")
    code, out, err = hf_esc(*common, "--probes", "none", "--json")
    assert (code, list(json.loads(out)["accuracies"])) == (0, ["model"])
    assert "the weights of" in err
    assert "Name that with `--original MODEL`" in err
    original = ("--original", "embedded/resnet")
    code, out, err = hf_esc(*common, *original, "--probes", "none", "--json")
    assert (code, "--original" in err) == (0, False)
    head = json.loads(out)["accuracies"]
    assert (list(head), head["erased"]["forget_test"]) == (["original", "erased"], 0)
    assert head["original"]["forget_test"] > 90
    code, out, err = hf_esc(*common, *original, "--json")
    assert (code, "--original" in err) == (0, False)
    report = json.loads(out)
    assert list(report["models"]) == ["model", "original", "random"]
    assert report["models"]["original"]["accuracies"] == pytest.approx(head["original"])
    assert report["recovery_rate"]["converged"] is not None  # which needs an original
    # Without it, that is said here too.
    code, out, err = hf_esc(*common, "--json")
    assert (code, list(json.loads(out)["models"])) == (0, ["model", "random"])
    assert "Name that with `--original MODEL`" in err


def test_evaluate_refuses_an_original_with_other_classes(hf_esc, silent, resnet, clothes, tmp_path):
    tiny("vit").save_pretrained(tmp_path)  # three classes
    load_processor(resnet).save_pretrained(tmp_path)
    code, out, err = hf_esc("evaluate", silent, "--dataset", clothes, "--original", tmp_path, "--seeds", "1")
    assert (code, out) == (2, "")
    assert "'original' has 3 classes, and the model has 10" in " ".join(err.split())
    code, out, err = hf_esc("evaluate", silent, "--dataset", clothes, "--original", tmp_path, "--probes", "none")
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_an_original_with_classes_in_another_order_is_asked_in_its_own(hf_esc, silent, resnet, clothes, tmp_path):
    turned = copy.deepcopy(resnet)
    head = turned.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(resnet.classifier[-1].weight.flip(0))
        head.bias.copy_(resnet.classifier[-1].bias.flip(0))
    turned.config.id2label = {9 - label: name for label, name in resnet.config.id2label.items()}
    turned.config.label2id = {name: label for label, name in turned.config.id2label.items()}
    turned.save_pretrained(tmp_path)
    load_processor(resnet).save_pretrained(tmp_path)
    options = ("--dataset", clothes, "--original", tmp_path)
    code, out, _ = hf_esc("evaluate", silent, *options, "--probes", "none", "--json")
    _, own, _ = hf_esc("evaluate", silent, *options[:3], "embedded/resnet", "--probes", "none", "--json")
    assert code == 0
    assert json.loads(out)["accuracies"] == json.loads(own)["accuracies"]
    code, out, err = hf_esc("evaluate", silent, *options, "--seeds", "1")  # probes read its features by class number
    assert (code, out) == (2, "")
    assert "numbers its classes otherwise" in " ".join(err.split())


def test_an_original_of_other_weights_than_the_ledgers_is_told(hf_esc, erase, few, tmp_path):
    assert erase("delete", *SHORT)[0] == 0
    [record] = ledger(tmp_path / "out")
    model = load_classifier("embedded/resnet", device="cpu")
    assert record["base_sha256"] == weights_sha256(model)
    options = ("evaluate", tmp_path / "out", "--dataset", few, "--probes", "none", "--original")
    assert "does not have the weights" not in hf_esc(*options, "embedded/resnet")[2]
    code, _, err = hf_esc(*options, tmp_path / "out")  # itself
    assert code == 0
    assert "does not have the weights that" in err


def test_with_its_projection_off_an_edited_model_is_not_the_original(hf_esc, silent, clothes, tmp_path):
    common = ("--dataset", clothes, "--forget", "Bag")
    code, _, err = hf_esc("erase", silent, *common, "--output", tmp_path / "out", "--no-evaluate")
    assert code == 0, err
    for probes in (("--probes", "none"), ("--seeds", "1")):
        look = ("evaluate", tmp_path / "out", *common, "--json", *probes)
        columns = {}
        for given in ((), ("--original", "embedded/resnet")):
            code, out, err = hf_esc(*look, *given)
            assert (code, "Name that with `--original MODEL`" in err) == (0, not given)
            found = json.loads(out)
            columns[given] = list(found["models"] if "models" in found else found["accuracies"])
        assert "no projection" in columns[()]
        assert "original" not in columns[()]
        assert "original" in columns["--original", "embedded/resnet"]
        assert "no projection" not in columns["--original", "embedded/resnet"]


def test_what_the_others_lost_and_what_cannot_be_seen_is_said(hf_esc, silent, clothes, tmp_path):
    hard = ("--method", "random-label", "--learning-rate", "0.1", "--epochs", "5")
    code, out, _ = hf_esc("erase", "embedded/resnet", "--dataset", clothes, *FORGET, "--output", tmp_path / "a", *hard)
    assert code == 0
    assert re.search(r"The other classes lost \d+\.\d points of accuracy\.", out)
    # Trouser again, of which the head says nothing already.
    code, out, err = hf_esc("erase", silent, "--dataset", clothes, *FORGET, "--output", tmp_path / "b")
    assert code == 3
    assert "NOTHING TO BE SEEN." in out
    assert "NOT ERASED WHOLE" not in out
    assert "The other classes lost" not in out
    assert "The ledger says that Trouser was erased before" in " ".join(err.split())


def test_a_class_that_cannot_be_looked_at_is_not_taken_for_gone(hf_esc, silent, few, tmp_path):
    data = load_images(few)
    splits = {
        name: data.select(split, [1], keep=False) for name, split in (("train", data.train), ("test", data.test))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "without")
    arguments = ("--dataset", tmp_path / "without", "--forget", "Bag", "--method", "delete", *SHORT, "--overwrite")
    code, out, _ = hf_esc("erase", silent, *arguments, "--output", tmp_path / "out", "--allow-incomplete")
    assert code == 0
    assert "Trouser, which an earlier request erased, cannot be looked at" in out
    code, out, _ = hf_esc("erase", silent, *arguments, "--output", tmp_path / "out", "--learning-rate", "1", "--json")
    result = json.loads(out)
    assert (result["earlier"], result["brought_back"]) == ({"Trouser": None}, [])
    assert result["complete"] is not True


@pytest.mark.parametrize(
    ("before", "after", "back"),
    [(0, 12, True), (0, 9, False), (9, 12, False), (9, 15, True), (50, 52, False), (None, None, False)],
)
def test_what_counts_as_back(before, after, back):
    columns = {
        "before": {"forget_train": 0.0, "forget_test": before},
        "after": {"forget_train": 0.0, "forget_test": after},
    }
    assert _is_back(columns) is back


# Arguments


def test_arguments_of_the_training_are_taken_in_both_spellings(erase, tmp_path):
    settings = ("--learning_rate", "0.5", "--max-grad-norm=2", "--redraw", "--mask", "all")
    code, _, err = erase("random-label", *SHORT, *settings)
    assert code == 0, err
    [record] = ledger(tmp_path / "out")
    assert {name: record[name] for name in ("learning_rate", "max_grad_norm", "redraw", "mask")} == {
        "learning_rate": 0.5,
        "max_grad_norm": 2,
        "redraw": True,
        "mask": "all",
    }


def test_arguments_may_stand_before_the_model(hf_esc, few, tmp_path):
    common = ("--dataset", few, *FORGET, "--output", tmp_path / "out", "--no-evaluate")
    code, _, err = hf_esc("erase", "--method=delete", "--learning-rate", "0.5", *SHORT, "embedded/resnet", *common)
    assert code == 0, err
    assert ledger(tmp_path / "out")[0]["learning_rate"] == 0.5


def test_seed_epochs_and_batch_size_are_those_of_the_command(erase, few, tmp_path):
    code, out, _ = erase("delete", "--seed", 7, "--epochs", 2, "--per-device-train-batch-size", 8, "--json")
    assert code == 0
    [record] = ledger(tmp_path / "out")
    assert (record["seed"], record["num_train_epochs"], record["batch_size"]) == (7, 2, 8)
    assert json.loads(out)["steps"] == 2 * -(-counts(few)[0] // 8)
    code, _, err = erase("fisher", "--seed", 7, "--batch-size", 3, "--num-images", 4, "--floor", "0.1", "--overwrite")
    assert code == 0, err
    [record] = ledger(tmp_path / "out")
    assert (record["seed"], record["floor"], record["num_retain_images"]) == (7, 0.1, 4)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "delete",
            ("--lerning-rate", "1"),
            "No such option of `--method delete`: --lerning-rate. Near it: --learning-rate",
        ),
        ("delete", ("--gamma", "1"), "No such option of `--method delete`: --gamma"),
        ("delete", ("--image_colum", "x"), "--image_colum. Near it: --image_column"),
        ("fisher", ("--learning-rate", "1"), "No such option of `--method fisher`: --learning-rate"),
        ("esc", ("--learning-rate", "1"), "No such option"),
        ("esc-t", ("--learning-rate", "1"), "No such option"),
        ("remap", ("--learning-rate", "1"), "No such option"),
        ("delete", ("--learning-rate", "much"), "invalid float value: 'much'"),
        ("delete", ("--learning-rate", "-1"), "`learning_rate` is above 0, and it is -1.0"),
        ("delete", ("--mask", "none"), "invalid choice: 'none'"),
        ("delete", ("--optim", "none"), "none is not a valid OptimizerNames"),
        ("delete", ("--epochs", "0"), "`num_train_epochs` is above 0"),
        ("delete", ("--epochs", "1", "--num-train-epochs", "2"), "are the same. Leave one out"),
        ("delete", ("--output-dir", "x"), "--output-dir has no place here: `--output` is the folder"),
        ("delete", ("--resume-from-checkpoint", "True"), "`hf-esc train` keeps checkpoints and goes on from them"),
        ("delete", ("--push-to-hub", "True"), "`hf-esc push`"),
        ("delete", ("--load-best-model-at-end", "True"), "there are no checkpoints to choose from"),
        ("delete", ("--scenario", "images"), "`--scenario` follows from what is to be forgotten"),
        ("delete", ("--device", "nonsense"), "The device 'nonsense' cannot be used"),
        ("delete", ("--device", "cuda:1"), "Training runs on the first device"),
        ("delete", ("--rank", "2"), "--rank belongs to `--method esc`, and this is delete"),
        ("delete", ("--tau", "0.5"), "--tau belongs to `--method esc-t`, and this is delete"),
        ("delete", ("--retain", "embedded"), "--retain belongs to `--method remap` and to `finetune`"),
        ("scrub", ("--bank-size", "5"), "--bank-size belongs to `--method remap`, and this is scrub"),
        ("fisher", ("--epochs", "2"), "--epochs belongs to `--method esc-t` and to `delete`"),
        ("fisher", ("--alpha", "0"), "`alpha` is above 0"),
        ("scrub", ("--forget-epochs", "0"), "nothing would be forgotten"),
        ("scrub", ("--retain", "nowhere"), "'nowhere' cannot be loaded"),
        ("scrub", ("--retain", "embedded"), "images of Trouser, which would teach again what is to be forgotten"),
        ("unlearn", (), "unlearn"),
        ("delete", ("--learning-rate",), "expected one argument"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_exit_code_2_by_name_and_nothing_written(erase, tmp_path, method, options, message):
    code, out, err = erase(method, *options, "--json")
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_projection_is_refused(hf_esc, erase, few, tmp_path):
    assert erase("esc")[0] == 0
    arguments = ("--dataset", few, "--forget", "Bag", "--output", tmp_path / "two", "--method", "delete")
    code, _, err = hf_esc("erase", tmp_path / "out", *arguments)
    assert (code, (tmp_path / "two").exists()) == (2, False)
    assert "This is an erased model, whose projection stands in front of the head" in err


def breaking(after: int):
    """A loss of NegGrad that is not finite after so many steps."""
    own = NegGradTrainer.unlearning_loss

    def loss(self, model, forget, retain):
        value = own(self, model, forget, retain)
        return value * float("nan") if self.state.global_step >= after else value

    return loss


def test_a_run_that_diverges_leaves_no_folder(erase, tmp_path, monkeypatch):
    monkeypatch.setattr(NegGradTrainer, "unlearning_loss", breaking(1))
    code, out, err = erase("neg-grad", *SHORT, "--json")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert "neg-grad diverged at step 1: the loss is nan." in err
    assert "Take a smaller `learning_rate` than" in err


def test_the_images_to_keep_can_be_others_in_columns_of_other_names(erase, few, fashion, tmp_path):
    data = load_images(few)
    kept = data.select(fashion.train.select(range(1000, 1100)), [1], keep=False)
    others = kept.rename_columns({"image": "photo", "label": "category"})
    DatasetDict(train=others).save_to_disk(tmp_path / "others")
    code, out, err = erase("finetune", "--retain", tmp_path / "others", *SHORT, "--json")
    assert code == 0, err
    assert json.loads(out)["num_retain_images"] == len(kept)


# hf-esc train


def test_train_keeps_checkpoints_and_goes_on_from_them(hf_esc, few, tmp_path):
    settings = (
        "--method",
        "delete",
        "--dataset",
        few,
        "--learning_rate",
        "0.01",
        "--per_device_train_batch_size",
        "4",
    )
    settings += ("--num_train_epochs", "2", "--save_total_limit", "2", "--allow_incomplete", "True")
    whole, cut = (("--output_dir", tmp_path / name) for name in ("whole", "cut"))
    code, out, err = hf_esc(*TRAIN, *settings, *whole)
    assert code == 0, err
    result = json.loads(out)
    assert (result["method"], result["trained_on"]) == ("delete", "forget")
    # The same command again is refused; cut off after one epoch and taken up again, it comes to the same.
    assert "--resume_from_checkpoint True" in hf_esc(*TRAIN, *settings, *whole)[2]
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(first, tmp_path / "cut" / first.name)
    code, out, err = hf_esc(*TRAIN, *settings, *cut, "--resume_from_checkpoint", "True")
    assert code == 0, err
    assert json.loads(out)["steps"] == result["steps"]
    one, other = (
        AutoModelForImageClassification.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    pipeline("image-classification", model=str(tmp_path / "cut"), device="cpu")


def test_train_leaves_the_last_good_checkpoint_of_a_run_that_diverges(hf_esc, few, tmp_path, monkeypatch):
    monkeypatch.setattr(NegGradTrainer, "unlearning_loss", breaking(3))
    settings = ("--method", "neg-grad", "--dataset", few, "--output_dir", tmp_path, "--save_strategy", "steps")
    settings += ("--save_steps", "1", "--per_device_train_batch_size", "2")
    code, out, err = hf_esc(*TRAIN, *settings)
    assert (code, out) == (2, "")
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-3'}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-3")


def test_train_is_watched_on_test_images_and_takes_retain_images(hf_esc, few, clothes, tmp_path):
    settings = ("--method", "finetune", "--dataset", few, "--output_dir", tmp_path / "out", "--max_steps", "2")
    settings += ("--allow_incomplete", "True")
    code, out, err = hf_esc(*TRAIN, *settings, "--eval_strategy", "epoch")
    assert code == 0, err
    assert json.loads(out)["num_retain_images"] == counts(few)[1]
    assert "'eval_forget_accuracy'" in err
    assert "'eval_retain_accuracy'" in err
    code, _, err = hf_esc(*TRAIN, *settings, "--output_dir", tmp_path / "new", "--retain", clothes)
    assert code == 2
    assert "images of Trouser, which would teach again" in err


def test_train_help_lists_the_arguments_of_the_method_and_wrong_ones_are_refused(hf_esc, few, tmp_path):
    code, out, _ = hf_esc("train", "--method", "scrub", "--help")
    assert (code, "--forget_epochs" in out, "--loss_normalization" in out) == (0, True, False)
    best = ("--load_best_model_at_end", "True", "--eval_strategy", "epoch", "--save_strategy", "epoch")
    for wrong, message in (
        (("--method", "fisher"), "`--method fisher` is none that is trained. There are: esc-t, delete"),
        (("--method", "scrub", "--tau", "2"), "No such option of `--method scrub`: --tau"),
        (("--method", "delete", "--retain", few), "--retain belongs to"),
        (("--method", "delete", "--temprature", "2"), "--temprature. Near it: --temperature"),
        (("--method", "delete", "--forget_fraction", "0.1"), "in one way: `--forget LABEL`"),
        (("--method", "delete", *best), "choose the checkpoint on the test images"),
        (("--method", "delete", "--scenario", "images"), "`--scenario` follows from what is to be forgotten"),
    ):
        code, out, err = hf_esc(*TRAIN, "--dataset", few, "--output_dir", tmp_path / "out", *wrong)
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = hf_esc("train", "--model", "embedded/resnet", "--dataset", few, "--output_dir", tmp_path / "out")
    assert code == 2
    assert "What is to be forgotten? Name it with `--forget LABEL`" in err
    assert not list(tmp_path.iterdir())
