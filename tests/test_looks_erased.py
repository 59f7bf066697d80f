"""
Ways in which a class could look erased and not be. Each test states the law that forbids one, and is named after it.
"""

import copy
import json
import shutil
import warnings

import pytest
import torch
from torch import nn
from transformers import TrainerCallback
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_outputs import ImageClassifierOutput

from hf_esc import ESCModel, erase, load_classifier, verify
from hf_esc.all_cnn import AllCNNForImageClassification
from hf_esc.data.labels import model_label_names
from hf_esc.errors import (
    CheckpointError,
    HfEscError,
    HubError,
    IncompleteErasureWarning,
    LabelError,
    ModelError,
    SiteError,
)
from hf_esc.features.sites import SiteGroup
from hf_esc.hub.push import push
from hf_esc.ledger.record import is_complete, not_gone

from .pictures import NAMES, labelled
from .tiny import batches, images, quietly, tiny
from .unlearning import learnt, made, trained
from .zoo import ZOO


def as_if_put_in_by_a_user(model):
    """Take transformers' marks of initialisation off all modules, and change every weight: as after a surgery."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for parameter in module.parameters(recurse=False):
            parameter.__dict__.pop("_is_hf_initialized", None)
            if parameter.is_floating_point():
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


# Wrapping changes no tensor.


@pytest.mark.parametrize("architecture", ZOO.values(), ids=ZOO)
def test_wrapping_changes_no_tensor_whatever_was_put_into_the_model(architecture):
    model = as_if_put_in_by_a_user(architecture.build())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    erased = quietly(model, [architecture.inputs()], rank=1)
    after = erased.model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("part", ["classifier", "norm", "head in a Sequential"])
def test_a_replaced_module_stays_what_it_is(part):
    model = tiny()
    if part == "norm":
        model.layers[0][1] = nn.BatchNorm2d(4).eval()
        nn.init.normal_(model.layers[0][1].weight)
    else:
        head = nn.Linear(8, len(NAMES))
        model.classifier = head if part == "classifier" else nn.Sequential(nn.Dropout(0.1), head)
        model.eval()
    x = images(6)
    expected = model(pixel_values=x).logits
    erased = quietly(model, batches(x), rank=1)
    with erased.disable_projection():
        assert torch.equal(erased(pixel_values=x).logits, expected)


# Class i is the i-th logit.


def vit_with(id2label):
    model = tiny([f"class {i}" for i in range(12)])
    model.config.id2label = id2label
    return model


def test_names_with_numbers_as_text_stand_at_their_numbers_and_not_in_the_order_of_the_text():
    names = [f"class {i}" for i in range(12)]
    config = vit_with({str(i): name for i, name in enumerate(names)}).config
    assert model_label_names(config) == names
    forget = labelled([10] * 6, names)
    model = vit_with({str(i): name for i, name in enumerate(names)})
    from .test_erasure import PROCESSOR

    erased = quietly(model, forget, rank=1, processing_class=PROCESSOR)
    assert erased.config.erasures[-1]["label_ids"] == [10]
    assert erased.config.erasures[-1]["labels"] == ["class 10"]
    assert erased.config.id2label[10] == "class 10"


@pytest.mark.parametrize(
    "keys",
    [range(1, 13), [*range(11), 12], [*range(11), "x"], [*range(11), -1], [str(i + 1) for i in range(12)]],
    ids=str,
)
def test_any_other_set_of_keys_is_an_error(keys):
    model = vit_with({key: f"class {i}" for i, key in enumerate(keys)})
    with pytest.raises(LabelError, match="id2label"):
        quietly(model, batches(images(4)), rank=1)


# What the head was never trained to say.


def test_a_head_that_transformers_made_up_is_refused():
    for options in ({"num_labels": 5}, {"num_labels": 12}):
        with pytest.raises(ModelError, match="classifier"):
            load_classifier("embedded/resnet", device="cpu", ignore_mismatched_sizes=True, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels"),
        ({"problem_type": "regression"}, "one number"),
    ],
    ids=str,
)
def test_what_has_no_one_class_for_an_image_is_refused(change, words):
    model = tiny()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ModelError, match=words):
        quietly(model, batches(images(4)), rank=1)


def test_a_model_with_one_logit_is_refused():
    with pytest.raises(HfEscError, match="one"):
        quietly(tiny(["only"]), batches(images(4)), rank=1)


def test_a_model_that_was_wrapped_before_is_not_wrapped_again():
    model = copy.deepcopy(tiny())
    erased = quietly(model, batches(images(6)), rank=1)
    twice = quietly(erased, batches(images(6, 1)), rank=1)
    assert type(twice.model) is type(model)


def test_a_model_that_its_own_code_loaded_is_not_wrapped_again(tmp_path):
    """It is no instance of our class, and its erasures are in its ledger all the same."""
    vit = ZOO["vit"]
    forget = [batches(vit.inputs(8, seed)["pixel_values"]) for seed in (1, 2)]
    ours = quietly(vit.build(), forget[0], rank=1)
    ours.save_pretrained(tmp_path / "first")
    own_class = get_class_from_dynamic_module("modeling_esc.ESCModel", str(tmp_path / "first"))
    assert not issubclass(own_class, ESCModel)
    theirs = own_class.from_pretrained(tmp_path / "first")
    twice = quietly(theirs, forget[1], rank=1)
    assert type(twice.model) is type(ours.model)
    assert [len(group) for group in twice.config.factors] == [1]
    assert [record["method"] for record in twice.config.erasures] == ["esc", "esc"]
    twice.save_pretrained(tmp_path / "second")
    assert verify(tmp_path / "second")[-1].passed is not False
    with torch.no_grad():
        expected = quietly(ours, forget[1], rank=1)(**vit.inputs(4)).logits
        assert torch.equal(load_classifier(tmp_path / "second", device="cpu")(**vit.inputs(4)).logits, expected)


# What counts is how many forget images the head gives their class afterwards.


class OnFeatures(AllCNNForImageClassification):
    """A classifier that is its head alone: images are features."""

    def forward(self, pixel_values, **_):
        return ImageClassifierOutput(logits=self.classifier(pixel_values))


def test_a_class_that_the_erasure_teaches_is_not_gone():
    """The large feature says "cat" to most of the dogs. Without it, the small one says "dog" to all of them."""
    model = OnFeatures(tiny().config).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.weight[1, 0] = 1.0
        model.classifier.weight[0, 1] = 1.0
    features = torch.zeros(40, 8)
    features[:, 0], features[:, 1] = 1.0, 10.0
    features[:8, 1] = -10.0
    dogs = [{"pixel_values": features, "labels": torch.ones(40, dtype=torch.long)}]
    with pytest.warns(IncompleteErasureWarning, match="still gives 100.0% of the forget images their class"):
        erased = erase(model, dogs, rank=1, sites=[SiteGroup(("classifier",), 8)])
    record = erased.config.erasures[-1]
    assert record["unchanged"] == record["right_before"] == 0.2
    assert record["right_after_by_label"] == [1.0]
    assert is_complete(record) is False


# A ledger that the weights do not bear out.


@pytest.fixture(scope="module")
def edited_folder(tmp_path_factory):
    """What a training that forgets leaves, saved, and the weights from before it."""
    folder = tmp_path_factory.mktemp("edited")
    trainer = trained("delete", learning_rate=0.05, num_train_epochs=4)
    trainer.model.save_pretrained(folder / "edited")
    learnt().save_pretrained(folder / "before")
    return folder


def test_unedited_weights_under_the_ledger_of_an_edit_are_refused_everywhere(edited_folder, tmp_path, hf_esc):
    assert load_classifier(edited_folder / "edited", device="cpu") is not None
    assert all(check.passed is not False for check in verify(edited_folder / "edited"))
    torn = tmp_path / "torn"
    shutil.copytree(edited_folder / "edited", torn)
    shutil.copy(edited_folder / "before" / "model.safetensors", torn)
    with pytest.raises(CheckpointError, match="says that its weights were edited"):
        load_classifier(torn, device="cpu")
    assert verify(torn)[-1].passed is False
    assert hf_esc("verify", torn)[0] == 1
    assert hf_esc("push", torn, "me/torn")[0] == 2
    assert hf_esc("evaluate", torn, "--dataset", "embedded")[0] == 2


def test_a_push_of_other_weights_than_the_edit_left_is_refused(edited_folder):
    model = load_classifier(edited_folder / "edited", device="cpu")
    model.load_state_dict(learnt().state_dict())
    with pytest.raises(HubError, match="these are others"):
        push(model, "me/other")


def test_a_second_training_does_not_carry_the_record_of_the_first(tmp_path):
    saving = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1}
    trainer = made("delete", learning_rate=1e-3, num_train_epochs=1, **saving)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train()
        shutil.rmtree(tmp_path)
        trainer.train()
    [checkpoint] = tmp_path.glob("checkpoint-*")
    assert "erasures" not in json.loads((checkpoint / "config.json").read_text())
    assert len(trainer.model.config.erasures) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_training_puts_on_a_model_it_takes_off(fails):
    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if fails:
                raise KeyboardInterrupt

    for method in ("salun", "lau"):
        trainer = made(method, num_train_epochs=1, callbacks=[Stop()])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IncompleteErasureWarning)
                trainer.train()
        except KeyboardInterrupt:
            pass
        for parameter in trainer.model.parameters():
            assert parameter.requires_grad
            assert not parameter._backward_hooks


def test_an_incomplete_erasure_is_exit_code_3_and_is_not_pushed_unless_that_is_allowed(hf_esc, clothes, tmp_path):
    # One direction for two classes leaves one of them.
    command = ("erase", "embedded/resnet", "--dataset", clothes, "--forget", "Trouser,Bag", "--rank", "1")
    command += ("--output", tmp_path, "--no-evaluate", "--overwrite")
    assert hf_esc(*command)[0] == 3
    assert hf_esc(*command, "--allow-incomplete")[0] == 0
    record = json.loads((tmp_path / "config.json").read_text())["erasures"][0]
    assert record["complete"] is False
    code, _, err = hf_esc("push", tmp_path, "me/incomplete")
    assert code == 2
    assert "The erasure of Trouser, Bag is incomplete" in " ".join(err.split())
    with pytest.raises(HubError, match="Trouser, Bag is incomplete"):
        ESCModel.from_pretrained(tmp_path).push_to_hub("me/incomplete")


def record(labels, after, **more) -> dict:
    return {"kind": "in_front", "labels": labels, "right_before": 0.9, "unchanged": max(after)} | {
        "right_after_by_label": after,
        **more,
    }


@pytest.mark.parametrize(
    ("ledger", "left"),
    [
        ([record(["cat"], [0.5])], ["cat"]),
        # The newest record about a class decides.
        ([record(["cat"], [0.5]), record(["cat"], [0.0])], []),
        ([record(["cat"], [0.5]), record(["dog"], [0.0])], ["cat"]),
        ([record(["cat", "dog"], [0.0, 0.5]), record(["dog"], [0.0])], ["cat"]),
        # One that could see nothing leaves it to the one before.
        ([record(["cat"], [0.0]), record(["cat"], [0.0], right_before=0.0)], []),
        ([record(["cat"], [0.5]), record(["cat"], [0.0], right_before=0.0)], ["cat"]),
        ([record(["cat"], [0.0], right_before=0.0)], ["cat"]),
        # What came back is there, until it is erased again.
        ([record(["cat"], [0.0]), record(["dog"], [0.0], brought_back=["cat"])], ["cat"]),
        ([record(["cat"], [0.0]), record(["dog"], [0.0], brought_back=["cat"]), record(["cat"], [0.0])], []),
        # A class that stays does not hide behind others, whatever the tolerance for all of them.
        ([record([*"abcdefghij"], [0.0] * 9 + [1.0], tolerance=0.1, unchanged=0.1)], [*"abcdefghij"]),
        ([record(["cat"], [0.0], scenario="images")], []),
        ([record(["cat"], [0.3], tolerance=0.3)], []),
    ],
)
def test_what_the_ledger_as_a_whole_says_is_not_gone(ledger, left):
    assert not_gone(ledger) == left


def test_the_trainer_pushes_nothing_from_which_the_class_is_not_gone():
    trainer = trained("delete", learning_rate=1e-9, num_train_epochs=1)
    assert is_complete(trainer.result.config.erasures[-1]) is False
    with pytest.raises(HubError, match="incomplete"):
        trainer.push_to_hub()


class Adapter(nn.Module):
    """A head in an adapter, as peft makes one: the head moves inside, and a path of its own stands beside it."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)
        self.weight = base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora(x)


