"""Every way to load an erased checkpoint gives the erased model."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hf_esc import ESCFeatureModel, ESCModel, ESCTTrainer, ESCTTrainingArguments, erase
from hf_esc.data import image_batches
from hf_esc.embedded import embedded_models
from hf_esc.erasure.wrapping import wrap
from hf_esc.loading import load_classifier, load_processor
from hf_esc.modeling.projection import LowRankFactor, MaskedFactor, product

pytestmark = pytest.mark.slow

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
METHODS = {"esc": ["low_rank"], "esc-t": ["masked"]}
ALL = [(name, method) for name in embedded_models() for method in METHODS]


def erased_by(method, model, forget_set, folder):
    if method == "esc":
        return erase(model, forget_set)
    settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none"}
    trainer = ESCTTrainer(model, ESCTTrainingArguments(folder, **settings), forget_set)
    trainer.train()
    return trainer.erased_model


def with_factors(resnet, kinds, rank=2):
    """The embedded ResNet (d = 128) with random factors."""
    generator = torch.Generator().manual_seed(0)
    factors = []
    for kind in kinds:
        basis = torch.linalg.qr(torch.randn(128, 128, generator=generator)).Q
        mask = torch.rand(128, 128, generator=generator) > 0.01
        factors.append(MaskedFactor.of(basis, mask) if kind == "masked" else LowRankFactor.of(basis[:, :rank].clone()))
    model = wrap(copy.deepcopy(resnet), [{"modules": ["classifier.1"], "dim": 128, "axis": -1}])
    model.set_factors([factors], {"method": "by hand"})
    model.image_processor = load_processor(resnet)
    return model


@pytest.fixture(scope="module")
def make_checkpoint(fashion, tmp_path_factory):
    made = {}

    def make(name, method):
        if (name, method) not in made:
            folder = tmp_path_factory.mktemp("erased")
            forget = fashion.select(fashion.train, [TROUSER]).select(range(200))
            erased = erased_by(method, load_classifier(name, device="cpu"), forget, folder / "training")
            folder = folder / f"{name} {method}".replace("/", "-").replace(" ", "-")
            erased.save_pretrained(folder)
            made[name, method] = erased, folder, forget[0]["image"]
        return made[name, method]

    return make


@pytest.fixture(scope="module", params=ALL, ids=[f"{name} {method}" for name, method in ALL])
def checkpoint(request, make_checkpoint):
    """An erased embedded model, its folder, and the picture of a forgotten class."""
    return make_checkpoint(*request.param)


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
    with erased.disable_projection():
        raw = expected(erased, image).pooler_output
    projected = raw @ product(erased.projections[0].factors, raw.shape[1]).float().T
    assert (torch.tensor(features) - projected).abs().max() < 1e-4 * raw.norm()


def test_folder_holds_processor_labels_ledger_and_no_path_of_this_machine(checkpoint):
    erased, folder, _ = checkpoint
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert config["id2label"]["1"] == "Trouser"
    assert config["architectures"] == ["ESCModel"]
    [record], [[factor]] = config["erasures"], config["factors"]
    assert METHODS[record["method"]] == [factor["type"]]
    settings = {"esc": {"p": 1.5, "rank": 1}, "esc-t": {"tau": 0.7, "batch_size": 64, "stopped": "forgotten"}}
    assert record == record | settings[record["method"]] | {"num_images": 200}
    assert (record["labels"], record["label_ids"]) == (["Trouser"], [TROUSER])
    assert set(record["versions"]) == {"hf_esc", "torch", "transformers"}
    assert type(AutoImageProcessor.from_pretrained(folder)) is type(erased.image_processor)
    assert str(Path(__file__).parents[1]) not in text


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("way", ["AutoModelForImageClassification", "device_map", "bfloat16", "offloaded"])
def test_loaded_in_whatever_way_the_factors_are_the_same_bit_for_bit_and_saved_again_too(checkpoint, way, tmp_path):
    erased, folder, image = checkpoint
    if way == "offloaded":
        settings = {"device_map": {"model": "cpu", "projections": "disk"}, "offload_buffers": True}
        loaded = ESCModel.from_pretrained(folder, offload_folder=tmp_path / "offload", **settings)
    else:
        loaded = WAYS[way](folder)
        for name, tensor in erased.projections.state_dict().items():
            assert torch.equal(loaded.projections.state_dict()[name].to(tensor.dtype), tensor)
            assert loaded.projections.state_dict()[name].dtype.itemsize >= tensor.dtype.itemsize
    rough = {"atol": 0.3, "rtol": 0.1} if way == "bfloat16" else {"atol": 1e-5, "rtol": 1e-4}
    inputs = erased.image_processor(images=image.convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        logits = loaded(inputs["pixel_values"].to(loaded.dtype)).logits
    torch.testing.assert_close(logits.float(), expected(erased, image).logits, **rough)
    loaded.save_pretrained(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").iterdir()} == {file.name for file in folder.iterdir()}
    first, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        if way != "bfloat16" or name.startswith("projections."):
            assert torch.equal(again[name].to(tensor.dtype), tensor), name


EVERY_WAY = """
image, answer = Image.open("image.png"), []
for folder in folders:
    model = AutoModelForImageClassification.from_pretrained(folder, **trusted)
    model.save_pretrained(folder + "-again")
    answer.append({
        "class": type(model).__module__.split(".")[0],
        "top": pipeline("image-classification", model=folder, **trusted)(image, top_k=1)[0],
        "features": pipeline("image-feature-extraction", model=folder, **trusted)(image)[0],
        "auto_model": type(AutoModel.from_pretrained(folder, **trusted)).__name__,
        "again": type(AutoModelForImageClassification.from_pretrained(folder + "-again", **trusted)).__name__,
        "hf_esc": any(name.split(".")[0] == "hf_esc" for name in sys.modules),
    })
