"""`hf-esc erase --method remap`: what is printed and written, its options, and what does not go with it."""

import json

import datasets
import pytest
import torch
from datasets import DatasetDict
from transformers import AutoModelForImageClassification

from hf_esc.data import load_images

from .pictures import NAMES, labelled

pytestmark = pytest.mark.slow

ERASE = ("erase", "embedded/resnet", "--forget", "Trouser", "--method", "remap")
TROUSER = 1


def factor_of(folder):
    model = AutoModelForImageClassification.from_pretrained(folder)
    return model, model.projections[0].factors[-1]


@pytest.fixture(scope="module")
def others(tmp_path_factory, clothes):
    """Folders of pictures for a bank."""
    folder = tmp_path_factory.mktemp("others")
    data = load_images(clothes)
    kept = data.select(data.train, [TROUSER], keep=False).select(range(100))
    for name, rows in {
        "clothes": kept,
        "trousers": data.train.select(range(100)),
        "animals": labelled([0, 1, 2, 3] * 15, NAMES),
        "unlabelled": kept.remove_columns("label"),
        "column": kept.rename_column("image", "img"),
    }.items():
        DatasetDict(train=rows).save_to_disk(folder / name)
    return folder


def test_for_people_it_prints_accuracies_and_what_the_gate_finds(hf_esc, clothes, tmp_path):
    code, out, _ = hf_esc(*ERASE, "--dataset", clothes, "--output", tmp_path / "model")
    assert code == 0
    model, factor = factor_of(tmp_path / "model")
    [record] = model.config.erasures
    words = " ".join(out.split())
    assert f"Erased Trouser from embedded/resnet: {record['num_images']} images, features replaced by" in words
    assert (
        f"replaced by {len(factor.bank)} of other classes; the gate finds {record['gate_recall']:.1%} of the" in words
    )
    assert f"takes {record['false_alarms']:.2%} of the others for them" in words
    assert "Hidden from the head. A probe trained on the features may still read what the gate misses." in words
    assert "accuracy in %" in words
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    code, out, _ = hf_esc("verify", tmp_path / "model")
    assert code == 0
    assert "MISMATCH" not in out
    assert "1 erased: remap" in out


def test_json_is_one_object_with_what_the_ledger_says(hf_esc, clothes, tmp_path):
    code, out, _ = hf_esc(*ERASE, "--dataset", clothes, "--output", tmp_path / "model", "--json")
    assert code == 0
    result = json.loads(out)
    model, factor = factor_of(tmp_path / "model")
    [record] = model.config.erasures
    keys = ("method", "bank_size", "threshold", "gate_recall", "false_alarms", "unchanged", "unchanged_by_label")
    assert {key: result[key] for key in keys} == {key: record[key] for key in keys}
    assert (result["method"], result["complete"], result["features"]) == ("remap", True, 128)
    assert not {"rank", "tau", "steps", "cut"} & set(result)
    assert result["threshold"] is None
    data = load_images(clothes)
    kept = len(data.select(data.train, [TROUSER], keep=False))  # fewer than a bank has room for
    assert result["bank_size"] == len(factor.bank) == kept - round(kept * result["false_alarms"])
    assert result["num_forget"] == 600 - kept
    assert (
        result["before"]["forget_test"] > 90 > 0 == result["after"]["forget_train"] == result["after"]["forget_test"]
    )
    for split in ("retain_train", "retain_test"):
        assert result["after"][split] >= result["before"][split]


def test_bank_size_threshold_and_seed_are_taken(hf_esc, clothes, tmp_path):
    banks = []
    for name, options in {
        "a": ("--seed", 1),
        "b": ("--seed", 1),
        "c": ("--seed", 2),
        "d": (),
        "e": ("--seed", 0, "--gate-threshold", 0.01),
    }.items():
        arguments = ("--dataset", clothes, "--output", tmp_path / name, "--bank-size", 40, "--no-evaluate", *options)
        assert hf_esc(*ERASE, *arguments)[0] == 0
        model, factor = factor_of(tmp_path / name)
        [record] = model.config.erasures
        assert record["bank_size"] == len(factor.bank) == 40
        assert record["seed"] == (options[1] if options else 0)
        assert record["threshold"] == factor.threshold == (0.01 if name == "e" else None)
        assert record["gate"] == ("threshold" if name == "e" else "argmax")
        banks.append(factor.bank)
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])
    assert not torch.equal(banks[0], banks[3])


