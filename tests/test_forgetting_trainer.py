"""What ESC-T and the unlearning methods share: names, arguments, the seed, and runs that do or do not go on."""

import copy
import inspect
import re

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback, TrainingArguments

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.errors import CheckpointError, ForgetSetError, ModelError, OptionError
from hf_esc.training.forgetting_trainer import ForgettingTrainer
from hf_esc.unlearning import DELETEArguments, DELETETrainer, UnlearningTrainer

from . import esc_t, unlearning
from .forgetting import TRAINERS, made, quietly_trained
from .test_unlearning_methods import NORMALISED
from .unlearning import forget_set, learnt

BOTH = ["esc-t", "delete"]


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_argument_has_the_same_name_and_place(name):
    names = [*inspect.signature(TRAINERS[name].__init__).parameters][1:]
    assert issubclass(TRAINERS[name], ForgettingTrainer)
    assert TRAINERS[name].method == name
    assert names[:3] == ["model", "args", "forget_set"]
    shared = (
        inspect.signature(ESCTTrainer.__init__).parameters.keys() & inspect.signature(UnlearningTrainer).parameters
    )
    assert {"eval_dataset", "processing_class", "compute_metrics", "image_column", "label_column"} <= shared
    assert shared - {"self"} <= set(names)


@pytest.mark.parametrize("kind", [ESCTTrainer, DELETETrainer])
def test_arguments_of_another_class_and_no_forget_set_are_refused(kind, tmp_path):
    other = TrainingArguments(str(tmp_path), use_cpu=True)
    expected = f"`args` of {kind.__name__} should be {kind.arguments.__name__}, not TrainingArguments."
    with pytest.raises(TypeError, match=re.escape(expected)):
        kind(learnt(), other, forget_set())
    with pytest.raises(ForgetSetError, match=f"{kind.__name__} needs the images to forget.* as `forget_set`"):
        kind(learnt(), kind.arguments(str(tmp_path), use_cpu=True))


@pytest.mark.parametrize("kind", [ESCTTrainingArguments, DELETEArguments])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenario", "both"),
        ("tolerance", 1.0),
        ("hub_strategy", "checkpoint"),
        ("num_train_epochs", 0),
        ("fsdp", True),
    ],
)
def test_both_refuse_the_same_values(kind, name, value):
    with pytest.raises(OptionError, match=f"`{name}"):
        kind("x", use_cpu=True, **{name: value})


@pytest.mark.parametrize("method", BOTH)
def test_the_order_is_that_of_the_data_seed_or_else_of_the_seed(method):
    assert [made(method, **seeds).order_seed for seeds in ({"seed": 3}, {"seed": 3, "data_seed": 5})] == [3, 5]


@pytest.mark.parametrize("method", BOTH)
def test_there_is_no_result_and_nothing_to_save_before_the_end(method, tmp_path):
    trainer = made(method, output_dir=str(tmp_path))
    assert trainer.result is None
    with pytest.raises(ModelError, match=r"Nothing is erased yet, .* `train\(\)` has to end first"):
        trainer.save_model()
    trainer.create_model_card()
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .* to go on from"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("method", BOTH)
def test_a_run_cannot_change_what_its_ledger_says(method):
    trainer = made(
        method,
    )
    settings = {name for name in trainer.settings() if name not in trainer.may_change}
    assert settings <= trainer.run().keys()
    assert trainer.run().keys() - settings == trainer.identity().keys()


def test_the_result_is_what_was_trained():
    trainer = unlearning.trained("delete", num_train_epochs=1)
    assert trainer.result is trainer.model
    masked = esc_t.trained(learnt(), forget_set(), num_train_epochs=50)
    assert masked.result is masked.erased_model


# What a subclass leaves out