"""


def test_where_hf_esc_is_not_installed(make_checkpoint, without_hf_esc, tmp_path):
    """A process that cannot import hf_esc, with the files beside the weights alone."""
    checkpoints = [make_checkpoint(*one) for one in ALL]
    image = checkpoints[0][2]
    image.save(tmp_path / "image.png")
    folders = [str(shutil.copytree(folder, tmp_path / folder.name)) for _, folder, _ in checkpoints]
    answers = without_hf_esc(EVERY_WAY, tmp_path, folders=folders)
    for (erased, _, _), answer in zip(checkpoints, answers, strict=True):
        output = expected(erased, image)
        assert answer["class"] == "transformers_modules"
        assert not answer["hf_esc"]
        assert (answer["auto_model"], answer["again"]) == ("ESCFeatureModel", "ESCModel")
        assert answer["top"]["label"] == erased.config.id2label[int(output.logits.argmax())]
        torch.testing.assert_close(torch.tensor([answer["features"]]), output.pooler_output, atol=1e-4, rtol=1e-4)


def test_the_code_of_the_all_cnn_travels_with_its_checkpoints(without_hf_esc, tmp_path):
    load_classifier("embedded/all-cnn", device="cpu").save_pretrained(tmp_path / "model")
    code = """
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
answer = [type(model).__module__, list(model.classifier.weight.shape)]
"""
    module, shape = without_hf_esc(code, tmp_path, folder=str(tmp_path / "model"))
    assert module.startswith("transformers_modules.model.")
    assert shape == [10, 96]


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


def test_in_half_precision_a_mask_stays_a_byte_an_entry(resnet, tmp_path):
    with_factors(resnet, ["masked"]).save_pretrained(tmp_path / "model")
    loaded = ESCModel.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.projections[0].factors[0].mask.dtype == torch.uint8
    assert load_file(tmp_path / "again" / "model.safetensors")["projections.0.factors.0.mask"].dtype == torch.uint8


@pytest.mark.parametrize("kind", ["low_rank", "masked"])
def test_a_revision_of_a_repository_is_loaded(resnet, kind, tmp_path):
    """From the cache of the Hub's client, in its own layout, without a network."""
    erased = with_factors(resnet, [kind])
    repository = tmp_path / "models--me--erased"
    (repository / "refs").mkdir(parents=True)
    for number, revision in enumerate(("main", "two-requests")):
        (repository / "refs" / revision).write_text(f"{number}" * 40)
        erased.save_pretrained(repository / "snapshots" / (f"{number}" * 40))
        erased.config.erasures *= 2
    for way in (AutoModelForImageClassification.from_pretrained, AutoModel.from_pretrained, load_classifier):
        for arguments, requests in (({}, 1), ({"revision": "two-requests"}, 2)):
            model = way("me/erased", cache_dir=tmp_path, **arguments)
            assert len(model.config.erasures) == requests
