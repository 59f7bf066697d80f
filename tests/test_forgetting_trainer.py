"""What ESC-T and the unlearning methods share: names, arguments, the seed, and runs that do or do not go on."""

import inspect
import re
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.errors import CheckpointError, ForgetSetError, ModelError, OptionError
from hf_esc.training.checkpoints import last_checkpoint, refuse_another_run
from hf_esc.training.forgetting_trainer import ForgettingTrainer
from hf_esc.unlearning import METHODS, DELETEArguments, DELETETrainer, UnlearningTrainer

from . import esc_t, unlearning
from .unlearning import forget_set, learnt

TRAINERS = {"esc-t": ESCTTrainer, **METHODS}
MAKE = {"esc-t": lambda **given: esc_t.made(learnt(), forget_set(), **given), "delete": None}
MAKE["delete"] = lambda **given: unlearning.made("delete", **given)


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


@pytest.mark.parametrize("method", MAKE)
def test_the_order_is_that_of_the_data_seed_or_else_of_the_seed(method):
    assert [MAKE[method](**seeds).order_seed for seeds in ({"seed": 3}, {"seed": 3, "data_seed": 5})] == [3, 5]


@pytest.mark.parametrize("method", MAKE)
def test_there_is_no_result_and_nothing_to_save_before_the_end(method, tmp_path):
    trainer = MAKE[method](output_dir=str(tmp_path))
    assert trainer.result is None
    with pytest.raises(ModelError, match=r"Nothing is erased yet, .* `train\(\)` has to end first"):
        trainer.save_model()
    trainer.create_model_card()
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .* to go on from"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("method", MAKE)
def test_a_run_cannot_change_what_its_ledger_says(method):
    trainer = MAKE[method]()
    settings = {name for name in trainer.settings() if name not in trainer.may_change}
    assert settings <= trainer.run().keys()
    assert trainer.run().keys() - settings == trainer.identity().keys()


def test_the_last_checkpoint_is_the_last_that_is_whole(tmp_path):
    for step, whole in ((5, True), (20, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_every_difference_between_two_runs_is_named():
    stored, own = {"tau": 0.7, "seed": 1, "gone": 2, "pair": [1, 2]}, {"tau": 0.8, "seed": 1, "new": 3, "pair": (1, 2)}
    with pytest.raises(CheckpointError) as raised:
        refuse_another_run(Path("checkpoint-5"), stored, own)
    assert "checkpoint-5 is of another run: tau was 0.7 and is 0.8, " in str(raised.value)
    assert "new was None and is 3" in str(raised.value)
    assert "gone was 2 and is None" in str(raised.value)
    assert "seed" not in str(raised.value)
    assert "pair" not in str(raised.value)
    refuse_another_run(Path("checkpoint-5"), {"pair": [1, 2]}, {"pair": (1, 2)})


def test_the_result_is_what_was_trained():
    trainer = unlearning.trained("delete", num_train_epochs=1)
    assert trainer.result is trainer.model
    masked = esc_t.trained(learnt(), forget_set(), num_train_epochs=50)
    assert masked.result is masked.erased_model
