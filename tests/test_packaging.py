"""
The wheel works outside of the checkout, with the metrics and the embedded default.

The tests marked `results` run none of the code: the committed numbers are good enough, and are those in the docs.
"""

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built wheel unpacked, as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # The checkout as git has it: build leaves nothing in the tree, and files that git ignores do not get in.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [name for name in tracked.stdout.split("\0") if name] or [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()
    ]
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-q",
        "-w",
        folder,
    ]
    run = subprocess.run([*command, source], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def from_the_wheel(site, elsewhere):
    """Runs code in a folder where hf_esc comes from the wheel alone, and returns what it printed."""
    path = "sys.path.insert(0, site)\nimport hf_esc\nassert 'site/hf_esc' in hf_esc.__file__, hf_esc.__file__\n"
    return lambda code, folder: elsewhere(path + code, folder, site=site)["printed"]


@pytest.mark.slow
def test_the_wheel_holds_what_it_should_and_no_more(site):
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    for name in (
        "hf_esc/py.typed",
        "hf_esc/embedded/fashion_mnist/train.parquet",
        "hf_esc/hub/card_template.md",
        "hf_esc/embedded/LICENSE",
        "hf_esc/embedded/vit/model.safetensors",
        "hf_esc/embedded/all-cnn/training.json",
        "hf_esc/embedded/resnet/preprocessor_config.json",
        "hf_esc/metrics/hm_score/hm_score.py",
        "hf_esc/metrics/hm_score/README.md",
        "hf_esc/metrics/kr_score/README.md",
        "hf_esc/metrics/kr_score/app.py",
        "hf_esc/metrics/kr_score/kr_score.py",
        "hf_esc/metrics/kr_score/requirements.txt",
        "hf_esc/space/app.py",
        "hf_esc/space/forgetting.py",
        "hf_esc/space/README.md",
    ):
        assert name in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"hf_esc"}
    size = sum((site / name).stat().st_size for name in names if "fashion_mnist" in name)
    assert size <= 5e6
    for model, limit in (("vit", 2.5e6), ("all-cnn", 1.5e6), ("resnet", 1.5e6)):
        assert (site / f"hf_esc/embedded/{model}/model.safetensors").stat().st_size <= limit


def test_the_wheel_erases_in_an_empty_folder(from_the_wheel, tmp_path):
    code = """
from hf_esc.cli import main
sys.argv = ["hf-esc", "erase", "embedded/resnet", "--dataset", "embedded", "--forget", "Trouser", "--output", "out",
            "--no-evaluate", "--json"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
"""
    answer = json.loads(from_the_wheel(code, tmp_path))
    assert (answer["rank"], answer["features"], answer["num_forget"]) == (1, 128, 700)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_metric_in_the_wheel_loads(from_the_wheel, tmp_path):
    code = """
import evaluate, pathlib, hf_esc
metric = evaluate.load(str(pathlib.Path(hf_esc.__file__).parent / "metrics" / "hm_score"))
print(metric.compute(predictions=[1, 0, 2, 2], references=[0, 0, 1, 2], forget_labels=[0]))
"""
    assert from_the_wheel(code, tmp_path).strip() == "{'forget': 50.0, 'retain': 50.0, 'hm': 50.0}"


def test_the_metrics_in_the_wheel_load_by_name(from_the_wheel, tmp_path):
    code = """
import evaluate, hf_esc
from hf_esc.evaluation.metric_folders import metric_folder
for name in ("hm_score", "kr_score"):
    assert str(metric_folder(name)).endswith(f"site/hf_esc/metrics/{name}"), metric_folder(name)
print(evaluate.load("hm_score").compute(predictions=[1, 0, 2, 2], references=[0, 0, 1, 2], forget_labels=[0])["hm"])
train = {"train_features": 20 * [[0.0], [1.0]], "train_labels": 20 * [0, 1]}
test = {"predictions": [[0.0], [1.0], [1.0]], "references": [0, 0, 1]}
print(evaluate.load("kr_score").compute(**train, **test, forget_labels=[0], probe="knn")["forget_test"])
"""
    assert from_the_wheel(code, tmp_path).split() == ["50.0", "50.0"]


@pytest.mark.results
def test_the_embedded_models_are_as_good_as_their_logs_say():
    for model, least in (("vit", 82), ("all-cnn", 86), ("resnet", 86)):
        log = json.loads((ROOT / f"hf_esc/embedded/{model}/training.json").read_text())
        assert log["accuracy"]["embedded_test"] >= least
        assert log["train_images"] == 20_000
        assert log["seconds"] <= 40 * 60


@pytest.mark.results
def test_tables_in_the_docs_are_those_of_the_results(monkeypatch, capsys):
    script = ROOT / "benchmarks" / "report.py"
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code, capsys.readouterr().out