@pytest.mark.parametrize("how", ["replaced", "wrapped", "removed hooks"])
@pytest.mark.parametrize("name", ["vit", "swiftformer", "levit"])
def test_every_head_has_the_projection_before_it_at_every_call(name, how):
    architecture = ZOO[name]
    erased = quietly(architecture.build(), [architecture.inputs()], rank=1)
    inputs = architecture.inputs()
    erased(**inputs)
    paths = [path for site in erased.config.sites for path in site["modules"]]
    for path in paths:
        parent = erased.model.get_submodule(path.rpartition(".")[0])
        child, head = path.rpartition(".")[2], erased.model.get_submodule(path)
        if how == "removed hooks":
            head._forward_pre_hooks.clear()
        elif how == "wrapped":
            setattr(parent, child, Adapter(head))
        else:
            setattr(parent, child, nn.Linear(head.in_features, head.out_features))
        erased(**inputs)  # which puts it there
        seen: list[torch.Tensor] = []
        for module in erased.model.get_submodule(path).modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        erased(**inputs)
        basis = erased.projections[0].factors[0].basis
        assert len(seen) == (2 if how == "wrapped" else 1)  # the head, and what the adapter has of its own
        for features in seen:
            assert (features @ basis).abs().max() < 1e-5
        setattr(parent, child, head)  # as after a merge
        erased(**inputs)
        assert (erased(**inputs).pooler_output @ basis).abs().max() < 1e-5
    delattr(parent, child)
    with pytest.raises((SiteError, AttributeError)):
        erased(**inputs)