def test_the_pictures_for_the_bank_can_be_others(hf_esc, clothes, others, tmp_path):
    arguments = ("--dataset", clothes, "--retain", others / "clothes", "--output", tmp_path / "model", "--json")
    code, out, _ = hf_esc(*ERASE, *arguments)
    assert code == 0
    result = json.loads(out)
    model, factor = factor_of(tmp_path / "model")
    assert model.config.erasures[0]["retain_images"] == 100
    assert result["bank_size"] == len(factor.bank) == 100 - round(100 * result["false_alarms"])
    assert result["after"]["forget_test"] == 0
    assert hf_esc("verify", tmp_path / "model")[0] == 0


@pytest.mark.parametrize("name", ["animals", "unlabelled", "column"])
def test_the_pictures_for_the_bank_need_no_labels_or_columns_of_the_data_set(hf_esc, clothes, others, tmp_path, name):
    arguments = ("--dataset", clothes, "--retain", others / name, "--output", tmp_path / "model", "--no-evaluate")
    code, _, err = hf_esc(*ERASE, *arguments)
    assert code == 0, err


def test_what_was_erased_before_is_not_in_the_bank_of_the_next(hf_esc, clothes, tmp_path):
    arguments = ("--dataset", clothes, "--no-evaluate", "--json", "--method", "remap")
    assert hf_esc("erase", "embedded/resnet", *arguments, "--forget", "Trouser", "--output", tmp_path / "one")[0] == 0
    code, out, _ = hf_esc(
        "erase", tmp_path / "one", *arguments, "--forget", "Bag,Sandal", "--output", tmp_path / "two"
    )
    assert code == 0
    assert json.loads(out)["forget"] == ["Sandal", "Bag"]
    model, factor = factor_of(tmp_path / "two")
    labels = load_images(clothes).train["label"]
    assert model.config.erasures[1]["retain_images"] == sum(label not in (1, 8, 5) for label in labels)
    assert factor.labels == [5, 8]
    assert hf_esc("verify", tmp_path / "two")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", "2"), "--rank belongs to `--method esc`, and this is remap"),
        (("--p", "3"), "--p belongs to `--method esc`"),
        (("--per-class",), "--per-class belongs to `--method esc`"),
        (("--tau", "0.8"), "--tau belongs to `--method esc-t`"),
        (("--epochs", "3"), "--epochs belongs to `--method esc-t`"),
        (("--method", "esc", "--retain", "embedded"), "--retain belongs to `--method remap` and to `finetune`"),
        (("--method", "esc", "--bank-size", "5"), "--bank-size belongs to `--method remap`"),
        (("--method", "esc-t", "--gate-threshold", "0.5"), "--gate-threshold belongs to `--method remap`"),
        (("--method", "esc", "--seed", "1"), "--seed belongs to `--method esc-t`"),
        (("--method", "other"), "other"),
        (("--bank-size", "1"), "--bank-size"),
        (("--bank-size", "x"), "--bank-size"),
        *((("--gate-threshold", value), "is a probability between 0 and 1") for value in ("0", "1", "2", "-1", "nan")),
        (("--gate-threshold", "x"), "--gate-threshold"),
        (("--retain", "nowhere"), "'nowhere' cannot be loaded"),
        (("--retain", "{others}/trousers"), "The retain set has images of Trouser"),
        (("--forget", "0,2,3,4,5,6,7,8,9"), "leaves nothing to keep"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_exit_code_2_and_nothing_written(
    hf_esc, clothes, others, tmp_path, options, message
):
    options = [option.format(others=others) for option in options]
    code, out, err = hf_esc(*ERASE, "--dataset", clothes, "--output", tmp_path / "model", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_data_set_of_the_class_alone_has_nothing_for_the_bank(hf_esc, clothes, tmp_path):
    data = load_images(clothes)
    DatasetDict(train=data.select(data.train, [TROUSER])).save_to_disk(tmp_path / "trousers")
    code, _, err = hf_esc(*ERASE, "--dataset", tmp_path / "trousers", "--output", tmp_path / "model")
    assert code == 2
    assert "The retain set is empty" in err
    assert not (tmp_path / "model").exists()


def test_labels_that_the_head_never_says_are_exit_code_2(hf_esc, clothes, tmp_path):
    data = load_images(clothes)
    names = datasets.ClassLabel(names=[data.label_names[(i + 1) % 10] for i in range(10)])
    wrong = data.train.cast_column("label", datasets.Value("int64")).cast_column("label", names)
    DatasetDict(train=wrong).save_to_disk(tmp_path / "wrong")
    code, _, err = hf_esc(*ERASE, "--dataset", tmp_path / "wrong", "--output", tmp_path / "model")
    assert code == 2
    assert "The head says 'Trouser' to" in " ".join(err.split())
