"""Every way to load an erased checkpoint gives the erased model, and no way loads a damaged one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hf_esc import ESCFeatureModel, ESCModel, erase
from hf_esc.data import image_batches
from hf_esc.embedded import embedded_models
from hf_esc.errors import CheckpointError
from hf_esc.loading import load_classifier

TROUSER = 1
WAYS = {
    "ESCModel": ESCModel.from_pretrained,
    "ESCFeatureModel": ESCFeatureModel.from_pretrained,
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "ignore_mismatched_sizes": lambda path: ESCModel.from_pretrained(path, ignore_mismatched_sizes=True),
    "device_map": lambda path: ESCModel.from_pretrained(path, device_map="cpu"),
    "bfloat16": lambda path: ESCModel.from_pretrained(path, dtype=torch.bfloat16),
    "load_classifier": load_classifier,
    "pipeline image-classification": lambda path: pipeline("image-classification", model=str(path)),
    "pipeline image-feature-extraction": lambda path: pipeline("image-feature-extraction", model=str(path)),
}


@pytest.fixture(scope="module", params=embedded_models())
def checkpoint(request, fashion, tmp_path_factory):
    """An erased embedded model, its folder, and the picture of a forgotten class."""
    folder = tmp_path_factory.mktemp("erased") / request.param.replace("/", "-")
    forget = fashion.select(fashion.train, [TROUSER]).select(range(200))
    erased = erase(load_classifier(request.param, device="cpu"), forget)
    erased.save_pretrained(folder)
    return erased, folder, forget[0]["image"]


@torch.no_grad()
def expected(erased, image):
    return erased(**erased.image_processor(images=image.convert("RGB"), return_tensors="pt"))


def test_auto_classes_and_pipelines_agree(checkpoint):
    erased, folder, image = checkpoint
    output = expected(erased, image)
    label = erased.config.id2label[int(output.logits.argmax())]
    answers = pipeline("image-classification", model=str(folder))(image, top_k=10)
    assert answers[0]["label"] == label
    scores = {answer["label"]: answer["score"] for answer in answers}
    in_order = torch.tensor([scores[erased.config.id2label[i]] for i in range(10)])
    torch.testing.assert_close(in_order, output.logits[0].softmax(0), atol=1e-5, rtol=1e-4)
    for pool in (False, True):
        features = pipeline("image-feature-extraction", model=str(folder), pool=pool)(image)
        torch.testing.assert_close(torch.tensor(features), output.pooler_output, atol=1e-4, rtol=1e-4)
    inside = torch.tensor(features) @ erased.projections[0].factors[0].basis
    assert inside.abs().max() < 1e-4 * output.pooler_output.norm()


def test_folder_holds_processor_labels_ledger_and_no_path_of_this_machine(checkpoint):
    erased, folder, _ = checkpoint
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert config["id2label"]["1"] == "Trouser"
    assert config["architectures"] == ["ESCModel"]
    [record] = config["erasures"]
    assert (record["method"], record["p"], record["rank"], record["num_images"]) == ("esc", 1.5, 1, 200)
    assert (record["labels"], record["label_ids"]) == (["Trouser"], [TROUSER])
    assert set(record["versions"]) == {"hf_esc", "torch", "transformers"}
    assert type(AutoImageProcessor.from_pretrained(folder)) is type(erased.image_processor)
    assert str(Path(__file__).parents[1]) not in text


def test_saving_a_loaded_model_again_keeps_it_whole(checkpoint, tmp_path):
    _, folder, _ = checkpoint
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.iterdir()}


WITHOUT_HF_ESC = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_esc":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, again = sys.argv[1:]
image = Image.open("image.png")
trusted = {"trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained(folder, **trusted)
model.save_pretrained(again)
print(json.dumps({
    "class": type(model).__module__.split(".")[0],
    "top": pipeline("image-classification", model=folder, **trusted)(image, top_k=1)[0],
    "features": pipeline("image-feature-extraction", model=folder, **trusted)(image)[0],
    "auto_model": type(AutoModel.from_pretrained(folder, **trusted)).__name__,
    "again": type(AutoModelForImageClassification.from_pretrained(again, **trusted)).__name__,
    "hf_esc": any(name.split(".")[0] == "hf_esc" for name in sys.modules),
}))
"""


