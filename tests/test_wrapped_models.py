"""What is around a classifier, or in place of its weights, is refused with the way out, before any work."""

import copy

import pytest
import torch
from torch import nn

from hf_esc import ESCTTrainer, HfEscError, erase, evaluate_unlearning, find_sites, remap
from hf_esc.errors import ModelError
from hf_esc.unlearning import DELETETrainer, fisher_forgetting

from .tiny import batches, images, quietly, tiny


def with_parts_of(library: str):
    """A model with a layer of another library, as peft and the quantisers put them in."""
    model = tiny()
    layer = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    layer.__class__ = type("Conv2d", (nn.Conv2d,), {"__module__": f"{library}.layers"})
    return model


def bare_timm():
    return type("ResNet", (nn.Linear,), {"__module__": "timm.models.resnet"})(2, 2)


def adapted():
    model = nn.Linear(2, 2)
    model.merge_and_unload = lambda: None  # type: ignore[assignment]
    return model


WRAPPED = {
    "compiled": (lambda: torch.compile(tiny(), backend="eager"), r"model\._orig_mod"),
    "DataParallel": (lambda: nn.DataParallel(tiny()), r"model\.module"),
    "PeftModel": (adapted, r"model\.merge_and_unload\(\)"),
    "timm": (bare_timm, "TimmWrapperForImageClassification"),
    "a name": (lambda: "embedded", "Load it first"),
    "another module": (lambda: nn.Linear(2, 2), "AutoModelForImageClassification"),
    "nothing": (lambda: None, "AutoModelForImageClassification"),
}
WITH_OTHER_WEIGHTS = {
    "torchao": (lambda: with_parts_of("torchao"), "full precision, then quantise"),
    "dynamic int8": (
        lambda: torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=torch.qint8),
        "full precision, then quantise",
    ),
    "peft": (lambda: with_parts_of("peft.tuners"), r"merge_and_unload\(\)"),
}
USES = {
    "erase": lambda model: erase(model, batches(images(4)), rank=1),
    "remap": lambda model: remap(model, batches(images(4)), batches(images(4, 1))),
    "esc-t": lambda model: ESCTTrainer(model, None, batches(images(4))),
    "delete": lambda model: DELETETrainer(model, None, batches(images(4))),
    "fisher": lambda model: fisher_forgetting(model, batches(images(4)), batches(images(4, 1))),
}
LOOKS = {
    "evaluate": lambda model: evaluate_unlearning(model, None, [1]),  # type: ignore[arg-type]
    "sites": lambda model: find_sites(model, batches(images(1))[0]),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_is_refused_everywhere_and_says_what_to_pass(case):
    make, way_out = WRAPPED[case]
    model = make()
    for name, use in {**USES, **LOOKS}.items():
        with pytest.raises(HfEscError, match=way_out if name != "sites" else "classifier") as error:
            use(model)
        assert isinstance(error.value, ModelError) or name == "sites", name


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", WITH_OTHER_WEIGHTS)
def test_weights_that_would_not_be_saved_as_they_are_are_refused(case):
    make, way_out = WITH_OTHER_WEIGHTS[case]
    model = make()
    for use in USES.values():
        with pytest.raises(ModelError, match=way_out):
            use(model)


def test_a_model_that_was_compiled_in_place_is_itself():
    model = tiny()
    model.compile(backend="eager")
    one, other = (quietly(m, batches(images(8)), rank=1) for m in (model, copy.deepcopy(tiny())))
    assert torch.equal(one.projections[0].factors[0].basis, other.projections[0].factors[0].basis)
