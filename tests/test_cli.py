"""hf-esc: data on stdout, messages on stderr, an exit code to trust, and an output folder whole or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor, ViTModel

from hf_esc import ESCModel
from hf_esc.cli import main
from hf_esc.embedded import resolve_model
from hf_esc.version import __version__

from .pictures import encoded, labelled, picture
from .processes import COMMAND
from .tiny import ranks, tiny

ROOT = Path(__file__).parents[1]

ACCURACIES = {
    "forget_train",
    "retain_train",
    "forget_test",
    "retain_test",
    "hm_train",
    "hm_test",
    "any_train",
    "any_test",
}


@pytest.fixture(scope="module")
def erased(tmp_path_factory, clothes, elsewhere):
    """A folder and what `hf-esc erase --json` printed for it."""
    output = tmp_path_factory.mktemp("erased") / "model"
    arguments = ("embedded/resnet", "--dataset", clothes, "--forget", "trouser", "--output", output, "--json")
    done = elsewhere(COMMAND, root=ROOT, arguments=["erase", *map(str, arguments)])
    return output, json.loads(done["printed"])  # one object and nothing else, or this fails


@pytest.mark.slow
def test_erase_prints_one_json_object_with_what_was_measured(erased, clothes):
    output, result = erased
    assert set(result) == {
        *(
            "model",
            "dataset",
            "forget",
            "before",
            "after",
            "earlier",
            "brought_back",
            "scenario",
            "method",
            "rank",
            "features",
            "num_forget",
            "unchanged_by_label",
            "complete",
            "unchanged",
            "seconds",
            "output",
        )
    }
    assert (result["model"], result["dataset"], result["output"]) == ("embedded/resnet", clothes, str(output))
    assert (result["forget"], result["rank"], result["features"]) == (["Trouser"], 1, 128)
    assert set(result["before"]) == set(result["after"]) == ACCURACIES
    assert set(result["seconds"]) == {"load", "erase", "save", "evaluate"}
    assert result["unchanged"] < 0.1
    assert result["before"]["forget_test"] > 90
    assert result["after"]["forget_test"] < 10
    assert result["after"]["retain_test"] > result["before"]["retain_test"] - 3
    assert result["after"]["hm_test"] > 85 > 20 > result["before"]["hm_test"]


@pytest.mark.slow
def test_what_was_written_loads_and_says_the_same(erased):
    output, result = erased
    model = AutoModelForImageClassification.from_pretrained(output)
    assert isinstance(model, ESCModel)
    assert ranks(model) == [result["rank"]]
    assert model.config.erasures[0]["num_images"] == result["num_forget"]
    assert [path.name for path in output.parent.iterdir()] == ["model"]


@pytest.mark.slow
def test_evaluate_measures_the_same_with_the_classes_from_the_ledger(hf_esc, erased, clothes):
    output, result = erased
    arguments = ("evaluate", output, "--dataset", clothes, "--probes", "none")
    code, out, _ = hf_esc(*arguments, "--json", "--batch-size", 50)
    assert code == 0
    measured = json.loads(out)
    assert measured["forget"] == ["Trouser"]
    assert measured["accuracies"] == {"original": result["before"], "erased": result["after"]}
    code, out, _ = hf_esc(*arguments)
    assert code == 0
    assert f"{result['after']['retain_test']:.2f}" in out
    assert "original" in out


def test_evaluate_of_a_model_that_is_not_erased(hf_esc, clothes):
    arguments = ("--dataset", clothes, "--forget", "Trouser,Bag", "--probes", "none", "--json")
    code, out, _ = hf_esc("evaluate", "embedded/resnet", *arguments)
    assert code == 0
    measured = json.loads(out)
    assert (measured["model"], measured["forget"]) == ("embedded/resnet", ["Trouser", "Bag"])
    assert set(measured["accuracies"]["model"]) == ACCURACIES


@pytest.mark.slow
def test_a_second_request_is_measured_without_the_first_ones_class(hf_esc, erased, clothes, tmp_path):
    arguments = (erased[0], "--dataset", clothes, "--forget", "Bag", "--output", tmp_path, "--json")
    code, out, _ = hf_esc("erase", *arguments)
    assert code == 0
    result = json.loads(out)
    assert result["forget"] == ["Bag"]
    # A tenth of the others are trousers, all of them mistaken by now.
    assert min(result["before"]["retain_test"], result["after"]["retain_test"]) > 83
    code, out, _ = hf_esc("evaluate", tmp_path, "--dataset", clothes, "--probes", "none", "--json")
    assert json.loads(out)["forget"] == ["Trouser", "Bag"]


def test_names_with_synonyms_come_back_from_the_ledger(hf_esc, tmp_path):
    names = {0: "cat, Felis catus", 1: "dog, hound", 2: "bird"}
    model = tiny(names.values())
    model.save_pretrained(tmp_path / "original")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "original")
    labelled([0, 1, 2] * 4, ["bird", "dog", "cat"]).to_parquet(tmp_path / "data" / "train.parquet")
    common = ("--dataset", tmp_path / "data", "--json")
    arguments = (tmp_path / "original", "--forget", "cat", "--rank", 1, "--output", tmp_path / "erased", *common)
    code, out, _ = hf_esc("erase", *arguments)
    assert (code, json.loads(out)["forget"]) == (3, ["cat, Felis catus"])  # the head of this model knows nothing
    code, out, _ = hf_esc("evaluate", tmp_path / "erased", "--probes", "none", *common)
    assert (code, json.loads(out)["forget"]) == (0, ["cat"])


def test_erase_for_people(hf_esc, clothes, tmp_path):
    code, out, err = hf_esc(
        "erase", "embedded/resnet", "--dataset", clothes, "--forget", "1,Bag", "--rank", "auto", "--output", tmp_path
    )
    assert (code, "Error" in err) == (0, False)
    assert "Erased Trouser, Bag from embedded/resnet" in out
    assert "rank 3 of 128 feature directions" in out  # with 2, too many of one of the classes stay
    assert "A probe trained on the features may still read it" in out
    assert str(tmp_path) in out


def test_an_incomplete_erasure_is_a_warning_on_stderr(hf_esc, clothes, tmp_path):
    arguments = ("embedded/resnet", "--dataset", clothes, "--forget", "Trouser,Bag", "--output", tmp_path, "--json")
    code, out, err = hf_esc("erase", *arguments, "--no-evaluate", "--rank", "1")
    assert code == 3
    assert "Warning: The erasure is incomplete: with rank 1" in err
    result = json.loads(out)
    assert result["unchanged"] > 0.5
    assert result["complete"] is False
    assert max(result["unchanged_by_label"]) > 0.5
    allowed = ("--no-evaluate", "--rank", "1", "--overwrite", "--allow-incomplete")
    code, out, _ = hf_esc("erase", *arguments[:-1], *allowed)
    assert code == 0
    assert "NOT ERASED WHOLE" in out
    assert "Hidden from the head" not in out
    assert result["before"] is result["after"] is None


def test_overwrite_takes_the_place_of_a_model(hf_esc, clothes, tmp_path):
    arguments = (
        "erase",
        "embedded/resnet",
        "--dataset",
        clothes,
        "--output",
        tmp_path,
        "--no-evaluate",
        "--json",
        "--forget",
    )
    assert hf_esc(*arguments, "Bag")[0] == 0
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    code, _, err = hf_esc(*arguments, "Trouser")
    assert (code, "is not empty. Pass --overwrite" in err) == (2, True)
    assert hf_esc(*arguments, "Trouser", "--overwrite")[0] == 0
    assert not (tmp_path / "model-00001-of-00002.safetensors").exists()
    assert json.loads((tmp_path / "config.json").read_text())["erasures"][0]["labels"] == ["Trouser"]


# Bad input: exit code 2, a message that names the problem, and nothing written.

BAD = {
    "unknown label": ({"forget": "Trousers"}, ["no label 'Trousers'", "Near it: 'Trouser'"]),
    "a word of a label": ({"forget": "boot"}, ["no label 'boot'. Near it: 'Ankle boot'"]),
    # The label is looked up before the weights are read: here there are none.
    "unknown label of a large model": ({"forget": "boot", "model": "{tmp}/no_weights"}, ["Near it: 'Ankle boot'"]),
    "a model of text": ({"model": "{tmp}/bert"}, ["is a bert model", "no image classification"]),
    "a configuration of what has none": ({"dataset": "embedded", "dataset-config": "a"}, ["has no configurations"]),
    "no such configuration": ({"dataset-config": "small"}, ["small"]),
    "no label": ({"forget": ","}, ["No label to forget"]),
    "number of no class": ({"forget": "10"}, ["no class 10"]),
    "all classes": ({"forget": "0,1,2,3,4,5,6,7,8,9"}, ["All 10 classes", "leaves nothing to keep"]),
    "rank 0": ({"rank": "0"}, ["`rank=0`", "erases nothing"]),
    "rank of all": ({"rank": "128"}, ["`rank=128`", "leaves no feature"]),
    "rank beyond the images": ({"rank": "100"}, ["Rank 100", "span"]),
    "rank no number": ({"rank": "many"}, ["--rank", "'many'"]),
    "p 0": ({"p": "0"}, ["`p=0.0`", "above 0"]),
    "p too small": ({"p": "0.5"}, ["`p=0.5`", "erases nothing", "`p=0.79`"]),
    "p of all": ({"p": "100"}, ["`p=100.0`"]),
    "p not finite": ({"p": "nan"}, ["percentage", "nan"]),
    "p no number": ({"p": "much"}, ["--p"]),
    "batch of 0": ({"batch-size": "0"}, ["--batch-size"]),
    "no model": ({"model": "nowhere/at all"}, ["No image classifier", "nowhere/at all"]),
    "no embedded model": ({"model": "embedded/bert"}, ["no embedded model", "embedded/resnet"]),
    "a backbone": ({"model": "{tmp}/backbone"}, ["no weights for", "classifier.weight"]),
    "no data": ({"dataset": "{tmp}/nowhere"}, ["cannot be loaded", "nowhere"]),
    "other labels": ({"dataset": "{tmp}/animals"}, ["labels are not the model's", "'cat'", "'Ankle boot'"]),
    "other count of labels": ({"dataset": "{tmp}/numbers"}, ["3 classes", "10", "equal counts"]),
    "broken image": ({"dataset": "{tmp}/broken"}, ["Image 1 (trouser.png) cannot be read"]),
    "broken image to keep": (
        {"dataset": "{tmp}/broken", "forget": "T-shirt/top", "rank": "1"},
        ["Image 1 (trouser.png) cannot be read", "or erase without accuracies: `--no-evaluate`"],
    ),
    "no image of the class": ({"forget": "Trouser", "dataset": "{tmp}/no_trousers"}, ["forget set is empty"]),
    "no such column": ({"image-column": "photo"}, ["no column 'photo'", "'image', 'label'"]),
    "column without labels": ({"label-column": "image"}, ["not one label per image"]),
    # The output is looked at before the work: here there is not even a model.
    "output is a file": ({"output": "{tmp}/file", "model": "nowhere"}, ["is a file. Name a folder"]),
    "output is no model": (
        {"output": "{tmp}/documents", "overwrite": None, "model": "nowhere"},
        ["no model, which --overwrite leaves alone"],
    ),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, fashion):
    """What bad arguments name."""
    folder = tmp_path_factory.mktemp("shelf")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder / "backbone")
    names = fashion.label_names
    good = encoded(picture())
    broken = labelled([1, 1, 0], names).to_dict()
    broken["image"] = [good, {"bytes": good["bytes"][:60], "path": "trouser.png"}, good]
    features = labelled([0], names).features
    for name, split in {
        "animals": labelled([0, 1, 2], ["cat", "dog", "bird"]),
        "numbers": labelled([0, 1, 2]),
        "broken": type(fashion.train).from_dict(broken, features=features),
        "no_trousers": labelled([0, 2, 3], names),
    }.items():
        test = labelled([0, 1], names)
        if split.features["label"] != test.features["label"]:
            test = split
        DatasetDict(train=split, test=test).save_to_disk(folder / name)
    (folder / "file").touch()
    for name in ("no_weights", "bert"):
        (folder / name).mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    shutil.copy(Path(resolve_model("embedded/resnet")) / "config.json", folder / "no_weights")
    (folder / "documents").mkdir()
    (folder / "documents" / "thesis.tex").touch()
    return folder


def contents(folder) -> dict:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "cache-" not in path.name}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_exit_code_2_and_a_message_and_nothing_written(hf_esc, clothes, shelf, tmp_path, case):
    changes, expected = BAD[case]
    options = {"model": "embedded/resnet", "dataset": clothes, "forget": "Trouser", "output": "{new}/model"} | changes
    options = {name: value and value.format(tmp=shelf, new=tmp_path) for name, value in options.items()}
    model = options.pop("model")
    before = contents(shelf)
    arguments = [part for name, value in options.items() for part in (f"--{name}", value) if part is not None]
    code, out, err = hf_esc("erase", model, *arguments, "--json")
    assert (code, out) == (2, "")
    message = " ".join(err.split())
    for words in expected:
        assert words in message
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert contents(shelf) == before


def test_missing_options_and_commands_are_exit_code_2(hf_esc, clothes):
    both = ("--dataset", clothes, "--output", "new")
    for arguments, words in (
        (("erase", "embedded/resnet", *both), "Name it with `--forget LABEL`"),
        (("erase",), "MODEL"),
        (("forget",), "forget"),
        (("erase", "embedded", *both, "--forget", "Ankle", "boot"), "quotes: --forget 'Ankle boot'"),
        (("erase", "embedded", *both, "--method", "delete", "--forget", "Ankle", "boot"), "--forget 'Ankle boot'"),
        (("evaluate", "embedded", "--dataset", "my", "photos"), "quotes: --dataset 'my photos'"),
        (("verify", "my", "model"), "What is 'model'? Names with spaces need quotes"),
        (("evaluate", "embedded/resnet", "--dataset", clothes), "Name it with `--forget LABEL`"),
        (("evaluate", "embedded/resnet", "--dataset", clothes, "--forget", "Hat"), "no label 'Hat'"),
    ):
        code, out, err = hf_esc(*arguments)
        assert (code, out) == (2, "")
        assert words in err


def test_ctrl_c_is_130_and_leaves_nothing(hf_esc, clothes, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ESCModel, "check_projections", interrupted)  # while it is being saved
    code, out, _ = hf_esc(
        "erase", "embedded/resnet", "--dataset", clothes, "--forget", "Bag", "--output", tmp_path / "model"
    )
    assert (code, out) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch():
    code = (
        "import sys; from hf_esc.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["erase", "--help"], ["evaluate", "-h"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr) == (0, "[]\n")
        assert "Usage" in done.stdout


def test_version(hf_esc):
    assert hf_esc("--version")[:2] == (0, f"{__version__}\n")


def test_without_a_test_split_its_numbers_are_null(hf_esc, tmp_path, fashion):
    rows = fashion.train.select(range(200))
    DatasetDict(train=rows).save_to_disk(tmp_path / "data")
    arguments = ("--dataset", tmp_path / "data", "--forget", "Trouser", "--output", tmp_path / "out", "--json")
    code, out, _ = hf_esc("erase", "embedded/resnet", *arguments)
    assert code == 0
    for when in ("before", "after"):
        values = json.loads(out)[when]
        assert values["forget_test"] is values["retain_test"] is values["hm_test"] is None
        assert values["retain_train"] > 80


KILLED = """
import glob, time
if (child := os.fork()) == 0:
    try:
        exec(command, globals() | {"root": root, "arguments": arguments})
    finally:
        os._exit(1)
