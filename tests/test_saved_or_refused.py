"""What an erased model saves, loads to the same logits; where it would not, saving refuses and writes nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hf_esc.errors import CheckpointError
from hf_esc.modeling.modeling_esc import ESCModel

from .tiny import batches, quietly
from .zoo import ZOO

VIT = ZOO["vit"]


@pytest.fixture(scope="module")
def erased() -> ESCModel:
    return quietly(VIT.build(), batches(VIT.inputs(8)["pixel_values"]), rank=1)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**VIT.inputs(4)).logits


class Adapted(nn.Module):
    """An unmerged adapter, in the shape of peft's."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def of_layer(change):
    """A change of the first attention or MLP layer of a kind."""

    def apply(base):
        path, module = next((p, m) for p, m in base.named_modules() if isinstance(m, nn.Linear) and "layer" in p)
        parent, _, name = path.rpartition(".")
        change(base.get_submodule(parent), name, module)

    return apply


def other_eps(base):
    next(m for m in base.modules() if isinstance(m, nn.LayerNorm)).eps = 0.5


def other_activation(base):
    path = next(p for p, m in base.named_modules() if "Activation" in type(m).__name__)
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, nn.Tanh())


def one_layer_less(base):
    del next(module for module in base.modules() if isinstance(module, nn.ModuleList))[-1]


CHANGES = {
    "unmerged adapter": of_layer(lambda parent, name, module: setattr(parent, name, Adapted(module))),
    "parametrised weight": of_layer(lambda parent, name, module: parametrizations.weight_norm(module)),
    "no bias": of_layer(lambda parent, name, module: setattr(module, "bias", None)),
    "compiled inside": of_layer(lambda parent, name, module: setattr(parent, name, torch.compile(module))),
    "wrapped in a Sequential": of_layer(lambda parent, name, module: setattr(parent, name, nn.Sequential(module))),
    "more weights": lambda base: base.register_parameter("scale", nn.Parameter(torch.ones(1))),
    "other eps": other_eps,
    "other activation": other_activation,
    "one layer less": one_layer_less,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_load_otherwise_is_refused_before_a_byte_is_written(erased, change, tmp_path):
    changed = copy.deepcopy(erased)
    CHANGES[change](changed.model)
    with pytest.raises(CheckpointError, match=r"is not what its configuration makes.*merge_and_unload"):
        changed.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def dropout(base):
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9


def new_weights(base):
    path, module = next((p, m) for p, m in base.named_modules() if isinstance(m, nn.Linear) and "layer" in p)
    parent, _, name = path.rpartition(".")
    setattr(base.get_submodule(parent), name, nn.Linear(module.in_features, module.out_features))


def no_dropout(base):
    for path, module in list(base.named_modules()):
        if isinstance(module, nn.Dropout):
            base.set_submodule(path, nn.Identity())


def divided(base):
    """As FSDP2 does, which gives each module that it divides a class of its own."""
    layer = next(
        module for path, module in base.named_modules() if path.endswith("layer.0") or path.endswith("layers.0")
    )
    layer.__class__ = type(f"FSDP{type(layer).__name__}", (type(layer),), {})


HARMLESS = [dropout, no_dropout, divided, new_weights, nn.Module.train, lambda base: base.requires_grad_(False)]


@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_saved_loads_to_the_same_logits(erased, change, tmp_path):
    changed = copy.deepcopy(erased)
    change(changed.model)
    # A layer that was trained since has another fingerprint, which is for `verify` to say; the file is what was saved.
    changed.eval().save_pretrained(tmp_path)
    assert torch.equal(logits(ESCModel.from_pretrained(tmp_path)), logits(changed))


def test_batch_norm_of_several_processes_is_saved_as_the_one_that_is_loaded(tmp_path):
    levit = ZOO["levit"]
    erased = quietly(levit.build(), batches(levit.inputs(8)["pixel_values"]), rank=1)
    erased.model = nn.SyncBatchNorm.convert_sync_batchnorm(erased.model)
    erased.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(
            ESCModel.from_pretrained(tmp_path)(**levit.inputs(4)).logits, erased(**levit.inputs(4)).logits
        )


class Flipped(type(VIT.build())):
    """A class of the user's own with a configuration of transformers: what is loaded is transformers' class."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = -output.logits
        return output


@pytest.mark.filterwarnings("ignore:Whether the head's predictions changed")
def test_a_class_of_ones_own_that_would_load_as_another_is_refused(tmp_path):
    model = VIT.build()
    own = Flipped(model.config).eval()
    own.load_state_dict(model.state_dict())
    erased = quietly(own, batches(VIT.inputs(8)["pixel_values"]), rank=1)
    with pytest.raises(CheckpointError, match=r"is not what its configuration makes.*Flipped"):
        erased.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
