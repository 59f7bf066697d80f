"""Adapters of peft on an erased model: the class stays out, merged and unmerged, wherever the adapters sit."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_esc import ESCModel
from hf_esc.errors import CheckpointError, ModelError

from .tiny import batches, quietly
from .zoo import ZOO

# peft asks transformers for it by its earlier name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
VIT = ZOO["vit"]
WHERE = {"backbone": r".*layer.*(query|q_proj|value|v_proj)", "head": r".*classifier", "both": "all-linear"}


def adapted(where: str):
    """An erased model with adapters that are not zero, as after a training."""
    erased = quietly(VIT.build(), batches(VIT.inputs(8)["pixel_values"]), rank=2)
    model = get_peft_model(erased, LoraConfig(r=2, target_modules=WHERE[where], lora_dropout=0.0)).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if "lora" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.2)
    return erased, model


def answers(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**VIT.inputs(4)).logits


def moved_along(erased: ESCModel) -> torch.nn.Module:
    """Something before the head that moves every feature along the erased directions."""
    basis = erased.projections[0].factors[0].basis

    class Moved(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x) + 5 * basis.sum(dim=1)

    return Moved(erased.model.vit.layernorm)


@pytest.mark.parametrize("where", WHERE)
def test_adapters_read_no_erased_direction_and_merging_changes_no_answer(where):
    erased, model = adapted(where)
    unmerged = answers(model)
    assert not torch.allclose(unmerged, answers(quietly(VIT.build(), batches(VIT.inputs(8)["pixel_values"]), rank=2)))
    norm = erased.model.vit.layernorm
    erased.model.vit.layernorm = moved_along(erased)
    torch.testing.assert_close(answers(model), unmerged, atol=1e-4, rtol=1e-4)
    erased.model.vit.layernorm = norm
    merged = model.merge_and_unload()
    assert merged is erased
    torch.testing.assert_close(answers(merged), unmerged, atol=1e-4, rtol=1e-4)
    merged.model.vit.layernorm = moved_along(merged)
    torch.testing.assert_close(answers(merged), unmerged, atol=1e-4, rtol=1e-4)


def test_unmerged_adapters_are_not_saved_and_merged_ones_load_to_the_same_logits(tmp_path):
    erased, model = adapted("both")
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        erased.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "model")
    assert torch.equal(answers(ESCModel.from_pretrained(tmp_path / "model")), answers(merged))


def test_nothing_is_erased_from_a_model_with_unmerged_adapters():
    _, model = adapted("head")
    with pytest.raises(ModelError, match="merge_and_unload"):
        quietly(model, batches(VIT.inputs(8)["pixel_values"]), rank=1)