while not glob.glob(".out.unfinished-*/new/config.json"):
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "it has ended"
    time.sleep(0.02)
os.kill(child, 9)
answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_a_run_killed_while_it_works_leaves_no_folder(elsewhere, tmp_path):
    arguments = ["erase", "embedded/resnet", "--dataset", "embedded", "--forget", "Trouser", "--output", "out"]
    ended = elsewhere(KILLED, tmp_path, command=COMMAND, root=ROOT, arguments=arguments)
    assert ended["answer"] == -9
    assert not (tmp_path / "out").exists()


@pytest.fixture
def told_of_another(monkeypatch):
    """The environment of a shell on a cluster that sets what a launcher sets. No other process is there."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["--help"], 0), (["erase", "-h"], 0), (["verify", "nowhere"], 2), ([], 2)],
)
def test_what_only_tells_waits_for_no_other_process(told_of_another, monkeypatch, capsys, words, code):
    monkeypatch.setattr("torch.distributed.rendezvous", lambda _: pytest.fail("it waits"))
    monkeypatch.setattr(sys, "argv", ["hf-esc", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0) == code
    assert "Waiting" not in capsys.readouterr().err


def test_a_command_says_that_it_waits(told_of_another, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.distributed.rendezvous", interrupted)
    monkeypatch.setattr(sys, "argv", ["hf-esc", "erase", "embedded"])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert capsys.readouterr().err == "Waiting for the other process.\n"