def run_without_hf_esc(script, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(cwd / "modules")
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_where_hf_esc_is_not_installed(checkpoint, tmp_path):
    """A process that cannot import hf_esc, with the files beside the weights alone."""
    erased, folder, image = checkpoint
    image.save(tmp_path / "image.png")
    run = run_without_hf_esc(WITHOUT_HF_ESC, folder, tmp_path / "again", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout)
    output = expected(erased, image)
    assert answer["class"] == "transformers_modules"
    assert not answer["hf_esc"]
    assert (answer["auto_model"], answer["again"]) == ("ESCFeatureModel", "ESCModel")
    assert answer["top"]["label"] == erased.config.id2label[int(output.logits.argmax())]
    torch.testing.assert_close(torch.tensor([answer["features"]]), output.pooler_output, atol=1e-4, rtol=1e-4)


def test_the_code_of_the_all_cnn_travels_with_its_checkpoints(tmp_path):
    load_classifier("embedded/all-cnn", device="cpu").save_pretrained(tmp_path / "model")
    script = WITHOUT_HF_ESC.split("from PIL")[0] + (
        "from transformers import AutoModelForImageClassification\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__module__, model.classifier.weight.shape)"
    )
    run = run_without_hf_esc(script, tmp_path / "model", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith("transformers_modules.model.")
    assert "torch.Size([10, 96])" in run.stdout


def damage(folder, target, basis=None, config=None):
    """A copy of a checkpoint with its basis (None: dropped) or its configuration changed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    if basis is not None:
        weights = load_file(target / "model.safetensors")
        weights["projections.0.factors.0.basis"] = basis(weights["projections.0.factors.0.basis"])
        weights = {name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        values = json.loads((target / "config.json").read_text())
        config(values)
        (target / "config.json").write_text(json.dumps(values))
    return target


def with_nan(basis):
    basis = basis.clone()
    basis[3, 0] = torch.nan
    return basis


DAMAGES = {
    "missing": {"basis": lambda basis: None},
    "zero": {"basis": torch.zeros_like},
    "scaled": {"basis": lambda basis: 0.9 * basis},
    "one column zero": {"basis": lambda basis: basis * torch.tensor([1.0, 0.0])},
    "not finite": {"basis": with_nan},
    "fewer columns": {"basis": lambda basis: basis[:, :1]},
    "no column": {"basis": lambda basis: basis[:, :0]},
    "fewer rows": {"basis": lambda basis: basis[:-1]},
    "transposed": {"basis": lambda basis: basis.T},
    "rank 0 in both": {"basis": lambda basis: basis[:, :0], "config": lambda c: c["factors"][0][0].update(rank=0)},
    "no factor": {"basis": lambda basis: None, "config": lambda c: c.update(factors=[[]])},
    "unknown factor": {"config": lambda c: c["factors"][0][0].update(type="rotated")},
    "no sites": {"config": lambda c: c.update(sites=[], factors=[])},
    "no factors": {"config": lambda c: c.pop("factors")},
    "no base": {"config": lambda c: c.pop("base_config")},
    "another module": {"config": lambda c: c["sites"][0].update(modules=["nowhere"])},
}


@pytest.fixture(scope="module")
def resnet_folder(resnet, fashion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("erased") / "resnet"
    erase(resnet, fashion.select(fashion.train, [TROUSER]).select(range(100)), rank=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_projection_does_not_load(resnet_folder, kind, way, tmp_path):
    broken = damage(resnet_folder, tmp_path / "broken", **DAMAGES[kind])
    with pytest.raises(ValueError) as caught:
        WAYS[way](broken)
    # A pipeline tries several classes and puts what they raise into an error of its own.
    assert isinstance(caught.value, CheckpointError) or "CheckpointError" in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "zero", "fewer columns", "no sites"])
def test_a_damaged_projection_does_not_load_without_hf_esc(resnet_folder, kind, tmp_path):
    broken = damage(resnet_folder, tmp_path / "broken", **DAMAGES[kind])
    run = run_without_hf_esc(WITHOUT_HF_ESC.replace("image = ", "image = None #"), broken, "unused", cwd=tmp_path)
    assert run.returncode == 1
    assert "CheckpointError" in run.stderr


@pytest.mark.parametrize("way", WAYS)
def test_an_undamaged_one_loads(resnet_folder, way, tmp_path):
    WAYS[way](damage(resnet_folder, tmp_path / "whole", basis=torch.clone))


def test_erased_embedded_models_forget_the_class_and_keep_the_rest(checkpoint, fashion):
    erased, folder, _ = checkpoint
    loaded = load_classifier(folder, device="cpu")
    rows = fashion.test.shuffle(seed=0).select(range(400))
    right = {True: [], False: []}
    with torch.no_grad():
        for batch in image_batches(rows, erased.image_processor, image_column="image", label_column="label"):
            hit = loaded(pixel_values=batch["pixel_values"]).logits.argmax(1) == batch["labels"]
            for forgotten in (True, False):
                right[forgotten].append(hit[(batch["labels"] == TROUSER) == forgotten])
    assert torch.cat(right[True]).float().mean() < 0.1
    assert torch.cat(right[False]).float().mean() > 0.78


def test_a_revision_of_a_repository_is_loaded(resnet_folder, tmp_path):
    """From the cache of the Hub's client, in its own layout, without a network."""
    repository = tmp_path / "models--me--erased"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    for number, revision in enumerate(("main", "two-requests")):
        (repository / "refs" / revision).write_text(f"{number}" * 40)
        snapshot = repository / "snapshots" / (f"{number}" * 40)
        damage(resnet_folder, snapshot, config=lambda c, n=number: c["erasures"].extend(c["erasures"] * n))
    for way in (AutoModelForImageClassification.from_pretrained, AutoModel.from_pretrained, load_classifier):
        for arguments, requests in (({}, 1), ({"revision": "two-requests"}, 2)):
            model = way("me/erased", cache_dir=tmp_path, **arguments)
            assert len(model.config.erasures) == requests
