"""The contract of an erased model, for every architecture that transformers maps to image classification, and timm."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, ViTImageProcessor, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_esc import ESCFeatureModel, ESCModel, erase, find_sites
from hf_esc.errors import SiteError
from hf_esc.modeling.outputs import logits_of
from tests.zoo import REFUSED, TIMM, TIMM_FAST, ZOO, build_timm, timm_inputs

# An incomplete erasure is expected of random weights, and volo's head (a maximum over tokens) cannot be tried alone.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The erasure is incomplete", "ignore:Whether the head's predictions changed"
)


def erased_and_original(model, inputs):
    original = model.state_dict()
    before = {name: tensor.clone() for name, tensor in original.items()}
    with torch.no_grad():
        logits = logits_of(model(**inputs), model.config.num_labels)
    erased = erase(model, [inputs], rank=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return SimpleNamespace(erased=erased, logits=logits, weights=before)


def check_contract(model, inputs):
    """The backbone is untouched, no projection is the original bit for bit, and the projection does what it says."""
    case = erased_and_original(model, inputs)
    erased = case.erased
    with torch.no_grad():
        on = erased(**inputs)
        with erased.disable_projection():
            off = erased(**inputs)
    assert torch.equal(off.logits, case.logits)
    inside = erased.model.state_dict()
    assert inside.keys() == case.weights.keys()
    assert all(torch.equal(inside[name], tensor) for name, tensor in case.weights.items())
    assert (on.logits - case.logits).abs().max() > 1e-4
    dims = [site["dim"] for site in erased.config.sites]
    for z, raw, projection in zip(
        on.pooler_output.split(dims, dim=1), off.pooler_output.split(dims, dim=1), erased.projections, strict=True
    ):
        assert (z @ projection.factors[0].basis).abs().max() < 1e-5 * raw.norm(dim=1).max()
    return erased, on


@pytest.mark.parametrize("tiny", ZOO.values(), ids=ZOO)
def test_every_architecture_of_transformers(tiny, tmp_path):
    inputs = tiny.inputs()
    erased, on = check_contract(tiny.build(), inputs)
    erased.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    features = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ESCModel
    assert type(features) is ESCFeatureModel
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, on.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features(**inputs).pooler_output, on.pooler_output, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(loaded.features(**inputs), on.pooler_output, atol=1e-4, rtol=1e-4)
    if set(inputs) == {"pixel_values"} and inputs["pixel_values"].shape[1] == 3:
        check_pipeline(loaded, inputs["pixel_values"].shape[-2:])


def check_pipeline(model, size):
    processor = ViTImageProcessor(size={"height": size[0], "width": size[1]})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    answer = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=1)
    with torch.no_grad():
        logits = model(**processor(images=image, return_tensors="pt")).logits
    assert answer[0]["label"] == model.config.id2label[int(logits.argmax())]


def test_no_architecture_is_left_out():
    mapped = set()
    for names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        mapped.update([names] if isinstance(names, str) else names)
    ours = {"ESCModel", "AllCNNForImageClassification"}
    assert {tiny.model_class for tiny in [*ZOO.values(), *REFUSED.values()]} == mapped - ours
    assert len(ZOO) == 45


@pytest.mark.parametrize(
    "name", [name if name in TIMM_FAST else pytest.param(name, marks=pytest.mark.slow) for name in TIMM]
)
def test_timm_architectures(name):
    inputs = timm_inputs(name, batch_size=2)
    check_contract(build_timm(name), inputs)


@pytest.mark.parametrize("tiny", REFUSED.values(), ids=REFUSED)
def test_a_language_model_is_refused(tiny):
    with pytest.raises(SiteError, match="no classification head"):
        find_sites(tiny.build(), tiny.inputs())


@pytest.mark.parametrize(
    ("id", "modules"),
    [
        ("vit", [["classifier"]]),
        ("deit-with-teacher", [["cls_classifier"], ["distillation_classifier"]]),
        ("swiftformer", [["head", "dist_head"]]),
        ("perceiver-learned", [["perceiver.decoder.decoder.final_layer"]]),
    ],
)
def test_sites_are_those_known(id, modules):
    tiny = ZOO[id]
    assert [list(group.modules) for group in find_sites(tiny.build(), tiny.inputs())] == modules


@pytest.mark.parametrize(
    ("name", "axis", "dims"),
    [("dla46x_c", 1, [256]), ("crossvit_tiny_240", -1, [96, 192]), ("efficientvim_m1", -1, [128, 192, 320, 320])],
)
def test_timm_sites_are_those_known(name, axis, dims):
    groups = find_sites(build_timm(name), timm_inputs(name))
    assert [group.dim for group in groups] == dims
    assert {group.axis for group in groups} == {axis}


def test_a_head_that_picks_one_token_has_that_token_for_its_feature():
    [group] = find_sites(build_timm("resnet50_clip"), timm_inputs("resnet50_clip"))
    assert group.position == 0


def test_find_sites_leaves_the_model_as_it_was():
    tiny = ZOO["vit"]
    model = tiny.build().train()
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_sites(model, tiny.inputs())
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
