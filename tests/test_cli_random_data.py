"""Random images as what is to be forgotten: `--forget-fraction` and `--forget-indices`, of classes that stay."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification

from hf_esc import ESCTTrainer, ESCTTrainingArguments, erase
from hf_esc.cli.request import Wish, read_rows
from hf_esc.data import load_images
from hf_esc.errors import ForgetSetError, LabelError, OptionError
from hf_esc.evaluation.accuracy import evaluate_accuracies, model_classifier
from hf_esc.loading import load_processor

from .tiny import batches, images, quietly, tiny

pytestmark = pytest.mark.slow

ROWS = list(range(0, 60, 2))


@pytest.fixture(scope="module")
def data(clothes):
    return load_images(clothes)


@pytest.fixture
def command(hf_esc, clothes, tmp_path):
    """`hf-esc erase` of the embedded ResNet into `tmp_path / "out"`."""

    def run(*arguments):
        return hf_esc("erase", "embedded/resnet", "--dataset", clothes, "--output", tmp_path / "out", *arguments)

    return run


def listed(rows) -> str:
    return ",".join(map(str, rows))


# Which rows


@given(st.floats(0.002, 0.998), st.integers(0, 1000))
def test_a_draw_has_the_size_of_its_share_and_is_that_of_its_seed(data, fraction, seed):
    rows = data.rows_to_forget(fraction, seed)
    assert len(rows) == round(fraction * 600)
    assert rows == sorted(set(rows)) == data.rows_to_forget(fraction, seed) == data.check_rows(rows)
    assert 0 <= rows[0] <= rows[-1] < 600


def test_another_seed_draws_others_of_all_classes(data):
    first, second = data.rows_to_forget(0.2, 0), data.rows_to_forget(0.2, 1)
    assert first != second
    assert first == data.rows_to_forget(0.2)
    assert set(data.rows(first)["label"]) == set(range(10))


def test_the_rows_and_all_others_are_the_training_images_in_their_order(data):
    numbered = data.train.add_column("row", list(range(600)))
    found = replace(data, train=numbered)
    assert found.rows([5, 3, 599])["row"] == [3, 5, 599]
    assert found.rows(ROWS, keep=False)["row"] == [row for row in range(600) if row not in ROWS]


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0, "above 0 and below 1, not 0"),
        (1, "above 0 and below 1, not 1"),
        (-0.1, "above 0"),
        (float("nan"), "above 0"),
        (0.0001, "comes to 0 of them"),
        (0.9999, "comes to 600 of them"),
    ],
)
def test_a_share_that_comes_to_nothing_or_to_all_is_refused(data, fraction, message):
    with pytest.raises(ForgetSetError, match=message):
        data.rows_to_forget(fraction)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "The forget set is empty"),
        ([600], "There is no row 600: rows of the 600 training images go up to 599"),
        ([3, -1], "There is no row -1"),
        ([7, 3, 7], "Row 7 is named more than once"),
        (range(600), "All 600 training images are to be forgotten"),
    ],
)
def test_rows_that_are_none_are_refused(data, rows, message):
    with pytest.raises(ForgetSetError, match=message):
        data.check_rows(rows)


@pytest.mark.parametrize(
    "text", ["3\n1\n2\n", "[3, 1, 2]", "  [3,\n1, 2]\n", "3 1\n\n2", "\ufeff3\r\n1\n2", "\ufeff[3, 1, 2]"]
)
def test_rows_come_from_a_file_of_lines_or_json(data, tmp_path, text):
    file = tmp_path / "rows.txt"
    file.write_text(text)
    for rows in (str(file), "3, 1,2"):
        assert Wish(rows=read_rows(rows)).found_in(data, None).rows == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", "should be whole numbers, rows of the training split, and 'x' is none.$"),
        ("[1, 2.5]", "'2.5' is none"),
        ('[1, "a"]', "'\"a\"' is none"),
        ("[1, [2]]", "'\\[2\\]' is none"),
        ("[1, true]", "'true' is none"),
        ("[1, 2", "is no JSON list"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    file = tmp_path / "rows.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OptionError, match=message):
        read_rows(str(file))


# In Python


def test_esc_of_images_is_that_of_images_without_labels_and_no_class_is_named():
    model, x = tiny(), images(12)
    bare = quietly(model, batches(x), rank=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = erase(
            model, [{"pixel_values": x, "labels": torch.arange(12) % 4}], rank=2, scenario="images"
        )  # of all classes, without a word
    for one, other in zip(found.projections, bare.projections, strict=True):
        assert torch.equal(one.factors[0].basis, other.factors[0].basis)
    [record] = found.config.erasures
    assert (record["scenario"], record["labels"], record["label_ids"]) == ("images", None, None)
    assert bare.config.erasures[0]["scenario"] == "classes"


def test_directions_by_class_are_of_classes():
    both = [{"pixel_values": images(4), "labels": torch.arange(4)}]
    for options, message in (
        ({"per_class": True, "rank": 1}, "`per_class` takes directions for each class"),
        ({"scenario": "pictures"}, "`scenario` is classes or images, not 'pictures'"),
    ):
        with pytest.raises(OptionError, match=message):
            erase(tiny(), both, **{"scenario": "images"} | options)


def test_esc_t_of_images_may_be_of_all_classes_and_names_none(resnet, data, tmp_path):
    settings = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 3}
    of_all = data.rows(list(range(40)))
    assert len(set(of_all["label"])) == 10
    with pytest.raises(LabelError, match="All 10 classes"):
        ESCTTrainer(resnet, ESCTTrainingArguments(tmp_path, **settings), of_all)
    trainer = ESCTTrainer(resnet, ESCTTrainingArguments(tmp_path, scenario="images", tau=0.5, **settings), of_all)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # most are still right after three steps, and that is no failure
        trainer.train()
    [record] = trainer.erased_model.config.erasures
    assert record["unchanged"] > 0.1
    assert (record["scenario"], record["labels"], record["unchanged_by_label"]) == ("images", None, None)
    with pytest.raises(OptionError, match="`scenario` is one of classes, images"):
        ESCTTrainingArguments(tmp_path, scenario="both")


def test_accuracies_by_rows(resnet, data):
    rows = [1, 4, 63, 64, 130, 599]
    processor = load_processor(resnet)
    [found] = evaluate_accuracies(
        {"model": model_classifier(resnet)},
        data,
        [],
        forget_rows=rows,
        mapping=data.labels_in(resnet.config),
        processor=processor,
    ).values()
    right = []
    with torch.no_grad():
        for split in (data.train, data.test):
            hits = [
                resnet(pixel_values=batch["pixel_values"]).logits.argmax(dim=1) == batch["labels"]
                for batch in data.batches(split, processor, batch_size=50)
            ]
            right.append(torch.cat(hits).numpy())
    gone = np.isin(np.arange(600), rows)
    assert found.forget_train == pytest.approx(100 * right[0][gone].mean())
    assert found.retain_train == pytest.approx(100 * right[0][~gone].mean())
    assert found.retain_test == pytest.approx(100 * right[1].mean())
    assert found.forget_test is found.hm_train is found.hm_test is None


# hf-esc erase


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("esc", ()),
        ("esc-t", ("--epochs", "3", "--tau", "0.5")),
        ("delete", ("--max-steps", "3", "--learning-rate", "0.01")),
        ("neg-grad-plus", ("--max-steps", "2")),
        ("fisher", ("--num-images", "4")),
    ],
)
def test_images_are_forgotten_and_no_class_is_named(command, data, tmp_path, method, options):
    code, out, err = command("--forget-indices", listed(ROWS), "--method", method, "--json", *options)
    assert code == 0, err
    assert "incomplete" not in err
    result = json.loads(out)
    assert (result["scenario"], result["forget"], result["num_forget"]) == ("images", None, len(ROWS))
    assert (result["complete"], result["after"]["forget_test"], result["after"]["hm_train"]) == (None, None, None)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    [record] = model.config.erasures
    assert (record["labels"], record["label_ids"], record["num_images"]) == (None, None, len(ROWS))
    assert not record["unchanged_by_label"]
    if method == "neg-grad-plus":
        assert result["num_retain_images"] == 600 - len(ROWS)
    [measured] = evaluate_accuracies(
        {"after": model_classifier(model.eval())},
        data,
        [],
        forget_rows=ROWS,
        mapping=data.labels_in(model.config),
        processor=load_processor(model),
    ).values()
    for name in ("forget_train", "retain_train", "retain_test"):
        assert result["after"][name] == pytest.approx(getattr(measured, name))


def test_a_share_is_the_rows_of_its_draw(hf_esc, clothes, data, tmp_path):
    rows = data.rows_to_forget(0.05, 3)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    results = []
    for name, which in {
        "share": ("--forget-fraction", "0.05", "--forget-seed", "3"),
        "rows": ("--forget-indices", tmp_path / "rows.json"),
    }.items():
        arguments = ("--dataset", clothes, "--output", tmp_path / name, "--json", "--rank", "4", *which)
        code, out, err = hf_esc("erase", "embedded/resnet", *arguments)
        assert code == 0, err
        results.append({key: value for key, value in json.loads(out).items() if key not in ("seconds", "output")})
    assert results[0] == results[1]
    assert results[0]["num_forget"] == 30


def test_for_people_it_says_that_accuracies_do_not_tell(command):
    code, out, _ = command("--forget-fraction", "0.05")
    assert code == 0
    assert "Erased single images from embedded/resnet: 30 images, rank 1 of 128 feature directions." in out
    assert "Accuracies do not tell whether" in out
    assert "NOT ERASED WHOLE" not in out
    assert "Hidden from the head" not in out


def test_a_class_that_was_erased_before_is_not_trained_on(hf_esc, clothes, data, tmp_path):
    common = ("--dataset", clothes, "--no-evaluate", "--json", "--max-steps", "1", "--method", "finetune")
    common += ("--allow-incomplete",)
    first, second = tmp_path / "one", tmp_path / "two"
    assert hf_esc("erase", "embedded/resnet", *common, "--forget", "Trouser", "--output", first)[0] == 0
    code, out, err = hf_esc("erase", first, *common, "--forget-indices", listed(ROWS), "--output", second)
    assert code == 0, err
    kept = [row for row, label in enumerate(data.train["label"]) if label != 1 and row not in ROWS]
    assert json.loads(out)["num_retain_images"] == len(kept)


def test_copies_of_forgotten_images_are_not_kept(hf_esc, data, tmp_path):
    few = data.train.select(range(60))
    twice = concatenate_datasets([few, few.select([1, 2, 5])])
    DatasetDict(train=twice).save_to_disk(tmp_path / "data")
    arguments = (
        "--dataset",
        tmp_path / "data",
        "--output",
        tmp_path / "out",
        "--method",
        "finetune",
        "--max-steps",
        "1",
    )
    code, out, err = hf_esc(
        "erase", "embedded/resnet", *arguments, "--forget-indices", "0,1,2,3", "--no-evaluate", "--json"
    )
    assert code == 0, err
    assert "Warning: 2 other images are copies of forgotten ones" in err
    assert (json.loads(out)["num_forget"], json.loads(out)["num_retain_images"]) == (4, 63 - 4 - 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "What is to be forgotten? Name it with `--forget LABEL`, `--forget-fraction FRACTION` or "),
        (("--forget", "Bag", "--forget-fraction", "0.1"), "in one way"),
        (("--forget-indices", "1", "--forget-fraction", "0.1"), "in one way"),
        (("--forget", "Bag", "--forget-indices", "1"), "in one way"),
        (("--forget", "Bag", "--forget-seed", "1"), "`--forget-seed` is that of the draw of `--forget-fraction`"),
        (("--forget-indices", "1", "--forget-seed", "1"), "`--forget-seed` is that of the draw"),
        (("--forget-fraction", "0"), "above 0 and below 1, not 0.0"),
        (("--forget-fraction", "1"), "above 0 and below 1"),
        (("--forget-fraction", "0.0001"), "comes to 0 of them"),
        (("--forget-fraction", "x"), "--forget-fraction"),
        (("--forget-fraction", "0.1", "--forget-seed", "-1"), "The seed of the draw should be 0 or more, not -1"),
        (("--forget-indices", "600"), "There is no row 600"),
        (("--forget-indices", "1,1"), "Row 1 is named more than once"),
        (("--forget-indices", ","), "The forget set is empty"),
        (("--forget-indices", "rows.txt"), "'rows.txt' is none (and there is no such file)"),
        (("--forget-indices", ",".join(map(str, range(600)))), "All 600 training images are to be forgotten"),
        (
            ("--forget-indices", "1", "--method", "remap"),
            "Remap forgets classes, and these are images of classes that stay",
        ),
        (("--forget-indices", "1,2", "--per-class"), "`per_class` takes directions for each class"),
        (("--forget-indices", "1", "--method", "fisher", "--zero-head-rows"), "`zero_head_rows` forgets a class"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_input_is_exit_code_2_by_name_and_nothing_written(command, tmp_path, options, message):
    code, out, err = command(*options, "--json")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# hf-esc train


@pytest.mark.parametrize("method", ["esc-t", "salun"])
def test_train_forgets_images(hf_esc, clothes, tmp_path, method):
    common = ("--model", "embedded/resnet", "--dataset", clothes, "--output_dir", tmp_path, "--json", "True")
    settings = ("--method", method, "--max_steps", 2, "--eval_strategy", "epoch", "--report_to", "none")
    settings += ("--tau", "0.8") if method == "esc-t" else ()
    code, out, err = hf_esc("train", *common, *settings, "--forget_fraction", "0.05", "--forget-seed", "1")
    assert code == 0, err
    result = json.loads(out)
    assert (result["scenario"], result["forget"], result["num_forget"]) == ("images", None, 30)
    assert result["after"]["forget_test"] is None
    assert "incomplete" not in err
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.erasures[0]["scenario"] == "images"
    code, _, err = hf_esc("train", *common, *settings, "--forget_indices", "600", "--overwrite", "True")
    assert code == 2


# hf-esc evaluate


def test_evaluate_looks_at_the_rows(hf_esc, clothes, data, tmp_path):
    arguments = ("--dataset", clothes, "--output", tmp_path, "--forget-indices", listed(ROWS), "--json")
    code, out, _ = hf_esc("erase", "embedded/resnet", *arguments)
    assert code == 0
    erased = json.loads(out)
    common = ("evaluate", tmp_path, "--dataset", clothes, "--forget-indices", listed(ROWS))
    code, out, err = hf_esc(*common, "--probes", "none", "--json")
    assert code == 0, err
    head = json.loads(out)
    assert (head["forget"], head["forget_rows"]) == ([], ROWS)
    assert head["accuracies"] == {"original": erased["before"], "erased": erased["after"]}
    code, out, err = hf_esc(*common, "--seeds", 1, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["forget"], report["num_forget_train"], report["num_forget_test"]) == ([], len(ROWS), 0)
    assert report["models"]["model"]["accuracies"] == pytest.approx(erased["after"])
    code, out, _ = hf_esc(*common, "--probes", "none")
    assert f"forgotten: {len(ROWS)} training images" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--forget-indices", "600"), "There is no row 600"),
        (("--forget-indices", "1", "--forget", "Bag"), "in one way"),
        (("--forget-fraction", "2"), "above 0 and below 1"),
        (("--forget-fraction", "0.1", "--curve"), "--curve is that of classes"),
        (("--forget-fraction", "0.1", "--attacks", "strip"), "Of images of all classes there is none to get back"),
    ],
    ids=str,
)
def test_evaluate_refuses_what_does_not_fit(hf_esc, clothes, options, message):
    code, out, err = hf_esc("evaluate", "embedded/resnet", "--dataset", clothes, *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_a_data_set_without_other_label_columns_in_the_way(hf_esc, data, tmp_path):
    """Two columns that could hold labels matter for classes alone, where one of them is named."""
    both = data.train.add_column("category", data.train["label"])
    DatasetDict(train=both).save_to_disk(tmp_path / "data")
    arguments = ("--dataset", tmp_path / "data", "--label-column", "label", "--output", tmp_path / "out", "--json")
    code, _, err = hf_esc("erase", "embedded/resnet", *arguments, "--forget-indices", "1,2,3", "--no-evaluate")
    assert code == 0, err
