"""`hf-esc erase --method esc-t` and `hf-esc train`: a mask from the command line, and what is no mask refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainingArguments

from hf_esc import ESCTTrainingArguments

pytestmark = pytest.mark.slow

ERASE = ("erase", "embedded/resnet", "--forget", "Trouser", "--method", "esc-t", "--no-evaluate")
TRAIN = ("train", "--model", "embedded/resnet", "--forget", "Trouser", "--evaluate", "False")


def mask_of(folder):
    model = AutoModelForImageClassification.from_pretrained(folder)
    [factor] = model.projections[0].factors
    return model, factor.mask


def test_erase_trains_a_mask_and_says_so(hf_esc, clothes, tmp_path):
    arguments = ("embedded/resnet", "--dataset", clothes, "--forget", "Trouser", "--method", "esc-t")
    code, out, _ = hf_esc("erase", *arguments, "--output", tmp_path / "model", "--json", "--tau", "0.8")
    assert code == 0
    result = json.loads(out)
    assert (result["method"], result["tau"], result["features"], result["complete"]) == ("esc-t", 0.8, 128, True)
    assert "rank" not in result
    assert result["before"]["forget_train"] > 90 > 0 == result["after"]["forget_train"]
    assert result["after"]["retain_train"] > result["before"]["retain_train"] - 2
    model, mask = mask_of(tmp_path / "model")
    [record] = model.config.erasures
    assert (record["method"], record["steps"], record["unchanged"]) == ("esc-t", result["steps"], 0)
    assert result["cut"] == [pytest.approx((mask == 0).double().mean().item())]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no checkpoint, no log, no cache


def test_erase_for_people_names_the_cut_entries(hf_esc, clothes, tmp_path):
    code, out, err = hf_esc(*ERASE, "--dataset", clothes, "--output", tmp_path / "model", "--device", "cpu")
    assert code == 0
    _, mask = mask_of(tmp_path / "model")
    assert f"a mask that cuts {int((mask == 0).sum())} of 16384 entries" in out
    assert "Hidden from the head. A probe" in out
    assert "'loss'" not in out + err


def test_seed_and_epochs_are_those_of_the_training(hf_esc, clothes, tmp_path):
    masks = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        settings = ("--seed", seed, "--epochs", 30)
        code, _, _ = hf_esc(*ERASE, "--dataset", clothes, "--output", tmp_path / name, *settings)
        assert code == 0
        model, mask = mask_of(tmp_path / name)
        [record] = model.config.erasures
        assert record["seed"] == seed
        assert record["max_steps"] == 30 * -(-record["num_images"] // 64)
        masks.append(mask)
    assert torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("esc-t", ("--rank", "2"), "--rank belongs to `--method esc`"),
        ("esc-t", ("--p", "3"), "--p belongs to `--method esc`"),
        ("esc-t", ("--per-class",), "--per-class belongs to `--method esc`"),
        ("esc", ("--tau", "0.8"), "--tau belongs to `--method esc-t`"),
        ("esc", ("--seed", "1"), "--seed belongs to `--method esc-t`"),
        ("esc-t", ("--tau", "1.5"), "`tau` is a threshold from 0"),
        ("esc-t", ("--epochs", "0"), "epochs"),
    ],
)
def test_options_that_do_not_fit_the_method_are_refused(hf_esc, clothes, tmp_path, method, option, message):
    arguments = ("embedded/resnet", "--dataset", clothes, "--forget", "Trouser", "--output", tmp_path / "model")
    code, out, err = hf_esc("erase", *arguments, "--method", method, *option)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_train_takes_every_argument_and_prints_one_json_object(hf_esc, clothes, tmp_path):
    output = tmp_path / "out"
    settings = ("--tau", "0.6", "--per_device_train_batch_size", "16", "--save_steps", "5", "--json", "True")
    code, out, err = hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", output, *settings)
    assert code == 0
    result = json.loads(out)
    assert (result["method"], result["tau"], result["complete"]) == ("esc-t", 0.6, True)
    assert "'forget_right'" in err  # the log
    assert any(output.glob("checkpoint-*/mask.safetensors"))
    mask_of(output)
    # Again into the same folder: only to go on, or with leave.
    code, _, err = hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", output)
    assert code == 2
    assert "--resume_from_checkpoint True" in err
    resume = ("--resume_from_checkpoint", "True", "--json", "True")
    code, out, _ = hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", output, *settings[:-2], *resume)
    assert code == 0
    assert json.loads(out)["steps"] == result["steps"]


def test_train_help_lists_the_arguments_and_wrong_ones_are_refused(hf_esc, clothes, tmp_path):
    code, out, _ = hf_esc("train", "--help")
    assert code == 0
    for name in ("--tau", "--learning_rate", "--report_to", "--push_to_hub", "--forget"):
        assert name in out
    for wrong, message in (
        (("--tau", "2"), "`tau` is a threshold"),
        (("--nonsense", "2"), "nonsense"),
        (("--loss_normalization", "sum"), "loss_normalization"),
        (("--forget", "Hat"), "no label 'Hat'"),
    ):
        code, out, err = hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", tmp_path / "out", *wrong)
        assert (code, out) == (2, "")
        assert message in err


def test_train_does_not_write_over_a_model_unasked(hf_esc, clothes, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    code, _, err = hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", tmp_path)
    assert code == 2
    assert "--overwrite True" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_example_does_what_its_docstring_says(clothes, elsewhere, tmp_path):
    arguments = ["--model", "embedded/resnet", "--dataset", clothes, "--forget", "Trouser", "--output_dir", tmp_path]
    code = """
    import runpy
    sys.path.insert(0, root)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
    """
    words = ["examples/run_esc_t.py", *map(str, arguments), "--disable_tqdm", "True"]
    root = Path(__file__).parents[1]
    printed = elsewhere(code, root, root=root, words=words)["printed"]
    assert "0.0% of the forget images are still classified as such" in printed
    mask_of(tmp_path)


def test_the_defaults_that_differ_are_those_of_the_docstring():
    ours, theirs = ESCTTrainingArguments("x"), TrainingArguments("x")
    differ = {
        name
        for name in theirs.__dataclass_fields__
        if getattr(ours, name) != getattr(theirs, name) and not name.startswith("_")
    } - {"logging_dir", "run_name"}
    text = ESCTTrainingArguments.__doc__.split("**The step size.**")[0]
    assert differ == {name for name in differ if f"`{name}`" in text}


def test_train_takes_all_classes_of_a_repeated_option_and_wants_a_folder(hf_esc, clothes, tmp_path):
    twice = ("--forget", "Bag", "--json", "True", "--output_dir", tmp_path / "out")
    code, out, _ = hf_esc(*TRAIN, "--dataset", clothes, *twice)
    assert code == 0
    assert json.loads(out)["forget"] == ["Trouser", "Bag"]
    code, _, err = hf_esc(*TRAIN, "--dataset", clothes)
    assert code == 2
    assert "--output_dir" in err


def test_train_does_not_go_on_from_nothing_or_with_other_settings(hf_esc, clothes, tmp_path):
    resume = ("--resume_from_checkpoint", "True", "--output_dir", tmp_path)
    code, _, err = hf_esc(*TRAIN, "--dataset", clothes, *resume)
    assert code == 2
    assert "There is no checkpoint" in err
    assert hf_esc(*TRAIN, "--dataset", clothes, "--output_dir", tmp_path, "--save_steps", "2")[0] == 0
    for other, change in (
        (("--tau", "0.8"), "tau was 0.7 and is 0.8"),
        (("--learning_rate", "1"), "learning_rate was None and is 1.0"),
    ):
        code, _, err = hf_esc(*TRAIN, "--dataset", clothes, *resume, *other)
        assert code == 2
        assert f"is of another run: {change}" in err
