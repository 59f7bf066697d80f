"""The contract of a model erased by ESC-T, for every architecture: the head that is trained alone is the model's."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from hf_esc import ESCFeatureModel, ESCModel, ESCTTrainer, ESCTTrainingArguments
from hf_esc.errors import MaskError, SiteError
from hf_esc.modeling.outputs import logits_of
from hf_esc.modeling.projection import product
from tests.zoo import ZOO, timm_model

# Each with another kind of head; the comments in `TIMM_FAST` of the zoo say which.
OF_TIMM = (
    "crossvit_tiny_240",  # the average of two heads of different width
    "dla46x_c",
    "efficientvim_m1",
    "efficientvit_m0",
    "levit_128s",
    "resnet50_clip",
    "xcit_nano_12_p16_224",
)


@pytest.fixture
def trainer_of(tmp_path):
    """ESC-T on batches, in few and large steps: every mask of several is to be cut."""

    def make(model, forget_set, epochs=4):
        settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none"}
        arguments = ESCTTrainingArguments(tmp_path / "training", num_train_epochs=epochs, **settings)
        steps = (torch.optim.SGD, {"lr": 10 / epochs})
        return ESCTTrainer(model, arguments, forget_set, optimizer_cls_and_kwargs=steps)

    return make


@torch.no_grad()
def images_and_logits(tiny, model):
    """Those of a few random images that the model takes for one and the same class, with their labels."""
    inputs = tiny.inputs(batch_size=8)
    predictions = logits_of(model(**inputs), model.config.num_labels).argmax(dim=1)
    rows = predictions == predictions.mode().values
    inputs = {name: values[rows] for name, values in inputs.items()}
    return inputs, logits_of(model(**inputs), model.config.num_labels), predictions[rows]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def check_contract(tiny, trainer_of):
    model = tiny.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs, logits, labels = images_and_logits(tiny, model)
    trainer = trainer_of(model, [inputs | {"labels": labels}])
    with torch.enable_grad():
        trainer.train()
    erased, head = trainer.erased_model, trainer.model
    for weights in (model.state_dict(), erased.model.state_dict()):
        assert weights.keys() == before.keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())

    on = erased(**inputs)
    with erased.disable_projection():
        off = erased(**inputs)
    assert torch.equal(off.logits, logits)
    dims = [site["dim"] for site in erased.config.sites]
    for z, raw, projection in zip(
        on.pooler_output.split(dims, dim=1), off.pooler_output.split(dims, dim=1), erased.projections, strict=True
    ):
        assert [factor.kind for factor in projection.factors] == ["masked"]
        assert (z - raw @ product(projection.factors, projection.dim).float().T).abs().max() < 1e-5 * raw.norm()
    assert (on.logits.argmax(dim=1) != labels).all()

    # The head on its own is the model: without masks the original, with them the erased one.
    features = trainer.train_dataset.__getitems__(list(range(len(labels))))["features"]
    close(head.logits(features), logits)
    close(head.logits(features, head.masks_in_force()), on.logits)
    return erased, inputs, on


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [*ZOO.values(), *map(timm_model, OF_TIMM)], ids=[*ZOO, *OF_TIMM])
@torch.no_grad()
def test_every_architecture(tiny, trainer_of, tmp_path):
    erased, inputs, on = check_contract(tiny, trainer_of)
    erased.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    features = AutoModel.from_pretrained(tmp_path / "model")
    assert (type(loaded), type(features)) == (ESCModel, ESCFeatureModel)
    close(loaded(**inputs).logits, on.logits)
    for answer in (loaded.features(**inputs), features(**inputs).pooler_output):
        close(answer, on.pooler_output)


@pytest.mark.parametrize(
    ("id", "masks"),
    [
        ("deit-with-teacher", [32, 32]),
        ("levit-with-teacher", [48, 48]),
        ("swiftformer", [32]),
        ("perceiver-learned", [32]),
        ("crossvit_tiny_240", [96, 192]),
        ("dla46x_c", [256]),
    ],
)
def test_there_is_a_mask_for_each_feature_that_heads_read(id, masks, trainer_of):
    tiny = ZOO.get(id) or timm_model(id)
    model = tiny.build()
    inputs, _, labels = images_and_logits(tiny, model)
    head = trainer_of(model, [inputs | {"labels": labels}]).model
    assert [tuple(mask.shape) for mask in head.masks] == [(dim, dim) for dim in masks]
    assert {name.split(".")[0] for name, value in head.named_parameters() if value.requires_grad} == {"masks"}


def test_a_head_that_cannot_be_run_on_its_features_is_refused(trainer_of):
    """Volo's logits hold the maximum over its tokens."""
    tiny = timm_model("volo_d1_224")
    model = tiny.build()
    inputs, _, labels = images_and_logits(tiny, model)
    with pytest.raises(SiteError, match="cannot be run on its features alone"):
        trainer_of(model, [inputs | {"labels": labels}])


def test_of_several_masks_none_may_stay_whole(trainer_of):
    """In gentle steps the images are forgotten before the third of four masks has lost an entry."""
    tiny = timm_model("efficientvim_m1")
    model = tiny.build()
    inputs, _, labels = images_and_logits(tiny, model)
    trainer = trainer_of(model, [inputs | {"labels": labels}], epochs=20)
    with pytest.raises(MaskError, match="these features would stay as they are"):
        trainer.train()
    assert trainer.erased_model is None
