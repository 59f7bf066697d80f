"""What is loaded is a trained image classifier with its processor, or it is refused."""

import json

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from hf_esc.embedded import embedded_models, resolve_model
from hf_esc.errors import DataError, HfEscError, ModelError
from hf_esc.loading import load_classifier, load_processor

CONFIG = ViTConfig(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    image_size=16,
    patch_size=8,
    num_labels=4,
)


def test_embedded_checkpoints_go_by_name():
    assert {"embedded/resnet", "embedded/vit"} <= set(embedded_models())
    assert resolve_model("embedded") == resolve_model("embedded/vit")
    for name in ("google/vit-base-patch16-224", "./embedded", "embeddedness"):
        assert resolve_model(name) == name
    with pytest.raises(DataError, match=r"no embedded model 'embedded/bert'. There are: .*embedded/resnet"):
        resolve_model("embedded/bert")


def test_a_model_comes_in_eval_mode_with_its_processor(resnet):
    assert not any(module.training for module in resnet.modules())
    assert load_processor(resnet).size == {"height": 28, "width": 28}
    assert next(resnet.parameters()).device == torch.device("cpu")


def test_a_processor_that_the_model_carries_comes_first(resnet):
    model = ViTForImageClassification(CONFIG)
    with pytest.raises(
        ModelError, match=r"No image processor was found for ViTForImageClassification.*Pass `processing_class=`"
    ):
        load_processor(model)
    model.image_processor = ViTImageProcessor()
    assert load_processor(model) is model.image_processor


def test_a_backbone_without_a_head_is_refused(tmp_path):
    ViTModel(CONFIG).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for classifier.bias, classifier.weight .* fine-tune it first"):
        load_classifier(str(tmp_path))


def test_a_checkpoint_without_its_processor_says_which_file_goes_where(tmp_path):
    folder = tmp_path / "out" / "checkpoint-500"
    ViTForImageClassification(CONFIG).save_pretrained(folder)
    model = load_classifier(folder, device="cpu")
    with pytest.raises(ModelError, match=r"no preprocessor_config.json. Copy this file into it, from the"):
        load_processor(model)
    ViTImageProcessor().save_pretrained(tmp_path / "out")
    with pytest.raises(ModelError, match=f"Copy this file into it, from {tmp_path}/out/preprocessor_config.json"):
        load_processor(model)


def test_a_model_of_another_task_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"it is a bert model, for which .* no image classification\. It"):
        load_classifier(str(tmp_path))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name in (str(tmp_path), str(tmp_path / "nowhere"), "nobody/nothing"):
        with pytest.raises(
            ModelError, match=f"No image classifier can be loaded from '{name}'.*It should be `embedded`"
        ):
            load_classifier(name)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_damaged_file_of_settings_is_a_typed_error_or_loads(tmp_path, file):
    """Whatever transformers raises for a setting that is not one."""
    ViTForImageClassification(CONFIG).save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    whole = json.loads((tmp_path / file).read_text())
    errors = 0
    for key in whole:
        for value in ("no such value", {"no": 1}):
            (tmp_path / file).write_text(json.dumps(whole | {key: value}))
            try:
                load_processor(load_classifier(str(tmp_path)))
            except HfEscError:
                errors += 1
    assert errors > 3
    for data in (b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"'):
        (tmp_path / file).write_bytes(data)
        with pytest.raises(HfEscError):
            load_processor(load_classifier(str(tmp_path)))
