"""What ESC-T and the unlearning methods share: names, arguments, the seed, and runs that do or do not go on."""

import inspect
import re
import shutil
import warnings
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.errors import CheckpointError, ForgetSetError, IncompleteErasureWarning, ModelError, OptionError
from hf_esc.training.checkpoints import last_checkpoint, refuse_another_run
from hf_esc.training.forgetting_trainer import ForgettingTrainer
from hf_esc.unlearning import METHODS, DELETEArguments, DELETETrainer, UnlearningTrainer

from . import esc_t, unlearning
from .unlearning import forget_set, learnt, same

KEPT = {"per_device_train_batch_size": 8, "num_train_epochs": 4}
KEPT |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
TRAINERS = {"esc-t": ESCTTrainer, **METHODS}
MAKE = {"esc-t": lambda **given: esc_t.made(learnt(), forget_set(), **given), "delete": None}
MAKE["delete"] = lambda **given: unlearning.made("delete", **given)


def quietly_trained(trainer, resume=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train(resume)
    return trainer


def state(trainer) -> dict:
    """What was trained, of the model that came out."""
    return dict(trainer.result.state_dict())


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


# What a kill leaves of a checkpoint, by the file that was being written: how much of it is there, None if none.
CUT_OFF = {
    "the weights": ("mask.safetensors", "model.safetensors", 0.5),
    "the optimizer": ("optimizer.safetensors", "optimizer.safetensors", 0.9),
    "the last file": ("trainer_state.json", "trainer_state.json", 0.5),
    "before the last file": ("trainer_state.json", "trainer_state.json", None),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each method, and the folder with its second and fourth checkpoint."""
    found = {}
    for method, make in MAKE.items():
        folder = tmp_path_factory.mktemp(method)
        trainer = quietly_trained(make(output_dir=str(folder), **KEPT))
        for checkpoint in folder.glob("checkpoint-*"):
            if checkpoint.name not in ("checkpoint-2", "checkpoint-4"):
                shutil.rmtree(checkpoint)
        found[method] = trainer, folder
    return found


@pytest.mark.parametrize("what", CUT_OFF)
@pytest.mark.parametrize("method", MAKE)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(method, what, tmp_path, runs):
    whole, folder = runs[method]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mask, model, share = CUT_OFF[what]
    file = tmp_path / "checkpoint-4" / (mask if method == "esc-t" else model)
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    again = MAKE[method](output_dir=str(tmp_path), **KEPT)
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        again.train(str(file.parent))
    skipped = rf"goes on from .*checkpoint-2\. .* not whole: checkpoint-4 \(.*{re.escape(file.name)}"
    with pytest.warns(UserWarning, match=skipped):
        quietly_trained(again, True)
    assert same(state(again), state(whole))


def test_where_no_checkpoint_is_whole_each_is_said_to_lack_something(tmp_path):
    for step in (5, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("{")
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(CheckpointError, match=r"none is whole: checkpoint-20 \(trainer_state.json .* checkpoint-5 \("):
        last_checkpoint(tmp_path)
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-5" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1"}}')
    with pytest.raises(CheckpointError, match=r"checkpoint-5 \(it has no part-1\)"):
        last_checkpoint(tmp_path)


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