def test_a_subclass_that_is_not_finished_is_refused_before_the_training():
    class NoMethod(UnlearningTrainer):
        def unlearning_loss(self, model, forget, retain):
            return self.logits(model, forget).sum()

    class NoLoss(UnlearningTrainer):
        method = "mine"

    with pytest.raises(TypeError, match=r'NoMethod has no `method`.* `method = "my-method"`'):
        unlearning.made(NoMethod)
    with pytest.raises(TypeError, match=r"NoLoss has no loss\. Define `unlearning_loss`"):
        unlearning.made(NoLoss)
    NoMethod.method = "mine"
    trainer = quietly_trained(unlearning.made(NoMethod, max_steps=1, learning_rate=1e-6))
    assert trainer.result.config.erasures[-1]["method"] == "mine"


# What is evaluated


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
        {"eval_accumulation_steps": 2},
        {"eval_use_gather_object": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", BOTH)
def test_accuracies_do_not_depend_on_how_they_are_gathered(method, given):
    trainer = made(method, per_device_eval_batch_size=5, **given)
    wrong = [{**unlearning.pictures(1, 6), "labels": torch.zeros(6, dtype=torch.long)}]
    for _ in range(2):  # nothing is counted twice
        assert trainer.evaluate([*forget_set(), *wrong])["eval_accuracy"] == pytest.approx(80)


@pytest.mark.parametrize("method", BOTH)
def test_metrics_get_what_the_model_takes(method):
    trainer, seen = made(method, include_for_metrics=["inputs"], per_device_eval_batch_size=5), []
    trainer.compute_metrics = lambda found: seen.append(found.inputs) or {}
    trainer.evaluate(forget_set())
    expected = trainer.train_dataset.__getitems__(list(range(24)))
    expected = expected["features"] if method == "esc-t" else expected["inputs"]["pixel_values"]
    torch.testing.assert_close(torch.as_tensor(seen[0]), expected)


# What is put on a model


def marks(model) -> dict:
    """What is on a model beside weights: hooks, modes, a replaced `forward`, what can be trained."""
    found = {"forward": [name for name in ("forward", "_original_forward") if name in vars(model)]}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[name] = (module.training, [len(of_kind) for of_kind in hooks], sorted(module._buffers))
    for name, weight in model.named_parameters():
        found[name] = (weight.requires_grad, len(weight._backward_hooks or ()))
    return found


class Fail(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("method", TRAINERS)
def test_what_a_training_puts_on_a_model_it_takes_off_also_when_it_fails(method):
    """In half precision, where accelerate replaces `forward`. Buffers keep their names; BatchNorm may learn."""
    given = {"bf16": True, "callbacks": [Fail()], "max_steps": 2, "eval_dataset": forget_set()}
    if method == "boundary-shrink":
        given["processing_class"] = NORMALISED
    model, before = learnt(), marks(learnt())
    trainer = made(method, **given)
    own = marks(trainer.model.eval())
    trainer.evaluate()
    assert marks(trainer.model) == own
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert marks(trainer.model) == own
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert marks(model) == before
    trainer.remove_callback(Fail)
    if method != "esc-t":  # two steps cut no entry
        quietly_trained(trainer)
        assert marks(trainer.result) == before
        assert vars(trainer.result.config).get("use_cache") is vars(model.config).get("use_cache") is None


@pytest.mark.parametrize("given", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}], ids=str)
def test_the_result_answers_as_what_is_saved(given, tmp_path):
    trainer = quietly_trained(unlearning.made("delete", max_steps=2, learning_rate=0.01, **given))
    trainer.save_model(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    x = unlearning.pictures(1, 24)
    with torch.no_grad():
        logits = loaded(pixel_values=x["pixel_values"]).logits
        assert torch.equal(trainer.result(pixel_values=x["pixel_values"]).logits, logits)
    record = loaded.config.erasures[-1]
    assert record["unchanged"] == (logits.argmax(1) == 1).double().mean().item()


@pytest.mark.parametrize("method", BOTH)
def test_a_compiled_model_is_refused_with_the_way_out(method):
    model = torch.compile(copy.deepcopy(learnt()), backend="eager")
    with pytest.raises(ModelError, match=r"`model\._orig_mod`"):
        TRAINERS[method](model, TRAINERS[method].arguments("x", use_cpu=True), forget_set())
